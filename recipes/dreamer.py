"""Push-T as DreamerV3's RSSM (arXiv:2301.04104): encoder, dynamics and decoder trained together."""

from recipes import pusht

RUN = pusht.RUN

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
    "train.ema_decay": 0.99,
}
EVALUATE = pusht.EVALUATE

DYNAMICS_CPU = {
    "train.steps": 1500,
    "train.learning_rate": 1e-3,
    "train.warmup_steps": 50,
    "train.eval_every": 500,
    "train.save_every": 100,
}

SIZES = {
    "cpu": {
        "preprocess_pusht": pusht.PREPROCESS_CPU,
        "dynamics": DYNAMICS_CPU,
        "controller": pusht.CONTROLLER_CPU,
        "evaluate": pusht.EVALUATE_CPU,
    },
    "debug": {
        "preprocess_pusht": pusht.PREPROCESS_DEBUG,
        "dynamics": {
            "num_eval_clips": 4,
            "model.deter_dim": 32,
            "model.num_groups": 4,
            "model.num_classes": 4,
            "model.hidden_dim": 16,
            "model.num_blocks": 4,
            "model.embed_dim": 24,
            "model.channels": 8,
            "model.context_frames": 3,
            "model.clip_length": 6,
            "train.steps": 40,
            "train.batch_size": 4,
            "train.learning_rate": 1e-3,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
        },
        "controller": pusht.CONTROLLER_DEBUG,
        "play": pusht.PLAY_DEBUG,
        "evaluate": pusht.EVALUATE_DEBUG,
    },
}
