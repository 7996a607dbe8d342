"""Push-T as patches of a frozen DINOv2 (DINO-WM, arXiv:2411.04983), and a predictor over them."""

from recipes import keypoints, pusht

RUN = pusht.RUN
SOURCE = pusht.SOURCE

TOKENIZER = {"model": "frozen_encoder"}
DYNAMICS = {"model": "predictor"}
CONTROLLER = {"methods": ("bc", "actor_critic", "goal_policy")}
EVALUATE = pusht.EVALUATE

TOKENIZER_CPU = {
    "model.input_size": 56,
    "train.steps": 3000,  # of the decoder: features are there
    "train.batch_size": 64,
    "train.eval_every": 1500,
    "train.save_every": 100,
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
        "tokenizer": TOKENIZER_CPU | {"train.steps": 6000, "train.eval_every": 3000},
        "dynamics": keypoints.DYNAMICS_CPU | {"train.steps": 5400, "train.eval_every": 2700},
        "controller": pusht.CONTROLLER_CPU30,
        "evaluate": pusht.EVALUATE_CPU30,
    },
    "debug": {
        "preprocess_pusht": pusht.PREPROCESS_DEBUG,
        "preprocess_gym": pusht.PREPROCESS_GYM_DEBUG,
        "tokenizer": {
            "model.channels": 16,
            "model.num_res_blocks": 1,
            "model.input_size": 28,
            "train.steps": 6,
            "train.batch_size": 4,
            "train.eval_every": 3,
            "train.save_every": 3,
            "train.warmup_steps": 2,
        },
        "dynamics": keypoints.DYNAMICS_DEBUG,
        "controller": pusht.CONTROLLER_DEBUG,
        "play": pusht.PLAY_DEBUG,
        "evaluate": pusht.EVALUATE_DEBUG,
    },
    "high_res": pusht.HIGH_RES,
}
