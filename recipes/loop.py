"""Small tasks of gymnasium, learned in rounds (docs/how-to/gymnasium.md).

It stands behind `dreamer`: frames of 32 pixels, a small world, short clips, and an actor-critic
that is held to nothing that was recorded.
"""

from recipes import dreamer

PREPROCESS_GYM = {"resolution": 32}
DYNAMICS = {
    "num_eval_clips": 32,
    "model.deter_dim": 256,
    "model.num_groups": 16,
    "model.num_classes": 8,
    "model.hidden_dim": 128,
    "model.embed_dim": 256,
    "model.channels": 16,
    "model.clip_length": 16,
    **dreamer.SIZES["sharp"]["dynamics"],
    "train.steps": 250,
    "train.batch_size": 32,
    "train.learning_rate": 7e-4,
    "train.schedule": "constant",
    "train.warmup_steps": 50,
    "train.eval_every": 250,
    "train.save_every": 250,
    "train.precision": "fp32",
}
CONTROLLER = {
    "model.policy.hidden_dim": 128,
    "model.bc_weight": 0.0,
    "model.discount": 0.98,
    "model.entropy": 3e-3,
    "bc.steps": 100,
    "bc.batch_size": 256,
    "bc.eval_every": 100,
    "bc.save_every": 100,
    "train.steps": 100,
    "train.batch_size": 256,
    "train.learning_rate": 1e-3,
    "train.weight_decay": 0.0,
    "train.ema_decay": 0.9,
    "train.eval_every": 100,
    "train.save_every": 100,
    "train.precision": "fp32",
}

SIZES = {
    # where a reward is rare, such as one at the end of few episodes
    "sparse": {
        "dynamics": {"event_share": 0.5},
        "controller": {
            "min_reward": -1e9,  # whatever was recorded: hardly an episode has one
            "model.entropy": 1e-3,
            "train.steps": 200,
            "train.eval_every": 50,
        },
    },
}
