"""Atari games as world models have them since DreamerV2: four frames a step, no sticky actions.

It changes how games are recorded, and stands behind the recipe of a system. ALE's own skip is
turned off, since a step's last two frames are put together here.
"""

SOURCE = ("gym", "--env", "ID")
PREPROCESS_GYM_KWARGS = ("frameskip=1", "repeat_action_probability=0.0", "full_action_space=false")
PREPROCESS_GYM = {
    "env_kwargs": PREPROCESS_GYM_KWARGS,
    "frame_skip": 4,
    "max_pool": True,
    "noop_max": 30,
}

SIZES = {
    "high_res": {
        "preprocess_gym": {"resolution": 128},
        "tokenizer": {"model.image_size": (128, 128)},
    },
    # of DQN and its line: brightness, and all 18 actions, so that games share one action space
    "gray84": {
        "preprocess_gym": {
            "resolution": 84,
            "grayscale": True,
            "env_kwargs": (*PREPROCESS_GYM_KWARGS[:2], "full_action_space=true"),
        },
    },
}
