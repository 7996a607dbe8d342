import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_run import Sums, go

from pipeline import checkpoint as ckpt


def shared(*arguments: str | Path | int) -> None:
    """Run on two processes: folders, and steps to take there."""
    said = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--",
         str(Path(__file__).parent / "sharded_run.py"), *map(str, arguments)],
        capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:]


def alone(folder: Path, steps: int) -> dict[str, Any]:
    go(folder, steps)
    return json.loads((folder / "process-0.json").read_text())


def numbers(folder: Path, file: str = "last.pt") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint that training has changed."""
    read = ckpt.load(folder / file, "tokenizer")
    parts = {"model": read["model"], "average": read.get("average", {})}
    found = {f"{part} {k}": v for part, values in parts.items() for k, v in values.items()}
    for index, state in read.get("optimizer", {"state": {}})["state"].items():
        found |= {f"optimizer {index} {k}": v for k, v in state.items()}
    # each process has its own rows in view
    return {k: v for k, v in found.items() if not k.endswith("seen")}


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(type(a[k]) is type(b[k]) and torch.allclose(a[k], b[k], atol=2e-5) for k in a)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three steps of two processes and of one; then two more of the other kind in each folder."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    found: dict[str, Any] = {"one": one, "two": two, "alone": alone(one, 3)}
    read = [(numbers(one), numbers(one, "best.pt"), ckpt.load(one / "last.pt", "tokenizer"))]
    shared(two, 3, one, 5)
    found["shared"] = [json.loads((two / f"process-{i}.json").read_text()) for i in range(2)]
    read += [(numbers(two), numbers(two, "best.pt"), ckpt.load(two / "last.pt", "tokenizer"))]
    found["last"], found["best"], found["read"] = zip(*read, strict=True)
    found["left"] = [(two / f"left-{i}").read_text() for i in range(2)]
    alone(two, 5)
    return found


def test_two_processes_with_shares_take_the_steps_of_one(runs):
    alone, (first, second) = runs["alone"], runs["shared"]
    means = [(a + b) / 2 for a, b in zip(first["errors"], second["errors"], strict=True)]
    assert first["errors"] != second["errors"]  # each saw its own rows
    assert means[0] == pytest.approx(alone["errors"][0], rel=1e-5)
    assert means == pytest.approx(alone["errors"], rel=1e-3)
    assert close(*runs["last"]) and close(*runs["best"])
    assert not close(numbers(runs["one"]), runs["last"][0])


def test_what_a_model_counts_is_what_the_first_process_counts(runs):
    first, second = (process["shown"] for process in runs["shared"])
    assert first == second != 0


def test_processes_take_leave_of_each_other(runs):
    assert runs["left"] == ["True", "True"]


def test_no_process_holds_all_weights(runs):
    first, second = (process["weights"] for process in runs["shared"])
    assert first + second == runs["alone"]["weights"]
    assert max(first, second) < 0.6 * runs["alone"]["weights"]


def test_all_processes_validate_the_average_and_agree_on_the_best(runs):
    first, second = runs["shared"]
    assert first["figures"] == pytest.approx(second["figures"], rel=1e-6)
    assert first["figures"] == pytest.approx(runs["alone"]["figures"], rel=1e-3)
    assert first["best"] == second["best"] == pytest.approx(runs["alone"]["best"], rel=1e-3)


def test_a_checkpoint_of_shares_is_like_any_other(runs):
    one, two = runs["read"]
    assert one.keys() == two.keys()
    assert one["optimizer"]["param_groups"] == two["optimizer"]["param_groups"]
    model = Sums()
    model.load_state_dict(two["model"])
    assert two["fingerprint"] == ckpt.fingerprint(model.state_dict(), two["config"])


def test_one_process_goes_on_where_two_left_off_and_the_other_way_round(runs):
    for folder in ("one", "two"):
        assert ckpt.load(runs[folder] / "last.pt", "tokenizer")["step"] == 5
    one, two = numbers(runs["one"]), numbers(runs["two"])
    assert close(one, two)
