"""What a task costs, as a function of latents, learned from recordings with rewards.

A network reads the simulator's state out of the latents, most exactly where rewards are high.  The
cost is a norm of that state's difference from the goal's, a metric fitted so that it is the reward
that is missing near the goal (a learned cost of states as in PILCO and in goal-distance learning;
far away, where no reward says which way to go, the norm keeps growing).  Beside it a second network
predicts the reward itself, which is exact near the goal and flat far away.

An imagined rollout drifts: a block that nobody touches creeps by a pixel or two, and a search
finds the rollout that creeps to the goal.  A third network is therefore asked, for each block of
actions, whether it changes anything that the cost depends on, and only such changes count.

A goal is given as its pose where episodes have goals of their own: the cost is then that of the
state as it is seen from there (models/controllers/goal_frame.py).

Where the recordings have no states, the norm is that of the latents' difference from those of
rewarded frames, whitened by how these vary (Mahalanobis 1936): what differs among them, such as
where the agent stands, counts little.

Letters: B states of a world, T frames, P patches, D latent width, S numbers of a simulator state, F
features of it, G goals, A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.controllers.controller import TrainedController
from models.controllers.goal_frame import GoalFrame, as_columns, goal_poses
from models.method import Best, Losses
from models.tokenizers.tokenizer import LatentSpec

NEAR = 0.7  # share of the highest reward from which a frame is near the goal
AT_GOAL = 0.95  # share from which it stands for the goal
METRIC_DECAY = 1e-5  # what does not matter to the reward, such as the agent, gets little weight
MIN_RELEVANCE = 0.01  # share of the largest weight below which a feature is left out
RIDGE = 0.01  # variance, in units of the data's, below which directions are alike
MAX_WHITENED = 4096  # numbers of latents; the work grows with their cube
ZOOMS = (3.0, 10.0, 30.0)
"""Magnifications around the goal at which the reward is learned: there it changes within a few
hundredths of a state's range."""


@dataclass(frozen=True)
class TaskCostConfig(CheckedConfig):
    state_names: tuple[str, ...] = ()
    """Numbers of the dataset's states, filled in by the stage; radians where a name ends in
    `angle`."""
    goal: Annotated[tuple[float, ...], Range(-(10**6), 10**6)] = ()
    """x, y, angle of the goal that the cost is learned for, filled in by the stage; other goals are
    moved there.  Empty where goals have no pose."""
    hidden_dim: Annotated[int, Range(1, 2**16)] = 256
    """Width of the hidden layers."""
    num_goals: Annotated[int, Range(1, 4096)] = 32
    """Rewarded frames that stand for the goal: a policy prior is given them in turn."""
    near_weight: Annotated[float, Range(0, 10**6)] = 10.0
    """Weight of a frame of the highest reward, beside 1 for one without; rewards are rare."""
    reward_weight: Annotated[float, Range(0, 10**6)] = 0.5
    """Cost of a reward missing near the goal, in units of the norm."""
    action_block: Annotated[int, Range(1, 1000)] = 5
    """Actions of a block that a planner asks about; its policy prior has the same."""
    min_change: Annotated[float, Range(0, 10**6)] = 0.002
    """Change of a state over a block, by the norm, that counts as one: a thousandth of the way from
    the goal to where the reward begins."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"goal"})


class TaskCost(TrainedController):
    """Latents to a cost: 0 at the goal, and 1 + `reward_weight` about where the reward begins.

    It is a planner's objective (models/planning/planner.py).
    """

    needs = frozenset({"latents", "actions", "states", "rewards", "goals"})
    per_block = True
    best = Best("error", higher_is_better=False)

    latent_mean: Tensor
    latent_std: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    goal: Tensor
    goals: Tensor
    whitening: Tensor
    scale: Tensor
    reward_range: Tensor

    def __init__(self, config: TaskCostConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        if latents.kind != "continuous" or actions.kind != "continuous":
            raise ValueError(
                "the cost of a task is planned with, which needs continuous latents and actions, "
                "and this world has codes; use --preset keypoints, or leave task_cost out of "
                "--methods"
            )
        self.config = config
        self.frame = GoalFrame(config.state_names, config.goal)
        self.is_angle = [name.endswith("angle") for name in config.state_names]
        inputs, hidden = latents.num_patches * latents.dim, config.hidden_dim
        self.reads_states = bool(config.state_names)
        features = len(self.is_angle) + sum(self.is_angle) or inputs
        if self.reads_states:
            self.readout = _mlp(inputs, hidden, features)
            self.linear_readout = nn.Linear(inputs, features)
            self.metric = nn.Parameter(torch.eye(features))
            self.register_buffer("scale", torch.ones(()))
            self.change_head = _mlp(features + config.action_block * actions.size, hidden, 1)
        else:
            self.scale = nn.Parameter(torch.ones(()))
            if inputs > MAX_WHITENED:
                raise ValueError(
                    f"without states the cost of a task is whitened, and these latents have "
                    f"{inputs:,} numbers, more than {MAX_WHITENED:,}; record states, or leave "
                    f"task_cost out of --methods"
                )
        self.margin = nn.Parameter(torch.ones(()))
        self.reward_head = _mlp(features * (1 + len(ZOOMS)), hidden, 1)
        for name, value in {
            "latent_mean": torch.zeros(inputs),
            "latent_std": torch.ones(inputs),
            "feature_mean": torch.zeros(features),
            "feature_std": torch.ones(features),
            "goal": torch.zeros(features),
            "goals": torch.zeros(config.num_goals, latents.num_patches, latents.dim),
            "whitening": torch.eye(features),
            "reward_range": torch.tensor([0.0, 1.0]),
        }.items():
            self.register_buffer(name, value)

    @property
    def clip_length(self) -> int:
        return self.config.action_block + 1

    # -- the cost ---------------------------------------------------------------------------

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, P, D) -> the cost, (B,)."""
        return self.cost(self.start(latents))

    def start(self, latents: Tensor) -> Tensor:
        """Latents (B, P, D) -> what is followed, (B, 2 F): features with the changes that count,
        and with all."""
        with self._exact():
            return self.read(latents).repeat(1, 2)

    def follow(self, tracked: Tensor, actions: Tensor, latents: Tensor) -> Tensor:
        """Go on by an action block, (B, T, A), that led to latents, (B, P, D)."""
        counted, before = tracked.chunk(2, dim=1)
        with self._exact():
            after = self.read(latents)
            changes = 1.0
            if self.reads_states:
                changes = self.change(before, actions.float()).sigmoid()[:, None]
            counted = counted + changes * (after - before)
        return torch.cat([counted, after], dim=1)

    def cost(self, tracked: Tensor, goal: Tensor | None = None) -> Tensor:
        """(B, 2 F) -> (B,); goal: poses, (B, 3), of a task that has several.  Latents of a goal are
        not looked at."""
        features = tracked.chunk(2, dim=1)[0]
        with self._exact():
            features = self.seen_from(features, goal)
            near = ((self.reward(features) - NEAR) / (1 - NEAR)).clamp(0, 1)
            return self.norm(features) + self.config.reward_weight * (1 - near)

    def _exact(self) -> torch.autocast:
        """Full precision, where a loss that imagines runs in 16 bits: they would blur the goal."""
        return torch.autocast(self.goal.device.type, enabled=False)

    def read(self, latents: Tensor) -> Tensor:
        """Read the state: (B, P, D) -> (B, F) features, of unit variance in the data."""
        x = (latents.flatten(1).float() - self.latent_mean) / self.latent_std
        return self.readout(x) + self.linear_readout(x) if self.reads_states else x

    def seen_from(self, features: Tensor, goal: Tensor | None) -> Tensor:
        """Move features (B, F) of states to where the goal's pose, (B, 3), is that of the config;
        unchanged without a pose."""
        poses = goal_poses(goal)
        if poses is None or not self.frame.is_known:
            return features
        moved = self.frame.move(features * self.feature_std + self.feature_mean, poses)
        return (moved - self.feature_mean) / self.feature_std

    def norm(self, features: Tensor) -> Tensor:
        """Distance from the goal: (B, F) -> (B,)."""
        return self._length(features - self.goal)

    def change(self, features: Tensor, actions: Tensor) -> Tensor:
        """Logit that an action block, (B, T, A), changes what the cost depends on: (B,)."""
        return self.change_head(torch.cat([features, actions.flatten(1)], dim=1))[..., 0]

    def reward(self, features: Tensor) -> Tensor:
        """Reward as a share of the range in the data: (B, F) -> (B,)."""
        offset = features - self.goal
        zoomed = [torch.asinh(zoom * offset) for zoom in ZOOMS]
        return self.reward_head(torch.cat([features, *zoomed], dim=-1))[..., 0]

    def features(self, states: Tensor) -> Tensor:
        """States (B, S) -> (B, F): angles as sine and cosine."""
        return (as_columns(states, self.is_angle) - self.feature_mean) / self.feature_std

    def states(self, features: Tensor) -> Tensor:
        """Features (B, F) -> states (B, S), angles in [-pi, pi]."""
        remaining = list((features * self.feature_std + self.feature_mean).unbind(-1))
        columns = []
        for is_angle in self.is_angle:
            first = remaining.pop(0)
            columns.append(torch.atan2(first, remaining.pop(0)) if is_angle else first)
        return torch.stack(columns, -1)

    def read_states(self, latents: Tensor) -> Tensor:
        """Latents (B, P, D) -> states (B, S)."""
        with self._exact():
            return self.states(self.read(latents))

    # -- training ---------------------------------------------------------------------------

    def begin(self, sample: Batch) -> None:
        latents, rewards, states, goals = self._frames(sample)
        low, high = rewards.min(), rewards.max()
        if low == high:
            raise ValueError(
                f"every reward in the data is {float(low):g}, so there is no goal to learn; "
                f"leave task_cost out of --methods"
            )
        self.reward_range.copy_(torch.stack([low, high]))
        at_goal = self._share(rewards) >= AT_GOAL
        x = latents.flatten(1).float()
        self.latent_mean.copy_(x.mean(0))
        self.latent_std.copy_(x.std(0).clamp(min=1e-4))
        if states is None:
            features = self.read(latents)
            self.whitening.copy_(whitening_of(features[at_goal]))
        else:
            features = self.features(states)
            self.feature_mean.copy_(features.mean(0))
            self.feature_std.copy_(features.std(0).clamp(min=1e-4))
            features = self.seen_from(self.features(states), goals)
            share = self._share(rewards)
            if not ((share > 1 - AT_GOAL) & (share < AT_GOAL)).any():
                # all or nothing says nothing of the way: what varies at the goal counts little
                with torch.no_grad():
                    self.metric.copy_(whitening_of(features[at_goal]) / len(self.goal) ** 0.5)
        self.goal.copy_(features[at_goal].mean(0))
        picked = farthest_points(x[at_goal], self.config.num_goals)
        self.goals.copy_(latents[at_goal][picked])

    def loss(self, batch: Batch) -> Losses:
        """latents (B, T, P, D), actions (B, T, A) and rewards (B, T), T = `action_block` + 1, and
        states (B, T, S) where there are some."""
        latents, rewards, states, goals = self._frames(batch)
        share = self._share(rewards)
        weight = 1 + self.config.near_weight * share
        read = self.read(latents)
        target = read if states is None else self.features(states)
        seen = self.seen_from(target, goals)
        missing_norm = soft_clip(self.margin - self.norm(seen)) - share
        losses = {
            # on the way to the goal: at the goal itself the agent's place is no accident
            "norm": (share * (1 - share) ** 2 * missing_norm.square()).mean(),
            "reward": (weight * (self.reward(seen) - share).square()).mean(),
        }
        if states is not None:
            # between absolute and squared: a few frames cannot be read, and count less
            losses["readout"] = (weight[:, None] * (read - target).abs().pow(1.5)).mean()
            losses["decay"] = METRIC_DECAY * self.metric.square().sum()
            logit, changed = self._changes(batch, read.detach(), target)
            losses["change"] = nn.functional.binary_cross_entropy_with_logits(logit, changed)
        return losses

    def _changes(self, batch: Batch, read: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the block of a clip changed its state, as predicted, a logit, and in truth: (B,)
        each.  read, target: (B T, F) of its frames, read and true."""
        block = self.config.action_block
        (actions,) = batch.require("actions")
        before, after = (target.unflatten(0, (len(batch), -1))[:, at] for at in (0, -1))
        length = self._length(after - before).detach()
        logit = self.change(read.unflatten(0, (len(batch), -1))[:, 0], actions[:, :block])
        return logit, (length > self.config.min_change).float()

    def validate(self, held_out: Batch, *inputs: object) -> dict[str, float]:
        """Median errors of what is read near the goal, in the states' own units; the error of the
        reward there, read from latents; the highest reward there is, as a share of the data's,
        without which nothing is near; how alike the cost and the reward are ordered; how often
        a change is predicted."""
        latents, rewards, states, goals = self._frames(held_out)
        share, read = self._share(rewards), self.read(latents)
        near = share >= min(NEAR, float(share.max()))
        reward_error = (
            (self.reward(self.seen_from(read, goals)).clamp(0, 1) - share).abs()[near].mean()
        )
        metrics = {
            "error": float(reward_error),
            "reward_error": float(reward_error),
            "highest_reward": float(share.max()),
        }
        rewarded = share > 0
        if len(share[rewarded].unique()) > 1:
            costs = self.cost(self.start(latents), goals)
            pairs = torch.stack([costs[rewarded], share[rewarded]])
            metrics["reward_correlation"] = -float(torch.corrcoef(pairs)[0, 1])
        if states is None:
            return metrics
        target = self.features(states)
        metrics["error"] += float((read - target).abs()[near].mean())
        logit, changed = self._changes(held_out, read, target)
        metrics["change_accuracy"] = float(((logit > 0) == (changed > 0)).float().mean())
        errors = self.states(read) - states
        for column, name in enumerate(self.config.state_names):
            error = errors[near, column]
            if self.is_angle[column]:
                error = torch.atan2(error.sin(), error.cos())
            metrics[name] = float(error.abs().median())
        return metrics

    def _length(self, difference: Tensor) -> Tensor:
        """Norm of a difference of features: (B, F) -> (B,)."""
        if not self.reads_states:
            metric = self.scale * self.whitening
        else:
            weight = self.metric.square().sum(1, keepdim=True)
            metric = torch.where(weight >= MIN_RELEVANCE * weight.max(), self.metric, 0.0)
        return (difference @ metric).square().sum(-1).add(1e-8).sqrt()

    def _share(self, rewards: Tensor) -> Tensor:
        """Rewards as shares of their range in the data."""
        low, high = self.reward_range
        return ((rewards - low) / (high - low)).clamp(0, 1)

    def _frames(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The first and the last frames of clips: latents (2 B, P, D), rewards (2 B,), states
        (2 B, S) where they are read, and goals (2 B, 3) where episodes have their own."""
        latents, rewards = (ends(x) for x in batch.require("latents", "rewards"))
        if not self.reads_states:
            return latents, rewards.float(), None, None
        (states,) = batch.require("states")
        goals = batch.extra.get("goals")
        goals = None if goals is None else goals.repeat_interleave(2, 0)
        return latents, rewards.float(), ends(states).float(), goals


def ends(values: Tensor) -> Tensor:
    """The first and the last of T frames, one after the other: (B, T, ...) -> (2 B, ...)."""
    return torch.stack([values[:, 0], values[:, -1]], dim=1).flatten(0, 1)


def soft_clip(x: Tensor, width: float = 0.03) -> Tensor:
    """Clip to [0, 1], with a gradient a little beyond both ends."""
    softplus = nn.functional.softplus
    return width * (softplus(x / width) - softplus((x - 1) / width))


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Indices of `count` points, (N, D), each the farthest from those before it; they repeat where
    N is smaller."""
    picked = [0]
    distance = (points - points[0]).square().sum(1)
    for _ in range(count - 1):
        picked.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[picked[-1]]).square().sum(1))
    return torch.tensor(picked, device=points.device)


def whitening_of(features: Tensor) -> Tensor:
    """Square root of the inverse covariance, (F, F), of (N, F) features of unit variance in the
    data; `RIDGE` is added to their own."""
    centered = features - features.mean(0)
    covariance = (centered.T @ centered / len(features)).cpu()
    values, vectors = torch.linalg.eigh(covariance + RIDGE * torch.eye(len(covariance)))
    return (vectors @ torch.diag(values.rsqrt()) @ vectors.T).to(features)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three layers without a norm, which would blur small differences."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, outputs),
    )
