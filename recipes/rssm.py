"""An RSSM over a tokenizer's latents; for a recipe with a tokenizer, and its size, before it."""

from recipes import dreamer

DYNAMICS = dreamer.DYNAMICS | {"model": "rssm_latents", "train.cuda_graph": False}
CONTROLLER = dreamer.CONTROLLER

SIZES = {
    "cpu": {"dynamics": dreamer.DYNAMICS_TRAIN_CPU},
    "debug": {"dynamics": dreamer.DYNAMICS_STATE_DEBUG | dreamer.DYNAMICS_TRAIN_DEBUG},
}
