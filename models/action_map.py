"""From latent actions to true ones and back, learned from few labeled steps (Genie,
arXiv:2402.15391, appendix E).

Letters: n labeled steps, B actions, C latent codes, L true codes, A numbers of a true action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.actions import ActionSpec

SHRINKAGE = 0.1  # share of a round covariance, which few labels do not determine alone


@dataclass(frozen=True)
class ActionMap:
    """What each latent code does in true actions.

    Of true codes it is a table of how often they went together. Of continuous actions it is their
    mean for each code, in [-1, 1] units, and one covariance around it. A true action that is a
    place (`pointer`) is taken relative to the agent's, as stable-worldmodel's Push-T has it.
    """

    latent: ActionSpec
    true: ActionSpec
    budget: int
    """Labeled steps that it was learned from."""
    counts: Tensor  # (C,) labeled steps of each code, or (C, L) of each pair
    means: Tensor  # (C, A); (C, 0) for true codes
    precision: Tensor  # (A, A), inverse of the covariance

    @property
    def needs_place(self) -> bool:
        """Actions are relative to the agent's place."""
        return self.true.pointer

    def to_true(self, codes: Tensor, places: Tensor | None = None) -> Tensor:
        """Latent codes (B,) to true actions, (B,) or (B, A), in the environment's units.

        places: (B, A) in these units, where `needs_place`. A code without labels is what all
        together are.
        """
        if self.true.kind == "discrete":
            labels = torch.where(
                self.counts.sum(1) > 0, self.counts.argmax(1), self.counts.sum(0).argmax()
            )
            return labels[codes.cpu()]
        actions = self.means[codes.cpu()]
        if self.needs_place:
            actions = actions + self._normalized(places)
        return self.true.denormalize(actions.clamp(-1, 1))

    def to_latent(self, actions: Tensor, places: Tensor | None = None) -> Tensor:
        """True actions, (B,) or (B, A), in the environment's units, to the likeliest codes (B,)."""
        if self.true.kind == "discrete":
            of_code = self.counts.sum(1)
            common = of_code.argmax()
            best = torch.where(self.counts.sum(0) > 0, self.counts.argmax(0), common)
            return best[actions.cpu()]
        relative = _relative(self.true, actions.cpu(), places)
        offset = relative[:, None] - self.means
        distance = torch.einsum("bca,ad,bcd->bc", offset, self.precision, offset)
        score = (self.counts / self.counts.sum()).log() - distance / 2  # -inf without labels
        return score.argmax(1)

    def _normalized(self, places: Tensor | None) -> Tensor:
        if places is None:
            raise ValueError("these actions are places, so the agent's own is needed to map them")
        return self.true.normalize(places.cpu().float())

    def as_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, for a file."""
        return {
            "latent": self.latent.as_dict(),
            "true": self.true.as_dict(),
            "budget": self.budget,
            "counts": self.counts,
            "means": self.means,
            "precision": self.precision,
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ActionMap:
        """Read what `as_dict` gave."""
        specs = {name: ActionSpec.from_dict(values[name]) for name in ("latent", "true")}
        return ActionMap(
            specs["latent"],
            specs["true"],
            values["budget"],
            values["counts"],
            values["means"],
            values["precision"],
        )


def fit_action_map(
    latent: ActionSpec,
    true: ActionSpec,
    codes: Tensor,
    actions: Tensor,
    places: Tensor | None = None,
) -> ActionMap:
    """Learn a map from n labeled steps: inferred codes (n,), true actions (n,) or (n, A), and where
    actions are places the agent's own, (n, A), all in the environment's units."""
    size = latent.size
    if true.kind == "discrete":
        counts = torch.zeros(size, true.size)
        counts.index_put_((codes, actions), torch.ones(len(codes)), accumulate=True)
        return ActionMap(latent, true, len(codes), counts, torch.zeros(size, 0), torch.zeros(0, 0))
    relative = _relative(true, actions, places)
    counts = torch.bincount(codes, minlength=size).float()
    sums = torch.zeros(size, relative.shape[1]).index_add_(0, codes, relative)
    overall = relative.mean(0)
    # a label or two say little of a code: half a label of what all together are
    means = torch.where(
        counts[:, None] > 0, (sums + overall / 2) / (counts[:, None] + 0.5), overall
    )
    rest = relative - means[codes]
    covariance = rest.mT @ rest / max(1, len(rest))
    width = covariance.diagonal().mean().clamp(min=1e-8)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * width * torch.eye(len(covariance))
    return ActionMap(latent, true, len(codes), counts, means, torch.linalg.inv(shrunk))


def _relative(true: ActionSpec, actions: Tensor, places: Tensor | None) -> Tensor:
    normalized = true.normalize(actions.float())
    if not true.pointer:
        return normalized
    if places is None:
        raise ValueError("these actions are places, so the agent's own is needed to map them")
    return normalized - true.normalize(places.cpu().float())
