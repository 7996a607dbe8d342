"""Whether ONNX graphs compute what the world does in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from models.controllers.goal_policy import GoalPolicy
from models.world import World
from pipeline.export.graphs import UNCHANGED
from pipeline.export.page_starts import PageStart, pack

LARGEST = 1e-3
"""Difference that is taken for the same: of latents and actions, which span 2, and of rewards."""
STEPS = 25


@dataclass
class Differences:
    """Largest absolute differences."""

    latents: float = 0.0
    """Over all steps of the rollouts; of codes the share that differs after one step."""
    reward: float = 0.0
    encode: float = 0.0
    """Of codes the share that differs."""
    policy: float = 0.0
    frame_mean: float = 0.0
    """Mean over a frame, whose values span 1."""
    frame_levels: float = 0.0
    """Of 255; one may be rounded otherwise."""

    def check(self) -> None:
        """ValueError for more than rounding."""
        for field in fields(self):
            value, limit = getattr(self, field.name), LARGEST
            if field.name == "frame_levels":
                limit = 1.0
            if not value <= limit:  # a NaN is no parity
                raise ValueError(
                    f"the exported {field.name} is {value:.2g} off PyTorch's, and {limit:g} is the "
                    f"most; --dtype fp32 stores all bits of the weights"
                )

    def note(self, name: str, ours: np.ndarray, theirs: Tensor) -> None:
        self._raise(name, np.abs(ours.astype(np.float64) - theirs.double().numpy()).max())

    def note_frame(self, ours: np.ndarray, theirs: Tensor) -> None:
        off = np.abs(ours.astype(np.float64) - theirs.double().numpy())
        self._raise("frame_mean", off.mean() / 255)
        self._raise("frame_levels", off.max())

    def _raise(self, name: str, value: float) -> None:
        before = getattr(self, name)
        if not (value <= before or math.isnan(before)):  # max() would lose a NaN
            setattr(self, name, float(value))


class Sessions:
    """The graphs in ONNX Runtime, on one thread."""

    def __init__(self, graphs: Mapping[str, bytes]) -> None:
        import onnxruntime  # type: ignore[import-not-found]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._sessions = {
            name: onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
            for name, content in graphs.items()
        }

    def __call__(self, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        session = self._sessions[name]
        outputs = [output.name for output in session.get_outputs()]
        values = map(np.asarray, session.run(None, inputs))
        return dict(zip(outputs, values, strict=True))


@torch.no_grad()
def compare(
    world: World, policy: GoalPolicy | None, graphs: Mapping[str, bytes], starts: list[PageStart]
) -> Differences:
    """Roll out from each start with its own actions, in both, and note what differs.

    Vectors are rolled out by the graphs alone.  A code that is on the edge to another one leads
    elsewhere, so each step over codes is from PyTorch's state.
    """
    run, found = Sessions(graphs), Differences()
    has_codes = world.latents.kind == "discrete"
    differ: dict[str, list[float]] = {"encode": [], "latents": []}  # codes

    def note_latents(name: str, ours: np.ndarray, theirs: Tensor) -> None:
        if has_codes:
            differ[name].append(float((ours != theirs.numpy()).mean()))
        else:
            found.note(name, ours, theirs)

    for start in starts:
        state, packed = start.state, {n: t.numpy() for n, t in start.packed.items()}
        note_latents("encode", run("encode", frame=start.frame)["latents"],
                     world.embed(torch.from_numpy(start.frame)))  # fmt: skip
        for action in start.actions[:STEPS]:
            state = world.step(state, action[None])
            given = world.actions.normalize(action[None]).numpy()
            after = run("step", **packed, action=given)
            packed = {name: after[f"next_{name}"] for name in packed}
            note_latents("latents", after["latents"], state.latents)
            found.note("reward", after["reward"], state.reward)
            drawn = {"latents": after["latents"]}
            if has_codes:
                packed = {name: tensor.numpy() for name, tensor in pack(world, state).items()}
                drawn = {"latents": state.latents.numpy(), UNCHANGED: packed[UNCHANGED]}
                drawn["residual"] = start.kept[1].numpy()
            found.note_frame(run("decode", **drawn)["frame"], world.decode(state))
        if policy is not None:
            last = torch.from_numpy(start.last_action)
            knot = run(
                "policy", latents=after["latents"], goal=start.goal, last_action=last.numpy()
            )
            found.note("policy", knot["knot"],
                       policy(state.latents, torch.from_numpy(start.goal), last))  # fmt: skip
    for name, shares in differ.items():
        if shares:
            found.note(name, np.array(np.mean(shares)), torch.tensor(0.0))
    found.check()
    return found
