"""Compare runs: figures side by side, training curves, settings that differ, and what is chance.

Reads   RUN/report/metrics.json of each run (or a folder of one, such as RUN/report/on-NAME), and
        RUN/*/log.jsonl.
Writes  nothing, or the files of --csv, --markdown, --latex and --page.
Try     python -m evaluation.compare runs/a runs/b --page comparison.html
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data.io.files import atomic_write, writable_folder
from data.ranges import CheckedConfig, NonEmpty
from evaluation.compare.comparison import Comparison, compare
from evaluation.compare.reported_run import read_runs


@dataclass(frozen=True)
class Config(CheckedConfig):
    runs: Annotated[tuple[Path, ...], NonEmpty()]
    """Folders of runs, or of reports; differences are tested against the first."""
    figures: tuple[str, ...] = ()
    """Only these, by their keys in metrics.json, such as `task.*` or `open_loop.psnr*`; if none is
    named all, and on the terminal only the longest horizon of each."""
    csv: Path | None = None
    """File of all figures, one a line."""
    markdown: Path | None = None
    """File of the table in Markdown."""
    latex: Path | None = None
    """File of the table in LaTeX, for the package booktabs."""
    page: Path | None = None
    """File of one HTML page: figures, curves by horizon and of the training, settings."""


def main(config: Config) -> None:
    files = [f for f in (config.csv, config.markdown, config.latex, config.page) if f]
    for file in files:
        writable_folder(file.parent, "file")
    comparison = compare(read_runs(config.runs))

    from evaluation.compare import comparison_tables as tables  # pandas, after mistakes are told

    rows = tables.selected(comparison.rows, config.figures)
    if config.figures and not rows:
        keys = sorted({row.key.split(".")[0] for row in comparison.rows})
        raise ValueError(
            f"--figures {' '.join(config.figures)} matches nothing; these runs have "
            f"{', '.join(f'{key}.*' for key in keys) or 'no figures'}"
        )
    if rows:
        print(tables.for_terminal(comparison, rows, shutil.get_terminal_size((100, 24)).columns))
        print()
    tell(comparison, tables.NOTE)
    chosen = rows if config.figures else comparison.rows
    if config.csv:
        atomic_write(config.csv, tables.frame(chosen).to_csv(index=False).encode())
    if config.markdown:
        atomic_write(config.markdown, tables.as_markdown(comparison, rows).encode())
    if config.latex:
        atomic_write(config.latex, tables.as_latex(comparison, rows).encode())
    if config.page:
        from evaluation.compare.comparison_page import comparison_page

        atomic_write(config.page, comparison_page(comparison).encode())
    if files:
        print(f"compare: {', '.join(map(str, files))}")


def tell(comparison: Comparison, note: str) -> None:
    """Print what the table does not say."""
    for line in (*comparison.refusals, *comparison.not_shared()):
        print(f"compare: {line}")
    for run in comparison.runs:
        if run.skipped:
            lines = "line" if run.skipped == 1 else "lines"
            print(f"compare: {run.name}: {run.skipped} {lines} of its logs cannot be read")
        if run.provenance.get("held_out_episodes_trained_on"):
            count = run.provenance["held_out_episodes_trained_on"]
            print(f"compare: {run.name}: {count} of its test episodes were trained on")
    found = sum(len(row.beyond_chance) for row in comparison.rows)
    if comparison.num_tests:
        count = f"{found} of {comparison.num_tests} differences"
        print(f"compare: {count} are larger than chance: {note}")
    elif len(comparison.runs) > 1:
        print("compare: no difference was tested: no two runs share a figure with an interval")
    settings = list(comparison.settings())
    if settings and len(comparison.runs) > 1:
        few = ", ".join(settings[:6]) + (f" and {len(settings) - 6} more" * (len(settings) > 6))
        print(f"compare: settings that differ: {few}")


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config)
