"""An RSSM over a tokenizer's latents; for a recipe with a tokenizer, and its size, before it."""

from recipes import dreamer

DYNAMICS = dreamer.DYNAMICS | {"model": "rssm_latents", "train.cuda_graph": False}
CONTROLLER = dreamer.CONTROLLER
# z of a frame is what it is of a goal, and a precise vector; what stands still predicts itself, and
# a goal 25 actions away is five states away
DYNAMICS_CPU = dreamer.DYNAMICS_CPU | {
    "model.absolute": True,
    "model.expect_posterior": True,
    "model.free_nats": 0.0,
    "model.residual_prior": True,
    "model.frameskip": 5,
    "model.overshooting": 5,
    "model.context_frames": 3,
    "model.clip_length": 31,
    "train.batch_size": 64,
    "train.steps": 4200,
    "train.eval_every": 1400,
}

SIZES = {
    "cpu": {"dynamics": DYNAMICS_CPU},
    "debug": {
        "dynamics": dreamer.DYNAMICS_STATE_DEBUG
        | dreamer.DYNAMICS_TRAIN_DEBUG
        | {"model.residual_prior": True, "model.frameskip": 2, "model.clip_length": 7}
    },
}
