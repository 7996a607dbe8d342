"""A comparison as one page that needs nothing else: words, tables, curves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from evaluation.compare.comparison import Comparison, FigureRow
from evaluation.compare.comparison_tables import NOTE, cell_text
from evaluation.compare.line_chart import Line, draw, stroke
from evaluation.report.trained_on_note import trained_on_note

MOST_WORDS = 30  # differences that are told in words
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1e; background: #fff;
       max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em } p, li { max-width: 60em }
.wide { overflow-x: auto } a { color: #0b57a4 } :focus-visible { outline: 3px solid #0b57a4 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid #d8dbe0;
         white-space: nowrap }
th { text-align: right } th:first-child { text-align: left; position: sticky; left: 0;
         background: #fff; font-weight: 600 }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 8px }
svg text { font: 11px system-ui, sans-serif; fill: #44484f } svg .t { font-weight: 600;
         fill: #1b1b1e } svg .y { text-anchor: end } svg .g { stroke: #e3e5e9 }
svg polyline, svg circle { fill: none; stroke-width: 1.7 } .key { width: 46px; height: 12px;
         vertical-align: middle } .quiet { color: #5a5f67 } details { margin: .5em 0 }
"""


def comparison_page(comparison: Comparison) -> str:
    """Give the HTML."""
    names = [run.name for run in comparison.runs]
    title = f"{len(names)} runs compared"
    told = (*comparison.refusals, *comparison.not_shared())
    body = [
        f"<h1>{title}</h1>",
        _runs(comparison),
        *(f"<p><b>{escape(line)}.</b></p>" for line in told),
        "<h2>Differences larger than chance</h2>",
        *_differences(comparison),
        "<h2>Figures</h2>",
        f"<p class=quiet>Brackets: 95% intervals. {escape(NOTE)}.</p>",
        _figures(comparison),
        *_charts("By steps ahead", _horizon_charts(comparison)),
        *_charts("Training", _curve_charts(comparison)),
        "<h2>Settings that differ</h2>",
        _settings(comparison),
    ]
    return (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name="viewport" '
        f'content="width=device-width"><title>{title}</title><style>{STYLE}</style>'
        f"<body><main>{''.join(body)}</main></body></html>"
    )


def _runs(comparison: Comparison) -> str:
    rows = []
    for style, run in enumerate(comparison.runs):
        given = run.provenance
        methods = ", ".join(str(m) for m in (given.get("methods") or {}).values() if m)
        held_out = given.get("held_out_episodes")
        note = trained_on_note(given.get("held_out_episodes_trained_on"), held_out or 0)
        line = f'<polyline points="0,6 46,6" {stroke(style)}/>'
        key = f'<svg class=key viewBox="0 0 46 12" aria-hidden="true">{line}</svg>'
        facts = (key, escape(methods or "-"), escape(str(given.get("finished") or "-")))
        rows.append([escape(run.name), *facts, escape(note or "")])
    head = ["run", "line", "methods", "measured", ""]
    return _table(head, rows)


def _differences(comparison: Comparison) -> list[str]:
    told = []
    for row in comparison.rows:
        for name in row.cells:
            if name in row.beyond_chance:
                word = "better" if row.is_better(name) else "worse"
                both = f"{cell_text(row, name)[:-2]} against {cell_text(row, row.reference)}"
                told.append(f"{row.label}: {name} is {word} than {row.reference}, {both}")
    if not comparison.num_tests:
        return ["<p>None was tested: no two runs share a figure with an interval.</p>"]
    summary = f"<p>{len(told)} of {comparison.num_tests} tested.</p>"
    items = [f"<li>{escape(line)}</li>" for line in told]
    shown = f"<ul>{''.join(items[:MOST_WORDS])}</ul>"
    rest = items[MOST_WORDS:]
    more = f"<details><summary>{len(rest)} more</summary><ul>{''.join(rest)}</ul></details>"
    return [summary, *([shown] if told else []), *([more] if rest else [])]


def _figures(comparison: Comparison) -> str:
    names = [run.name for run in comparison.runs]
    rows = [
        [escape(row.label), *(escape(cell_text(row, name, True)) for name in names)]
        for row in comparison.rows
    ]
    return _table(["figure", *map(escape, names)], rows)


def _horizon_charts(comparison: Comparison) -> list[str]:
    """A chart for each figure that has horizons, by each of its protocols."""
    styles = {run.name: at for at, run in enumerate(comparison.runs)}
    charts: dict[str, dict[str, list[tuple[int, FigureRow]]]] = {}
    for row in comparison.rows:
        found = re.fullmatch(r"(.*) at (\d+) steps", row.key)
        if found:
            title = f"{found[1]} ({row.letter})" if row.letter else found[1]
            for name in row.cells:
                by_run = charts.setdefault(title, {})
                by_run.setdefault(name, []).append((int(found[2]), row))
    drawn = []
    for title, by_run in charts.items():
        lines = []
        for name, each in by_run.items():
            figures = [(horizon, row.cells[name]) for horizon, row in sorted(each, key=_first)]
            ends = [(f.low, f.high) for _, f in figures]
            band = [(low, high) for low, high in ends if low is not None and high is not None]
            points = [(horizon, figure.value) for horizon, figure in figures]
            whole = band if len(band) == len(points) else ()
            lines.append(Line(name, points, whole, styles[name]))
        drawn.append(draw(title, lines, "steps ahead"))
    return drawn


def _first(pair: tuple[int, FigureRow]) -> int:
    return pair[0]


def _curve_charts(comparison: Comparison) -> list[str]:
    drawn = []
    for curve in comparison.curves():
        lines = [
            Line(run.name, run.curves[curve], style=style)
            for style, run in enumerate(comparison.runs)
            if curve in run.curves
        ]
        drawn.append(draw(curve, lines, "training steps"))
    return drawn


def _charts(title: str, drawn: Sequence[str]) -> list[str]:
    shown = [chart for chart in drawn if chart]
    return [f"<h2>{title}</h2>", f"<div class=charts>{''.join(shown)}</div>"] if shown else []


def _settings(comparison: Comparison) -> str:
    names = [run.name for run in comparison.runs]
    rows = [
        [escape(setting), *(escape(_value(values[name])) for name in names)]
        for setting, values in comparison.settings().items()
    ]
    if not rows:
        return "<p>None that the reports know of.</p>"
    return _table(["setting", *map(escape, names)], rows)


def _value(value: object) -> str:
    return "-" if value is None or value == "" else f"{value!s:.60}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Build a table of cells that are HTML already; the first cell of a row heads it."""
    lines = [f"<tr>{''.join(f'<th scope=col>{cell}</th>' for cell in head)}</tr>"]
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f"<tr><th scope=row>{first}</th>{cells}</tr>")
    return f"<div class=wide tabindex=0><table>{''.join(lines)}</table></div>"
