"""An image world model (arXiv:2403.00504): views of images, predicted in latent space.

Stage 2 needs frames alone: still images, or any recordings.  With recorded actions, stage 3 trains
its predictor on, under these.
"""

from recipes import keypoints, pusht

RUN = "runs/images"
SOURCE = ("images", "PATH")

TOKENIZER_TRAIN = {
    "train.steps": 100_000,
    "train.batch_size": 256,
    "train.learning_rate": 1e-3,
    "train.weight_decay": 0.05,
    "train.eval_every": 5000,
}
TOKENIZER = {"model": "iwm", "model.whiten": True} | TOKENIZER_TRAIN
DYNAMICS = {"model": "iwm_dynamics", "train.learning_rate": 3e-4, "train.warmup_steps": 200}
TOKENIZER_PREDICTOR_CPU = {"model.predictor.dim": 96, "model.predictor.num_heads": 4}
DYNAMICS_CPU = TOKENIZER_PREDICTOR_CPU | {
    "model.clip_length": 11,
    "train.steps": 1500,
    "train.batch_size": 16,
    "train.learning_rate": 1e-3,
    "train.eval_every": 500,
    "train.save_every": 100,
    "train.cuda_graph": False,
}
DYNAMICS_DEBUG = {
    name: value
    for name, value in keypoints.DYNAMICS_DEBUG.items()
    if not name.startswith("model.transformer")
}
CONTROLLER = {"methods": ("bc", "goal_policy")}
EVALUATE = pusht.EVALUATE


def predictor(
    dim: int, num_layers: int, num_heads: int, **model: float
) -> dict[str, dict[str, int | float]]:
    """The sizes of the predictor, which stage 3 takes from stage 2; `model` is of stage 2 alone."""
    sizes: dict[str, int | float] = {
        "model.predictor.dim": dim,
        "model.predictor.num_layers": num_layers,
        "model.predictor.num_heads": num_heads,
    }
    return {
        "tokenizer": sizes | {f"model.{name}": value for name, value in model.items()},
        "dynamics": sizes,
    }


SIZES = {
    # ViT-B/16 at 224 pixels: 196 patches of 768 numbers
    "base": {
        "preprocess_images": {"resolution": 224},
        "tokenizer": {
            "model.image_size": (224, 224),
            "model.patch_size": 16,
            "model.encoder.dim": 768,
            "model.encoder.num_layers": 12,
            "model.encoder.num_heads": 12,
        },
    },
    # by the depth of the predictor; a shallow one alone makes no encoder invariant
    "core": predictor(384, 8, 12),
    "invariant": predictor(384, 4, 12, vicreg_weight=4.0),
    "equivariant": predictor(384, 16, 12),
    # half of the latents invariant, half equivariant
    "streams": {"tokenizer": {"model.invariant_share": 0.5}},
    "cpu": {
        "preprocess_images": {"crops": 64},
        "preprocess_pusht": pusht.PREPROCESS_CPU,
        # 38 minutes on one core; the size of the predictor's depth comes before this one
        "tokenizer": TOKENIZER_PREDICTOR_CPU
        | {
            "model.patch_size": 16,
            "model.ema_decay": 0.99,
            "model.pooled_weight": 1.0,
            "model.anchored": True,
            "model.ema_steps": 6000,
            "train.steps": 6000,
            "train.batch_size": 64,
            "train.eval_every": 1500,
            "train.save_every": 50,
        },
        "dynamics": DYNAMICS_CPU,
        "controller": pusht.CONTROLLER_CPU,
        "evaluate": pusht.EVALUATE_CPU,
    },
    # after "cpu", from its weights (--train.init-from RUN), 12 minutes on one core: the predictor
    # alone learns from all patches to all patches, as it is used
    "unmasked": {
        "tokenizer": {
            "model.visible": 1.0,
            "model.predicted": 1.0,
            "train.freeze": ("encoder.*",),
            "train.init_lr_scale": 1.0,
            "train.steps": 1500,
            "train.learning_rate": 3e-4,
            "train.warmup_steps": 50,
            "train.eval_every": 300,
        },
    },
    "debug": {
        "preprocess_images": {"crops": 8},
        "preprocess_pusht": pusht.PREPROCESS_DEBUG,
        "tokenizer": {
            "model.patch_size": 16,
            "model.encoder.dim": 24,
            "model.encoder.num_layers": 1,
            "model.encoder.num_heads": 2,
            "model.channels": 16,
            "model.num_res_blocks": 1,
            "model.ema_steps": 40,
            "train.steps": 40,
            "train.batch_size": 16,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
        }
        | predictor(24, 1, 2)["tokenizer"],
        "dynamics": DYNAMICS_DEBUG | predictor(24, 1, 2)["dynamics"] | {"model.action_dim": 24},
        "controller": pusht.CONTROLLER_DEBUG,
        "play": pusht.PLAY_DEBUG,
        "evaluate": pusht.EVALUATE_DEBUG,
    },
    "high_res": pusht.HIGH_RES | {"preprocess_images": {"resolution": 96}},
}
