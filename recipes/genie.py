"""Push-T without its actions (Genie): a causal video tokenizer, latent actions, MaskGIT dynamics."""

from recipes import pusht

RUN = "runs/genie"

TOKENIZER = {"model": "st_vivit", "train.steps": 20000, "train.learning_rate": 1e-3}
DYNAMICS = {"model": "genie"}
EVALUATE = pusht.EVALUATE


def _blocks(name: str, dim: int, num_layers: int, num_heads: int, mlp_dim: int) -> dict[str, int]:
    """The size of a transformer of the model."""
    sizes = {"dim": dim, "num_layers": num_layers, "num_heads": num_heads, "mlp_dim": mlp_dim}
    return {f"model.{name}.{key}": value for key, value in sizes.items()}


SIZES = {
    "cpu": {
        "preprocess_pusht": pusht.PREPROCESS_CPU,
        "tokenizer": {
            "model.context": 1,
            "model.clip_length": 2,
            "train.steps": 950,
            "train.batch_size": 32,
            "train.learning_rate": 2e-3,
            "train.eval_every": 475,
            "train.save_every": 50,
        },
        "dynamics": {
            **_blocks("transformer", 128, 4, 4, 384),
            "model.transformer.context_frames": 4,
            "model.clip_length": 6,
            "train.steps": 1500,
            "train.batch_size": 16,
            "train.learning_rate": 2e-3,
            "train.eval_every": 500,
            "train.save_every": 50,
        },
        "evaluate": pusht.EVALUATE_CPU,
    },
    "debug": {
        "preprocess_pusht": pusht.PREPROCESS_DEBUG,
        "tokenizer": {
            **_blocks("encoder", 32, 1, 2, 64),
            **_blocks("decoder", 32, 1, 2, 64),
            "train.steps": 40,
            "train.batch_size": 4,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
        },
        "dynamics": {
            "num_eval_clips": 4,
            **_blocks("transformer", 32, 2, 2, 64),
            "model.latent_actions.channels": 8,
            "model.latent_actions.num_layers": 1,
            "model.transformer.context_frames": 3,
            "model.clip_length": 4,
            "model.sampling_steps": 2,
            "model.latent_actions.vq_start_step": 10,
            "train.steps": 40,
            "train.batch_size": 4,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
        },
        "play": pusht.PLAY_DEBUG,
        "evaluate": pusht.EVALUATE_DEBUG,
    },
}
