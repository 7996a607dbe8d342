"""The settings of each recipe and size are those that were measured.

One file because it is one table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_recipes import RECIPES, configured


def value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


# Settings by hand, one line a preset.

TRAIN = (
    "train.steps", "train.batch_size", "train.learning_rate", "train.warmup_steps",
    "train.eval_every", "train.save_every", "train.cuda_graph",
)  # fmt: skip
TOKENIZERS = {
    "pusht": (20_000, 256, 1e-3, 50, 1000, 100, False),
    "pusht cpu": (950, 64, 1e-3, 50, 475, 100, False),
    "pusht cpu30": (1900, 64, 1e-3, 50, 950, 100, False),
    "pusht debug": (40, 16, 1e-3, 5, 20, 10, False),
    "pusht high_res": (20_000, 256, 1e-3, 50, 1000, 100, False),
    "keypoints": (3000, 256, 2.5e-3, 200, 1500, 500, True),
    "keypoints cpu": (1600, 32, 2e-3, 200, 800, 100, False),
    "keypoints cpu30": (2400, 64, 2.5e-3, 200, 1200, 100, False),
    "keypoints debug": (40, 16, 1e-3, 5, 20, 10, False),
    "keypoints high_res": (3000, 256, 2.5e-3, 200, 1500, 500, True),
    "lewm": (20_000, 256, 1e-3, 50, 1000, 100, False),
    "lewm cpu": (5000, 64, 1e-3, 50, 1000, 200, False),
    "lewm cpu30": (10_000, 64, 1e-3, 50, 2000, 200, False),
    "lewm debug": (40, 16, 1e-3, 5, 20, 10, False),
    "dinov2": (20_000, 256, 1e-3, 50, 1000, 100, False),
    "dinov2 cpu": (3000, 64, 1e-3, 50, 1500, 100, False),
    "dinov2 cpu30": (6000, 64, 1e-3, 50, 3000, 100, False),
    "dinov2 debug": (6, 4, 1e-3, 2, 3, 3, False),
    "iwm": (100_000, 256, 1e-3, 50, 5000, 100, False),
    "iwm cpu": (6000, 64, 1e-3, 50, 1500, 50, False),
    "iwm debug": (40, 16, 1e-3, 5, 20, 10, False),
    "iwm_actions": (100_000, 256, 1e-3, 50, 5000, 100, False),
    "iwm_actions cpu": (1500, 64, 1e-3, 50, 500, 100, False),
    "iwm_actions debug": (40, 16, 1e-3, 5, 20, 10, False),
    "minecraft": (20_000, 256, 1e-3, 50, 1000, 100, False),
    "minecraft 150m": (20_000, 256, 1e-3, 50, 1000, 100, False),
    "minecraft debug": (1000, 16, 2e-3, 50, 250, 100, False),
    "genie": (6000, 64, 1e-3, 50, 1000, 100, False),
    "genie cpu": (950, 32, 2e-3, 50, 475, 50, False),
    "genie debug": (40, 4, 1e-3, 5, 20, 10, False),
    "genie coinrun": (300_000, 48, 3e-4, 10_000, 10_000, 100, False),
    "flexible": (3000, 256, 2.5e-3, 200, 1500, 500, True),
    "flexible cpu": (1200, 64, 2.5e-3, 200, 600, 100, False),
    "flexible debug": (40, 16, 1e-3, 5, 20, 10, False),
}
DYNAMICS = {
    "pusht": (40_000, 64, 1e-3, 50, 2000, 100, False),
    "pusht cpu": (900, 16, 2e-3, 50, 450, 100, False),
    "pusht cpu30": (2700, 16, 2e-3, 50, 1350, 100, False),
    "pusht debug": (40, 4, 1e-3, 5, 20, 10, False),
    "keypoints": (6000, 256, 1.5e-3, 50, 3000, 500, True),
    "keypoints cpu": (600, 256, 2e-3, 50, 600, 100, False),
    "keypoints cpu30": (5400, 128, 1.5e-3, 50, 2700, 100, False),
    "keypoints debug": (40, 4, 1e-3, 5, 20, 10, False),
    "dreamer": (20_000, 16, 3e-4, 500, 2000, 500, False),
    "dreamer cpu": (9000, 16, 1e-3, 50, 2250, 100, False),
    "dreamer cpu30": (18_000, 16, 1e-3, 50, 4500, 100, False),
    "dreamer debug": (40, 4, 1e-3, 5, 20, 10, False),
    "dreamer 25m": (20_000, 16, 3e-4, 500, 2000, 500, False),
    "keypoints cpu rssm cpu": (4200, 64, 1e-3, 50, 1400, 100, False),
    "lewm": (40_000, 64, 1e-3, 50, 2000, 100, False),
    "lewm cpu": (1800, 128, 1.5e-3, 50, 900, 100, False),
    "lewm cpu30": (5400, 128, 1.5e-3, 50, 2700, 100, False),
    "lewm debug": (40, 4, 1e-3, 5, 20, 10, False),
    "dinov2": (40_000, 64, 1e-3, 50, 2000, 100, False),
    "dinov2 cpu": (1800, 128, 1.5e-3, 50, 900, 100, False),
    "dinov2 cpu30": (5400, 128, 1.5e-3, 50, 2700, 100, False),
    "dinov2 debug": (40, 4, 1e-3, 5, 20, 10, False),
    "iwm_actions cpu": (3000, 64, 1e-3, 200, 1000, 100, False),
    "minecraft": (100_000, 32, 3e-4, 50, 2000, 100, False),
    "minecraft 150m": (100_000, 32, 3e-4, 50, 2000, 100, False),
    "minecraft debug": (240, 16, 2e-3, 50, 80, 40, False),
    "genie": (8000, 64, 5e-4, 50, 1000, 100, False),
    "genie cpu": (4500, 8, 4e-3, 50, 2250, 50, False),
    "genie debug": (40, 4, 1e-3, 5, 20, 10, False),
    "genie coinrun": (200_000, 36, 3e-5, 5000, 10_000, 100, False),
    "genie cpu maskgit cpu": (3900, 8, 4e-3, 50, 2250, 50, False),
    "flexible": (6000, 256, 1.5e-3, 50, 3000, 500, False),
    "flexible cpu": (5000, 128, 1.5e-3, 50, 1000, 100, False),
    "flexible debug": (40, 4, 1e-3, 5, 20, 10, False),
}
SHAPE = (
    "model.transformer.dim", "model.transformer.num_layers", "model.transformer.num_heads",
    "model.transformer.mlp_dim", "model.transformer.context_frames", "model.transformer.dropout",
    "model.clip_length", "num_eval_clips",
)  # fmt: skip
SHAPES = {
    "pusht": (384, 8, 6, 1024, 4, 0.0, 8, 64),
    "pusht cpu": (128, 6, 2, 384, 3, 0.0, 6, 64),
    "pusht cpu30": (128, 6, 2, 384, 3, 0.0, 6, 64),
    "pusht debug": (32, 2, 2, 64, 3, 0.0, 4, 4),
    "keypoints": (192, 4, 6, 512, 3, 0.0, 21, 64),
    "keypoints cpu": (192, 4, 6, 512, 3, 0.0, 21, 64),
    "keypoints cpu30": (192, 4, 6, 512, 3, 0.0, 21, 64),
    "keypoints debug": (32, 2, 2, 64, 2, 0.0, 7, 4),
    "lewm": (192, 6, 6, 512, 3, 0.1, 21, 64),
    "lewm cpu": (192, 4, 6, 512, 3, 0.0, 21, 64),
    "lewm debug": (32, 2, 2, 64, 2, 0.1, 7, 4),
    "dinov2": (192, 6, 6, 512, 3, 0.1, 21, 64),
    "dinov2 cpu": (192, 4, 6, 512, 3, 0.0, 21, 64),
    "dinov2 debug": (32, 2, 2, 64, 2, 0.1, 7, 4),
    "minecraft": (576, 24, 9, 1536, 8, 0.0, 12, 64),
    "minecraft 150m": (576, 24, 9, 2816, 8, 0.0, 12, 64),
    "minecraft debug": (128, 4, 2, 384, 3, 0.0, 5, 32),
    "flexible": (192, 4, 6, 512, 3, 0.0, 21, 64),
    "flexible cpu": (192, 4, 6, 512, 3, 0.0, 21, 64),
    "flexible debug": (32, 2, 2, 64, 2, 0.0, 7, 4),
}
# bc, the actor-critic and the goal policy: steps, batch size, validation, checkpoint
CONTROLLER = tuple(
    f"{train}.{name}"
    for train in ("bc", "train", "goal_policy_train")
    for name in ("steps", "batch_size", "eval_every", "save_every")
)
LARGE_RL = (5000, 512, 500, 100)
CPU_BC, CPU_RL, CPU_GOALS = (700, 256, 100, 100), (40, 48, 20, 20), (300, 256, 100, 50)
DEMO_GOALS = (300, 128, 100, 50)
CPU30_GOALS = (6000, 256, 1000, 50)
DEBUG = (*(20, 16, 10, 5), *(4, 4, 2, 1), *(4, 4, 2, 1))
CONTROLLERS = {
    "pusht": (20_000, 512, 1000, 100, *LARGE_RL, 10_000, 256, 1000, 100),
    "pusht cpu": (*CPU_BC, *CPU_RL, *CPU_GOALS),
    "pusht cpu30": (*CPU_BC, *CPU_RL, *CPU30_GOALS),
    "pusht debug": DEBUG,
    "keypoints": (2000, 512, 500, 500, 300, 512, 100, 100, 10_000, 256, 1000, 500),
    "keypoints cpu": (*CPU_BC, *CPU_RL, *DEMO_GOALS),
    "keypoints cpu30": (*CPU_BC, *CPU_RL, *CPU30_GOALS),
    "keypoints debug": DEBUG,
    "dreamer": (20_000, 512, 1000, 100, *LARGE_RL, 10_000, 256, 1000, 100),
    "dreamer cpu": (*CPU_BC, *CPU_RL, *CPU_GOALS),
    "dreamer cpu30": (*CPU_BC, *CPU_RL, *CPU30_GOALS),
    "dreamer debug": DEBUG,
    "lewm": (20_000, 512, 1000, 100, *LARGE_RL, 10_000, 256, 1000, 100),
    "lewm cpu": (*CPU_BC, *CPU_RL, *CPU_GOALS),
    "lewm cpu30": (*CPU_BC, *CPU_RL, *CPU30_GOALS),
    "lewm debug": DEBUG,
    "dinov2": (20_000, 512, 1000, 100, *LARGE_RL, 10_000, 256, 1000, 100),
    "dinov2 cpu": (*CPU_BC, *CPU_RL, *CPU_GOALS),
    "dinov2 cpu30": (*CPU_BC, *CPU_RL, *CPU30_GOALS),
    "dinov2 debug": DEBUG,
    "minecraft": (20_000, 512, 1000, 100, *LARGE_RL, 10_000, 64, 1000, 100),
    "minecraft 150m": (20_000, 512, 1000, 100, *LARGE_RL, 10_000, 64, 1000, 100),
    "minecraft debug": (60, 64, 10, 100, *LARGE_RL, 20, 8, 10, 10),
}
EVALUATION = (
    "estimator_steps", "idm_steps", "goal_pairs", "pair_seeds", "oracle_pairs", "oracle_samples",
    "oracle_iterations", "planner.num_samples", "planner.iterations", "planner.num_elites",
)  # fmt: skip
FULL_EVALUATION = (400, 3000, 500, (0, 1, 2), 50, 300, 8, 300, 30, 30)
CPU_EVALUATION = (250, 900, 30, (0,), 30, 48, 4, 200, 10, 20)
EVALUATIONS = {
    **{recipe: FULL_EVALUATION for recipe in RECIPES},
    **{f"{recipe} cpu": CPU_EVALUATION for recipe in RECIPES[:5]},
    **{
        f"{recipe} cpu30": (250, 900, 100, (0, 1, 2), 30, 48, 4, 200, 10, 20)
        for recipe in RECIPES[:5]
    },
    "iwm cpu": CPU_EVALUATION,
    "iwm_actions cpu": CPU_EVALUATION,
    "flexible cpu": CPU_EVALUATION,
    **{f"{recipe} debug": (4, 4, 2, (0,), 2, 4, 2, 4, 2, 2) for recipe in RECIPES[:5]},
    "minecraft debug": (400, 150, 500, (0, 1, 2), 50, 300, 8, 300, 30, 30),
}
TABLES = {
    "tokenizer": [(TRAIN, TOKENIZERS)],
    "dynamics": [(TRAIN, DYNAMICS), (SHAPE, SHAPES)],
    "controller": [(CONTROLLER, CONTROLLERS)],
    "evaluate": [(EVALUATION, EVALUATIONS)],
}


@pytest.mark.parametrize(
    ("stage", "keys", "preset", "expected"),
    [
        (stage, keys, preset, expected)
        for stage, tables in TABLES.items()
        for keys, table in tables
        for preset, expected in table.items()
    ],
)
def test_steps_batches_and_widths(
    stage: str, keys: tuple[str, ...], preset: str, expected: tuple[Any, ...]
):
    config = configured(stage, *preset.split())
    assert {key: value(config, key) for key in keys} == dict(zip(keys, expected, strict=True))


HORIZONS = (1, 2, 3, 4, 6, 8, 12, 16)
OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    ("preprocess_pusht", "pusht", {"run": Path("runs/pusht"), "episodes": 2000, "resolution": 64}),
    ("preprocess_pusht", "keypoints cpu", {"episodes": 480, "resolution": 64, "perturb": 0}),
    ("preprocess_pusht", "lewm cpu30", {"episodes": 960}),
    ("preprocess_pusht", "dinov2 debug", {"episodes": 6}),
    ("preprocess_pusht", "keypoints cpu high_res", {"episodes": 480, "resolution": 96}),
    ("preprocess_vpt", "minecraft", {"run": Path("runs/minecraft"), "frame_format.resolution": 64}),
    ("preprocess_vpt", "minecraft high_res", {"frame_format.resolution": 128}),
    ("preprocess_vpt", "minecraft debug", {"num_recordings": 10, "frame_format.resolution": 64}),
    ("preprocess_gym", "pusht", {"frame_skip": 1, "resolution": 64, "env_kwargs": ()}),
    ("preprocess_gym", "dreamer debug", {"default_episodes": 6, "resolution": 64}),
    ("preprocess_gym", "dreamer loop", {"default_episodes": 100, "resolution": 32}),
    ("preprocess_gym", "pusht atari", {
        "run": Path("runs/pusht"), "resolution": 64, "frame_skip": 4, "max_pool": True,
        "noop_max": 30, "grayscale": False, "env_kwargs": (
            "frameskip=1", "repeat_action_probability=0.0", "full_action_space=false",
        ),
    }),
    ("preprocess_gym", "atari high_res", {"resolution": 128, "frame_skip": 4}),
    ("preprocess_gym", "atari gray84", {
        "resolution": 84, "grayscale": True, "frame_skip": 4, "env_kwargs": (
            "frameskip=1", "repeat_action_probability=0.0", "full_action_space=true",
        ),
    }),
    ("tokenizer", "pusht cpu atari high_res", {
        "model.image_size": (128, 128), "model.num_res_blocks": 1,
    }),
    ("tokenizer", "pusht", {
        "run": Path("runs/pusht"), "model.image_size": (64, 64), "model.downsample": 8,
        "model.patch_size": 4, "model.encoder_kernel": 1, "model.channels": 256,
        "model.num_res_blocks": 2, "model.num_codebooks": 4, "model.codebook_size": 256,
        "model.latent_dim": 32, "model.vq_start_step": 150,
    }),
    ("tokenizer", "pusht cpu", {"model.num_res_blocks": 1, "model.channels": 256}),
    ("tokenizer", "pusht debug", {
        "model.channels": 32, "model.codebook_size": 64, "model.latent_dim": 8,
        "model.num_res_blocks": 1, "model.vq_start_step": 10,
    }),
    ("tokenizer", "pusht high_res", {"model.image_size": (96, 96)}),
    ("tokenizer", "keypoints", {"model.num_keypoints": 32, "model.channels": 48}),
    ("tokenizer", "keypoints debug", {
        "model.num_keypoints": 4, "model.channels": 16, "model.num_res_blocks": 1,
    }),
    ("tokenizer", "keypoints high_res", {"model.image_size": (96, 96)}),
    ("dynamics", "keypoints cpu", {"train.optimizer": "muon"}),
    ("dynamics", "keypoints cpu high_res", {"train.optimizer": "muon"}),
    # what comes after it was measured with another
    ("dynamics", "keypoints", {"train.optimizer": "adamw"}),
    ("dynamics", "keypoints cpu cpu30", {"train.optimizer": "adamw"}),
    ("dynamics", "keypoints cpu rssm cpu", {"train.optimizer": "adamw"}),
    ("dynamics", "keypoints cpu dinov2 cpu", {"train.optimizer": "adamw"}),
    ("tokenizer", "lewm", {
        "model.conv_filters": 0, "model.encoder.num_layers": 12, "model.encoder.dim": 192,
        "model.latent_dim": 192, "model.predictor.transformer.num_layers": 6,
        "model.predictor.rewards": False,
    }),
    ("tokenizer", "lewm cpu", {
        "model.conv_filters": 96, "model.proj_hidden": 512, "model.latent_dim": 64,
        "model.num_action_blocks": 2, "model.channels": 48, "model.num_slices": 256,
        "model.predictor.transformer.dim": 128, "model.predictor.transformer.num_layers": 3,
        "model.predictor.transformer.num_heads": 4, "model.predictor.transformer.mlp_dim": 384,
        "model.predictor.transformer.context_frames": 3,
        "model.predictor.transformer.dropout": 0.0, "model.predictor.rewards": False,
    }),
    ("tokenizer", "lewm debug", {
        "model.conv_filters": 16, "model.proj_hidden": 32, "model.latent_dim": 16,
        "model.num_action_blocks": 3, "model.channels": 16, "model.num_res_blocks": 1,
        "model.num_slices": 32, "model.predictor.transformer.dim": 24,
        "model.predictor.transformer.num_layers": 1, "model.predictor.transformer.mlp_dim": 48,
        "model.predictor.transformer.dropout": 0.0,
    }),
    ("tokenizer", "dinov2", {"model.pretrained": "facebook/dinov2-small", "model.input_size": 112}),
    ("tokenizer", "iwm invariant", {"model.predictor.num_layers": 4, "model.vicreg_weight": 4.0}),
    ("tokenizer", "iwm equivariant", {"model.predictor.num_layers": 16}),
    ("dynamics", "iwm equivariant", {"model.predictor.num_layers": 16}),
    ("tokenizer", "iwm streams", {"model.invariant_share": 0.5}),
    ("tokenizer", "iwm equivariant cpu unmasked", {
        "model.visible": 1.0, "model.predictor.num_layers": 16, "train.freeze": ("encoder.*",),
    }),
    ("tokenizer", "iwm base", {"model.image_size": (224, 224), "model.encoder.dim": 768}),
    ("tokenizer", "dinov2 cpu", {"model.input_size": 56, "model.channels": 128}),
    ("tokenizer", "dinov2 debug", {
        "model.input_size": 28, "model.channels": 16, "model.num_res_blocks": 1,
    }),
    ("tokenizer", "minecraft", {
        "run": Path("runs/minecraft"), "model.downsample": 4, "model.patch_size": 2,
        "model.encoder_kernel": 3, "model.num_codebooks": 1, "model.codebook_size": 1024,
        "model.latent_dim": 256,
    }),
    ("tokenizer", "minecraft high_res", {
        "model.image_size": (128, 128), "model.downsample": 8, "model.patch_size": 4,
        "model.codebook_size": 1024,
    }),
    ("tokenizer", "minecraft debug", {
        "model.downsample": 8, "model.patch_size": 8, "model.encoder_kernel": 1,
        "model.channels": 192, "model.num_codebooks": 8, "model.codebook_size": 256,
        "model.latent_dim": 64, "model.vq_start_step": 60,
    }),
    ("dynamics", "pusht", {"model.decoding": "parallel", "model.changed_token_weight": 5.0}),
    ("dynamics", "pusht autoregressive", {
        "model.decoding": "autoregressive", "model.transformer.dim": 384,
    }),
    ("dynamics", "keypoints", {"model.frameskip": 5, "model.rollout_weight": 1.0}),
    ("dynamics", "keypoints debug", {"model.frameskip": 2}),
    ("dynamics", "dreamer", {
        "model.deter_dim": 512, "model.num_groups": 32, "model.num_classes": 16,
        "model.dynamics_weight": 1.0, "model.representation_weight": 0.1, "model.free_nats": 1.0,
        "model.clip_length": 32, "train.max_grad_norm": 1000.0,
    }),
    ("dynamics", "dreamer cpu sharp", {
        "model.dynamics_weight": 0.1, "model.representation_weight": 0.01, "train.steps": 9000,
    }),
    ("dynamics", "dreamer loop", {
        "model.deter_dim": 256, "model.clip_length": 16, "model.dynamics_weight": 0.1,
        "train.precision": "fp32", "train.schedule": "constant",
    }),
    ("controller", "dreamer loop", {
        "model.bc_weight": 0.0, "model.discount": 0.98, "model.policy.num_modes": 1,
    }),
    ("dynamics", "dreamer loop sparse", {"event_share": 0.5, "train.steps": 250}),
    ("controller", "dreamer loop sparse", {
        "min_reward": -1e9, "model.entropy": 1e-3, "train.steps": 200,
    }),
    ("dynamics", "dreamer cpu", {
        "model.sample_posterior": False, "model.representation_weight": 0.1,
        "model.overshooting": 8, "model.first_frames": 4, "model.clip_length": 16,
    }),
    ("dynamics", "dreamer 1m", {"model.deter_dim": 512, "model.num_classes": 4}),
    ("dynamics", "dreamer 4m", {"model.deter_dim": 1024, "model.num_classes": 8}),
    ("dynamics", "dreamer 12m", {"model.deter_dim": 2048, "model.num_classes": 16}),
    ("dynamics", "dreamer 25m", {"model.deter_dim": 3072, "model.num_classes": 24}),
    ("dynamics", "dreamer 32x32", {
        "model.deter_dim": 512, "model.num_groups": 32, "model.num_classes": 32,
    }),
    ("dynamics", "dreamer debug", {"model.deter_dim": 32, "model.clip_length": 6}),
    ("dynamics", "keypoints cpu rssm cpu", {
        "model.residual_prior": True, "model.frameskip": 5, "model.overshooting": 5,
        "model.context_frames": 3, "model.clip_length": 31,
        "model.absolute": True, "model.expect_posterior": True, "model.free_nats": 0.0,
    }),
    ("dynamics", "keypoints debug rssm debug", {"model.frameskip": 2, "model.clip_length": 7}),
    ("controller", "dreamer", {
        "model.horizon": 15, "model.lam": 0.95, "model.entropy": 3e-4, "model.bc_weight": 0.1,
        "model.actor_gradient": "reinforce", "model.temperature": 1.0,
    }),
    ("dynamics", "minecraft", {
        "run": Path("runs/minecraft"), "model.changed_token_weight": 1.0,
        "model.transformer.activation_checkpointing": True, "train.grad_accum_steps": 4,
    }),
    ("dynamics", "minecraft autoregressive", {
        "model.decoding": "autoregressive", "model.changed_token_weight": 1.0,
    }),
    ("dynamics", "minecraft debug", {
        "model.transformer.activation_checkpointing": False, "train.grad_accum_steps": 1,
    }),
    ("controller", "pusht", {
        "methods": ("bc", "actor_critic"), "min_reward": 0.7, "train.learning_rate": 1e-4,
        "bc.learning_rate": 5e-4, "goal_policy_train.learning_rate": 1e-3,
        "goal_policy_train.cuda_graph": False, "goal_policy.max_goal_offset": 40,
    }),
    ("controller", "keypoints", {
        "methods": ("goal_policy", "bc", "actor_critic", "task_cost", "flow_policy"),
        "min_reward": 0.7, "flow_min_reward": 0.9,
        "goal_policy_train.cuda_graph": True, "goal_policy_train.compile": "no",
    }),
    ("controller", "keypoints cpu", {
        "bc.learning_rate": 1e-3, "train.warmup_steps": 10, "train.log_every": 5,
        "goal_policy_train.cuda_graph": False, "goal_policy_train.compile": "no",
        "num_processes": 2,
    }),
    ("controller", "keypoints cpu30", {
        "bc.learning_rate": 1e-3, "train.warmup_steps": 10, "train.log_every": 5,
        "goal_policy_train.cuda_graph": False, "goal_policy_train.compile": "auto",
    }),
    ("controller", "keypoints debug", {
        "min_reward": 0.1, "goal_policy.max_goal_offset": 10,
        "goal_policy_train.cuda_graph": False,
    }),
    ("controller", "lewm", {"methods": ("bc", "actor_critic", "goal_policy")}),
    ("controller", "dinov2", {"methods": ("bc", "actor_critic", "goal_policy")}),
    ("controller", "minecraft", {
        "run": Path("runs/minecraft"), "methods": ("bc", "goal_policy"), "min_reward": 0.7,
        "goal_policy_train.learning_rate": 3e-4, "goal_policy.goal_offset": 8,
    }),
    ("controller", "minecraft debug", {
        "bc.learning_rate": 5e-4, "bc.warmup_steps": 10, "goal_policy_train.warmup_steps": 5,
        "goal_policy_train.learning_rate": 3e-4,
    }),
    ("controller", "keypoints cpu value_gradients", {
        "methods": ("actor_critic",), "model.rewards": "task_cost",
        "model.actor_gradient": "dynamics", "model.policy.num_modes": 5, "train.steps": 500,
        "train.batch_size": 128, "train.learning_rate": 3e-4, "task_cost_train.steps": 2000,
    }),
    ("play", "keypoints cpu", {"run": Path("runs/pusht"), "fps": 10.0, "steps": 100, "size": 0}),
    ("play", "keypoints debug", {"fps": 10.0, "steps": 12, "size": 128}),
    ("play", "minecraft", {"run": Path("runs/minecraft"), "fps": 20.0, "steps": 100}),
    ("play", "minecraft debug", {"fps": 20.0, "steps": 12, "size": 128}),
    ("evaluate", "pusht", {"run": Path("runs/pusht"), "horizons": (*HORIZONS, 25)}),
    ("evaluate", "keypoints", {
        "horizons": (*HORIZONS, 25), "num_clips": 256, "task_episodes": 500, "task_max_steps": 300,
        "search_episodes": 100, "oracle_episodes": 4, "task_seed": 100_000,
        "task_planner.num_samples": 128, "task_planner.running_weight": 0.5,
        "task_receding_horizon": 5, "task_patience": 8,
        "imitation_frames": 4000, "num_videos": 4, "play_frames": 120, "receding_horizon": 25,
        "prior_receding_horizon": 10, "planner.warm_start_iterations": 5,
    }),
    ("evaluate", "keypoints cpu", {
        "horizons": HORIZONS, "num_clips": 256, "task_episodes": 50, "search_episodes": 0,
        "oracle_episodes": 0, "task_planner.num_samples": 128, "num_processes": 2,
    }),
    ("evaluate", "keypoints cpu30", {
        "horizons": HORIZONS, "task_episodes": 100, "search_episodes": 12, "num_processes": 2,
    }),
    ("evaluate", "keypoints debug", {
        "horizons": (1, 2, 4), "num_clips": 8, "imitation_frames": 32, "num_videos": 1,
        "play_frames": 10, "task_episodes": 2, "task_max_steps": 6,
        "search_episodes": 2, "oracle_episodes": 1, "task_planner.num_samples": 4,
    }),
    ("evaluate", "minecraft", {
        "run": Path("runs/minecraft"), "horizons": (1, 2, 4, 8, 12, 16, 24, 32), "num_clips": 256,
    }),
    ("evaluate", "minecraft debug", {
        "horizons": (1, 2, 4, 8, 16), "num_clips": 48, "num_videos": 2, "play_frames": 60,
    }),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "preset", "expected"), OTHERS, ids=[f"{row[0]} {row[1]}" for row in OTHERS]
)
def test_the_other_settings(stage: str, preset: str, expected: dict[str, Any]):
    config = configured(stage, *preset.split())
    assert {key: value(config, key) for key in expected} == expected
