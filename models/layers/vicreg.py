"""Variance and covariance of latents, which keep them from collapsing (VICReg, arXiv:2105.04906).

Letters: B frames, P patches, D width.
"""

from __future__ import annotations

from torch import Tensor

COVARIANCE_WEIGHT = 0.1  # beside the variance's


def variance_covariance(latents: Tensor, least_std: float) -> Tensor:
    """(B, P, D) -> (): what is missing of `least_std` in the standard deviation of each number, and
    the squared covariances of any two, as a share of `least_std`'s.

    Numbers are compared with their mean at the same place: that a patch says where it is does not
    count.
    """
    centered = (latents.float() - latents.float().mean(0)).flatten(0, 1) / least_std
    covariance = centered.T @ centered / len(centered)
    variances = covariance.diagonal()
    missing = (1 - (variances + 1e-4).sqrt()).clamp(min=0).mean()
    between = covariance.square().sum() - variances.square().sum()
    return missing + COVARIANCE_WEIGHT * between / len(covariance)
