"""A training run: resuming, checkpoints, restarts, validation, interruptions."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trained_points import Points

from data.batch import Batch
from models.method import Best, TrainableModule
from pipeline import checkpoint as ckpt
from pipeline import tensor_file
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer

TRAIN = TrainConfig(
    steps=12, batch_size=8, warmup_steps=2, eval_every=4, save_every=3, log_every=1,
    precision="fp32",
)  # fmt: skip
IDENTITY = {
    "config": {"kind": "line"}, "image_size": [4, 4], "latents": {}, "actions": {},
    "data_actions": {}, "parent": {"path": "-", "fingerprint": "0"},
}  # fmt: skip


class Line(TrainableModule):
    """Learns y = 2 x - 1, with noise that is drawn in the loss."""

    best = Best("error", higher_is_better=False)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        (x,) = batch.require("latents")
        noise = 0.1 * torch.randn_like(x)
        error = (self.net(x) - (2 * x - 1 + noise)).square().mean()
        return {"error": error, "size": x.mean().detach()}


def train(
    folder: Path,
    stop_at: int | None = None,
    restart: bool = False,
    model: Callable[[], Line] = Line,
    **changes: Any,
) -> Trainer[Line]:
    torch.manual_seed(0)
    trainer = Trainer(
        "tokenizer", folder, model(), replace(TRAIN, **changes), IDENTITY, restart=restart
    )
    try:
        for batch in trainer.batches(Points()):
            trainer.step(trainer.model.loss, batch)
            if trainer.global_step == stop_at:
                trainer._stop_requested = True  # what a signal does
            if trainer.every(trainer.train.eval_every):
                with trainer.ema_model() as ema:
                    (x,) = Points().batch(np.arange(30)).to(trainer.device).require("latents")
                    error = float((ema.net(x) - (2 * x - 1)).square().mean())
                trainer.save_best({"error": error})
    except KeyboardInterrupt:
        pass
    trainer._lock.close()
    return trainer


def take_steps(trainer: Trainer[Any], loss: Callable[..., dict[str, Tensor]]) -> None:
    for batch in trainer.batches(Points()):
        trainer.step(loss, batch)


def times(line: Line, factor: float) -> Callable[[Batch], dict[str, Tensor]]:
    """The mean of the line, times a factor: a loss that is as finite as the factor."""
    return lambda batch: {"error": line.net(*batch.require("latents")).mean() * factor}


def last(folder: Path) -> ckpt.Checkpoint:
    return ckpt.load(folder / "last.pt", "tokenizer")


def weights(folder: Path) -> dict[str, Tensor]:
    return last(folder)["model"]


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


# -- checkpoints and restarts --------------------------------------------------------------------


def test_a_finished_run_says_so_and_restart_starts_over(tmp_path, capsys):
    train(tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    train(tmp_path)
    assert "finished, 12 steps" in capsys.readouterr().out
    assert (tmp_path / "last.pt").read_bytes() == before
    assert train(tmp_path, restart=True, steps=2).global_step == 2


def test_a_finished_run_names_its_own_flags(tmp_path, capsys):
    train(tmp_path)
    trainer = Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY, flag_prefix="bc")
    trainer.log_finished()
    trainer._lock.close()
    assert "--bc.steps trains longer" in capsys.readouterr().out


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
    assert train(tmp_path, restart=True).global_step == 12
    assert files(tmp_path).keys() == {"best.pt", "last.pt"}


def test_there_is_a_checkpoint_to_resume_from_before_there_is_a_best_one(tmp_path, monkeypatch):
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
        assert train(tmp_path / str(ends), save_every=100).global_step == 12
        assert files(tmp_path / str(ends)).keys() == {"best.pt", "last.pt"}
        assert equal(weights(tmp_path / "whole"), weights(tmp_path / str(ends)))


def test_a_restart_that_fails_at_its_first_step_leaves_the_old_files(tmp_path):
    train(tmp_path)
    before = files(tmp_path)
    line = Line()
    trainer = Trainer("tokenizer", tmp_path, line, TRAIN, IDENTITY, restart=True, flag_prefix="bc")
    with pytest.raises(ValueError, match="not finite at step 0 .*it is not the learning rate"):
        take_steps(trainer, times(line, float("nan")))
    trainer._lock.close()
    assert files(tmp_path) == before
    trainer = Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY, restart=True)
    trainer.save()  # from here on nothing is left of the former training
    trainer._lock.close()
    assert files(tmp_path).keys() == {"last.pt"}


def test_a_restart_that_cannot_be_saved_leaves_the_old_files(tmp_path, monkeypatch):
    train(tmp_path)
    before = files(tmp_path)

    def full(path: Path, content: memoryview) -> None:
        raise ValueError(f"{path} was not written: No space left on device")

    monkeypatch.setattr(tensor_file, "atomic_write", full)
    with pytest.raises(ValueError, match="No space left on device"):
        train(tmp_path, restart=True)
    assert files(tmp_path) == before


def test_a_restart_without_wandb_leaves_the_old_files(tmp_path, monkeypatch):
    train(tmp_path)
    before, lines = files(tmp_path), (tmp_path / "log.jsonl").read_text()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="--train.wandb needs the package wandb"):
        train(tmp_path, restart=True, wandb=True)
    assert files(tmp_path) == before and (tmp_path / "log.jsonl").read_text() == lines


# -- validation ----------------------------------------------------------------------------------


def test_early_stopping_waits_for_patience(tmp_path):
    torch.manual_seed(0)
    line, config = Line(), replace(TRAIN, steps=50, patience=2)
    trainer = Trainer("tokenizer", tmp_path, line, config, IDENTITY)
    for batch in trainer.batches(Points()):
        trainer.step(line.loss, batch)
        if trainer.every(4):
            trainer.save_best({"error": 1.0})
    assert trainer.global_step == 12  # the first is the best, two more are no better
    trainer._lock.close()


@pytest.mark.parametrize(
    "best, kept", [(None, 2.0), (Best("error"), 3.0), (Best("psnr", False), 20.0)]
)
def test_the_best_checkpoint_is_chosen_by_the_metric_of_the_model_or_of_the_stage(
    tmp_path, best, kept
):
    line = Line()
    trainer = Trainer("tokenizer", tmp_path, line, TRAIN, IDENTITY, best=best)
    metrics = iter([(3.0, 21.0), (2.0, 22.0), (2.5, 20.0)])
    for batch in trainer.batches(Points()):
        trainer.step(line.loss, batch)
        if trainer.every(4):
            error, psnr = next(metrics)
            trainer.save_best({"error": error, "psnr": psnr})
    trainer._lock.close()
    chosen = ckpt.load(tmp_path / "best.pt", "tokenizer")
    assert trainer.best == chosen["best"] == kept
    assert chosen["step"] == {2.0: 8, 3.0: 4, 20.0: 12}[kept]
    lines = [line for line in log(tmp_path) if "validation/psnr" in line]
    assert [line["validation/error"] for line in lines] == [3.0, 2.0, 2.5]


def test_a_validation_without_the_metric_of_the_best_is_refused(tmp_path):
    train(tmp_path, stop_at=4)
    before = files(tmp_path)
    line = Line()
    for best, metric in ((None, "error"), (Best("mrr"), "mrr")):
        trainer = Trainer("tokenizer", tmp_path, line, TRAIN, IDENTITY, best=best)
        message = f"the tokenizer is chosen by {metric}, but its validation gives psnr, ssim"
        with pytest.raises(ValueError, match=message) as e:
            trainer.save_best({"psnr": 20.0, "ssim": 0.5})
        assert "\n" not in str(e.value)
        trainer._lock.close()
        assert trainer.best == last(tmp_path)["best"] and trainer.bad_validations == 0
    assert files(tmp_path) == before
    assert not any("validation/psnr" in line for line in log(tmp_path))


@pytest.mark.parametrize("values", [[float("nan"), 2.0, 3.0], [2.0, float("-inf"), 3.0]])
def test_a_metric_that_is_not_finite_is_never_the_best(tmp_path, values, capsys):
    line, metrics = Line(), iter(values)
    trainer = Trainer("tokenizer", tmp_path, line, TRAIN, IDENTITY)
    for batch in trainer.batches(Points()):
        trainer.step(line.loss, batch)
        if trainer.every(4):
            trainer.save_best({"error": next(metrics)})
    trainer._lock.close()
    assert ckpt.load(tmp_path / "best.pt", "tokenizer")["best"] == trainer.best == 2.0
    assert "(not finite, not kept)" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()  # JSON has none
    assert "Infinity" not in (tmp_path / "log.jsonl").read_text()


def test_a_training_without_any_finite_validation_says_so(tmp_path):
    line = Line()
    trainer = Trainer("tokenizer", tmp_path, line, TRAIN, IDENTITY)
    with pytest.raises(ValueError, match=r"no validation gave a finite error.*--restart"):
        for batch in trainer.batches(Points()):
            trainer.step(line.loss, batch)
            if trainer.every(4):
                trainer.save_best({"error": float("nan")})
    trainer._lock.close()
    assert files(tmp_path).keys() == {"last.pt"}


@pytest.mark.parametrize("averaged", [True, False])
def test_weights_that_are_not_finite_are_never_kept(tmp_path, averaged):
    line = Line()
    trainer = Trainer("tokenizer", tmp_path, line, TRAIN, IDENTITY)
    trainer.save()
    trainer.save_best({"error": 1.0})
    before = files(tmp_path)
    for values in trainer.step_fn.ema.weights.values() if averaged else line.parameters():
        values.data.fill_(float("nan"))
    message = r"the weight net.* is not finite after 0 steps, and is not kept; .*last.pt is whole"
    with pytest.raises(ValueError, match=message):
        trainer.save()
    if averaged:
        with pytest.raises(ValueError, match=message):
            trainer.save_best({"error": 0.5})
    trainer._lock.close()
    assert files(tmp_path) == before


def test_data_that_is_not_finite_is_not_told_as_a_learning_rate_too_high(tmp_path):
    class Overflowing(Points):
        def batch(self, indices: np.ndarray) -> Batch:
            return Batch(latents=torch.full((len(indices), 1), float("inf")))

    line = Line()
    trainer = Trainer("tokenizer", tmp_path / "run" / "tokenizer", line, TRAIN, IDENTITY)
    with pytest.raises(ValueError, match="the latents of the first batch are not finite; .*/run"):
        for batch in trainer.batches(Overflowing()):
            trainer.step(line.loss, batch)
    trainer._lock.close()


# -- settings ------------------------------------------------------------------------------------


def test_images_are_written_whole(tmp_path):
    trainer = Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY)
    trainer.log_image("made", np.full((4, 4, 3), 7, np.uint8))
    trainer._lock.close()
    (image,) = (tmp_path / "images").iterdir()
    assert image.name == "made-000000.png" and (imageio.imread(image) == 7).all()


def test_fsdp_in_one_process_says_that_it_has_no_effect(tmp_path, capsys):
    train(tmp_path / "none", steps=2)
    assert "no effect" not in capsys.readouterr().out
    train(tmp_path / "fsdp", steps=2, sharding="fsdp")
    assert "fsdp has no effect in one process" in capsys.readouterr().out
    assert equal(weights(tmp_path / "none"), weights(tmp_path / "fsdp"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has an effect on a GPU")
def test_a_cuda_graph_without_a_gpu_says_that_it_has_no_effect(tmp_path, capsys):
    train(tmp_path, steps=2, cuda_graph=True)
    assert "--train.cuda-graph has no effect without a CUDA GPU" in capsys.readouterr().out


# -- interruptions -------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "."]
import torch
torch.set_num_threads(1)
import test_trainer
trainer = test_trainer.Trainer("tokenizer", Path(sys.argv[1]), test_trainer.Line(),
    test_trainer.replace(test_trainer.TRAIN, steps=100000, save_every=1), test_trainer.IDENTITY)
print("step", trainer.global_step, flush=True)
for batch in trainer.batches(test_trainer.Points()):
    trainer.step(trainer.model.loss, batch)
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


def test_the_checkpoint_can_be_loaded_whatever_ended_the_run(tmp_path):
    step = 0
    for number, delay in ((signal.SIGINT, 0.15), (signal.SIGTERM, 0.4), (signal.SIGKILL, 0.3)):
        process = start(tmp_path)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        process.communicate(timeout=20)
        if (tmp_path / "last.pt").exists():
            after = last(tmp_path)["step"]
            assert after >= step
            step = after
    assert step > 0
