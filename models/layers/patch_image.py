"""An image and a vector, by way of patches: products of matrices alone, which a CPU is fast at.

Every patch goes through the same small MLP, and one dense layer joins them, or parts them.

Letters: N frames, p side of a patch, P patches, V numbers of a patch (3 p^2), C channels, D width.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from models.layers.transformer import RmsNorm


def to_patches(frames: Tensor, patch_size: int) -> Tensor:
    """(..., 3, H, W) -> (..., P, V), of any dtype."""
    return rearrange(
        frames,
        "... c (h ph) (w pw) -> ... (h w) (c ph pw)",
        ph=patch_size,
        pw=patch_size,
    )


def to_frames(patches: Tensor, image_size: tuple[int, int], patch_size: int) -> Tensor:
    """(..., P, V) -> (..., 3, H, W)."""
    return rearrange(
        patches,
        "... (h w) (c ph pw) -> ... c (h ph) (w pw)",
        h=image_size[0] // patch_size,
        ph=patch_size,
        pw=patch_size,
    )


def check_patches(image_size: tuple[int, int], patch_size: int) -> None:
    """Raise ValueError where patches do not tile an image."""
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"frames of {height} x {width} are not divisible into patches of {patch_size}; give a "
            f"--model.patch-size that divides both sides"
        )


class PatchEncoder(nn.Module):
    """Patches of a frame to one vector."""

    is_fsdp_unit = True

    def __init__(self, num_patches: int, patch_dim: int, channels: int, dim: int) -> None:
        super().__init__()
        self.patch_mlp = nn.Sequential(
            nn.Linear(patch_dim, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, channels)
        )
        self.out = nn.Sequential(
            nn.SiLU(), nn.Flatten(), nn.Linear(num_patches * channels, dim), RmsNorm(dim), nn.SiLU()
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(N, P, V) float -> (N, D)."""
        return self.out(self.patch_mlp(patches))


class PatchDecoder(nn.Module):
    """One vector to patches of a frame, at first of zeros."""

    is_fsdp_unit = True

    def __init__(self, num_patches: int, patch_dim: int, channels: int, dim: int) -> None:
        super().__init__()
        self.num_patches = num_patches
        self.dense = nn.Linear(dim, num_patches * channels)
        self.norm = RmsNorm(num_patches * channels)
        self.patch_mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, patch_dim)
        )
        last = self.patch_mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, P, V)."""
        features = nn.functional.silu(self.norm(self.dense(x)))
        return self.patch_mlp(features.unflatten(-1, (self.num_patches, -1)))
