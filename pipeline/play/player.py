"""One episode in a world model, next to the dataset and the simulator where they are known.

Letters: T context frames, K frames after them, A action numbers, S numbers of a simulator state.
Images are (H, W, 3) uint8.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data.actions import ActionSpec, as_tensor
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from models.action_map import ActionMap
from models.controllers.controller import Controller
from models.dynamics.dynamics import State
from models.world import World
from pipeline.play.simulators import Simulator, episode_goal
from pipeline.pytree import flatten

STEPS_PER_SECOND = 10  # of Push-T's episodes, for the agent's velocity
LOST = -1  # where a simulator is that was further than its player, or at another start
REWIND_STEPS, REWIND_BYTES = 300, 2**28  # that can be gone back, and of their states


@dataclass
class Start:
    """A frame of an episode to start from, with its context and its true continuation."""

    episode: int  # of the dataset
    frame: int  # the last context frame
    frames: np.ndarray  # (T, H, W, 3) uint8
    actions: np.ndarray  # (T - 1, A), between them
    next_frames: np.ndarray  # (K, H, W, 3) uint8, the true continuation
    next_actions: np.ndarray  # (K + 1, A), from the last context frame on
    state: np.ndarray | None  # (S,) of the simulator at the last context frame
    velocity: np.ndarray  # (2,) of the agent there
    goal: np.ndarray | None = None  # (3,) pose of the block, where the episode has its own


class Starts(Protocol):
    """What play starts from."""

    def sample(self, steps: int = 0) -> Start:
        """Sample a start that is followed by `steps` steps, or by as many as there are."""
        ...

    def describe(self, start: Start) -> str:
        """Name a start in a few words."""
        ...


class StartSampler:
    """Samples starts from the episodes of one split."""

    def __init__(
        self,
        dataset: EpisodeDataset,
        split: Split,
        context: int,
        seed: int,
        infers: World | None = None,
        taken: ActionSpec | None = None,
    ) -> None:
        """infers: a world that reads its own actions from frames; taken: actions that are taken
        where the dataset may have none."""
        self.infers, self.taken = infers, taken
        self.dataset, self.split, self.context = dataset, split, context
        min_length = context + 1
        self.episodes = [e for e in dataset.episodes(split) if dataset.length(e) >= min_length]
        if not self.episodes:
            raise ValueError(
                f"{dataset.folder} has no {split} episode of {min_length} frames to start from; "
                f"--split train plays from others"
            )
        self._rng = np.random.default_rng(seed)

    def sample(self, steps: int = 0) -> Start:
        """Sample a start that is followed by `steps` steps, or by as many as there are."""
        lengths = np.array([self.dataset.length(e) for e in self.episodes])
        eligible = np.flatnonzero(lengths >= self.context + steps)
        if not len(eligible):
            eligible = np.flatnonzero(lengths == lengths.max())
        number = int(self._rng.choice(eligible))
        last = max(self.context - 1, int(lengths[number]) - 1 - max(steps, 1))
        return self.at(number, int(self._rng.integers(self.context - 1, last + 1)))

    def episode_number(self, start: Start) -> int:
        """Return the number of a start's episode within the split, as `at` takes it."""
        return self.episodes.index(start.episode)

    def describe(self, start: Start) -> str:
        number = self.episode_number(start)
        return f"frame {start.frame} of episode {number} ({self.split})"

    def at(self, number: int, frame: int | None = None) -> Start:
        """Return the start at `frame` of the split's episode `number`; by default its first one."""
        if not 0 <= number < len(self.episodes):
            raise ValueError(
                f"{self.dataset.folder} has {len(self.episodes)} {self.split} episodes to "
                f"start from, numbered from 0; --episode {number} is outside"
            )
        episode = self.episodes[number]
        frame = self.context - 1 if frame is None else frame
        length = self.dataset.length(episode)
        if not self.context - 1 <= frame < length - 1:
            raise ValueError(
                f"{self.split} episode {number} can start at frames {self.context - 1} to "
                f"{length - 2} (the world needs {self.context}); --frame {frame} is outside"
            )
        first = frame + 1 - self.context
        frames = self.dataset.read(episode, "frames", first)
        actions = self._actions(episode, first, frames)
        state, velocity = None, np.zeros(2)
        if self.dataset.has("states"):
            states = self.dataset.read(episode, "states", max(0, frame - 1), frame + 1)
            state = states[-1]
            velocity = (states[-1] - states[0])[:2] * STEPS_PER_SECOND
        context = self.context
        return Start(
            episode, frame, frames[:context], actions[: context - 1],
            frames[context:], actions[context - 1 :], state, velocity,
            episode_goal(self.dataset, episode),
        )  # fmt: skip

    def _actions(self, episode: int, first: int, frames: np.ndarray) -> np.ndarray:
        """Actions from frame `first` on: the dataset's, or those that the world infers.

        frames: (T, H, W, 3) uint8.  Returns (T, A) or (T,); the last leads nowhere.
        """
        if self.infers is None and self.dataset.has("actions"):
            return self.dataset.read(episode, "actions", first)
        if self.infers is None:  # a video's: a world infers what led to a start, and none follows
            assert self.taken is not None
            return self.taken.empty(1, len(frames))[0].numpy()
        clip = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
        inferred = self.infers.actions_of(clip, torch.zeros(1, len(frames), 0))[0].cpu().numpy()
        return np.concatenate([inferred, np.zeros_like(inferred[:1])])


@dataclass
class Moment:
    """Where a player was after a step, to go back there."""

    state: State
    frame: np.ndarray  # (H, W, 3) uint8, the world's
    simulator_frame: np.ndarray | None = None
    """Of the simulator, once it was rendered."""

    @property
    def num_bytes(self) -> int:
        tensors: list[Tensor] = []
        flatten(self.state, tensors)
        return sum(tensor.nbytes for tensor in tensors)


class Player:
    """Steps a world; the simulator, where there is one, takes the same steps once it is shown."""

    def __init__(
        self,
        world: World,
        controller: Controller | None = None,
        simulator: Simulator | None = None,
        keep_simulator_frames: bool = False,
        observes_each_step: bool = False,
        action_map: ActionMap | None = None,
    ) -> None:
        """keep_simulator_frames: for `observe_simulator`; each step takes and renders one.
        observes_each_step: the world is moved to the simulator's frame after each step, and
        `model_frame` is what it had predicted of it.
        action_map: actions are the data's own, in a world of latent ones."""
        self.world, self.controller, self.simulator = world, controller, simulator
        self.keep_simulator_frames = keep_simulator_frames
        self.observes_each_step = observes_each_step
        self.action_map = action_map
        self.action_spec = world.actions if action_map is None else action_map.true
        """Of the actions that are taken."""
        self._true_frames: deque[np.ndarray] = deque(maxlen=world.context)
        self._past: deque[Moment] = deque()  # the present is the last
        self._simulator_steps = LOST

    @torch.inference_mode()
    def reset(self, start: Start) -> None:
        """Start an episode."""
        self.start, self.steps = start, 0
        self.actions: list[np.ndarray] = []
        """Actions since the start."""
        if self.controller is not None:
            self.controller.reset()
        self._true_frames.clear()
        self._true_frames.extend(start.frames)
        self._enter(start.frames, start.actions)
        self._past.clear()
        self._past.append(Moment(self.state, self.model_frame))
        self._simulator_steps = LOST

    @torch.inference_mode()
    def step(self, action: np.ndarray) -> None:
        """Step the world, and the simulator."""
        action = self.as_action(action)
        state = self.world.step(self.state, self.world_action(action))
        self.arrive(action, state, self._decode(state))

    def as_action(self, action: np.ndarray) -> np.ndarray:
        """An action in the type that is taken."""
        dtype = np.float32 if self.action_spec.kind == "continuous" else np.int64
        return np.array(action, dtype)

    def world_action(self, action: np.ndarray) -> Tensor:
        """An action as the world takes it: (A,) or () -> (1, A) or (1,)."""
        taken = as_tensor(action[None])
        if self.action_map is not None:
            places = None
            if self.simulator is not None:
                self._catch_up()
                place = self.simulator.place()
                places = None if place is None else torch.from_numpy(place[None]).float()
            taken = self.action_map.to_latent(taken, places)
        return taken.to(self.world.device)

    def arrive(self, action: np.ndarray, state: State, frame: np.ndarray) -> None:
        """Take in what an action led to: a state of one row, and its image, (H, W, 3) uint8."""
        taken = self.world_action(action) if self.observes_each_step else None
        before, self.state, self.model_frame = self.state, state, frame
        self._remember(Moment(state, frame))
        self.actions.append(action)
        self.steps += 1
        if self.simulator is None or not (self.keep_simulator_frames or self.observes_each_step):
            return
        self._catch_up()
        self._true_frames.append(self.simulator.render(self.world.image_size[0]))
        if taken is not None:
            seen = torch.from_numpy(self._true_frames[-1].copy()).permute(2, 0, 1)[None]
            self.state = self.world.observe(before, taken, seen.to(self.world.device))

    def step_back(self) -> bool:
        """Go back by one step; False where there is none to go back to, or where the world has been
        moved to the simulator's frames."""
        if len(self._past) < 2 or self.keep_simulator_frames:
            return False
        self._past.pop()
        self.actions.pop()
        self.steps -= 1
        if self._simulator_steps > self.steps:
            self._simulator_steps = LOST
        self.state, self.model_frame = self._past[-1].state, self._past[-1].frame
        return True

    @torch.inference_mode()
    def observe_simulator(self) -> None:
        """Move the world to the simulator's frames, as far back as it can use them."""
        assert self.simulator is not None and self.keep_simulator_frames
        actions = [*self.start.actions, *self.actions][-(len(self._true_frames) - 1) :]
        self._enter(np.stack(self._true_frames), np.stack(actions))

    @torch.inference_mode()
    def controller_action(self) -> np.ndarray:
        """Return the controller's action in this state, (A,) or ()."""
        assert self.controller is not None
        return self.controller.act(self.state)[0].cpu().numpy()

    @property
    def reward(self) -> float:
        """Reward that the world predicts for this state."""
        return float(self.state.reward[0])

    def dataset_frame(self) -> np.ndarray:
        """Return the dataset's frame of this step; after the episode's end its last one."""
        if self.steps == 0:
            return self.start.frames[-1]
        return self.start.next_frames[min(self.steps, len(self.start.next_frames)) - 1]

    def simulator_status(self) -> str:
        """Say in a word or two how the simulator stands; nothing after a step back, until it is
        needed."""
        assert self.simulator is not None
        if self._simulator_steps == LOST:
            return ""
        self._catch_up()
        return self.simulator.status()

    def simulator_frame(self) -> np.ndarray:
        """Render the simulator at this step, as large as the world's own frames."""
        assert self.simulator is not None
        moment = self._past[-1]
        if moment.simulator_frame is None:
            self._catch_up()
            moment.simulator_frame = self.simulator.render(self.model_frame.shape[0])
        return moment.simulator_frame

    def _enter(self, frames: np.ndarray, actions: np.ndarray) -> None:
        """frames: (T, H, W, 3) uint8.  actions: (T - 1, A) or (T - 1,), between them."""
        device = self.world.device
        clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        given = as_tensor(actions)[None].to(device)
        if self.world.infers_actions:  # whatever they are called where they are from
            given = self.world.actions_of(clip[None], given)
        self.state = self.world.reset(clip[None].to(device), given)
        self.model_frame = self._decode(self.state)

    def _decode(self, state: State) -> np.ndarray:
        return self.world.decode(state)[0].permute(1, 2, 0).cpu().numpy()

    def _remember(self, moment: Moment) -> None:
        """Keep the last moments, fewer of a world whose states are large."""
        fit = min(REWIND_STEPS, REWIND_BYTES // max(1, moment.num_bytes)) + 1
        self._past.append(moment)
        while len(self._past) > max(2, fit):
            self._past.popleft()

    def _catch_up(self) -> None:
        """Bring the simulator to this step; it cannot go back, but begin again."""
        assert self.simulator is not None
        if self._simulator_steps == LOST:
            self.simulator.reset(self.start)
            self._simulator_steps = 0
        for action in self.actions[self._simulator_steps :]:
            self.simulator.step(action)
        self._simulator_steps = self.steps
