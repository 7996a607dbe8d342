"""The world model of sheeprl's DreamerV3 (the Nature version), version 0.8.4.

Letters: T frames, B clips, A action numbers.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor

from data.batch import Batch

INSTALL = "--no-deps -r requirements-bench.txt"
ALGORITHM = "sheeprl.algos.dreamer_v3_5"


def world_step(
    size: str, batch: Batch, image_size: tuple[int, int], precision: str
) -> tuple[Callable[[], None], int]:
    """Build a training step of its world model of `size`, such as 1M, on one batch, and count its
    parameters.  ImportError where sheeprl is not installed.

    Its actor and critic learn nothing here: the step is that of the world model alone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # imported by name: the core needs none of them
        hydra, omegaconf, fabric = (
            importlib.import_module(name) for name in ("hydra", "omegaconf", "lightning.fabric")
        )
        agent, training = (
            importlib.import_module(f"{ALGORITHM}.{name}") for name in ("agent", "dreamer_v3_5")
        )
        to_dict = importlib.import_module("sheeprl.utils.utils").dotdict
        config = _config(hydra, omegaconf, to_dict, size)
        device = batch.require("frames")[0].device
        fabric = fabric.Fabric(
            accelerator="cuda" if device.type == "cuda" else "cpu", devices=1,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )  # fmt: skip
        space = Dict({"rgb": Box(0, 255, (3, *image_size), np.uint8)})
        actions = batch.require("actions")[0].shape[-1]
        model = agent.build_agent(fabric, (actions,), True, config, space)[0]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    inputs = _inputs(batch, config)
    options = training.world_model_loss_kwargs(config) | {"entropies": False}

    def step() -> None:
        with fabric.autocast():
            loss = training.world_model_loss(model, *inputs, **options)[0]
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(p.numel() for p in model.parameters())


def _config(hydra: Any, omegaconf: Any, to_dict: Callable[[Any], Any], size: str) -> Any:
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        config = hydra.compose(
            "config",
            overrides=[
                "exp=dreamer_v3_5", f"algo=dreamer_v3_5_{size}", "env=dummy",
                "env.id=continuous_dummy", "algo.mlp_keys.encoder=[]",
                "algo.cnn_keys.encoder=[rgb]",
            ],
        )  # fmt: skip
    return to_dict(omegaconf.OmegaConf.to_container(config, resolve=True))


def _inputs(batch: Batch, config: Any) -> list[Any]:
    """What its loss reads, with time first."""
    frames, actions = batch.require("frames", "actions")
    rewards, continues = batch.require("rewards", "continues")
    actions, rewards, ended = (
        x.transpose(0, 1) for x in (actions, rewards[..., None], 1 - continues[..., None])
    )
    before = torch.cat([torch.zeros_like(actions[:1]), actions[:-1]])
    is_first = torch.zeros_like(rewards)
    is_first[0] = 1
    world = config.algo.world_model
    widths = world.recurrent_model.recurrent_state_size, world.stochastic_size * world.discrete_size
    h, z = (torch.zeros(1, len(frames), width, device=frames.device) for width in widths)
    images: dict[str, Tensor] = {"rgb": frames.transpose(0, 1).contiguous()}
    return [images, before, is_first, rewards, ended, h, z]
