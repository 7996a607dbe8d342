"""Numbers that a client sends, as arrays of this run's sizes; what does not fit is refused.

Letters: k steps, P patches, D width, E numbers of z_cls, A action numbers.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence

import numpy as np

from pipeline.serve.refused import Refused
from pipeline.serve.run_spec import ActionsSpec, RunSpec

ASK = "GET /spec says what this run has"
LARGEST = 1e6  # of a latent's numbers, as service_messages.py says of lists
Vector = Sequence[float] | str
"""Numbers, or base64 of them."""


def check_spec(spec: RunSpec, claimed: str | None) -> None:
    """claimed: the spec that a client's latents are of, where it says so."""
    if claimed is not None and claimed != spec.latent_spec:
        raise Refused(
            409,
            f"X-Latent-Spec is another one than this run's, {spec.latent_spec}: its latents are of "
            f"another model; encode again",
        )


def latents_of(
    spec: RunSpec, z_cls: Vector | None, z_patches: Sequence[Vector] | None
) -> np.ndarray:
    """Return (P, D) where patches are given, else (E,); float32.

    Sizes of another run are another spec: 409.
    """
    pooled = None if z_cls is None else _numbers(z_cls, "z_cls")
    if pooled is not None and len(pooled) != spec.latent_dim:
        raise Refused(
            409, f"z_cls has {len(pooled)} numbers, and this run's {spec.latent_dim}; {ASK}"
        )
    if z_patches is None:
        if pooled is None:
            raise Refused(422, "neither z_cls nor z_patches is given")
        return _checked(spec, pooled, "z_cls")
    patches = [_numbers(row, "z_patches") for row in z_patches]
    rows = {len(row) for row in patches}
    if len(patches) != spec.num_patches or rows != {spec.dim}:
        found = f"{len(patches)} x {'/'.join(map(str, sorted(rows)[:3]))}"
        raise Refused(
            409, f"z_patches is {found}, and this run's are {spec.num_patches} x {spec.dim}; {ASK}"
        )
    return _checked(spec, np.stack(patches), "z_patches")


def _numbers(given: Vector, name: str) -> np.ndarray:
    """Read one vector: float32."""
    if not isinstance(given, str):
        return np.array(given, np.float32)
    try:
        return np.frombuffer(binascii.a2b_base64(given.encode("ascii"), strict_mode=True), "<f4")
    except ValueError:
        raise Refused(422, f"{name} has a string that is no base64 of float32 numbers") from None


def actions_of(spec: RunSpec, steps: Sequence[Sequence[float]], name: str) -> np.ndarray:
    """Return (k, A) float32, in the run's own units."""
    actions = spec.actions
    for step in steps:
        if actions.kind == "transformation":
            if len(step) > actions.size:
                raise Refused(
                    422, f"{name} has {len(step)} numbers, and a step at most {actions.size}"
                )
        elif len(step) != actions.size:
            kind = "1, a code" if actions.kind == "discrete" else str(actions.size)
            raise Refused(422, f"{name} has {len(step)} numbers, and a step of this run {kind}")
    filled = np.zeros((len(steps), actions.size), np.float32)
    for row, step in zip(filled, steps, strict=True):
        row[: len(step)] = step
    if actions.kind == "discrete" and not _are_codes(filled, actions.num_codes):
        raise Refused(422, f"{name} is no code from 0 to {actions.num_codes - 1}")
    if actions.kind == "transformation":
        _check_slots(actions, steps, name)
    if actions.kind == "continuous":
        low, high = (np.array(side, np.float32) for side in (actions.low, actions.high))
        if (filled < low).any() or (filled > high).any():
            raise Refused(
                422,
                f"{name} is outside of this run's actions, from {list(actions.low)} to "
                f"{list(actions.high)}",
            )
    return filled


def _check_slots(actions: ActionsSpec, steps: Sequence[Sequence[float]], name: str) -> None:
    for step in steps:
        for slot, value in enumerate(step):
            if not actions.low[slot] <= value <= actions.high[slot]:
                raise Refused(
                    422,
                    f"{name} has {value:g} in slot {slot}, and it goes from "
                    f"{actions.low[slot]:g} to {actions.high[slot]:g}; {ASK}",
                )


def _checked(spec: RunSpec, values: np.ndarray, name: str) -> np.ndarray:
    if not (np.abs(values) <= LARGEST).all():
        raise Refused(422, f"{name} has numbers beyond {LARGEST:g}, or that are not finite")
    if spec.kind == "discrete" and not _are_codes(values, spec.codebook_size):
        raise Refused(
            422, f"{name} has numbers that are no codes; they go from 0 to {spec.codebook_size - 1}"
        )
    return values


def _are_codes(values: np.ndarray, count: int) -> bool:
    return bool(((values >= 0) & (values < count) & (values == values.round())).all())
