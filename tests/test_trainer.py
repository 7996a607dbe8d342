import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import checkpoint as ckpt
from pipeline.training.train_config import POSITIVE_FIELDS, TrainConfig
from pipeline.training.trainer import Trainer

TRAIN = TrainConfig(
    steps=12, batch_size=8, warmup_steps=2, eval_every=4, save_every=3, log_every=1,
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
) -> Trainer:
    torch.manual_seed(0)
    run = Trainer(
        "tokenizer", folder, model(), replace(TRAIN, **changes), IDENTITY, restart=restart
    )
    try:
        for _, x in run.batches(Points()):
            run.train_step(x)
            if run.step == stop_at:
                run._stop_requested = True  # what a signal does
            if run.every(run.train.eval_every):
                with run.ema_model() as average:
                    assert isinstance(average, Line)
                    x = Points().batch(np.arange(30)).to(run.device)
                    error = float((average.net(x) - (2 * x - 1)).square().mean())
                run.save_best(-error, {"error": error})
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
    run = Trainer(
        "tokenizer", tmp_path, line, replace(TRAIN, precision="fp16"), IDENTITY,
        loss_fn=lambda x: {"error": factor["is"] * line.loss(x)["error"]},
    )  # fmt: skip

    def state() -> dict[str, Tensor]:
        moments = run.step_fn.optimizer.state_dict()["state"]
        named = {f"{i} {k}": v for i, kept in moments.items() for k, v in kept.items()}
        named |= {f"average {k}": v for k, v in run.step_fn.ema.weights.items()}
        return {k: v.clone() for k, v in (named | line.state_dict()).items()}

    for step, x in run.batches(Points()):
        factor["is"] = 1e5 if step == 5 else 1.0
        before, scale = state(), run.step_fn.scaler.get_scale()
        run.train_step(x)
        after, left_out = state(), run.step_fn.scaler.get_scale() < scale
        assert left_out == (step == 5) and run.step == step + 1
        if left_out:
            assert equal(before, after) and run.step_fn.scaler.get_scale() == scale / 2
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
    train(tmp_path / "two", steps=4, num_workers=2)
    assert equal(weights(tmp_path / "none"), weights(tmp_path / "two"))


def test_parts_of_a_batch_add_up_to_it(tmp_path):
    class Quiet(Line):
        def loss(self, x: Tensor) -> dict[str, Tensor]:
            return {"error": (self.net(x) - (2 * x - 1)).square().mean()}

    for parts in (1, 3, 4):  # 10 rows: groups of 3, 3 and 4; of 2, 3, 2 and 3
        torch.manual_seed(0)
        made = replace(TRAIN, steps=3, batch_size=10, grad_accum_steps=parts)
        run = Trainer("tokenizer", tmp_path / str(parts), Quiet(), made, IDENTITY)
        errors = [float(run.train_step(x)["error"]) for _, x in run.batches(Points())]
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


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.pt")}


def test_a_finished_model_without_last_pt_is_replaced_only_when_asked(tmp_path):
    train(tmp_path)
    (tmp_path / "last.pt").unlink()
    before = files(tmp_path)
    with pytest.raises(
        ValueError, match=r"best\.pt is a finished model, and there is no last"
    ) as e:
        Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY)
    assert "\n" not in str(e.value) and files(tmp_path) == before
    del e  # its traceback holds the lock
    assert train(tmp_path, restart=True).step == 12
    assert files(tmp_path).keys() == {"best.pt", "last.pt"}


def test_there_is_a_checkpoint_to_go_on_from_before_there_is_a_best_one(tmp_path, monkeypatch):
    train(tmp_path / "whole", save_every=100)
    written, save = [], ckpt.save

    def killed(path: Path, checkpoint: ckpt.Checkpoint) -> None:
        if path.name == "best.pt" and ends == len(written):
            raise OSError("killed")
        save(path, checkpoint)
        written.append(path.name)

    monkeypatch.setattr(ckpt, "save", killed)
    for ends in (1, 2):  # before the first best.pt, and before the next
        with pytest.raises(OSError, match="killed"):
            train(tmp_path / str(ends), save_every=100)
        assert written == ["first.pt", "best.pt"][:ends]
        written.clear()
    monkeypatch.undo()
    for ends in (1, 2):
        assert train(tmp_path / str(ends), save_every=100).step == 12
        assert files(tmp_path / str(ends)).keys() == {"best.pt", "last.pt"}
        assert equal(weights(tmp_path / "whole"), weights(tmp_path / str(ends)))


def test_a_restart_that_fails_at_its_first_step_leaves_the_old_files(tmp_path):
    train(tmp_path)
    before = files(tmp_path)
    line = Line()
    run = Trainer(
        "tokenizer", tmp_path, line, TRAIN, IDENTITY, restart=True, flag_prefix="cloning",
        loss_fn=lambda x: {"error": line.net(x).mean() * float("nan")},
    )  # fmt: skip
    with pytest.raises(ValueError, match="begin again with a lower --cloning.learning-rate"):
        for _, x in run.batches(Points()):
            run.train_step(x)
    run._lock.close()
    assert files(tmp_path) == before
    run = Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY, restart=True)
    run.save()  # from here on nothing is left of the former training
    run._lock.close()
    assert files(tmp_path).keys() == {"last.pt"}


def test_a_restart_that_cannot_be_saved_leaves_the_old_files(tmp_path, monkeypatch):
    train(tmp_path)
    before = files(tmp_path)

    def full(path: Path, content: memoryview) -> None:
        raise ValueError(f"{path} was not written: No space left on device")

    monkeypatch.setattr(ckpt, "write_whole", full)
    with pytest.raises(ValueError, match="No space left on device"):
        train(tmp_path, restart=True)
    assert files(tmp_path) == before


def test_a_restart_without_wandb_leaves_the_old_files(tmp_path, monkeypatch):
    train(tmp_path)
    before, log = files(tmp_path), (tmp_path / "log.jsonl").read_text()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="--train.wandb needs the package wandb"):
        train(tmp_path, restart=True, wandb=True)
    assert files(tmp_path) == before and (tmp_path / "log.jsonl").read_text() == log


def test_a_finished_run_names_its_own_flags(tmp_path, capsys):
    train(tmp_path)
    run = Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY, flag_prefix="reaching")
    run.log_finished()
    run._lock.close()
    assert "--reaching.steps goes further" in capsys.readouterr().out


def test_pictures_are_written_whole(tmp_path, monkeypatch):
    run = Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY)
    run.log_image("made", np.full((4, 4, 3), 7, np.uint8))
    run._lock.close()
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == "made-000000.png"
    assert (imageio.imread(picture) == 7).all()


@pytest.mark.parametrize("name", POSITIVE_FIELDS)
def test_settings_that_start_at_1_say_so(name):
    with pytest.raises(ValueError, match=rf"^{name.replace('_', '-')} 0 is below 1"):
        replace(TRAIN, **{name: 0})


def test_early_stopping_waits_for_patience(tmp_path):
    torch.manual_seed(0)
    run = Trainer("tokenizer", tmp_path, Line(), replace(TRAIN, steps=50, patience=2), IDENTITY)
    for _, x in run.batches(Points()):
        run.train_step(x)
        if run.every(4):
            run.save_best(1.0, {})
    assert run.step == 12  # the first is the best, two more do not better it
    run._lock.close()


def test_changed_settings_are_refused(tmp_path):
    train(tmp_path, stop_at=4)
    other = IDENTITY | {"config": {"kind": "curve"}}
    with pytest.raises(ValueError, match=r"was begun with kind = line, but now it is curve"):
        Trainer("tokenizer", tmp_path, Line(), TRAIN, other)


def test_a_run_from_another_clone_is_refused(tmp_path):
    def begin(identity) -> Trainer:
        return Trainer("tokenizer", tmp_path, Line(), TRAIN, identity)

    def of(fingerprint: str):
        return IDENTITY | {"clone": {"path": "cloning/best.pt", "fingerprint": fingerprint}}

    for identity in (IDENTITY, of("one"), of("one")):  # the first as before it was kept
        run = begin(identity)
        run.save()
        run._lock.close()
    with pytest.raises(ValueError, match="begun on cloning/best.pt with fingerprint one, but now"):
        begin(of("two"))


def test_a_best_checkpoint_in_place_of_the_last_is_refused(tmp_path):
    train(tmp_path)
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes())
    with pytest.raises(ValueError, match=r"last\.pt holds no average, optimizer.*--restart") as e:
        Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY)
    assert "\n" not in str(e.value)


def test_a_loss_that_is_not_finite_stops_with_the_checkpoint_whole(tmp_path):
    train(tmp_path, stop_at=4)
    torch.manual_seed(0)
    line = Line()
    run = Trainer(
        "tokenizer", tmp_path, line, TRAIN, IDENTITY,
        loss_fn=lambda x: {"error": line.net(x).mean() * float("nan")},
    )  # fmt: skip
    with pytest.raises(ValueError, match="the loss is not finite at step 4"):
        for _, x in run.batches(Points()):
            run.train_step(x)
    assert ckpt.load(tmp_path / "last.pt", "tokenizer")["step"] == 4


def test_a_gradient_that_is_not_finite_is_not_taken(tmp_path):
    torch.manual_seed(0)
    line = Line()
    run = Trainer(
        "tokenizer", tmp_path, line, TRAIN, IDENTITY,
        loss_fn=lambda x: {"error": (0 * line.net(x)).abs().sqrt().mean()},
    )  # fmt: skip
    before = {k: v.clone() for k, v in line.state_dict().items()}
    with pytest.raises(ValueError, match="the gradient is not finite at step 0"):
        for _, x in run.batches(Points()):
            run.train_step(x)
    assert equal(before, line.state_dict())


def test_where_a_gpu_is_not_waited_for_nothing_infinite_is_handed_on(tmp_path):
    train(tmp_path, stop_at=4)
    before = (tmp_path / "last.pt").read_bytes()
    torch.manual_seed(0)
    line = Line()
    run = Trainer(
        "tokenizer", tmp_path, line, replace(TRAIN, log_every=100), IDENTITY,
        loss_fn=lambda x: {"error": line.net(x).mean() * float("nan")},
    )  # fmt: skip
    run.nan_guard.immediate = False
    batches = run.batches(Points())
    for _ in range(2):  # up to the checkpoint after step 6 nothing is looked at
        x = next(batches)[1]
        run.train_step(x)
    assert all(p.isnan().all() for p in line.parameters())

    def report() -> None:
        run.train = replace(run.train, log_every=1)
        run.train_step(x)

    def hand_on() -> None:
        run.save_best(1.0, {})

    for act in (hand_on, run.save, run.ema_model().__enter__, lambda: next(batches), report):
        with pytest.raises(ValueError, match="the loss is not finite at step 4"):
            act()
    assert (tmp_path / "last.pt").read_bytes() == before


def test_recomputing_may_change_at_a_resume(tmp_path):
    def begin(**transformer) -> Trainer:
        config = {"kind": "line", "transformer": transformer}
        return Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY | {"config": config})

    run = begin(width=8)  # as before there was such a setting
    run.save()
    run._lock.close()
    begin(width=8, activation_checkpointing=True)._lock.close()
    with pytest.raises(ValueError, match="was begun with transformer"):
        begin(width=9, activation_checkpointing=True)


def test_sharding_in_one_process_says_that_it_has_no_effect(tmp_path, capsys):
    train(tmp_path / "none", steps=2)
    assert "no effect" not in capsys.readouterr().out
    train(tmp_path / "fsdp", steps=2, sharding="fsdp")
    assert "fsdp has no effect in one process" in capsys.readouterr().out
    assert equal(weights(tmp_path / "none"), weights(tmp_path / "fsdp"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has an effect on a GPU")
def test_recording_without_a_gpu_says_that_it_has_no_effect(tmp_path, capsys):
    train(tmp_path, steps=2, graph=True)
    assert "--train.graph has no effect without a CUDA GPU" in capsys.readouterr().out


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
