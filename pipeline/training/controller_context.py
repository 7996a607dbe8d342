"""What the fourth stage learns from: a world, and the dataset as states of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from models import registry
from models.controllers.controller import TrainedController
from models.registry import DataSpec, MethodConfig
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.batches.clip_batches import ClipBatches
from pipeline.batches.demonstrations import DemoSteps
from pipeline.batches.goal_clips import GoalClips
from pipeline.batches.latent_cache import cache_latents
from pipeline.batches.state_cache import cache_states
from pipeline.trained_on import TrainedOn, check_parent_recordings, recordings_of


@dataclass
class ControllerContext:
    """What every method learns from: a world, and the dataset as states of it."""

    run: Path
    world: World
    dataset: EpisodeDataset
    dynamics: ckpt.Checkpoint
    """The world's."""
    parent: tuple[Path, str]
    """Path and fingerprint of the dynamics model."""
    recordings: TrainedOn
    """The dataset's training episodes."""
    goals: np.ndarray | None = None
    """Poses of the goals of all frames, (frames, 3); None where goals have none."""

    @cached_property
    def latents(self) -> np.ndarray:
        """Of the states at all frames, (frames, N) or (frames, P, D); encoded when first needed."""
        return _cache(self.run, self.world, self.dynamics, self.dataset)

    @property
    def data(self) -> DataSpec:
        return DataSpec(self.world.image_size, self.world.actions, self.world.state_spec)

    def build(self, config: MethodConfig, seed: int) -> TrainedController:
        torch.manual_seed(seed)
        model = registry.build_controller(config, self.data)
        model.load_codebook(self.world)
        return model

    def demos(self, split: Split, min_reward: float, chunk_length: int = 1) -> DemoSteps:
        return DemoSteps(self.dataset, split, self.latents, min_reward, chunk_length)

    def demos_with_states(self, split: Split, min_reward: float, chunk_length: int) -> DemoSteps:
        """Give demonstrations whose steps know their states and goals, and no latents."""
        assert self.goals is not None
        states = self.dataset.read_rows("states", 0, self.dataset.num_frames)
        extra = {"states": states[:, None], "goals": self.goals}
        return DemoSteps(self.dataset, split, None, min_reward, chunk_length, extra)

    @property
    def home(self) -> tuple[float, ...]:
        """x, y, angle of the goal that others are moved to: the only one, or one in their midst;
        empty where goals have no pose."""
        if self.goals is None:
            return ()
        if (self.goals == self.goals[0]).all():
            return tuple(map(float, self.goals[0]))
        x, y = self.goals[:, :2].mean(0).round().tolist()
        return x, y, 0.0

    def clips(
        self, split: Split, clip_length: int, needs: frozenset[str], flag: str = ""
    ) -> ClipBatches:
        """Give clips of a split; flag: what makes them shorter."""
        clips = Clips(self.dataset, split, clip_length, flag=flag)
        if "goals" in needs and self.goals is not None:
            return GoalClips(clips, needs, self.latents, self.goals)
        return ClipBatches(clips, needs, self.latents)

    def describe(self, config: MethodConfig, settings: dict[str, float]) -> dict[str, Any]:
        """What a checkpoint of this world says of itself; settings: as `ckpt.describe`."""
        return ckpt.describe(
            config,
            self.data,
            self.world.state_spec,
            self.world.actions,
            self.parent,
            self.recordings,
            settings,
        )


def check_recordings(run: Path, dynamics: ckpt.Checkpoint, dataset: EpisodeDataset) -> TrainedOn:
    """Describe the dataset's training episodes; ValueError where the world has learned others."""
    recordings = recordings_of(dataset, dynamics)
    check_parent_recordings(dynamics, run / "dynamics" / "best.pt", recordings, dataset)
    path = run / "tokenizer" / "best.pt"
    if path.exists():
        check_parent_recordings(ckpt.load(path, "tokenizer"), path, recordings, dataset)
    return recordings


def _cache(
    run: Path, world: World, dynamics: ckpt.Checkpoint, dataset: EpisodeDataset
) -> np.ndarray:
    """Latents of the states at all frames: the tokenizer's, or what the world makes of them."""
    if world.state_spec == world.latents:
        parent = dynamics["parent"]["fingerprint"]
        return cache_latents(run / "latents", world, parent, dataset, world.device)
    return cache_states(run / "states", world, dynamics["fingerprint"], dataset)
