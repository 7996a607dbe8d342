"""Draw the diagrams of docs/concepts: what a world model is, its roles, and how planners search.

Reads   checkpoints/pusht-goals, for the shapes between the roles.
Writes  docs/images/world-model.svg, docs/images/roles.svg, docs/images/planning.svg.
Try     python docs/make/concept_figures.py
"""

from __future__ import annotations

import sys

from drawing import BLUE, GREEN, INK, MARGIN, ORANGE, ROOT, SOFT, Drawing

sys.path[:0] = [str(ROOT)]

from pipeline.inference.load_world import load_world  # noqa: E402


def world_model() -> None:
    """Real frames enter once; then every frame is predicted."""
    d = Drawing(272, "A world model: real frames enter, actions lead on, frames are drawn")
    d.words(MARGIN, 18, "the past, real", INK, 12, 'font-weight="600"')
    d.words(198, 18, "the future: no frame enters", INK, 12, 'font-weight="600"')
    d.line([(188, 8), (188, 262)], INK, dashed=True)
    for number, x in enumerate((16, 102)):
        d.box(x, 28, 76, 42, f"frame {number + 1}\n64 x 64", GREEN)
        d.arrow((x + 38, 70), (x + 38, 91))
        d.box(x, 92, 76, 28, "encoder", BLUE)
        d.arrow((x + 38, 120), (x + 38, 153))
    d.box(16, 154, 162, 42, "state\nlatents, memory", ORANGE)
    for number, x in enumerate((204, 304)):
        d.box(x, 161, 80, 28, "dynamics", BLUE)
        d.arrow((x + 40, 226), (x + 40, 191))
        d.words(x + 40, 242, f"action {number + 2}", INK, 12, 'text-anchor="middle"')
        d.arrow((x + 40, 161), (x + 40, 122))
        d.box(x, 92, 80, 28, "decoder", BLUE)
        d.arrow((x + 40, 92), (x + 40, 72))
        d.box(x, 28, 80, 42, f"frame {number + 3}\npredicted", ORANGE)
    d.arrow((178, 175), (203, 175))
    d.arrow((284, 175), (303, 175))
    d.arrow((384, 175), (397, 175))
    d.words(140, 226, "action 1", INK, 12, 'text-anchor="middle"')
    d.arrow((140, 214), (140, 198))
    d.save("world-model.svg")


def roles() -> None:
    """Shapes that flow between the parts, of the committed world."""
    world = load_world(ROOT / "checkpoints/pusht-goals")
    latents, size = world.latents, world.image_size
    vector = f"(B, {latents.num_patches}, {latents.dim})"
    action = f"(B, {world.actions.size})"
    d = Drawing(326, "Three roles and the shapes between them, of the committed world of Push-T")
    half, right = 176, 208
    d.box(MARGIN, 10, half, 42, f"frames\n(B, T, 3, {size[0]}, {size[1]}) uint8", GREEN)
    d.box(right, 10, half, 42, f"actions\n(B, T, {world.actions.size})", GREEN)
    d.box(MARGIN, 76, half, 42, "tokenizer\nencode, decode", BLUE)
    d.box(MARGIN, 142, half, 42, f"latents\n{vector}", ORANGE)
    d.box(right, 142, half, 42, "dynamics\nstart, step, rollout", BLUE)
    d.box(right, 208, half, 42, f"state\nlatents {vector}, memory", ORANGE, 12)
    d.box(MARGIN, 276, 116, 42, "decoder\nto a frame", BLUE)
    d.box(142, 276, 116, 42, f"controller\nto {action}", BLUE)
    d.box(268, 276, 116, 42, f"planner\nto (B, T, {world.actions.size})", BLUE)
    d.arrow((104, 52), (104, 75))
    d.arrow((104, 118), (104, 141))
    d.arrow((192, 163), (207, 163))
    d.arrow((296, 52), (296, 141))
    d.arrow((296, 184), (296, 207))
    for x in (74, 200, 326):
        d.arrow((296, 250), (296, 262), (x, 262), (x, 275))
    d.save("roles.svg")


SEARCHES = {
    "shooting": ("draw, keep the best", (-62, -34, 0, 30), 2),
    "CEM": ("draw again around the best", (-24, -8, 10, 26), 1),
    "MPPI": ("all weigh in, by their cost", (-50, -26, -2, 20, 40), 2),
    "gradient": ("follow the slope", (40, 26, 12), 2),
    "policy prior": ("begin at a policy", (-12, 2, 16), 1),
    "best of n": ("choose an answer", (-30, -6, 24), 1),
    "beam": ("grow the best codes", (), 0),
}
WEIGHTS = (0.8, 2.2, 3.6, 2.2, 0.8)  # widths of MPPI's candidates: the nearer, the heavier


def planning() -> None:
    """Seven searches, as paths from a start to a goal, and a legend."""
    titles = ", ".join(SEARCHES)
    d = Drawing(600, f"Seven ways to search: {titles}")
    for panel, (title, (note, bends, best)) in enumerate(SEARCHES.items()):
        left, top = MARGIN + 192 * (panel % 2), 150 * (panel // 2)
        d.words(left, top + 18, title, INK, 13, 'font-weight="600"')
        d.words(left, top + 140, note, SOFT, 12)
        start, goal = (left + 8, top + 108), (left + 140, top + 44)
        if title == "beam":
            _beam(d, start, goal)
        ends = {"gradient": (-16, -8, 0), "best of n": (2, -4, -14), "MPPI": (-4, -2, 0, -2, -4)}
        for number, bend in enumerate(bends):
            middle = (left + 72, top + 76 + bend * 0.7)
            end_x = goal[0] + ends.get(title, (10, -2, -14, -24))[number] * 0.6
            end = (end_x, goal[1] + bend * 0.45)
            is_best = number == best
            if title == "policy prior" and is_best:
                d.line([start, (left + 72, top + 62), (goal[0] - 18, goal[1] + 16)], ORANGE)
            if title == "MPPI":
                d.line([start, middle, end], "#b5bac2", width=WEIGHTS[number])
            if is_best or title != "MPPI":
                d.line([start, middle, end], BLUE if is_best else SOFT, dashed=not is_best)
        d.dot(*start, INK)
        d.dot(*goal, GREEN, 5)
    _legend(d, MARGIN + 192, 450)
    d.save("planning.svg")


def _legend(d: Drawing, left: float, top: float) -> None:
    """What each line and dot is."""
    lines = (
        (SOFT, True, 1.6, "tried, not taken"), ("#b5bac2", False, 3.6, "tried, by weight"),
        (BLUE, False, 1.6, "the plan"), (ORANGE, False, 1.6, "what the policy says"),
    )  # fmt: skip
    for number, (color, dashed, width, words) in enumerate(lines):
        y = top + 20 + 21 * number
        d.line([(left, y), (left + 30, y)], color, dashed=dashed, width=width)
        d.words(left + 40, y + 4, words, INK, 12)
    for number, (color, words) in enumerate(((INK, "start"), (GREEN, "goal"))):
        y = top + 104 + 21 * number
        d.dot(left + 15, y, color, 4 + number)
        d.words(left + 40, y + 4, words, INK, 12)


def _beam(d: Drawing, start: tuple[float, float], goal: tuple[float, float]) -> None:
    """A tree in which the best two leaves of each step grow on."""
    x, y = start
    first = [(x + 44, y - 44), (x + 44, y - 16), (x + 44, y + 6)]
    second = [(x + 88, y - 64), (x + 88, y - 46), (x + 88, y - 26), (x + 88, y - 8)]
    for number, leaf in enumerate(first):
        d.line([start, leaf], BLUE if number == 0 else SOFT, dashed=number == 2)
    for number, leaf in enumerate(second):
        d.line([first[number // 2], leaf], BLUE if number == 1 else SOFT, dashed=number in (0, 3))
    d.line([second[1], goal], BLUE)
    d.line([second[2], (goal[0], goal[1] + 26)], SOFT, dashed=True)


if __name__ == "__main__":
    world_model()
    roles()
    planning()
