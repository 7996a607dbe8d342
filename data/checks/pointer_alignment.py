"""Whether actions and frames are aligned where an action is a target that the agent runs to."""

from __future__ import annotations

import numpy as np

from data.shards.episode_dataset import EpisodeDataset

MAX_EPISODES = 50  # that are looked at


def pointer_correlations(dataset: EpisodeDataset) -> dict[int, float] | None:
    """Correlate the agent's displacement with the offset to its target, for three shifts of the
    actions.

    None where actions are no pointer, or the agent's position is not known; empty where it hardly
    moves.
    """
    names = dataset.state_names[:2]
    known = dataset.has("states") and names == ("agent_x", "agent_y")
    if not (known and dataset.actions.pointer):
        return None
    count = len(dataset)
    chosen = np.unique(np.linspace(0, count - 1, min(MAX_EPISODES, count)).astype(int))
    displacements: list[np.ndarray] = []
    to_target: dict[int, list[np.ndarray]] = {-1: [], 0: [], 1: []}
    for episode in chosen.tolist():
        positions = dataset.read(episode, "states")[:, :2]
        target = dataset.read(episode, "actions")[:, :2]
        if len(positions) < 4:
            continue
        displacements.append((positions[2:-1] - positions[1:-2]).ravel())  # from t to t + 1
        for shift, found in to_target.items():
            found.append((target[1 + shift : len(positions) - 2 + shift] - positions[1:-2]).ravel())
    if not displacements or np.ptp(displacement := np.concatenate(displacements)) == 0:
        return {}
    return {
        shift: float(np.corrcoef(displacement, np.concatenate(found))[0, 1])
        for shift, found in to_target.items()
    }


def describe_pointer(correlations: dict[int, float] | None) -> str:
    """Return the correlations as a line for a report; empty where there are none."""
    if correlations is None:
        return ""
    if not correlations:
        return "too little motion to measure whether actions and frames are aligned"
    verdict = "; highest with actions[t]: aligned" if _aligned(correlations) else ""
    parts = [f"{r:z.3f} with actions[t{s:+d}]".replace("+0", "") for s, r in correlations.items()]
    return (
        f"displacement from t to t + 1 correlates with the offset to the target: "
        f"r = {', '.join(parts)}{verdict}"
    )


def pointer_warning(correlations: dict[int, float] | None) -> str:
    """Return a warning where another shift correlates more, else an empty line."""
    if not correlations or _aligned(correlations):
        return ""
    return (
        f"warning: {describe_pointer(correlations)}: actions seem to be shifted against the frames"
    )


def _aligned(correlations: dict[int, float]) -> bool:
    return correlations[0] >= max(correlations.values())
