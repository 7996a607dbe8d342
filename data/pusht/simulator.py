"""The Push-T simulator: a disc pushes a T-shaped block onto its goal (gym-pusht 0.1.8).

Physics and rendering are gym-pusht's own. This file adds what datasets and planning need: a reset
to an exact state, a step that computes neither an image nor a coverage, and rendering of what
moves alone. Units: pixels of the 512 x 512 world, y down, radians.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely

from data.actions import ActionSpec
from data.opencv import opencv_or_stub
from data.pusht.canvas import WINDOW_SIZE, draw  # first: it tells pygame that no display is needed

with opencv_or_stub():  # gym-pusht draws its own images with it, which are not used
    from gym_pusht.envs.pusht import PushTEnv

GOAL = np.array([256.0, 256.0, np.pi / 4])
"""Block pose of the task: x, y, angle."""
SUCCESS_COVERAGE = 0.95
"""Coverage at which the task counts as solved."""
STEPS_PER_SECOND = 10
SUBSTEPS = 10
SUBSTEP = 0.01  # seconds
STIFFNESS, DAMPING = 100.0, 20.0  # of the controller that pulls the agent to its target

MAX_NUMBER = 10**6  # of a state; far beyond, drawing fails where no error gets out
STATE_NAMES = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")
ACTIONS = ActionSpec(
    "continuous",
    ("target_x", "target_y"),
    (0.0, 0.0),
    (float(WINDOW_SIZE), float(WINDOW_SIZE)),
    "pixels of the 512 x 512 world",
    pointer=True,
)


def goal_of(description: dict[str, Any]) -> np.ndarray:
    """Return the goal (3,) x, y, angle of the shards with this description, or of an episode with
    this note: its "goal" is x, y in pixels and degrees where it is not the task's own."""
    if "goal" not in description:
        return GOAL
    x, y, degrees = description["goal"]
    return np.array([x, y, np.deg2rad(degrees)])


def reward(coverage: Any) -> Any:
    """Return the task's reward, 0..1, for a coverage or an array of them."""
    return np.clip(np.asarray(coverage) / SUCCESS_COVERAGE, 0.0, 1.0)


def angle_difference(a: Any, b: Any) -> Any:
    """Return a - b wrapped to [-pi, pi)."""
    return (np.asarray(a) - np.asarray(b) + np.pi) % (2 * np.pi) - np.pi


def random_start(seed: int) -> np.ndarray:
    """Draw the start state (5,) of the task, as Diffusion Policy's environment does.

    That environment sets the block's position before its angle, which rotates the block about its
    center of gravity, so the resulting position is not the one that was drawn.
    """
    rng = np.random.RandomState(seed)
    agent = rng.randint(50, 450), rng.randint(50, 450)
    x, y = rng.randint(100, 400), rng.randint(100, 400)
    angle = rng.randn() * 2 * np.pi - np.pi
    x, y = x + 45 * np.sin(angle), y + 45 - 45 * np.cos(angle)
    return np.array([*agent, x, y, angle % (2 * np.pi)])


class PushT:
    """One simulator.

    >>> world = PushT(); world.reset(random_start(100_000)); world.step((200, 300)); world.state
    """

    def __init__(self, image_size: int = 64, goal: np.ndarray = GOAL) -> None:
        self.image_size, self.goal = image_size, goal
        self.contacts = 0
        """Contact points per substep of the last step, rounded up, as in the demonstrations."""
        self._env = PushTEnv(obs_type="state")
        self.reset(np.array([256.0, 400.0, 256.0, 300.0, 0.0]))

    def reset(
        self, state: np.ndarray, velocity: Any = (0.0, 0.0), goal: np.ndarray | None = None
    ) -> None:
        """Set agent and block exactly to `state` (5,), the agent to `velocity` (2,) pixels/s.

        goal: (3,), from now on, if not that of before.
        In the middle of an episode the velocity is (state[t] - state[t - 1]) / 0.1. Each reset
        makes a new space, without earlier contacts, so a rollout depends on its start alone.
        """
        state = np.asarray(state, dtype=np.float64)
        if state.shape != (5,) or not (np.abs(state) < MAX_NUMBER).all():
            raise ValueError(
                f"a Push-T state is five finite numbers {STATE_NAMES}, below {MAX_NUMBER:,} in "
                f"size; got {state.tolist()}"
            )
        self.goal = self.goal if goal is None else goal
        self._env._setup()
        self._env.goal_pose = self.goal.copy()
        self._goal_area: Any = None
        self._coverage: float | None = None
        self._space, self._agent, self._block = self._env.space, self._env.agent, self._env.block
        self._agent.position = float(state[0]), float(state[1])
        self._block.angle = float(state[4])  # before the position: it rotates about the center
        self._block.position = float(state[2]), float(state[3])
        self._space.step(SUBSTEP)  # finds the contacts; nothing moves yet
        self._agent.velocity = float(velocity[0]), float(velocity[1])
        self.contacts = 0

    def step(self, action: Any) -> None:
        """Pull the agent towards `action` (2,), a point in the world, for 0.1 s."""
        x, y = float(action[0]), float(action[1])
        self._env.n_contact_points = 0
        self._coverage = None
        agent, step = self._agent, self._space.step
        for _ in range(SUBSTEPS):
            (px, py), (vx, vy) = agent.position, agent.velocity
            agent.velocity = (
                vx + (STIFFNESS * (x - px) - DAMPING * vx) * SUBSTEP,
                vy + (STIFFNESS * (y - py) - DAMPING * vy) * SUBSTEP,
            )
            step(SUBSTEP)
        self.contacts = -(-self._env.n_contact_points // SUBSTEPS)

    @property
    def state(self) -> np.ndarray:
        """(5,) float64: agent x, y, block x, y, angle in [0, 2 pi)."""
        agent, block = self._agent.position, self._block.position
        return np.array([*agent, *block, self._block.angle % (2 * np.pi)])

    @property
    def velocity(self) -> np.ndarray:
        """(2,) of the agent, in pixels per second."""
        return np.array(self._agent.velocity)

    def coverage(self) -> float:
        """Return the fraction of the goal's area under the block, computed once a step."""
        if self._coverage is not None:
            return self._coverage
        if self._goal_area is None:  # the same after each step
            self._corners = [
                [*corners, corners[0]]
                for corners in (shape.get_vertices() for shape in self._block.shapes)
            ]
            self._goal_area = self._area_at(self._env.get_goal_pose_body(self._env.goal_pose))
        common = shapely.intersection(self._goal_area, self._area_at(self._block))
        self._coverage = float(shapely.area(common) / shapely.area(self._goal_area))
        return self._coverage

    def _area_at(self, body: Any) -> Any:
        """What a block's shapes cover where `body` is, as gym-pusht computes it."""
        corners = [[body.local_to_world(corner) for corner in shape] for shape in self._corners]
        shapes: Any = shapely.polygons(np.array(corners))
        return shapely.multipolygons(shapes)

    def render(self, size: int | None = None) -> np.ndarray:
        """Render (size, size, 3) uint8, RGB, without the cross that marks an action.

        Rendered at 512 x 512 as gym-pusht does, and averaged over areas: at 64 pixels gym-pusht's
        own bilinear resize reads one pixel in four, which aliases thin edges.
        """
        return draw(self._env, size or self.image_size)
