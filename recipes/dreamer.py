"""Push-T as DreamerV3's RSSM (arXiv:2301.04104): encoder, dynamics and decoder trained together."""

from recipes import pusht

RUN = pusht.RUN
SOURCE = pusht.SOURCE

TOKENIZER = None  # there is no stage 2
DYNAMICS = {
    "model": "rssm",
    "train.steps": 20_000,
    "train.batch_size": 16,
    "train.learning_rate": 3e-4,
    "train.warmup_steps": 500,
    "train.max_grad_norm": 1000.0,
    "train.weight_decay": 0.0,
    "train.beta2": 0.999,
    "train.eval_every": 2000,
    "train.save_every": 500,
}
CONTROLLER = {"model": "dreamer"}
EVALUATE = pusht.EVALUATE

DYNAMICS_TRAIN_CPU = {
    "train.steps": 3000,
    "train.learning_rate": 1e-3,
    "train.warmup_steps": 50,
    "train.eval_every": 1000,
    "train.save_every": 100,
}
# many steps of short clips, a z without noise, and rollouts that are learned: what is drawn within
# minutes stays where it is for 16 steps
DYNAMICS_CPU = DYNAMICS_TRAIN_CPU | {
    "model.sample_posterior": False,
    "model.overshooting": 8,
    "model.first_frames": 4,
    "model.clip_length": 16,
    "train.steps": 9000,
    "train.eval_every": 2250,
}
# after "cpu": z holds all that its frame shows, and what an action moves counts more
DYNAMICS_ABSOLUTE = {
    "model.absolute": True,
    "model.expect_posterior": True,
    "model.free_nats": 0.0,
    "model.dynamics_weight": 0.1,
    "model.representation_weight": 0.01,
    "model.inverse_weight": 30.0,
    "model.changed_weight": 4.0,
    "train.steps": 4000,
    "train.eval_every": 2000,
}
DYNAMICS_STATE_DEBUG = {
    "num_eval_clips": 4,
    "model.deter_dim": 32,
    "model.num_groups": 4,
    "model.num_classes": 4,
    "model.hidden_dim": 16,
    "model.num_blocks": 4,
    "model.embed_dim": 24,
    "model.context_frames": 3,
    "model.clip_length": 6,
}
DYNAMICS_TRAIN_DEBUG = {
    "train.steps": 40,
    "train.batch_size": 4,
    "train.learning_rate": 1e-3,
    "train.eval_every": 20,
    "train.save_every": 10,
    "train.warmup_steps": 5,
}


def state(deter_dim: int, hidden_dim: int, num_classes: int, channels: int) -> dict[str, int]:
    """The sizes of a state, and of what makes it and draws it."""
    return {
        "model.deter_dim": deter_dim,
        "model.hidden_dim": hidden_dim,
        "model.num_classes": num_classes,
        "model.embed_dim": 2 * hidden_dim,
        "model.channels": channels,
    }


SIZES = {
    "cpu": {
        "preprocess_pusht": pusht.PREPROCESS_CPU,
        "dynamics": DYNAMICS_CPU,
        "controller": pusht.CONTROLLER_CPU,
        "evaluate": pusht.EVALUATE_CPU,
    },
    "cpu30": {
        "preprocess_pusht": pusht.PREPROCESS_CPU30,
        "dynamics": DYNAMICS_CPU | {"train.steps": 18_000, "train.eval_every": 4500},
        "controller": pusht.CONTROLLER_CPU30,
        "evaluate": pusht.EVALUATE_CPU30,
    },
    "debug": {
        "preprocess_pusht": pusht.PREPROCESS_DEBUG,
        "preprocess_gym": pusht.PREPROCESS_GYM_DEBUG,
        "dynamics": DYNAMICS_STATE_DEBUG | {"model.channels": 8} | DYNAMICS_TRAIN_DEBUG,
        "controller": pusht.CONTROLLER_DEBUG,
        "play": pusht.PLAY_DEBUG,
        "evaluate": pusht.EVALUATE_DEBUG,
    },
    "high_res": {"preprocess_pusht": {"resolution": 96}},
    # a tenth of the KL's weight: what covers few pixels is drawn, such as a ball
    "sharp": {"dynamics": {"model.dynamics_weight": 0.1, "model.representation_weight": 0.01}},
    "absolute": {"dynamics": DYNAMICS_ABSOLUTE},
    # by their parameters at 64 x 64 pixels; h, hidden layers and classes as DreamerV3's of the name
    "1m": {"dynamics": state(512, 64, 4, 8)},
    "4m": {"dynamics": state(1024, 128, 8, 24)},
    "12m": {"dynamics": state(2048, 256, 16, 32)},
    "25m": {"dynamics": state(3072, 384, 24, 32)},
    # 32 groups of 32 classes, and an h of 512
    "32x32": {"dynamics": state(512, 128, 32, 32)},
}
