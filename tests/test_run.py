import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import checkpoint as ckpt
from pipeline.run import Run
from pipeline.train_config import TrainConfig

TRAIN = TrainConfig(
    steps=12, batch_size=8, warmup=2, evaluate_every=4, save_every=3, report_every=1,
    precision="fp32",
)  # fmt: skip
IDENTITY = {"config": {"kind": "line"}, "parent": {"path": "-", "fingerprint": "0"}}


class Points:
    """y = 2 x - 1, with noise that is drawn in the loss."""

    def __len__(self) -> int:
        return 30

    def batch(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(indices).float()[:, None] / 30


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        noise = 0.1 * torch.randn_like(x)
        error = (self.net(x) - (2 * x - 1 + noise)).square().mean()
        return {"error": error, "size": x.mean().detach()}


class Loud(Line):
    """A loss whose gradient passes what fp16 holds, until the loss scaler has come down."""

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        return {k: 1000 * v for k, v in super().loss(x).items()}


def train(
    folder: Path,
    stop_at: int | None = None,
    restart: bool = False,
    model: type[Line] = Line,
    **changes,
) -> Run:
    torch.manual_seed(0)
    run = Run("tokenizer", folder, model(), replace(TRAIN, **changes), IDENTITY, restart=restart)
    try:
        for _, x in run.batches(Points()):
            run.descend(x)
            if run.step == stop_at:
                run._stop = True  # what a signal does
            if run.due(run.train.evaluate_every):
                with run.averaged() as average:
                    assert isinstance(average, Line)
                    x = Points().batch(np.arange(30)).to(run.device)
                    error = float((average.net(x) - (2 * x - 1)).square().mean())
                run.keep_best(-error, {"error": error})
    except KeyboardInterrupt:
        pass
    run._lock.close()
    return run


def weights(folder: Path) -> dict[str, Tensor]:
    return ckpt.load(folder / "last.pt", "tokenizer")["model"]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_k_plus_m_steps_are_k_stop_resume_m(tmp_path, schedule):
    train(tmp_path / "whole", schedule=schedule)
    for stop in (5, 8):
        train(tmp_path / "parts", stop_at=stop, schedule=schedule)
        assert ckpt.load(tmp_path / "parts" / "last.pt", "tokenizer")["step"] == stop
    train(tmp_path / "parts", schedule=schedule)
    whole = ckpt.load(tmp_path / "whole" / "last.pt", "tokenizer")
    parts = ckpt.load(tmp_path / "parts" / "last.pt", "tokenizer")
    assert whole["step"] == parts["step"] == 12
    assert equal(whole["model"], parts["model"]) and equal(whole["average"], parts["average"])
    assert whole["best"] == parts["best"] and whole["fingerprint"] == parts["fingerprint"]
    lines = [json.loads(x) for x in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "error" in x] == list(range(1, 13))


def test_in_fp16_too_k_plus_m_steps_are_k_stop_resume_m(tmp_path):
    train(tmp_path / "whole", model=Loud, precision="fp16")
    train(tmp_path / "parts", stop_at=7, model=Loud, precision="fp16")
    train(tmp_path / "parts", model=Loud, precision="fp16")
    whole, parts = (
        ckpt.load(tmp_path / name / "last.pt", "tokenizer") for name in ("whole", "parts")
    )
    assert whole["scaler"] == parts["scaler"] and whole["scaler"]["scale"] < 65536
    assert equal(whole["model"], parts["model"]) and equal(whole["average"], parts["average"])


def test_a_step_that_overflows_fp16_is_left_out_and_the_loss_scale_halves(tmp_path):
    torch.manual_seed(0)
    line, factor = Line(), {"is": 1.0}
    run = Run(
        "tokenizer", tmp_path, line, replace(TRAIN, precision="fp16"), IDENTITY,
        objective=lambda x: {"error": factor["is"] * line.loss(x)["error"]},
    )  # fmt: skip

    def state() -> dict[str, Tensor]:
        moments = run.descent.optimizer.state_dict()["state"]
        named = {f"{i} {k}": v for i, kept in moments.items() for k, v in kept.items()}
        named |= {f"average {k}": v for k, v in run.descent.average.weights.items()}
        return {k: v.clone() for k, v in (named | line.state_dict()).items()}

    for step, x in run.batches(Points()):
        factor["is"] = 1e5 if step == 5 else 1.0
        before, scale = state(), run.descent.scaler.get_scale()
        run.descend(x)
        after, left_out = state(), run.descent.scaler.get_scale() < scale
        assert left_out == (step == 5) and run.step == step + 1
        if left_out:
            assert equal(before, after) and run.descent.scaler.get_scale() == scale / 2
        elif before.keys() == after.keys():
            assert not any(torch.equal(before[k], after[k]) for k in before)
    run._lock.close()
    lines = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == list(range(1, 13))
    assert ["grad_norm" in x for x in lines].index(False) == 5
    assert lines[5]["loss_scale"] == 32768 and lines[4]["loss_scale"] == 65536


def test_fp16_learns_what_fp32_learns(tmp_path):
    losses, norms = {}, {}
    for precision in ("fp32", "fp16"):
        run = train(tmp_path / precision, precision=precision, steps=40, learning_rate=1e-2)
        losses[precision] = -float(run.best or 0)
        log = (tmp_path / precision / "log.jsonl").read_text().splitlines()
        norms[precision] = json.loads(log[0])["grad_norm"]
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=1e-2)  # scaled back before it is cut
    assert losses["fp16"] < 1.1 * losses["fp32"] and losses["fp32"] < 0.5


def test_the_number_of_workers_changes_nothing(tmp_path):
    train(tmp_path / "none", steps=4)
    train(tmp_path / "two", steps=4, workers=2)
    assert equal(weights(tmp_path / "none"), weights(tmp_path / "two"))


def test_parts_of_a_batch_add_up_to_it(tmp_path):
    class Quiet(Line):
        def loss(self, x: Tensor) -> dict[str, Tensor]:
            return {"error": (self.net(x) - (2 * x - 1)).square().mean()}

    for parts in (1, 3, 4):  # 10 rows: groups of 3, 3 and 4; of 2, 3, 2 and 3
        torch.manual_seed(0)
        made = replace(TRAIN, steps=3, batch_size=10, accumulate=parts)
        run = Run("tokenizer", tmp_path / str(parts), Quiet(), made, IDENTITY)
        errors = [float(run.descend(x)["error"]) for _, x in run.batches(Points())]
        run._lock.close()
        if parts == 1:
            one, expected = weights(tmp_path / "1"), errors
        found = weights(tmp_path / str(parts))
        assert all(torch.allclose(one[k], found[k], atol=1e-6) for k in one)
        assert np.allclose(errors, expected, rtol=1e-5)


def test_a_finished_run_says_so_and_restart_begins_anew(tmp_path, capsys):
    train(tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    train(tmp_path)
    assert "all 12 steps are done" in capsys.readouterr().out
    assert (tmp_path / "last.pt").read_bytes() == before
    assert train(tmp_path, restart=True, steps=2).step == 2


def test_early_stopping_waits_for_patience(tmp_path):
    torch.manual_seed(0)
    run = Run("tokenizer", tmp_path, Line(), replace(TRAIN, steps=50, patience=2), IDENTITY)
    for _, x in run.batches(Points()):
        run.descend(x)
        if run.due(4):
            run.keep_best(1.0, {})
    assert run.step == 12  # the first is the best, two more do not better it
    run._lock.close()


def test_changed_settings_are_refused(tmp_path):
    train(tmp_path, stop_at=4)
    other = IDENTITY | {"config": {"kind": "curve"}}
    with pytest.raises(ValueError, match=r"was begun with kind = line, but now it is curve"):
        Run("tokenizer", tmp_path, Line(), TRAIN, other)


def test_a_loss_that_is_not_finite_stops_with_the_checkpoint_whole(tmp_path):
    train(tmp_path, stop_at=4)
    torch.manual_seed(0)
    line = Line()
    run = Run(
        "tokenizer", tmp_path, line, TRAIN, IDENTITY,
        objective=lambda x: {"error": line.net(x).mean() * float("nan")},
    )  # fmt: skip
    with pytest.raises(ValueError, match="the loss is not finite at step 4"):
        for _, x in run.batches(Points()):
            run.descend(x)
    assert ckpt.load(tmp_path / "last.pt", "tokenizer")["step"] == 4


def test_a_gradient_that_is_not_finite_is_not_taken(tmp_path):
    torch.manual_seed(0)
    line = Line()
    run = Run(
        "tokenizer", tmp_path, line, TRAIN, IDENTITY,
        objective=lambda x: {"error": (0 * line.net(x)).abs().sqrt().mean()},
    )  # fmt: skip
    before = {k: v.clone() for k, v in line.state_dict().items()}
    with pytest.raises(ValueError, match="the gradient is not finite at step 0"):
        for _, x in run.batches(Points()):
            run.descend(x)
    assert equal(before, line.state_dict())


def test_where_a_gpu_is_not_waited_for_nothing_infinite_is_handed_on(tmp_path):
    train(tmp_path, stop_at=4)
    before = (tmp_path / "last.pt").read_bytes()
    torch.manual_seed(0)
    line = Line()
    run = Run(
        "tokenizer", tmp_path, line, replace(TRAIN, report_every=100), IDENTITY,
        objective=lambda x: {"error": line.net(x).mean() * float("nan")},
    )  # fmt: skip
    run.finite.at_once = False
    batches = run.batches(Points())
    for _ in range(2):  # up to the checkpoint after step 6 nothing is looked at
        x = next(batches)[1]
        run.descend(x)
    assert all(p.isnan().all() for p in line.parameters())

    def report() -> None:
        run.train = replace(run.train, report_every=1)
        run.descend(x)

    def hand_on() -> None:
        run.keep_best(1.0, {})

    for act in (hand_on, run.save, run.averaged().__enter__, lambda: next(batches), report):
        with pytest.raises(ValueError, match="the loss is not finite at step 4"):
            act()
    assert (tmp_path / "last.pt").read_bytes() == before


def test_recomputing_may_change_at_a_resume(tmp_path):
    def begin(**transformer) -> Run:
        config = {"kind": "line", "transformer": transformer}
        return Run("tokenizer", tmp_path, Line(), TRAIN, IDENTITY | {"config": config})

    run = begin(width=8)  # as before there was such a setting
    run.save()
    run._lock.close()
    begin(width=8, recompute=True)._lock.close()
    with pytest.raises(ValueError, match="was begun with transformer"):
        begin(width=9, recompute=True)


def test_sharding_in_one_process_says_that_it_has_no_effect(tmp_path, capsys):
    train(tmp_path / "none", steps=2)
    assert "no effect" not in capsys.readouterr().out
    train(tmp_path / "fsdp", steps=2, sharding="fsdp")
    assert "fsdp has no effect in one process" in capsys.readouterr().out
    assert equal(weights(tmp_path / "none"), weights(tmp_path / "fsdp"))


SCRIPT = """
import sys, time
from pathlib import Path
sys.path[:0] = ["tests", "."]
import torch
torch.set_num_threads(1)
import test_run
run = test_run.Run("tokenizer", Path(sys.argv[1]), test_run.Line(),
    test_run.replace(test_run.TRAIN, steps=100000, save_every=1), test_run.IDENTITY)
print("step", run.step, flush=True)
for step, x in run.batches(test_run.Points()):
    run.descend(x)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step"):
        assert process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_the_checkpoint_can_be_loaded(tmp_path, number):
    step = 0
    for delay in (0.15, 0.4):
        process = start(tmp_path)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        process.wait(20)
        if (tmp_path / "last.pt").exists():
            after = ckpt.load(tmp_path / "last.pt", "tokenizer")["step"]
            assert after >= step
            step = after
    assert step > 0
