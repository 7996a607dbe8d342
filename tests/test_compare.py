"""Runs side by side: one protocol a row, differences by more than chance, errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evaluation.compare.__main__ import Config, main
from evaluation.compare.chance import holm, p_value
from evaluation.compare.comparison import compare
from evaluation.compare.line_chart import Line, draw
from evaluation.compare.reported_run import read_log, read_runs
from evaluation.measures.intervals import bootstrap, wilson
from evaluation.report.metrics_schema import empty_metrics
from pipeline.hub.figures import Figure


def report(success: float = 0.5, n: int = 100, **provenance: Any) -> dict[str, Any]:
    """A report of one policy in the task, and of an open loop."""
    metrics = empty_metrics()
    low, high = wilson(round(success * n), n)
    row = {"success": success, "success_low": low, "success_high": high, "n": n}
    metrics["task"]["bc"] |= row
    metrics["open_loop"] |= {"n": 8, "horizons": [1, 4], "psnr": [30.0, 20 + 10 * success],
                             "psnr_low": [29.0, 19.0], "psnr_high": [31.0, 31.0]}  # fmt: skip
    metrics["provenance"] = {
        "fingerprints": {"shards": "abc"},
        "seeds": {"clips": 0, "task": 100000, "pairs": [0]},
        "task_max_steps": 300,
        "flags": [],
        "held_out_episodes": 5,
        "held_out_episodes_trained_on": 0,
        "settings": {"dynamics": {"config": {"kind": "llama"}, "train": {"seed": 0}}},
    } | provenance
    return metrics


def write(run: Path, metrics: dict[str, Any]) -> Path:
    (run / "report").mkdir(parents=True)
    (run / "report" / "metrics.json").write_text(json.dumps(metrics))
    (run / "dynamics").mkdir()
    lines = [json.dumps({"step": s, "time": 1.0, "validation/psnr": 20.0 + s}) for s in (10, 20)]
    (run / "dynamics" / "log.jsonl").write_text("\n".join([*lines, '{"step": 30, "ti']))
    return run


def test_figures_of_one_protocol_stand_in_one_row_and_of_two_never(tmp_path: Path):
    runs = [write(tmp_path / "a", report()), write(tmp_path / "b", report())]
    changed: tuple[dict[str, Any], ...] = (
        {"task_max_steps": 50}, {"seeds": {"clips": 0, "task": 7}}, {"task_goal": [1]},
    )  # fmt: skip
    for changes in changed:
        name = "-".join(changes) + str(len(runs))
        runs.append(write(tmp_path / name, report(**changes)))
    rows = [r for r in compare(read_runs(runs)).rows if r.key == "task.bc.success"]
    assert [list(row.cells) for row in rows] == [["a", "b"], *([run.name] for run in runs[2:])]
    assert [row.letter for row in rows] == ["A", "B", "C", "D"]


def test_the_protocol_that_differs_is_told_in_one_plain_line(tmp_path: Path, capsys: Any):
    runs = (write(tmp_path / "a", report()), write(tmp_path / "b", report(task_max_steps=50)))
    main(Config(runs))
    told = [line for line in capsys.readouterr().out.splitlines() if "not one row" in line]
    assert told == [
        "compare: task: not one row, as the protocols differ: A has steps 300 (a); "
        "B has steps 50 (b)"
    ]


def test_another_dataset_is_another_protocol_of_clips_but_not_of_the_task(tmp_path: Path):
    other = report(fingerprints={"shards": "xyz"})
    comparison = compare(read_runs([write(tmp_path / "a", report()), write(tmp_path / "b", other)]))
    shared = {row.key for row in comparison.rows if len(row.cells) == 2}
    assert shared == {"task.bc.success"}


def test_more_cases_are_the_same_protocol(tmp_path: Path):
    runs = [write(tmp_path / "a", report(n=100)), write(tmp_path / "b", report(n=500))]
    assert all(len(row.cells) == 2 for row in compare(read_runs(runs)).rows)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_equal_policies_differ_by_more_than_chance_in_one_of_twenty(share: float):
    random = np.random.default_rng(0)
    count, n = 2000, 200
    wins = random.binomial(n, share, (count, 2))
    shares = [[Figure("x", w / n, n, *wilson(int(w), n)) for w in pair] for pair in wins]
    fallen = np.mean([(p_value(one, other) or 0) < 0.05 for one, other in shares])
    assert 0.02 < fallen < 0.07


def test_means_with_bootstrap_intervals_are_tested_alike():
    random = np.random.default_rng(0)

    def figure(mean: float) -> Figure:
        values = random.normal(mean, 1, 60)
        return Figure("x", float(values.mean()), 60, *bootstrap(values))

    same = np.mean([(p_value(figure(0), figure(0)) or 0) < 0.05 for _ in range(200)])
    apart = np.mean([(p_value(figure(0), figure(1)) or 1) < 0.05 for _ in range(50)])
    assert same < 0.12 and apart > 0.95


def test_what_has_no_interval_or_one_without_width_is_not_tested():
    known = Figure("x", 0.5, 10, 0.4, 0.6)
    assert p_value(known, Figure("x", 0.9, 10)) is None
    assert p_value(known, Figure("x", 0.9, 10, 0.9, 0.9)) is None
    assert p_value(known, known) == 1.0


def test_of_many_tests_fewer_fall():
    assert holm([0.04]) == [True]
    assert holm([0.04, 0.9]) == [False, False]
    assert holm([0.001, 0.03, 0.9]) == [True, False, False]
    assert holm([0.03, 0.001]) == [True, True]
    assert holm([]) == []


def test_a_better_run_is_marked_and_an_equal_one_is_not(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    for name, success in (("a", 0.5), ("b", 0.9), ("c", 0.52), ("d", 0.1)):
        write(tmp_path / name, report(success))
    main(Config(tuple(tmp_path / name for name in "abcd"), figures=("task.*",)))
    line = capsys.readouterr().out.splitlines()[1]
    marks = [cell.split()[0] for cell in line.split("]")[1:] if cell.split()]
    assert marks == ["0.900", "+", "0.100", "-"]


def test_csv_is_one_figure_a_line_and_the_page_needs_nothing_else(tmp_path: Path):
    runs = (write(tmp_path / "a", report()), write(tmp_path / "b_1", report(0.9)))
    names = ("csv", "markdown", "latex", "page")
    files = {name: tmp_path / "out" / name for name in names}
    main(Config(runs, (), *files.values()))
    table = pd.read_csv(files["csv"])
    assert len(table) == 6 and set(table["run"]) == {"a", "b_1"}
    tested = table.dropna(subset="larger_than_chance")
    assert set(tested["run"]) == {"b_1"}  # the first one is what it is tested against
    assert tested[tested["larger_than_chance"] == True]["figure"].tolist() == [  # noqa: E712
        "task.bc.success"
    ]
    assert "| task.bc.success |" in files["markdown"].read_text()
    assert r"b\_1" in files["latex"].read_text()
    page = files["page"].read_text()
    assert "http" not in page and "<script" not in page and "src=" not in page
    assert page.count("<polyline") == 2 + 2 + 2  # the key, PSNR by horizon, a training curve
    assert "b_1 is better than a" in page


def test_names_of_runs_are_text_on_the_page(tmp_path: Path):
    run = write(tmp_path / "<b>&", report())
    main(Config((run,), page=tmp_path / "page.html"))
    assert "<b>&" not in (tmp_path / "page.html").read_text()


def test_settings_that_differ_are_told_and_others_not(tmp_path: Path):
    settings = {"dynamics": {"config": {"kind": "rssm"}, "train": {"seed": 0}}}
    runs = [write(tmp_path / "a", report()), write(tmp_path / "b", report(settings=settings))]
    differing = compare(read_runs(runs)).settings()
    assert differing == {"dynamics.config.kind": {"a": "llama", "b": "rssm"}}


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path):
    runs = [write(tmp_path / f"{x}/run", report()) for x in "ab"]
    assert [run.name for run in read_runs(runs)] == ["a/run", "b/run"]


def test_a_report_on_another_dataset_can_be_named_itself(tmp_path: Path):
    run = write(tmp_path / "a", report())
    (run / "report" / "on-people").mkdir()
    text = json.dumps(report(0.7))
    (run / "report" / "on-people" / "metrics.json").write_text(text)
    _, other = read_runs([run, run / "report" / "on-people"])
    assert other.figures["task.bc.success"].value == 0.7
    assert "dynamics validation/psnr" in other.curves


def test_a_log_that_a_crash_cut_short_is_read_as_far_as_it_goes(tmp_path: Path):
    run = write(tmp_path / "a", report())
    curves, unread = read_log(run / "dynamics" / "log.jsonl")
    assert curves == {"validation/psnr": [(10, 30.0), (20, 40.0)]} and unread == 1


def change(run: Path, *place: Any) -> None:
    """Write a value, the last of `place`, where the keys before it lead in a report."""
    path = run / "report/metrics.json"
    found = metrics = json.loads(path.read_text())
    *keys, last, value = place
    for key in keys:
        found = found[key]
    found[last] = value
    path.write_text(json.dumps(metrics))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: run.joinpath("report/metrics.json").unlink(), "is not there; python evaluate"),
        (lambda run: run.joinpath("report/metrics.json").write_text("{"), "is damaged"),
        (lambda run: run.joinpath("report/metrics.json").write_text("[]"), "is damaged"),
        (lambda run: run.joinpath("report/metrics.json").write_text(
            json.dumps(report() | {"task": 5})), "is damaged"),
        (lambda run: change(run, "task", "bc", "success", "x"), "is damaged .*success is 'x'"),
        (lambda run: change(run, "task", "bc", "n", -1), "is damaged .* of -1"),
        (lambda run: change(run, "provenance", "flags", 5), "is damaged .*flags are 5"),
        (lambda run: change(run, "provenance", "settings", [1]), "is damaged .*settings are"),
        (lambda run: run.rename(run.with_name("elsewhere")), "is not there; name folders"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_compared_is_refused_in_one_line(
    tmp_path: Path, damage: Any, message: str
):
    run = write(tmp_path / "a", report())
    damage(run)
    with pytest.raises(ValueError, match=message) as refused:
        read_runs([run])
    assert "\n" not in str(refused.value) and str(run) in str(refused.value)


def test_a_run_given_twice_and_a_pattern_without_match_are_refused(tmp_path: Path):
    run = write(tmp_path / "a", report())
    with pytest.raises(ValueError, match="twice"):
        read_runs([run, tmp_path / "." / "a"])
    with pytest.raises(ValueError, match=r"--figures goal.\* matches nothing.* open_loop"):
        main(Config((run,), figures=("goal.*",)))


def test_runs_without_a_common_figure_are_told_so_in_a_line_each(tmp_path: Path, capsys: Any):
    one, other = report(), report()
    one["open_loop"], other["task"] = empty_metrics()["open_loop"], empty_metrics()["task"]
    runs = (write(tmp_path / "a", one), write(tmp_path / "b", other))
    empty = write(tmp_path / "c", empty_metrics() | {"provenance": report()["provenance"]})
    main(Config((*runs, empty), markdown=tmp_path / "table.md", page=tmp_path / "page.html"))
    told = capsys.readouterr().out
    for line in (
        f"compare: a shares no figure with another run, so nothing is compared with it; python "
        f"evaluate.py --run {runs[0]} with the flags of the others measures the same",
        f"compare: c has no figures; python evaluate.py --run {empty} measures them",
        "compare: no difference was tested: no two runs share a figure with an interval",
    ):
        assert line in told.splitlines()
    assert "shares no figure" in (tmp_path / "table.md").read_text()
    assert "shares no figure" in (tmp_path / "page.html").read_text()
    main(Config((empty,)))
    assert "figure  " not in capsys.readouterr().out  # a table without rows


def test_a_curve_that_diverged_is_drawn_as_far_as_it_is_finite():
    points = [(0, 1.0), (1, float("nan")), (2, 1e300), (3, 2.0)]
    chart = draw("loss", [Line("a", points)], "steps")
    assert "nan" not in chart and "a: 2 at the end" in chart
    assert draw("loss", [Line("a", [(0, float("inf"))])], "steps") == ""
    assert "<circle" in draw("loss", [Line("a", [(5, 0.0)])], "steps")
