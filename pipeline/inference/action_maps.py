"""Maps between a run's latent actions and true ones: RUN/action_maps/LABELS.pt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.io.files import writable_folder
from data.io.messages import command
from models.action_map import ActionMap
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline import tensor_file

FORMAT = 1


def map_path(run: Path, budget: int) -> Path:
    return run / "action_maps" / f"{budget}.pt"


def save_action_map(path: Path, action_map: ActionMap, facts: dict[str, Any]) -> None:
    """facts: what it was learned from, the fingerprint of the dynamics among it."""
    writable_folder(path.parent)
    tensor_file.save(path, {"format": FORMAT, "facts": facts, "map": action_map.as_dict()})


def read_action_map(path: Path) -> tuple[ActionMap, dict[str, Any]]:
    """Read a map and what it was learned from; ValueError where it is damaged."""
    try:
        saved = tensor_file.read(path)
        tensor_file.check_digest(saved)
        return ActionMap.from_dict(saved["map"]), saved["facts"]
    except (ValueError, KeyError, AttributeError, TypeError) as problem:
        raise ValueError(f"{path} is damaged ({problem}); delete it, and run {LEARN}") from None


LEARN = command("evaluate.py", "--run", "RUN", "--parts", "latent_actions")


def load_action_map(run: Path, world: World, budget: int) -> ActionMap:
    """Load the map that `budget` labeled steps gave; ValueError says what learns it."""
    path = map_path(run, budget)
    learn = LEARN.replace("RUN", str(run))
    if not path.exists():
        raise ValueError(
            f"{path} holds no map from latent actions to true ones; {learn} learns those of 50, "
            f"200 and 1000 labeled steps, from data that has true actions"
        )
    action_map, facts = read_action_map(path)
    own = ckpt.load(run / "dynamics" / "best.pt", "dynamics")["fingerprint"]
    if facts.get("dynamics") != own:
        raise ValueError(
            f"{path} was learned for other latent actions than those of {run / 'dynamics'} "
            f"({facts.get('dynamics')}, now {own}); {learn} learns it anew"
        )
    world.actions.check_same(action_map.latent, "the world", str(path))
    return action_map
