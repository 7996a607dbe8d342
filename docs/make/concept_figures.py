"""Draw the diagrams of docs/concepts: what a world model is, and how planners search, as SVG.

Reads   nothing.
Writes  docs/images/world-model.svg, docs/images/roles.svg, docs/images/planning.svg.
Try     python docs/make/concept_figures.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "images"
INK, SOFT, BLUE, ORANGE, GREEN = "#222", "#777", "#1b6ca8", "#c1440e", "#2e7d32"
STYLE = "font-family:system-ui,sans-serif;font-size:13px"


class Drawing:
    """Boxes, arrows and words on a white card, which is read on a dark page, too."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'role="img" style="{STYLE}"><title>{escape(title)}</title>'
            f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
            f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>'
        )
        self.parts: list[str] = []

    def box(self, x: int, y: int, w: int, h: int, words: str, color: str = INK) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="5" fill="{color}" '
            f'fill-opacity="0.09" stroke="{color}" stroke-width="1.5"/>'
        )
        lines = words.split("\n")
        for number, line in enumerate(lines):
            at = y + h / 2 + 5 + 17 * (number - (len(lines) - 1) / 2)
            weight = ' font-weight="600"' if number == 0 else ""
            self.words(x + w // 2, at, line, color, extra=f'text-anchor="middle"{weight}')

    def words(self, x: float, y: float, text: str, color: str = SOFT, extra: str = "") -> None:
        self.parts.append(f'<text x="{x}" y="{y:.0f}" fill="{color}" {extra}>{escape(text)}</text>')

    def arrow(self, *points: tuple[int, int], dashed: bool = False) -> None:
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.4" '
            f'marker-end="url(#tip)"{dash}/>'
        )

    def dot(self, x: float, y: float, color: str, r: float = 4) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{color}"/>')

    def line(self, points: list[tuple[float, float]], color: str, dashed: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"{dash}/>'
        )

    def save(self, name: str) -> None:
        (IMAGES / name).write_text(self.head + "".join(self.parts) + "</svg>\n")


def world_model() -> None:
    """Real frames enter once; then every frame is predicted."""
    d = Drawing(760, 300, "A world model: real frames enter, actions lead on, frames are drawn")
    d.words(20, 28, "the past, real", INK, 'font-weight="600"')
    d.words(330, 28, "the future, imagined: no frame enters", INK, 'font-weight="600"')
    d.line([(305, 14), (305, 290)], INK, dashed=True)
    for number, x in enumerate((20, 120, 220)):
        d.box(x, 45, 72, 52, f"frame {number + 1}\n64 x 64", GREEN)
        d.arrow((x + 36, 97), (x + 36, 122))
        d.box(x, 122, 72, 34, "encoder", BLUE)
    d.arrow((56, 156), (56, 205), (92, 205))
    d.arrow((156, 156), (156, 186))
    d.arrow((256, 156), (256, 186))
    d.box(92, 188, 200, 40, "state\nlatents, memory", ORANGE)
    for number, x in enumerate((360, 500, 640)):
        d.box(x - 40, 188, 80, 40, "dynamics", BLUE)
        d.arrow((x, 262), (x, 230))
        d.words(x - 30, 280, f"action {number + 3}", INK)
        d.arrow((x, 186), (x, 158))
        d.box(x - 36, 122, 72, 34, "decoder", BLUE)
        d.arrow((x, 122), (x, 99))
        d.box(x - 36, 45, 72, 52, f"frame {number + 4}\npredicted", ORANGE)
    d.arrow((292, 208), (318, 208))
    d.arrow((400, 208), (458, 208))
    d.arrow((540, 208), (598, 208))
    d.arrow((680, 208), (740, 208))
    d.words(694, 200, "...")
    d.save("world-model.svg")


def roles() -> None:
    """Shapes that flow between the parts."""
    d = Drawing(760, 330, "Three roles and the shapes between them")
    d.box(20, 20, 210, 46, "frames\n(B, T, 3, 64, 64) uint8", GREEN)
    d.box(530, 20, 210, 46, "actions\n(B, T, A) float or (B, T) codes", GREEN)
    d.box(20, 100, 210, 46, "tokenizer\nencode, decode", BLUE)
    d.box(275, 100, 210, 46, "latents\n(B, T, N) codes or (B, T, P, D)", ORANGE)
    d.box(275, 180, 210, 46, "dynamics\nstart, step, rollout, observe", BLUE)
    d.box(530, 180, 210, 46, "state\nlatents, reward, continues", ORANGE)
    d.box(20, 265, 210, 46, "decoder\nstate to frame", BLUE)
    d.box(275, 265, 210, 46, "controller\nstate to action (B, A)", BLUE)
    d.box(530, 265, 210, 46, "planner\nstate, goal to actions (B, T, A)", BLUE)
    d.arrow((125, 66), (125, 98))
    d.arrow((230, 123), (273, 123))
    d.arrow((380, 146), (380, 178))
    d.arrow((635, 66), (635, 150), (440, 150), (440, 178))
    d.arrow((485, 203), (528, 203))
    d.arrow((635, 226), (635, 263))
    d.arrow((600, 226), (600, 244), (380, 244), (380, 263))
    d.arrow((600, 226), (600, 244), (125, 244), (125, 263))
    d.save("roles.svg")


def planning() -> None:
    """Four searches, as paths from a start to a goal."""
    d = Drawing(760, 210, "Four ways to search: shooting, CEM, gradient, policy prior")
    titles = ("shooting", "CEM, MPPI", "gradient", "policy prior")
    notes = (
        "draw, keep the best",
        "draw again around the best",
        "follow the slope",
        "begin where it points",
    )
    for panel, (title, note) in enumerate(zip(titles, notes, strict=True)):
        left = 15 + 187 * panel
        d.words(left + 4, 24, title, INK, 'font-weight="600"')
        d.words(left + 4, 200, note, SOFT)
        start, goal = (left + 20, 150), (left + 150, 60)
        spreads = {0: (-70, -38, 0, 36), 1: (-26, -8, 12, 30), 2: (44, 28, 14), 3: (-10, 4, 16)}[
            panel
        ]
        for number, bend in enumerate(spreads):
            end = {
                0: (goal[0] - 12 * number + 10, goal[1] + bend + 14),
                1: (goal[0] - 6, goal[1] + bend * 0.7 - 4),
                2: (goal[0] - 8 * (2 - number), goal[1] + bend - 12),
                3: (goal[0] - 5, goal[1] + bend * 0.6),
            }[panel]
            middle = (left + 80, 105 + bend * 0.9)
            best = number == {0: 2, 1: 1, 2: 2, 3: 1}[panel]
            d.line([start, middle, end], BLUE if best else SOFT, dashed=not best)
        if panel == 3:
            d.line([start, (left + 80, 96), (goal[0] - 20, goal[1] + 14)], ORANGE)
        d.dot(*start, INK)
        d.dot(*goal, GREEN, 6)
    d.save("planning.svg")


if __name__ == "__main__":
    world_model()
    roles()
    planning()
