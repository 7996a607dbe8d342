"""torchrun --nnodes=2 over a network: two namespaces that share nothing but the file system."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from sharded_run import train
from test_fsdp import both, close, left_behind, tensors
from two_machines import CannotConnect, TwoMachines, two_machines

import train_tokenizer
from data.toy import write_toy_shards
from pipeline import checkpoint as ckpt
from pipeline.cli import parse

pytestmark = pytest.mark.slow


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    try:
        with two_machines() as machines:
            yield machines
    except CannotConnect as reason:
        pytest.skip(f"no two machines here: {reason}")


def test_two_machines_take_the_step_of_one_process(machines, tmp_path):
    train(tmp_path / "one", 1)
    script = ["tests/sharded_run.py"]
    for name in ("fsdp", "none"):
        script += [str(tmp_path / name), "1", name]
    jobs = [machines.torchrun(machine, *script) for machine in (0, 1)]
    for job in jobs:
        output, _ = job.communicate(timeout=240)
        assert job.returncode == 0, output[-3000:]
    one = left_behind(tmp_path / "one")
    for name in ("fsdp", "none"):
        first, second = both(tmp_path / name)
        assert first["errors"] != second["errors"]  # each saw its own rows
        mean = (first["errors"][0] + second["errors"][0]) / 2
        assert mean == pytest.approx(one["errors"][0], rel=1e-5)
        assert close(tensors(tmp_path / "one"), tensors(tmp_path / name))
    assert [process["weights"] < one["weights"] for process in both(tmp_path / "fsdp")] == [
        True
    ] * 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_that_lost_a_machine_says_so_and_resumes_on_the_other(
    machines, tmp_path, lost, capsys
):
    """Machine 0 is the one that the others meet at."""
    write_toy_shards(tmp_path / "shards")
    flags = ["--run", str(tmp_path), "--preset", "pusht", "debug", "--model.image-size", "32", "32"]
    flags += ["--train.save-every", "1", "--train.steps"]
    jobs = [machines.torchrun(i, "train_tokenizer.py", *flags, "100000") for i in (0, 1)]
    last = tmp_path / "tokenizer" / "last.pt"
    until = time.monotonic() + 180
    while not last.exists() and time.monotonic() < until:
        time.sleep(0.1)
    machines.kill(lost)
    jobs[lost].communicate(timeout=60)
    output, _ = jobs[1 - lost].communicate(timeout=180)
    assert jobs[1 - lost].returncode != 0
    said = [line for line in output.splitlines() if "error: another process of this job" in line]
    assert len(said) == 1 and "run the same command again" in said[0], output[-3000:]
    step = ckpt.load(last, "tokenizer")["step"]
    capsys.readouterr()
    again = [*flags, str(step + 2)]
    train_tokenizer.main(parse(train_tokenizer.Config, "tokenizer", again).config)
    assert f"resuming from step {step}" in capsys.readouterr().out
    assert ckpt.load(last, "tokenizer")["step"] == step + 2
