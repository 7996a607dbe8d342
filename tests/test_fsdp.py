from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sharded_language_model
import sharded_rssm
import torch
from sharded_run import TRAIN, Sums, train
from torchrun_sharded import STOP

from pipeline import checkpoint as ckpt

pytestmark = pytest.mark.slow
TUNINGS = {"full": ["transformers"], "lora": ["transformers", "peft"]}  # with what they need


def left_behind(folder: Path, process: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"process-{process}.json").read_text())


def tensors(folder: Path, file: str = "last.pt") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint that training has changed."""
    read = ckpt.load(folder / file, "tokenizer")
    parts = {"model": read["model"], "ema": read.get("ema", {})}
    found = {f"{part} {k}": v for part, values in parts.items() for k, v in values.items()}
    for index, state in read.get("optimizer", {"state": {}})["state"].items():
        found |= {f"optimizer {index} {k}": v for k, v in state.items()}
    # each process has its own rows in view
    return {k: v for k, v in found.items() if not k.endswith("seen")}


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(type(a[k]) is type(b[k]) and torch.allclose(a[k], b[k], atol=2e-5) for k in a)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders: `one` and `two` processes stopped at step 3, `whole` never stopped; and from copies
    of these, `one_two` resumed by two processes and so on; `ddp`, two without sharding.  Two
    processes make all that they make in one start (torchrun_sharded.py)."""
    root = tmp_path_factory.mktemp("fsdp")
    train(root / "whole", TRAIN.steps)
    train(root / "one", STOP)
    shutil.copytree(root / "one", root / "one_two")
    tunings = [name for name, needed in TUNINGS.items() if all(map(find_spec, needed))]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--",
         str(Path(__file__).parent / "torchrun_sharded.py"), str(root), *tunings],
        capture_output=True, text=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(root / "two", root / "two_one")
    train(root / "two_one", TRAIN.steps)
    return {folder.name: folder for folder in root.iterdir() if folder.is_dir()}


@pytest.mark.parametrize("name", ["two", "ddp"])
def test_two_processes_take_the_steps_of_one(runs, name):
    one, (first, second) = left_behind(runs["one"]), both(runs[name])
    assert len(one["errors"]) == len(first["errors"]) == len(second["errors"]) == STOP
    means = [(a + b) / 2 for a, b in zip(first["errors"], second["errors"], strict=True)]
    assert first["errors"] != second["errors"]  # each saw its own rows
    assert means[0] == pytest.approx(one["errors"][0], rel=1e-5)
    assert means == pytest.approx(one["errors"], rel=1e-3)
    for file in ("last.pt", "best.pt"):
        assert close(tensors(runs["one"], file), tensors(runs[name], file))
    assert not close(tensors(runs["whole"]), tensors(runs[name]))


def both(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return left_behind(folder, 0), left_behind(folder, 1)


@pytest.mark.parametrize("name", ["two", "ddp", "two_two", "one_two"])
def test_buffers_are_those_of_the_first_process(runs, name):
    first, second = (process["seen_before"] for process in both(runs[name]))
    assert first == second != 0


def test_frozen_weights_move_after_a_step_as_in_one_process(runs):
    """They follow weights of which each process has a shard."""
    start, one, two = Sums().slow.weight, tensors(runs["one"]), tensors(runs["two"])
    assert torch.allclose(one["model slow.weight"], two["model slow.weight"], atol=2e-5)
    assert not torch.allclose(one["model slow.weight"], start, atol=1e-2)


def test_processes_leave_the_group(runs):
    left = [(runs["two"].parent / f"left-{i}").read_text() for i in range(2)]
    assert left == ["True", "True"]


def test_no_process_holds_all_weights(runs):
    whole = left_behind(runs["one"])["weights"]
    for name in ("two", "two_two", "one_two", "ddp_two"):
        first, second = (process["weights"] for process in both(runs[name]))
        assert first + second == whole
        assert max(first, second) < 0.6 * whole
    assert [process["weights"] for process in both(runs["ddp"])] == [whole, whole]


@pytest.mark.parametrize("name", ["two", "ddp"])
def test_all_processes_validate_the_average_and_agree_on_the_best(runs, name):
    one, (first, second) = left_behind(runs["one"]), both(runs[name])
    assert first["metrics"] == pytest.approx(second["metrics"], rel=1e-6)
    assert first["metrics"] == pytest.approx(one["metrics"], rel=1e-3)
    assert first["best"] == second["best"] == pytest.approx(one["best"], rel=1e-3)


@pytest.mark.parametrize("name", ["two", "ddp"])
def test_a_checkpoint_of_two_processes_is_like_that_of_one(runs, name):
    one, two = (ckpt.load(runs[n] / "last.pt", "tokenizer") for n in ("one", name))
    assert one.keys() == two.keys()
    assert one["optimizer"]["param_groups"] == two["optimizer"]["param_groups"]
    model = Sums()
    model.load_state_dict(two["model"])
    assert two["fingerprint"] == ckpt.fingerprint(model.state_dict(), two["config"])


@pytest.mark.parametrize("name", ["two_one", "two_two", "one_two", "ddp_two"])
def test_a_run_stopped_on_some_processes_resumes_on_others(runs, name):
    """Two to one, two to two, one to two, and two without sharding to two with it."""
    whole, found = (ckpt.load(runs[n] / "last.pt", "tokenizer") for n in ("whole", name))
    stopped = ckpt.load(runs[name.split("_")[0]] / "last.pt", "tokenizer")
    assert stopped["step"] == STOP and found["step"] == whole["step"] == TRAIN.steps
    for file in ("last.pt", "best.pt"):
        assert close(tensors(runs["whole"], file), tensors(runs[name], file))
    assert found["best"] == pytest.approx(whole["best"], rel=1e-3)
    logs = [(runs[n] / "log.jsonl").read_text().splitlines() for n in ("whole", name)]
    steps = [[json.loads(line)["step"] for line in log] for log in logs]
    assert steps[0] == steps[1] and steps[0][-1] == TRAIN.steps


def test_a_world_that_is_trained_jointly_is_sharded_and_takes_the_step_of_one_process(
    runs, tmp_path
):
    """Its recurrence is one unit: a forward pass gathers it once, not at every frame."""
    sharded_rssm.train(tmp_path)
    folders = {"one": tmp_path, "fsdp": runs["rssm_fsdp"], "none": runs["rssm_none"]}

    def gradients(name: str) -> torch.Tensor:
        """Adam's first moments after one step; its step itself is but a sign."""
        state = ckpt.load(folders[name] / "last.pt", "dynamics")["optimizer"]["state"]
        return torch.cat([moments["exp_avg"].flatten() for moments in state.values()])

    one = gradients("one")
    assert one.norm() > 0
    for name in ("fsdp", "none"):
        assert torch.allclose(gradients(name), one, rtol=1e-3, atol=1e-5 * float(one.abs().max()))
    count = {n: [int((f / f"weights-{i}").read_text()) for i in range(2)]
             for n, f in folders.items() if n != "one"}  # fmt: skip
    assert count["none"][0] == count["none"][1] == sum(count["fsdp"])
    assert max(count["fsdp"]) < 0.6 * count["none"][0]


@pytest.mark.parametrize("tuning", TUNINGS)
def test_the_layers_of_a_language_model_are_sharded_and_take_the_step_of_one_process(
    runs, tmp_path, tuning
):
    for needed in TUNINGS[tuning]:
        pytest.importorskip(needed)
    one, two = tmp_path, runs[f"language_model_{tuning}"]
    sharded_language_model.train(one, "none", tuning)
    first, second = (ckpt.load(folder / "last.pt", "dynamics") for folder in (one, two))
    moments = [
        torch.cat([m["exp_avg"].flatten() for m in saved["optimizer"]["state"].values()])
        for saved in (first, second)
    ]
    assert moments[0].norm() > 0
    close_to = 1e-5 * float(moments[0].abs().max())
    assert torch.allclose(*moments, rtol=1e-3, atol=close_to)
    assert first["model"].keys() == second["model"].keys()
    (trained, frozen), *shards = (
        [int(n) for n in path.read_text().split()]
        for path in (one / "weights-0", two / "weights-0", two / "weights-1")
    )
    assert sum(shard[0] for shard in shards) == trained
    assert max(shard[0] for shard in shards) < 0.7 * trained
    assert all(shard[1] == frozen for shard in shards)  # each process has them whole
