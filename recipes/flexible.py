"""Push-T as keypoints, and a causal language model of transformers as dynamics over them."""

from recipes import keypoints, pusht

RUN = pusht.RUN
SOURCE = pusht.SOURCE

TOKENIZER = keypoints.TOKENIZER
DYNAMICS = {
    "model": "language_model",
    "train.steps": 6000,
    "train.batch_size": 256,
    "train.learning_rate": 1.5e-3,
    "train.eval_every": 3000,
    "train.save_every": 500,
}
CONTROLLER = keypoints.CONTROLLER
EVALUATE = pusht.EVALUATE

DYNAMICS_CPU = {
    "train.steps": 5000,
    "train.batch_size": 128,
    "train.learning_rate": 1.5e-3,
    "train.eval_every": 1000,
    "train.save_every": 100,
}

SIZES = {
    "cpu": {
        "preprocess_pusht": pusht.PREPROCESS_CPU,
        "tokenizer": keypoints.TOKENIZER_CPU,
        "dynamics": DYNAMICS_CPU,
        "controller": pusht.CONTROLLER_CPU | keypoints.CONTROLLER_TASK_CPU,
        "evaluate": pusht.EVALUATE_CPU,
    },
    "debug": keypoints.SIZES["debug"],
    "high_res": pusht.HIGH_RES,
}
