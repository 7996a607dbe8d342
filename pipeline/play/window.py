"""An OpenCV window: images in, keys and the mouse out."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import cv2
import numpy as np

# The arrow keys as waitKeyEx returns them: X11 (Qt and GTK), Windows, macOS, and their low bytes.
ARROW_CODES = {
    "left": (65361, 2424832, 63234, 81),
    "up": (65362, 2490368, 63232, 82),
    "right": (65363, 2555904, 63235, 83),
    "down": (65364, 2621440, 63233, 84),
}
KEY_NAMES = {code: name for name, codes in ARROW_CODES.items() for code in codes[:3]}
KEY_NAMES |= {27: "escape", 32: "space", 9: "tab", 13: "enter"}
# On Linux a lock key (Num, Caps) or Shift can add bits above the sixteen of the key.
LOW_BITS = 0xFFFF

DISPLAY_TEST = "import cv2; cv2.namedWindow('trial'); cv2.waitKey(1)"


def key_name(code: int) -> str | None:
    """Return "left", "space", "a" ... for a code of waitKeyEx; None for any other."""
    if code < 0:
        return None
    for candidate in (code, code & LOW_BITS):
        if candidate in KEY_NAMES:
            return KEY_NAMES[candidate]
        if 33 <= candidate < 127:
            return chr(candidate).lower()
    return None


def check_display() -> None:
    """Raise ValueError where no window can be opened.

    Tried in a subprocess: without a display Qt does not raise, it ends the process.
    """
    gui = [x for x in cv2.getBuildInformation().splitlines() if x.strip().startswith("GUI:")]
    if not gui or gui[0].split()[-1] == "NONE":
        reason = "this OpenCV is built without windows (opencv-python-headless?)"
    elif sys.platform == "linux" and not os.environ.get("DISPLAY"):
        reason = "no DISPLAY is set"
    else:
        trial = subprocess.run(
            [sys.executable, "-c", DISPLAY_TEST], capture_output=True, timeout=60
        )
        if trial.returncode == 0:
            return
        reason = f"the display {os.environ.get('DISPLAY', '')} does not answer"
    raise ValueError(f"no window can be opened here: {reason}; --headless writes a video instead")


class Window:
    """An image on the screen, as a context manager; `closed` once the user closes it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.closed = False
        self.mouse: tuple[int, int] | None = None
        """Where the mouse moved since the last `poll_mouse`, in pixels of the image."""
        self.buttons: list[bool] = []
        """Events of the left button since the last `poll_buttons`: True for down."""

    def __enter__(self) -> Window:
        os.environ.setdefault("QT_LOGGING_RULES", "*.warning=false")
        flags = cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL
        cv2.namedWindow(self.title, flags)
        cv2.setMouseCallback(self.title, self._on_mouse)
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(cv2.error):  # the user may have closed it already
            cv2.destroyAllWindows()
            cv2.waitKey(1)  # lets OpenCV close the window

    def show(self, image: np.ndarray) -> None:
        """Show an (H, W, 3) uint8 RGB image; it appears with the next `poll_keys`."""
        cv2.imshow(self.title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def poll_keys(self, milliseconds: float) -> list[str]:
        """Draw, wait for at most that long, and return the keys pressed."""
        pressed = []
        code = cv2.waitKeyEx(max(1, round(milliseconds)))
        while code >= 0:
            name = key_name(code)
            if name:
                pressed.append(name)
            code = cv2.waitKeyEx(1)
        self.closed = self.closed or not self._visible()
        return pressed

    def poll_mouse(self) -> tuple[int, int] | None:
        """Return where the mouse moved since the last call; None if it did not."""
        position, self.mouse = self.mouse, None
        return position

    def poll_buttons(self) -> list[bool]:
        """Return the events of the left mouse button since the last call: True for down."""
        events, self.buttons = self.buttons, []
        return events

    def _visible(self) -> bool:
        try:
            return cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # Qt, once its last window is closed
            return False

    def _on_mouse(self, event: int, x: int, y: int, flags: int, parameter: object) -> None:
        if event in (cv2.EVENT_MOUSEMOVE, cv2.EVENT_LBUTTONDOWN):
            self.mouse = (x, y)
        if event in (cv2.EVENT_LBUTTONDOWN, cv2.EVENT_LBUTTONUP):
            self.buttons.append(event == cv2.EVENT_LBUTTONDOWN)
