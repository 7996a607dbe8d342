"""Colors of things that move on their own, told apart by the first changes that are seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALL_SHARE = 0.05  # of the change: a component below it may be noise, which is steadiest of all
SMALLEST = 1e-6  # variance of a direction, as a share of the largest: what is not there stays small
NUM_STARTS = 8
ROUNDS, SETTLED = 100, 1e-7  # of the fixed point, at most; change of a direction at which it ends


class IndependentComponents(nn.Module):
    """A linear map of vectors to components of variance 1 that depend on each other least
    (FastICA, Hyvarinen 1999, with its Gaussian contrast).

    Vectors come in groups. The components are ordered by how steady they are, so that one which
    varies in most groups comes before one that varies a lot in few; those of a small share of the
    variance come last. Before `fit` vectors are passed as they are.
    """

    matrix: Tensor
    groups: Tensor
    count: Tensor
    fitted: Tensor

    def __init__(self, channels: int, num_groups: int = 512, group_size: int = 64) -> None:
        """num_groups: after which it is `full`; group_size: vectors that are kept of each."""
        super().__init__()
        self.register_buffer("matrix", torch.eye(channels))
        self.register_buffer("groups", torch.zeros(num_groups, group_size, channels))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._known = False
        self._pending: list[Tensor] = []  # of each micro-batch

    @property
    def known(self) -> bool:
        """It is fitted.  A Python value once it is True, since reading one waits for a GPU."""
        self._known = self._known or bool(self.fitted)
        return self._known

    @property
    def full(self) -> bool:
        return int(self.count) == len(self.groups)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., C) -> (..., C), the steadiest first."""
        return vectors @ self.matrix

    def collect(self, groups: Tensor) -> None:
        """groups: (R, P, C), of one micro-batch; the longest vectors of each are kept."""
        if not self.known:
            size = min(self.groups.shape[1], groups.shape[1])
            groups = groups.detach().float()
            largest = groups.square().sum(-1).topk(size, dim=1).indices
            kept = groups.gather(1, largest[..., None].expand(-1, -1, groups.shape[2]))
            self._pending.append(nn.functional.pad(kept, (0, 0, 0, self.groups.shape[1] - size)))

    def forget(self) -> None:
        """What was collected since `keep`."""
        self._pending = []

    def keep(self) -> None:
        """What was collected, until it is full."""
        start = int(self.count)
        for groups in self._pending:
            kept = groups[: len(self.groups) - start]
            self.groups[start : start + len(kept)] = kept
            start += len(kept)
        self.count.fill_(start)
        self._pending = []

    def fit(self) -> None:
        """To what was kept; where nothing varies, vectors stay as they are."""
        groups = self.groups[: int(self.count)].cpu().double()  # some devices have no float64
        self.fitted.fill_(True)
        if groups.any():
            self.matrix.copy_(independent_components(groups))


def independent_components(groups: Tensor) -> Tensor:
    """(R, P, C) of mean zero -> (C, C): vectors @ it are the components, in their order."""
    samples = groups.flatten(0, 1)
    variances, directions = torch.linalg.eigh(samples.mT @ samples / len(samples))
    white = directions / variances.clamp(min=SMALLEST * float(variances[-1])).sqrt()
    whitened = samples @ white
    rotations = [_rotation(whitened, start) for start in _starts(len(white))]
    rotation = max(rotations, key=lambda one: _contrast(whitened @ one))
    matrix = white @ rotation
    energy = (groups @ matrix).square().sum(1)
    steadiness = energy.median(0).values / energy.mean(0).clamp(min=1e-12)
    share = torch.linalg.inv(matrix).square().sum(1)
    small = share < SMALL_SHARE * share.sum()
    matrix = matrix[:, (steadiness - 2 * small).argsort(descending=True)]
    largest = matrix.gather(0, matrix.abs().argmax(0, keepdim=True))
    return matrix * largest.sign()


def _starts(size: int) -> list[Tensor]:
    """Orthogonal matrices to begin with: from halfway between two components no way leads on."""
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(NUM_STARTS, size, size, generator=rng, dtype=torch.float64)
    return [torch.linalg.qr(one).Q for one in drawn]


def _rotation(whitened: Tensor, rotation: Tensor) -> Tensor:
    """FastICA's fixed point, all components at once: (N, C) of unit covariance, (C, C)."""
    for _ in range(ROUNDS):
        parts = whitened @ rotation
        bell = (-parts.square() / 2).exp()
        slope = ((1 - parts.square()) * bell).mean(0)
        left, _, right = torch.linalg.svd(
            whitened.mT @ (parts * bell) / len(parts) - rotation * slope
        )
        turned = left @ right
        settled = bool(((turned * rotation).sum(0).abs() > 1 - SETTLED).all())
        rotation = turned
        if settled:
            break
    return rotation


def _contrast(parts: Tensor) -> float:
    """How sparse components are."""
    return float((-parts.square() / 2).exp().mean(0).sum())
