"""Which environment is recorded, and how it is seen: what travels with the shards.

Evaluation and play open the same environment from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

KEY = "env"  # of a shard's description


@dataclass(frozen=True)
class EnvSpec:
    """A registered environment and the view of it that is stored.

    A step takes one action `frame_skip` times, and its reward is their sum.
    """

    id: str
    """As gymnasium.make takes it: ID, or module:ID where importing the module registers it."""
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    """Given to gymnasium.make."""
    pixels: str = "auto"
    """`observation`, `render`, or the key of a Dict observation."""
    image_size: int = 64
    """Height and width of a frame: pixels are averaged over areas."""
    grayscale: bool = False
    """All three colors are the brightness (ITU-R BT.601)."""
    frame_skip: int = 1
    max_pool: bool = False
    """A frame is the maximum of the last two of a step (DQN, 2015): sprites may flicker."""
    noop_max: int = 0
    """An episode begins with 0 to so many no-ops (DQN, 2015)."""
    max_episode_steps: int = 0
    """Steps after which an episode is truncated, besides the environment's own limit; 0 is none."""
    vectorization_mode: str = "none"
    """How environments are stepped together: each on its own (`none`), or as gymnasium.make_vec
    has it."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for the description of shards."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Any) -> EnvSpec:
        """Read what `as_dict` gave; ValueError where it describes no environment."""
        known = {f.name: f for f in fields(EnvSpec)}
        if not isinstance(values, dict) or not isinstance(values.get("id"), str):
            raise ValueError(f"{str(values)[:60]} describes no environment: it has no id")
        for name, value in values.items():
            if name not in known:
                raise ValueError(
                    f"the environment {values['id']} has the field {name[:40]!r}, which this "
                    f"version does not know; use the version that recorded it"
                )
            if name not in ("id", "kwargs") and type(value) is not type(known[name].default):
                raise ValueError(f"the environment {values['id']} has {name} {str(value)[:40]!r}")
        return EnvSpec(**values)


def env_spec_of(description: dict[str, Any]) -> EnvSpec | None:
    """Return the environment that the shards with this description were recorded in, if any."""
    return EnvSpec.from_dict(description[KEY]) if KEY in description else None


def parse_kwargs(pairs: tuple[str, ...], flag: str = "--env-kwargs") -> dict[str, Any]:
    """Read NAME=VALUE, each value as JSON or else as text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, is_pair, text = pair.partition("=")
        if not (is_pair and name.isidentifier()):
            raise ValueError(f"{flag} {pair} is no NAME=VALUE, such as continuous=true")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values
