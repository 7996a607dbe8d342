"""Auxiliary losses in a training of dynamics, and the teacher that one of them may need."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.shards.episode_dataset import EpisodeDataset
from models.dynamics.dynamics import Dynamics
from models.hooks.auxiliary_losses import TEACHER, AuxiliaryLosses
from pipeline.batches.latent_cache import cache_latents
from pipeline.inference.load_tokenizer import load_tokenizer
from pipeline.training.train_step import LossFn
from pipeline.training.trainer import Trainer


class Auxiliary:
    """The loss of a model with those that are asked for, and what they read of the data."""

    def __init__(
        self, model: Dynamics, wanted: tuple[str, ...], teacher: str, compiled: bool
    ) -> None:
        """wanted: NAME:LAYER:WEIGHT each.  teacher: a run.  ValueError for what there is not."""
        losses = AuxiliaryLosses(model, wanted, compiled)
        self.loss: LossFn = losses.loss
        self.teacher = teacher if TEACHER in losses.needs else ""
        if TEACHER in losses.needs and not teacher:
            raise ValueError(
                "an auxiliary loss has a teacher's latents as target; give --teacher RUN"
            )

    def rows(
        self, run: Path, dataset: EpisodeDataset, trainer: Trainer[Dynamics]
    ) -> dict[str, np.ndarray]:
        """A teacher's latents of all frames, where a loss reads them, made once in RUN/teacher."""
        if not self.teacher:
            return {}
        teacher, checkpoint = load_tokenizer(Path(self.teacher), trainer.device)
        if teacher.latents.kind != "continuous" or teacher.image_size != dataset.image_size:
            raise ValueError(
                f"--teacher {self.teacher} has {teacher.latents.kind} latents of "
                f"{teacher.image_size} pixels; give a run with vectors of {dataset.image_size}"
            )
        with trainer.main_process_first():
            folder, fingerprint = run / "teacher", checkpoint["fingerprint"]
            return {TEACHER: cache_latents(folder, teacher, fingerprint, dataset, trainer.device)}
