"""An image world model of recordings (arXiv:2403.00504): the next frame's latents, predicted under
the actions that lead to it, from stage 2 on.

Stage 3 trains the predictor on, over two frames and over its own predictions.
"""

from recipes import iwm, pusht

RUN = pusht.RUN
SOURCE = pusht.SOURCE

TOKENIZER = {"model": "iwm_actions"} | iwm.TOKENIZER_TRAIN
DYNAMICS = iwm.DYNAMICS
CONTROLLER = iwm.CONTROLLER
EVALUATE = pusht.EVALUATE

TOKENIZER_PREDICTOR_CPU = {
    "model.predictor.dim": 256,
    "model.predictor.num_layers": 4,
    "model.predictor.num_heads": 4,
}
TOKENIZER_PREDICTOR_DEBUG = {
    "model.predictor.dim": 24,
    "model.predictor.num_layers": 1,
    "model.predictor.num_heads": 2,
    "model.action_dim": 24,
}

SIZES = {
    "cpu": {
        "preprocess_pusht": pusht.PREPROCESS_CPU,
        "tokenizer": TOKENIZER_PREDICTOR_CPU
        | {
            "model.channels": 32,
            "model.num_res_blocks": 1,
            "train.steps": 1500,
            "train.batch_size": 64,
            "train.eval_every": 500,
            "train.save_every": 100,
        },
        "dynamics": iwm.DYNAMICS_CPU
        | TOKENIZER_PREDICTOR_CPU
        | {
            "model.clip_length": 16,
            "train.steps": 3000,
            "train.eval_every": 1000,
            "train.batch_size": 64,
        },
        "controller": pusht.CONTROLLER_CPU,
        # more plans, each for fewer actions: its error in five actions is over half of no change
        "evaluate": pusht.EVALUATE_CPU | {"receding_horizon": 10},
    },
    "debug": {
        "preprocess_pusht": pusht.PREPROCESS_DEBUG,
        "preprocess_gym": pusht.PREPROCESS_GYM_DEBUG,
        "tokenizer": TOKENIZER_PREDICTOR_DEBUG
        | {
            "model.patch_size": 16,
            "model.num_filters": 16,
            "model.latent_dim": 24,
            "model.channels": 16,
            "model.num_res_blocks": 1,
            "train.steps": 40,
            "train.batch_size": 16,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
        },
        "dynamics": iwm.DYNAMICS_DEBUG | TOKENIZER_PREDICTOR_DEBUG,
        "controller": pusht.CONTROLLER_DEBUG,
        "play": pusht.PLAY_DEBUG,
        "evaluate": pusht.EVALUATE_DEBUG,
    },
    "high_res": pusht.HIGH_RES,
}
