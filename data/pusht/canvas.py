"""Frames of Push-T, drawn as gym-pusht does, on a screen that is kept.

Most of a frame is white and never changes.  So the screen of 512 x 512 is filled once, what was
drawn on it is wiped out after each frame, and only the cells around block, agent and goal are
scaled.  The pixels are those of a frame that is drawn and scaled as a whole.
"""

from __future__ import annotations

import os
import threading
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no display is needed
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import numpy as np
import pygame
from pymunk import Body, Segment, Space

from data.opencv import opencv_or_stub, resize_area

with opencv_or_stub():
    from gym_pusht.envs.pymunk_override import DrawOptions, to_pygame

WINDOW_SIZE = 512
"""Side of the world in its own pixels, which are those of the screen."""
MARGIN = 8
"""Pixels around a shape that its outline may cover."""
MAX_GOALS = 1000
"""Goals whose corners are kept."""
GOAL_COLOR = pygame.Color("LightGreen")

Box = tuple[slice, slice]
"""Rows and columns of the screen."""

_own = threading.local()


def draw(env: Any, size: int) -> np.ndarray:
    """Draw a gym-pusht environment: (size, size, 3) uint8, RGB."""
    if size < 1:
        raise ValueError(f"a frame of Push-T has a side of 1 pixel or more, not {size}")
    canvas = getattr(_own, "canvas", None) or Canvas()
    _own.canvas = None  # what fails midway is not wiped out
    frame = canvas.draw(env, size)
    _own.canvas = canvas
    return frame


class Canvas:
    """A screen that holds the walls alone, and how they look in other sizes."""

    def __init__(self) -> None:
        self.screen = pygame.Surface((WINDOW_SIZE, WINDOW_SIZE))
        self.options = DrawOptions(self.screen)
        self.walls = np.empty((0, 0, 4), np.uint8)
        self.scaled_walls: dict[int, np.ndarray] = {}
        self.goals: dict[bytes, list[Any]] = {}

    def draw(self, env: Any, size: int) -> np.ndarray:
        """As the function `draw`."""
        if not self.walls.size:
            self.walls = self._draw_walls(env)
        goal = self._draw_goal(env)
        env.space.debug_draw(self.options)
        moved = [_box(goal), _bounds(env.agent), _bounds(env.block)]
        pixels = self._pixels()
        small = (
            resize_area(pixels, size) if WINDOW_SIZE % size else self._scale(pixels, size, moved)
        )
        for box in moved:
            pixels[box] = self.walls[box]
        return np.ascontiguousarray(small[..., 2::-1])  # the screen is blue, green, red, unused

    def _pixels(self) -> np.ndarray:
        """(512, 512, 4) uint8, a view of the screen; nothing is drawn while it is held."""
        memory: Any = self.screen.get_buffer()
        return np.frombuffer(memory, np.uint8).reshape(WINDOW_SIZE, WINDOW_SIZE, 4)

    def _draw_walls(self, env: Any) -> np.ndarray:
        """Begin with the walls of `env` on white: (512, 512, 4) uint8."""
        self.screen.fill((255, 255, 255))
        space = Space()
        for wall in env.space.static_body.shapes:
            own = Segment(space.static_body, wall.a, wall.b, wall.radius)
            own.color = wall.color
            space.add(own)
        space.debug_draw(self.options)
        return self._pixels().copy()

    def _draw_goal(self, env: Any) -> np.ndarray:
        """Draw the goal, and give its corners in pixels: (C, 2)."""
        pose = env.goal_pose.tobytes()
        if pose not in self.goals:
            body = env.get_goal_pose_body(env.goal_pose)
            if len(self.goals) >= MAX_GOALS:
                self.goals.clear()
            self.goals[pose] = [
                [to_pygame(body.local_to_world(v), self.screen) for v in shape.get_vertices()]
                for shape in env.block.shapes
            ]
        for points in self.goals[pose]:
            pygame.draw.polygon(self.screen, GOAL_COLOR, [*points, points[0]])
        return np.array([point for points in self.goals[pose] for point in points])

    def _scale(self, pixels: np.ndarray, size: int, moved: list[Box]) -> np.ndarray:
        """Scale what is not the walls alone, in squares of whole cells: (size, size, 4) uint8."""
        cell = WINDOW_SIZE // size
        if size not in self.scaled_walls:
            self.scaled_walls[size] = resize_area(self.walls, size)
        small = self.scaled_walls[size].copy()
        for box in moved:
            first = [axis.start // cell for axis in box]
            side = max(-(-axis.stop // cell) - axis.start // cell for axis in box)
            if side <= 0:  # outside
                continue
            y, x = (min(start, size - side) for start in first)
            square = pixels[y * cell : (y + side) * cell, x * cell : (x + side) * cell]
            small[y : y + side, x : x + side] = resize_area(square, side)
        return small


def _bounds(body: Body) -> Box:
    """Give the pixels that a body's shapes may cover."""
    boxes = [shape.cache_bb() for shape in body.shapes]
    corners = [((box.left, box.bottom), (box.right, box.top)) for box in boxes]
    return _box(np.array(corners).reshape(-1, 2))


def _box(points: np.ndarray) -> Box:
    """Give the rows and columns around points x, y (N, 2), as far as they are on the screen."""
    low = np.clip(np.floor(points.min(0)) - MARGIN, 0, WINDOW_SIZE).astype(int)
    high = np.clip(np.ceil(points.max(0)) + MARGIN, 0, WINDOW_SIZE).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])
