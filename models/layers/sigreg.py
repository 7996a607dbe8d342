"""SIGReg, which keeps latents from collapsing, and their effective rank.

Letters: n latents, D numbers of each, S slices.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from models.layers.precision import to_float64

NUM_KNOTS, MAX_KNOT = 17, 3.0  # where characteristic functions are compared, from 0 on


def effective_rank(latents: Tensor) -> float:
    """(n, D) -> 1 to D: exp of the entropy of the covariance's eigenvalues (Roy and Vetterli 2007).

    Near 1 where an encoder has collapsed.
    """
    values = torch.linalg.svdvals(to_float64(latents - latents.mean(0))).square()
    probs = values / values.sum().clamp(min=1e-12)
    return float(torch.special.entr(probs).sum().exp())


def sigreg(latents: Tensor, num_slices: int = 1024) -> Tensor:
    """Sketched isotropic Gaussian regularization (LeJEPA, arXiv:2511.08544): (n, D) -> ().

    By Cramer and Wold, latents are standard normal if they are so along every direction.  Along
    random directions their characteristic function is compared with the normal's, weighted by the
    normal density (Epps and Pulley 1983).  The mean over slices, times n, is 0.5 to 1 for normal
    latents.

    With several processes the statistics are those of all latents; the directions are the same, as
    every process samples from the step's seed.
    """
    latents = latents.float()
    directions = torch.randn(latents.shape[1], num_slices, device=latents.device)
    projections = latents @ torch.nn.functional.normalize(directions, dim=0)  # (n, S)
    knots = torch.linspace(0, MAX_KNOT, NUM_KNOTS, device=latents.device)
    phases = projections[..., None] * knots
    empirical = torch.stack([phases.cos().mean(0), phases.sin().mean(0)])  # (2, S, knots)
    count = len(latents)
    if dist.is_initialized() and dist.get_world_size() > 1:
        empirical = all_reduce(empirical) / dist.get_world_size()
        count *= dist.get_world_size()
    normal = torch.exp(-knots.square() / 2)
    error = (empirical[0] - normal).square() + empirical[1].square()
    # even in the knots: twice the integral from 0 on
    return 2 * count * torch.trapezoid(error * normal, knots).mean()
