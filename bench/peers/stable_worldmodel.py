"""The planner and the world model of stable-worldmodel 0.1.1 (LeWorldModel, arXiv:2603.19312).

Letters: N candidates, F frames, D width, A numbers of a block of actions.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

INSTALL = "--no-deps -r requirements-bench.txt"
DIM, HISTORY = 192, 3


def submodule(name: str) -> ModuleType:
    """Import `stable_worldmodel.name` from its installed file.  ImportError where it is missing.

    The packages above it are not executed: stable_worldmodel/__init__.py imports torchvision, which
    does not import with the CPU build of torch, and a store of datasets; a solver needs neither.
    """
    package = "stable_worldmodel"
    spec = sys.modules.get(package) or importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"{package} is not installed: pip install {INSTALL}")
    parts = f"{package}.{name}".split(".")
    for depth in range(1, len(parts)):
        path = ".".join(parts[:depth])
        if path not in sys.modules:
            found = importlib.util.find_spec(path)
            assert found is not None and found.submodule_search_locations is not None, path
            empty = ModuleType(path)
            empty.__path__ = list(found.submodule_search_locations)
            empty.__spec__ = found
            sys.modules[path] = empty
    return importlib.import_module(f"{package}.{name}")


def le_world_model(action_numbers: int) -> Any:
    """Build LeWorldModel without its encoder, at the size of the authors' config/train/model.

    action_numbers: A, numbers of an action block.  Its inputs are encoded already.
    """
    modules = submodule("wm.lewm.module")
    head = {"input_dim": DIM, "hidden_dim": 2048, "output_dim": DIM}
    model = submodule("wm.lewm.lewm").LeWM(
        encoder=nn.Identity(),
        predictor=modules.Predictor(
            num_frames=HISTORY, depth=6, heads=16, dim_head=64, mlp_dim=2048,
            input_dim=DIM, hidden_dim=DIM, output_dim=DIM, dropout=0.1,
        ),
        action_encoder=modules.Embedder(input_dim=action_numbers, emb_dim=DIM),
        pred_proj=modules.MLP(**head, norm_fn=nn.BatchNorm1d),
    )  # fmt: skip
    return model.eval()


def solver(
    model: Any,
    num_samples: int,
    iterations: int,
    topk: int,
    horizon: int,
    action_block: int,
    action_dim: int,
    device: torch.device,
) -> Any:
    """Build its CEM solver for one world, with `action_block` actions of `action_dim` numbers a
    step."""
    cem = submodule("solver.cem").CEMSolver(
        model, num_samples=num_samples, n_steps=iterations, topk=topk, device=device
    )
    cem.configure(
        action_space=Box(-1.0, 1.0, (1, action_dim), np.float32),
        n_envs=1,
        config=SimpleNamespace(horizon=horizon, action_block=action_block),
    )
    return cem


def solve(solver: Any, given: dict[str, Tensor]) -> Tensor:
    """Plan for one world: (horizon, A).  given: what `get_cost` reads, (1, ...) each."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its duration
        return solver.solve(dict(given))["actions"][0]


def encoded(now: Tensor, goal: Tensor) -> dict[str, Tensor]:
    """Return what LeWorldModel plans from, with encoded frames: now (F, D), goal (D,)."""
    # of the images it then reads their number alone
    pixels = torch.zeros(1, len(now), device=now.device)
    latents = {"emb": now[None], "goal_emb": goal[None, None]}
    return {"pixels": pixels, "goal": pixels, **latents}
