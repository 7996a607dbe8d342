"""An RSSM over a tokenizer's latents; for a recipe with a tokenizer, and its size, before it."""

from recipes import dreamer

DYNAMICS = dreamer.DYNAMICS | {"model": "rssm_latents", "train.cuda_graph": False}
CONTROLLER = dreamer.CONTROLLER
# z of a frame is what it is of a goal, and a precise vector
DYNAMICS_CPU = dreamer.DYNAMICS_CPU | {
    "model.absolute": True,
    "model.expect_posterior": True,
    "model.free_nats": 0.0,
    "train.steps": 6000,
    "train.eval_every": 2000,
}

SIZES = {
    "cpu": {"dynamics": DYNAMICS_CPU},
    "debug": {"dynamics": dreamer.DYNAMICS_STATE_DEBUG | dreamer.DYNAMICS_TRAIN_DEBUG},
}
