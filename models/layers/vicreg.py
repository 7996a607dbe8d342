"""Variance, invariance and covariance: two views of an image alike, and images apart (VICReg,
arXiv:2105.04906).

Letters: B images, E numbers.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss, relu

COVARIANCE_WEIGHT = 1 / 25  # of the paper's weights 25, 25 and 1
EPSILON = 1e-4


def vicreg(x: Tensor, y: Tensor, least_std: float) -> Tensor:
    """Equation 6, divided by 25, of two views (B, E) each; ValueError where B is 1.

    least_std: the deviation of a number over images that is enough.
    """
    if len(x) < 2:
        raise ValueError(
            "VICReg tells images apart, and a batch has 1; raise --train.batch-size to 2 or more, "
            "or give --model.vicreg-weight 0"
        )
    x, y = x.float(), y.float()
    return mse_loss(x, y) + _spread(x, least_std) + _spread(y, least_std)


def _spread(x: Tensor, least_std: float) -> Tensor:
    """How far numbers are from varying, and from varying each by itself: (B, E) -> ()."""
    x = x - x.mean(0)
    covariance = x.T @ x / (len(x) - 1)
    variance = covariance.diagonal()
    short = relu(least_std - (variance + EPSILON).sqrt()).mean()
    others = covariance.square().sum() - variance.square().sum()
    return short + COVARIANCE_WEIGHT * others / x.shape[1]
