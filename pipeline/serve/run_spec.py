"""What a client has to know of the run that is served: sizes, actions, what it can do, figures.

Letters: P patches, D width, E numbers of a pooled latent, A action numbers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Ability = Literal["encode", "predict", "decode", "plan"]


@dataclass(frozen=True)
class ActionsSpec:
    """The numbers of a step: an action of the run, or the 16 of a transformation."""

    kind: Literal["continuous", "discrete", "transformation", "none"]
    size: int
    """Numbers of a step; 1, a code, where they are discrete."""
    names: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    num_codes: int = 0


@dataclass(frozen=True)
class RunSpec:
    """Plain values; the same run has the same on each machine, but for `device`."""

    run: str
    """Name of its folder."""
    model_id: str
    """Changes with any weight or setting."""
    model_variant: str
    device: str
    image_size: tuple[int, int]
    kind: Literal["discrete", "continuous"]
    num_patches: int
    dim: int
    """Numbers of a patch; they are whole ones, codes, where latents are discrete."""
    pooling: Literal["mean", "flat"]
    """What z_cls is: the mean over patches, or all their numbers in a row."""
    actions: ActionsSpec
    codebook_size: int = 0
    cannot: dict[Ability, str] = field(default_factory=dict)
    """What the run cannot do, and why."""

    @property
    def latent_dim(self) -> int:
        """Numbers of z_cls."""
        return self.dim if self.pooling == "mean" else self.num_patches * self.dim

    @property
    def latent_spec(self) -> str:
        """16 hex digits: two clients' latents mean the same where these are the same."""
        said = (self.model_id, self.image_size, self.kind, self.num_patches, self.dim, self.pooling)
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"latent_dim": self.latent_dim, "latent_spec": self.latent_spec}
