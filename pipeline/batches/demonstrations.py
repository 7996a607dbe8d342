"""What a dataset demonstrates of a task: the steps that lead up to a high reward."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Context

import numpy as np
import torch

from data.batch import Batch
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from pipeline.batches.clip_batches import ClipBatches, as_latents


def demo_rows(
    dataset: EpisodeDataset, split: Split, min_reward: float, flag: str = "--min-reward"
) -> list[np.ndarray]:
    """Rows of the steps of each episode of `split` that are worth cloning.

    Of an episode whose reward reaches `min_reward`, those before it is highest, or all where each
    step earns the same; of a dataset without rewards, or with zeros alone, all.  ValueError where
    there are none; `flag` is what sets `min_reward`.
    """
    rows, bests, demonstrated = [], [], []
    rewarded = dataset.has("rewards") and not dataset.all_zero("rewards")
    for episode in dataset.episodes(split):
        first, length = int(dataset.first_rows[episode]), dataset.length(episode)
        end = length - 1  # the last action leads nowhere
        if rewarded:
            rewards = dataset.read(episode, "rewards")
            if length > 1 and rewards[0] == 0 and rewards[1:].max() < 0:
                rewards[0] = rewards[1:].min()  # where steps cost, a reset is no success
            if rewards[1:].min(initial=rewards.max()) < rewards.max():  # a reset earns nothing
                end = int(rewards.argmax())
            bests.append(rewards.max())
            demonstrated.append(end > 0)
            if rewards.max() < min_reward:
                end = 0
        rows.append(np.arange(first, first + end))
    if any(map(len, rows)):
        return rows
    where = f"{split} episode{'s' if len(rows) > 1 else ''} of {dataset.folder}"
    if not rows:
        raise ValueError(
            f"{dataset.folder} has no {split} episode to clone; record at least 3 sources"
        )
    if any(demonstrated):
        ranked = np.sort(np.array(bests)[demonstrated])[::-1]
        advised = floor_text(ranked[(len(ranked) - 1) // 10])  # a tenth of the episodes, or more
        cloned = int((ranked >= np.float32(advised)).sum())
        raise ValueError(
            f"the highest reward in the {len(rows)} {where} is {floor_text(max(bests))}, and "
            f"cloning begins at {flag} {min_reward}; {flag} {advised} clones {cloned} of them; or "
            f"record demonstrations of the task"
        )
    raise ValueError(
        f"no step in the {len(rows)} {where} leads up to a high reward: it is highest in the first "
        f"frame; record demonstrations of the task"
    )


def floor_text(value: np.floating) -> str:
    """Three digits of a reward that are not above it: a bound that it reaches."""
    floored = Context(prec=3, rounding=ROUND_FLOOR).create_decimal(str(value))
    return f"{floored.normalize():f}"


class DemoSteps:
    """Steps of `split` worth cloning."""

    def __init__(
        self,
        dataset: EpisodeDataset,
        split: Split,
        latents: np.ndarray | None,
        min_reward: float,
        chunk_length: int = 1,
        extra: dict[str, np.ndarray] | None = None,
    ) -> None:
        """latents: of all frames of the dataset, (frames, N) or (frames, P, D), if they are needed.
        extra: what else is known of them, such as `states`, (frames, ...).
        chunk_length: actions from a step on; the last of a demonstration is repeated."""
        self.action_spec, self.latents = dataset.actions, latents
        self.all_actions = dataset.read_rows("actions", 0, dataset.num_frames)
        rows = demo_rows(dataset, split, min_reward)
        self.num_episodes = sum(len(r) > 0 for r in rows)
        self.rows = np.concatenate(rows)
        self.last_rows = np.concatenate([np.full(len(r), r[-1]) for r in rows if len(r)])
        self.chunk_length, self.extra = chunk_length, extra or {}

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> Batch:
        """Latents (B, 1, N) or (B, 1, P, D), where there are some, and normalized actions (B, T,
        A), or codes (B, T), T the chunk's length."""
        rows = self.rows[indices]
        latents = None
        if self.latents is not None:
            latents = as_latents(torch.from_numpy(np.asarray(self.latents[rows])))[:, None]
        ahead = rows[:, None] + np.arange(self.chunk_length)
        ahead = np.minimum(ahead, self.last_rows[indices][:, None])
        actions = self.action_spec.normalize(torch.from_numpy(self.all_actions[ahead]))
        extra = {name: torch.from_numpy(values[rows]) for name, values in self.extra.items()}
        return Batch(latents=latents, actions=actions, extra=extra)


class StartsWithDemos:
    """Clips to start rollouts from, each with a demonstrated step as `bc_latents` and
    `bc_actions`."""

    def __init__(self, starts: ClipBatches, demos: DemoSteps) -> None:
        self.starts, self.demos = starts, demos

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: np.ndarray) -> Batch:
        # drawn from the starts themselves, so that the batch is a function of its indices
        rng = np.random.default_rng(indices)
        demos = self.demos.batch(rng.integers(0, len(self.demos), len(indices)))
        batch = self.starts.batch(indices)
        bc_latents, bc_actions = demos.require("latents", "actions")
        batch.extra = {"bc_latents": bc_latents, "bc_actions": bc_actions}
        return batch
