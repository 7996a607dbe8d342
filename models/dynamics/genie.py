"""Genie (arXiv:2402.15391): a world from videos without actions, played by latent ones.

A latent action model infers what happened between two frames; MaskGIT dynamics predicts the next
frame from it.  Both are trained in stage 3, together or one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import MAX_STEPS, Range
from models.dynamics.latent_actions import LatentActionConfig, LatentActionModel
from models.dynamics.maskgit import MaskGit, MaskGitConfig
from models.method import Losses
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class GenieConfig(MaskGitConfig):
    latent_actions: LatentActionConfig = field(default_factory=LatentActionConfig)
    latent_action_steps: Annotated[int, Range(0, MAX_STEPS)] = 0
    """Steps of the latent action model alone, which then stays as it is, before the dynamics'
    begin; 0 trains both together to the end."""


class Genie(MaskGit):
    """Predict the masked codes of the next frame from an inferred action."""

    needs = frozenset({"frames", "latents"})
    infers_actions = True
    config: GenieConfig

    def __init__(
        self, config: GenieConfig, latents: LatentSpec, image_size: tuple[int, int]
    ) -> None:
        names = tuple(f"action {i + 1}" for i in range(config.latent_actions.num_actions))
        super().__init__(config, latents, ActionSpec("discrete", names))
        self.latent_actions = LatentActionModel(config.latent_actions, image_size)
        self._actions_done = False
        if config.latent_action_steps:
            self.turns = (config.latent_action_steps,)

    @property
    def capturable(self) -> bool:
        alone = self.config.latent_action_steps > 0
        return self.actions_done if alone else self.latent_actions.capturable

    @property
    def actions_done(self) -> bool:
        """The latent action model has had its steps alone.  A Python value once it is True, since
        reading one waits for a GPU."""
        if not self._actions_done and self.config.latent_action_steps:
            steps = int(self.latent_actions.trained_steps)
            self._actions_done = steps >= self.config.latent_action_steps
        return self._actions_done

    def loss(self, batch: Batch) -> Losses:
        """The terms of both, or of the one whose turn it is; no gradient goes from the dynamics to
        the actions.  Statistics of a micro-batch are in `LatentActionModel.loss`."""
        frames, latents = batch.require("frames", "latents")
        if self.actions_done:
            self.latent_actions.eval()
            with torch.no_grad():
                codes = self.latent_actions.codes(frames)
            return self.masked_loss(latents, codes) | _unused(self.latent_actions)
        losses, codes = self.latent_actions.loss(frames)
        if self.config.latent_action_steps:
            return losses | _unused(self)
        return losses | self.masked_loss(latents, codes)

    def after_step(self) -> None:
        """Move the codebook of the actions, while they are learned."""
        if not self.actions_done:
            self.latent_actions.after_step()

    def advise(self, losses: dict[str, float]) -> list[str]:
        of_actions = [] if self.actions_done else self.latent_actions.advise(losses)
        return of_actions + super().advise(losses)

    def param_groups(self) -> list[dict[str, Any]]:
        """Actions that are learned no more do not decay."""
        of_actions = [p for p in self.latent_actions.parameters() if p.requires_grad]
        known = {id(p) for p in of_actions}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": rest}, {"params": of_actions, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def infer_actions(self, frames: Tensor) -> Tensor:
        return self.latent_actions.codes(frames)

    def latent_action_vectors(self, frames: Tensor) -> Tensor:
        return self.latent_actions.vectors(frames)


def _unused(module: torch.nn.Module) -> Losses:
    """A gradient of zero for weights whose turn it is not: DDP waits for one of each."""
    if not torch.distributed.is_initialized():
        return {}
    return {"unused": sum((0 * p.sum() for p in module.parameters()), torch.zeros(()))}
