"""Push-T as LeWorldModel's joint embedding (arXiv:2603.19312), and a predictor over it."""

from recipes import keypoints, pusht

RUN = pusht.RUN
SOURCE = pusht.SOURCE

TOKENIZER = {"model": "jepa"}
DYNAMICS = {"model": "predictor"}
CONTROLLER = {"methods": ("bc", "actor_critic", "goal_policy")}
EVALUATE = pusht.EVALUATE

TOKENIZER_CPU = {
    "model.conv_filters": 96,
    "model.proj_hidden": 512,
    "model.latent_dim": 64,
    "model.num_action_blocks": 2,
    "model.channels": 48,
    "model.num_slices": 256,
    "model.predictor.transformer.dim": 128,
    "model.predictor.transformer.num_layers": 3,
    "model.predictor.transformer.num_heads": 4,
    "model.predictor.transformer.mlp_dim": 384,
    "model.predictor.transformer.context_frames": 3,
    "model.predictor.transformer.dropout": 0.0,
    "train.steps": 5000,
    "train.batch_size": 64,
    "train.eval_every": 1000,
    "train.save_every": 200,
}

SIZES = {
    "cpu": {
        "preprocess_pusht": pusht.PREPROCESS_CPU,
        "tokenizer": TOKENIZER_CPU,
        "dynamics": keypoints.DYNAMICS_CPU,
        "controller": pusht.CONTROLLER_CPU,
        "evaluate": pusht.EVALUATE_CPU,
    },
    "cpu30": {
        "preprocess_pusht": pusht.PREPROCESS_CPU30,
        "tokenizer": TOKENIZER_CPU | {"train.steps": 10_000, "train.eval_every": 2000},
        "dynamics": keypoints.DYNAMICS_CPU | {"train.steps": 5400, "train.eval_every": 2700},
        "controller": pusht.CONTROLLER_CPU30,
        "evaluate": pusht.EVALUATE_CPU30,
    },
    "debug": {
        "preprocess_pusht": pusht.PREPROCESS_DEBUG,
        "preprocess_gym": pusht.PREPROCESS_GYM_DEBUG,
        "tokenizer": {
            "model.conv_filters": 16,
            "model.proj_hidden": 32,
            "model.latent_dim": 16,
            "model.channels": 16,
            "model.num_res_blocks": 1,
            "model.num_slices": 32,
            "model.predictor.transformer.dim": 24,
            "model.predictor.transformer.num_layers": 1,
            "model.predictor.transformer.num_heads": 2,
            "model.predictor.transformer.mlp_dim": 48,
            "model.predictor.transformer.context_frames": 3,
            "model.predictor.transformer.dropout": 0.0,
            "train.steps": 40,
            "train.batch_size": 16,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
        },
        "dynamics": keypoints.DYNAMICS_DEBUG,
        "controller": pusht.CONTROLLER_DEBUG,
        "play": pusht.PLAY_DEBUG,
        "evaluate": pusht.EVALUATE_DEBUG,
    },
    "high_res": pusht.HIGH_RES,
}
