"""Frames of Push-T, drawn as gym-pusht does, on a screen that is kept.

Most of a frame never changes.  So walls and goal are drawn once on the screen of 512 x 512, what
moves is wiped out after each frame, and only the cells around it are scaled.  The pixels are those
of a frame that is drawn and scaled as a whole.
"""

from __future__ import annotations

import math
import os
import threading
from itertools import pairwise
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no display is needed
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import numpy as np
import pygame
from pymunk import Body, Segment, Space

from data.opencv import opencv_or_stub, resize_area

with opencv_or_stub():
    from gym_pusht.envs.pymunk_override import DrawOptions, light_color, to_pygame

WINDOW_SIZE = 512
"""Side of the world in its own pixels, which are those of the screen."""
MARGIN = 8
"""Pixels around a shape that its outline may cover."""
WALL = 10
"""Pixels from a side of the screen that its wall may cover."""
EDGE_RADIUS = 2
"""Half the width of a block's edge, in pixels."""
MAX_GOALS = 64
"""Goals whose screens are kept, 1 MiB each: more than are played at a time."""
GOAL_COLOR = pygame.Color("LightGreen")

Box = tuple[slice, slice]
"""Rows and columns of the screen."""
Color = tuple[int, int, int, int]
Point = tuple[int, int]

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


class Pen(DrawOptions):
    """Draws the pixels of gym-pusht's `DrawOptions`, and computes colors and corners once."""

    def __init__(self, screen: pygame.Surface) -> None:
        super().__init__(screen)
        self.draws_walls = True
        self.colors: dict[Any, tuple[Color, Color]] = {}

    def draw_fat_segment(self, a: Any, b: Any, radius: float, outline: Any, fill: Any) -> None:
        if self.draws_walls:
            super().draw_fat_segment(a, b, radius, outline, fill)

    def draw_polygon(self, verts: Any, radius: float, outline: Any, fill: Any) -> None:
        del radius, outline  # as there
        if fill not in self.colors:
            self.colors[fill] = fill.as_int(), light_color(fill).as_int()
        edge, inside = self.colors[fill]
        points = [(round(x), round(y)) for x, y in verts]
        points.append(points[0])
        pygame.draw.polygon(self.surface, inside, points)
        for start, end in pairwise(points):
            self._draw_edge(start, end, edge)

    def _draw_edge(self, start: Point, end: Point, color: Color) -> None:
        """As `draw_fat_segment` there."""
        (x1, y1), (x2, y2) = start, end
        pygame.draw.lines(self.surface, color, False, (start, end), 2 * EDGE_RADIUS)
        dx, dy = abs(y2 - y1), abs(x2 - x1)
        if dx == 0 and dy == 0:
            return
        scale = EDGE_RADIUS / (dx * dx + dy * dy) ** 0.5
        dx, dy = round(dx * scale), round(dy * scale)
        corners = (x1 - dx, y1 - dy), (x1 + dx, y1 + dy), (x2 + dx, y2 + dy), (x2 - dx, y2 - dy)
        pygame.draw.polygon(self.surface, color, corners)
        pygame.draw.circle(self.surface, color, start, EDGE_RADIUS)
        pygame.draw.circle(self.surface, color, end, EDGE_RADIUS)


class Scene:
    """Walls and goal, and how they look in other sizes."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self._scaled: dict[int, np.ndarray] = {}

    def scaled(self, size: int) -> np.ndarray:
        """(size, size, 4) uint8."""
        if size not in self._scaled:
            self._scaled[size] = resize_area(self.pixels, size)
        return self._scaled[size]


class Canvas:
    """A screen that holds walls and goal alone between frames."""

    def __init__(self) -> None:
        self.screen = pygame.Surface((WINDOW_SIZE, WINDOW_SIZE))
        self.pen = Pen(self.screen)
        self.scenes: dict[bytes, Scene] = {}
        self.shown = b""  # the goal on the screen

    def draw(self, env: Any, size: int) -> np.ndarray:
        """As the function `draw`."""
        scene = self._show_scene(env)
        moved = [_bounds(env.agent), _bounds(env.block)]
        self.pen.draws_walls = any(_is_at_a_wall(box) for box in moved)
        env.space.debug_draw(self.pen)
        pixels = self._pixels()
        if WINDOW_SIZE % size:
            small = resize_area(pixels, size)
        else:
            small = _scale(pixels, scene.scaled(size).copy(), moved)
        for box in moved:
            pixels[box] = scene.pixels[box]
        return np.ascontiguousarray(small[..., 2::-1])  # the screen is blue, green, red, unused

    def _pixels(self) -> np.ndarray:
        """(512, 512, 4) uint8, a view of the screen; nothing is drawn while it is held."""
        memory: Any = self.screen.get_buffer()
        return np.frombuffer(memory, np.uint8).reshape(WINDOW_SIZE, WINDOW_SIZE, 4)

    def _show_scene(self, env: Any) -> Scene:
        """Have walls and goal of `env` on the screen, and nothing else."""
        goal = env.goal_pose.tobytes()
        if goal not in self.scenes:
            if len(self.scenes) >= MAX_GOALS:
                self.scenes.clear()
            self.scenes[goal] = self._draw_scene(env)
        elif goal != self.shown:
            self._pixels()[:] = self.scenes[goal].pixels
        self.shown = goal
        return self.scenes[goal]

    def _draw_scene(self, env: Any) -> Scene:
        self.screen.fill((255, 255, 255))
        body = env.get_goal_pose_body(env.goal_pose)
        for shape in env.block.shapes:
            points = [to_pygame(body.local_to_world(v), self.screen) for v in shape.get_vertices()]
            pygame.draw.polygon(self.screen, GOAL_COLOR, [*points, points[0]])
        space = Space()
        for wall in env.space.static_body.shapes:
            own = Segment(space.static_body, wall.a, wall.b, wall.radius)
            own.color = wall.color
            space.add(own)
        self.pen.draws_walls = True
        space.debug_draw(self.pen)
        return Scene(self._pixels().copy())


def _scale(pixels: np.ndarray, small: np.ndarray, moved: list[Box]) -> np.ndarray:
    """Scale what moved in squares of whole cells, into `small` (size, size, 4)."""
    size = len(small)
    cell = WINDOW_SIZE // size
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
    """Give the rows and columns of the screen that a body's shapes may cover."""
    boxes = [shape.cache_bb() for shape in body.shapes]
    return (
        _span(min(box.bottom for box in boxes), max(box.top for box in boxes)),
        _span(min(box.left for box in boxes), max(box.right for box in boxes)),
    )


def _span(low: float, high: float) -> slice:
    first, last = math.floor(low) - MARGIN, math.ceil(high) + MARGIN
    return slice(min(max(first, 0), WINDOW_SIZE), min(max(last, 0), WINDOW_SIZE))


def _is_at_a_wall(box: Box) -> bool:
    return any(axis.start < WALL or axis.stop > WINDOW_SIZE - WALL for axis in box)
