"""A window on the screen: images in, keys and the mouse out.

Keys are named by their place on the keyboard, as a QWERTY one names it: WASD are the same four keys
on every layout.
"""

from __future__ import annotations

import importlib.util
import os
import string
import subprocess
import sys
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from pipeline.play.panels import BACKGROUND

DISPLAY_SECONDS = 10.0  # that a display has to open a window, the start of a Python included
REPEAT_DELAY, REPEAT_INTERVAL = 300, 33  # milliseconds until a held key repeats, and between
DRIVERS = ("x11", "wayland", "windows", "cocoa")  # of SDL, that open a window
DISPLAY_TEST = """
import pygame
pygame.display.init()
pygame.display.set_mode((16, 16), pygame.HIDDEN)
print(pygame.display.get_driver())
"""
NAMED_KEYS = {
    "left": "LEFT", "right": "RIGHT", "up": "UP", "down": "DOWN",
    "escape": "ESCAPE", "space": "SPACE", "tab": "TAB", "enter": "RETURN",
    "-": "MINUS", "=": "EQUALS", ",": "COMMA", ".": "PERIOD",
}  # fmt: skip
SYMBOLS = "+-=,."  # which layouts have at different places, where they are no digit or letter


class KeyEvent(NamedTuple):
    """What happened to a key."""

    name: str
    """Its place: "w", "1", "left", "space" ..."""
    down: bool
    repeated: bool = False
    """It is held, and was reported before."""
    label: str = ""
    """What the user's layout calls it."""


def check_display() -> None:
    """Raise ValueError where no window can be opened.

    Tried in a subprocess: a display that takes the connection may never answer.
    """
    if importlib.util.find_spec("pygame") is None:
        reason = "pygame is not installed (pip install pygame)"
    elif sys.platform == "linux" and not display_name():
        reason = "no DISPLAY is set"
    else:
        reason = _try_window()
    if reason:
        raise ValueError(
            f"no window can be opened here: {reason}; --headless writes a video, --browser serves "
            f"a page"
        )


def _try_window() -> str:
    """Open a window that is not shown; return why it failed, or nothing."""
    display = f"the display {display_name()}".rstrip()
    try:
        trial = subprocess.run(
            [sys.executable, "-c", DISPLAY_TEST],
            env=_display_environment() | {"PYGAME_HIDE_SUPPORT_PROMPT": "1"},
            capture_output=True,
            text=True,
            timeout=DISPLAY_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"{display} does not answer within {DISPLAY_SECONDS:g} s"
    if trial.returncode == 0 and trial.stdout.strip() in DRIVERS:
        return ""
    last_line = (trial.stderr.strip().splitlines() or [f"SDL took {trial.stdout.strip()}"])[-1]
    return f"{display} does not answer ({last_line})"


def display_name() -> str:
    """Return the display of this session; empty where there is none, or the system has but one."""
    return os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY", "")


def _display_environment() -> dict[str, str]:
    """The environment without the choice of no display, which Push-T's simulator makes."""
    dummy = os.environ.get("SDL_VIDEODRIVER") == "dummy"
    return {k: v for k, v in os.environ.items() if not (dummy and k == "SDL_VIDEODRIVER")}


class Window:
    """An image on the screen, as a context manager; `closed` once the user closes it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.closed = False
        self.mouse: tuple[int, int] | None = None
        """Where the mouse moved since the last `poll_mouse`, in pixels of the image."""
        self.buttons: list[bool] = []
        """Events of the left button since the last `poll_buttons`: True for down."""
        self._held: set[int] = set()
        self._size: tuple[int, int] | None = None
        self._sdl_window: Any = None

    def __enter__(self) -> Window:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        import pygame

        if "SDL_VIDEODRIVER" not in _display_environment():
            os.environ.pop("SDL_VIDEODRIVER", None)
        pygame.display.quit()
        pygame.display.init()
        pygame.display.set_caption(self.title)
        pygame.key.set_repeat(REPEAT_DELAY, REPEAT_INTERVAL)
        return self

    def __exit__(self, *error: object) -> None:
        import pygame

        pygame.display.quit()

    def show(self, image: np.ndarray) -> None:
        """Show an (H, W, 3) uint8 RGB image; the window takes its size when that changes."""
        import pygame
        from pygame._sdl2.video import Window as SdlWindow

        size = (image.shape[1], image.shape[0])
        if self._size is None:
            pygame.display.set_mode(size, pygame.RESIZABLE)
            self._sdl_window = SdlWindow.from_display_module()  # kept, as events refer to it
        elif self._size != size:  # set_mode would open another window, and forget held keys
            self._sdl_window.size = size
            pygame.event.pump()
        self._size = size
        screen = pygame.display.get_surface()
        screen.fill(BACKGROUND)
        screen.blit(pygame.image.frombuffer(image.tobytes(), size, "RGB"), (0, 0))
        pygame.display.flip()

    def poll_keys(self, milliseconds: float) -> list[KeyEvent]:
        """Wait for input, at most that long, and return what happened to keys."""
        import pygame

        first = pygame.event.wait(max(1, round(milliseconds)))
        keys = [self._handle(event) for event in (first, *pygame.event.get())]
        return [key for key in keys if key is not None]

    def poll_mouse(self) -> tuple[int, int] | None:
        """Return where the mouse moved since the last call; None if it did not."""
        position, self.mouse = self.mouse, None
        return position

    def poll_buttons(self) -> list[bool]:
        """Return the events of the left mouse button since the last call: True for down."""
        events, self.buttons = self.buttons, []
        return events

    def _handle(self, event: Any) -> KeyEvent | None:
        import pygame

        if event.type == pygame.QUIT:
            self.closed = True
        elif event.type == pygame.MOUSEMOTION:
            self.mouse = event.pos
        elif event.type in (pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP) and event.button == 1:
            self.mouse = event.pos
            self.buttons.append(event.type == pygame.MOUSEBUTTONDOWN)
        elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
            return self._key(event, event.type == pygame.KEYDOWN)
        return None

    def _key(self, event: Any, down: bool) -> KeyEvent | None:
        import pygame

        repeated = down and event.scancode in self._held
        (self._held.add if down else self._held.discard)(event.scancode)
        name = key_name(event.scancode, event.unicode)
        return None if name is None else KeyEvent(name, down, repeated, pygame.key.name(event.key))


def key_name(scancode: int, typed: str = "") -> str | None:
    """Return "w", "1", "left", "+" ... for the place of a key and what it types; None for any other
    key."""
    name = _places().get(scancode)
    if typed and typed in SYMBOLS and not (name and name.isalnum()):
        return typed
    return name


@cache
def _places() -> dict[int, str]:
    """Names by scancode, which is a place."""
    import pygame

    places = {getattr(pygame, f"KSCAN_{key}"): name for name, key in NAMED_KEYS.items()}
    for character in string.ascii_lowercase + string.digits:
        places[getattr(pygame, f"KSCAN_{character.upper()}")] = character
        if character.isdigit():
            places[getattr(pygame, f"KSCAN_KP{character}")] = character
    return places
