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
    "CEM, MPPI": ("draw around the best", (-24, -8, 10, 26), 1),
    "gradient": ("follow the slope", (40, 26, 12), 2),
    "policy prior": ("begin at a policy", (-12, 2, 16), 1),
    "best of n": ("choose an answer", (-30, -6, 24), 1),
    "beam": ("grow the best codes", (), 0),
}


def planning() -> None:
    """Six searches, as paths from a start to a goal."""
    d = Drawing(318, "Six ways to search: shooting, CEM, gradient, policy prior, best of n, beam")
    for panel, (title, (note, bends, best)) in enumerate(SEARCHES.items()):
        left, top = MARGIN + 126 * (panel % 3), 158 * (panel // 3)
        d.words(left, top + 18, title, INK, 13, 'font-weight="600"')
        d.words(left, top + 142, note, SOFT, 11)
        start, goal = (left + 8, top + 112), (left + 104, top + 46)
        if title == "beam":
            _beam(d, start, goal)
        ends = {"gradient": (-16, -8, 0), "best of n": (2, -4, -14)}.get(title, (10, -2, -14, -24))
        for number, bend in enumerate(bends):
            middle = (left + 54, top + 80 + bend * 0.7)
            end = (goal[0] + ends[number] * 0.6, goal[1] + bend * 0.45)
            is_best = number == best
            if title == "policy prior" and is_best:
                d.line([start, (left + 54, top + 66), (goal[0] - 18, goal[1] + 16)], ORANGE)
            d.line([start, middle, end], BLUE if is_best else SOFT, dashed=not is_best)
        d.dot(*start, INK)
        d.dot(*goal, GREEN, 5)
    d.save("planning.svg")


def _beam(d: Drawing, start: tuple[float, float], goal: tuple[float, float]) -> None:
    """A tree in which the best two leaves of each step grow on."""
    x, y = start
    first = [(x + 32, y - 44), (x + 32, y - 16), (x + 32, y + 6)]
    second = [(x + 66, y - 66), (x + 66, y - 46), (x + 66, y - 26), (x + 66, y - 8)]
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
