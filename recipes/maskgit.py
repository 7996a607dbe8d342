"""MaskGIT dynamics from the data's own actions; for a recipe of codes, and its size, before it."""

from typing import Any

from recipes import genie


def _without_latent_actions(table: dict[str, Any]) -> dict[str, Any]:
    """As many steps of the dynamics, and none of the latent actions alone."""
    steps = table["train.steps"] - table["model.latent_action_steps"]
    kept = {key: value for key, value in table.items() if "latent_action" not in key}
    return kept | {"train.steps": steps}


DYNAMICS = _without_latent_actions(genie.DYNAMICS) | {"model": "maskgit"}
SIZES = {
    size: {"dynamics": _without_latent_actions(stages["dynamics"])}
    for size, stages in genie.SIZES.items()
    if "dynamics" in stages
}
