"""Draw figures of docs/results.md: what each policy reaches, how far, and how fast we are.

Every number is read from the tables of that page, by its row; a row that is not there is an error.

Reads   docs/results.md.
Writes  docs/images/task-results.svg, goals-results.svg, speed-results.svg.
Try     python docs/make/result_figures.py
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass

from drawing import BLUE, INK, MARGIN, ORANGE, ROOT, SOFT, WIDTH, Drawing

PAGE = ROOT / "docs/results.md"
Figure = tuple[float, float, float]
"""A value, and the ends of its interval."""


def table(heading: str) -> list[dict[str, str]]:
    """The first table below a heading of the page: its rows by the names of the columns."""
    text = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    if len(rows) < 3:
        raise ValueError(f"{PAGE} has no table below {heading!r}")
    head = [cell.strip() for cell in rows[0]]
    return [dict(zip(head, map(str.strip, row), strict=True)) for row in rows[2:]]


def one(rows: list[dict[str, str]], column: str, **wanted: str) -> Figure:
    """The figure of the only row whose cells begin as `wanted` says."""
    found = [
        row for row in rows
        if all(row[key.replace("_", " ")].startswith(begin) for key, begin in wanted.items())
    ]  # fmt: skip
    if not found:
        raise ValueError(f"{PAGE} has no row with {wanted}")
    return figure(found[0][column])


def figure(cell: str) -> Figure:
    """`95.8 [93.7, 97.2]`, or a number without an interval."""
    numbers = [float(found.replace(",", "")) for found in re.findall(r"-?\d[\d,]*\.?\d*", cell)]
    if len(numbers) < 3 or "[" not in cell:
        return numbers[0], numbers[0], numbers[0]
    return numbers[0], numbers[1], numbers[2]


@dataclass(frozen=True)
class Bar:
    """A bar, with its interval, the words before it and their color."""

    words: str
    value: Figure
    color: str = BLUE


def bars(d: Drawing, rows: list[Bar], top: float, most: float, unit: str = "") -> None:
    """Horizontal bars from 0 to `most`."""
    left, right = 172, WIDTH - 62
    for number, row in enumerate(rows):
        y = top + 26 * number
        d.words(left - 8, y + 14, row.words, INK, 12, 'text-anchor="end"')
        value, low, high = (left + (right - left) * x / most for x in row.value)
        d.bar(left, y + 2, value - left, 16, row.color)
        if high > low:
            d.line([(low, y + 10), (high, y + 10)], INK, width=1.5)
            for x in (low, high):
                d.line([(x, y + 6), (x, y + 14)], INK, width=1.5)
        d.words(max(value, high) + 6, y + 15, f"{row.value[0]:g}{unit}", INK, 12)


def task() -> None:
    """Success in the task, by policy, of the committed world."""
    rows = table("Push-T task score")
    chosen = (
        ("best of n", "`goals`", "`best_of_n`, the best", BLUE),
        ("policy prior", "`goals`", "`policy_prior`", BLUE),
        ("distilled policy", "`goals`", "`distilled_policy`", ORANGE),
        ("canonical policy", "`goals`", "`canonical_policy`", ORANGE),
        ("flow policy", "`goals`", "`flow_policy`, imitator, no", ORANGE),
        ("actor-critic", "`goals`", "`actor_critic`", ORANGE),
        ("LeRobot's retraining", "LeRobot", "Diffusion", SOFT),
    )
    found = [
        Bar(words, one(rows, "Success, %", Run=run, Policy=policy), color)
        for words, run, policy, color in chosen
    ]
    d = Drawing(56 + 26 * len(found), "Success in the Push-T task by policy, with 95% intervals")
    d.words(MARGIN, 18, "Push-T task: success, %", INK, 13, 'font-weight="600"')
    bars(d, found, 28, 100)
    d.bar(MARGIN, 34 + 26 * len(found), 10, 10, BLUE)
    d.words(MARGIN + 16, 43 + 26 * len(found), "chooses in imagination", INK, 11)
    d.bar(182, 34 + 26 * len(found), 10, 10, ORANGE)
    d.words(198, 43 + 26 * len(found), "answers at once; gray: published", INK, 11)
    d.save("task-results.svg")


def goals() -> None:
    """Success by how far a goal is, of the committed world."""
    rows = table("Goals reached on Push-T")
    protocols = {25: "first_hit", 50: "offset50", 100: "offset100"}
    lines = {
        "policy_prior": (BLUE, False), "goal_policy": (ORANGE, True),
        "goal_agent_position": (SOFT, True),
    }  # fmt: skip
    d = Drawing(236, "Success by the distance of the goal: policy prior, goal policy, a baseline")
    d.words(MARGIN, 18, "goals reached, %, by steps to the goal", INK, 13, 'font-weight="600"')
    left, right, top, low = 48, 262, 36, 200
    place = {25: left + 10, 50: (left + right) / 2, 100: right}
    for percent in (0, 50, 100):
        y = low - (low - top) * percent / 100
        d.line([(left, y), (right + 8, y)], "#ccc", width=1)
        d.words(left - 6, y + 4, str(percent), SOFT, 11, 'text-anchor="end"')
    for steps, x in place.items():
        d.words(x, low + 16, str(steps), INK, 12, 'text-anchor="middle"')
    for name, (color, dashed) in lines.items():
        points = []
        for steps, protocol in protocols.items():
            value, least, most = one(
                rows, name, Protocol=f"{protocol}", Run="`checkpoints/pusht-goals`"
            )
            height = [low - (low - top) * v / 100 for v in (value, least, most)]
            d.line([(place[steps], height[1]), (place[steps], height[2])], color, width=3)
            points.append((place[steps], height[0]))
        d.line(points, color, dashed=dashed, width=2)
        for x, y in points:
            d.dot(x, y, color)
        words = {"goal_agent_position": "baseline: the agent's|place in the goal"}.get(
            name, name.replace("_", " ")
        )
        for number, part in enumerate(words.split("|")):
            d.words(
                right + 14, points[-1][1] + 4 + 14 * number - 14 * words.count("|"), part, color, 11
            )
    d.save("goals-results.svg")


def speed() -> None:
    """Ratios against peers, on a logarithmic axis."""
    rows = table("Speed")
    chosen = (
        ("training step, 7 M", "training step, 7.0 M", "Hugging Face"),
        ("decoding, 7 M", "decoding, 7.0 M", "`generate`"),
        ("decoding, int8", "decoding, int8", "`generate`"),
        ("a plan by CEM", "plan, CEM", "stable-worldmodel"),
        ("loading clips", "the same", "stable-worldmodel"),
    )
    machines = {"bf16": (BLUE, "two CPU cores"), "H200": (ORANGE, "H200")}
    d = Drawing(54 + 38 * len(chosen), "Speed against peers: 1 is as fast, more is faster")
    d.words(MARGIN, 18, "times as fast as the peer (log scale)", INK, 13, 'font-weight="600"')
    left, right = 128, WIDTH - 66

    def x_of(ratio: float) -> float:
        return left + (right - left) * math.log(max(ratio, 0.5) / 0.5) / math.log(12 / 0.5)

    bottom = 30 + 38 * len(chosen)
    for tick in (1, 2, 5, 10):
        d.line([(x_of(tick), 26), (x_of(tick), bottom)], "#999" if tick == 1 else "#ddd", width=1)
        d.words(x_of(tick), bottom + 13, f"{tick}", SOFT, 11, 'text-anchor="middle"')
    for number, (words, what, peer) in enumerate(chosen):
        y = 30 + 38 * number
        d.words(MARGIN, y + 14, words, INK, 12)
        d.words(MARGIN, y + 28, peer.strip("`"), SOFT, 11)
        row = next(r for r in rows if r["What"].startswith(what) and r["Against"].startswith(
            (peer, "the same")))  # fmt: skip
        for at, (machine, (color, _)) in enumerate(machines.items()):
            if row[machine].strip() == "-":
                continue
            value, low, high = figure(row[machine])
            height = y + 2 + 16 * at
            begin, end = sorted((x_of(1), x_of(value)))
            d.bar(begin, height, end - begin, 13, color)
            d.line([(x_of(low), height + 6.5), (x_of(high), height + 6.5)], INK, width=1.5)
            d.words(max(x_of(high), x_of(1)) + 5, height + 11, f"{value:.2g}" if value < 10 else
                    f"{value:.1f}", INK, 11)  # fmt: skip
    for at, (color, words) in enumerate(machines.values()):
        d.bar(MARGIN + 110 * at, bottom + 18, 10, 10, color)
        d.words(MARGIN + 15 + 110 * at, bottom + 27, words, INK, 11)
    d.height += 8
    d.save("speed-results.svg")


FIGURES = {"task": task, "goals": goals, "speed": speed}

if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]()
