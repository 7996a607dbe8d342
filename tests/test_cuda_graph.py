"""Recorded steps; on a CPU the recording is a stand-in with the same fixed inputs and outputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_run import IDENTITY, TRAIN, Line, equal, train, weights
from test_vqvae import SMALL

from models.tokenizers.vqvae import VqVae, VqVaeConfig
from pipeline.graphed import WARMUP_CALLS, StaticCudaGraph
from pipeline.training import auto_compile
from pipeline.training.auto_compile import TRIAL_STEPS
from pipeline.training.trainer import Trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_a_recorded_function_gives_what_the_function_gives():
    graphed = StaticCudaGraph(lambda x, none, y: (x * y, (x + y).sum()), DEVICE)
    for seed in range(WARMUP_CALLS + 3):
        random = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(4, 3, generator=random) for _ in range(2))
        product, total = graphed(x, None, y)
        assert torch.allclose(product.cpu(), x * y)
        assert torch.allclose(total.cpu(), (x + y).sum(), atol=1e-5)


def test_outputs_lie_where_they_lay_and_inputs_are_copied():
    graphed = StaticCudaGraph(lambda x: (x + 1,), DEVICE)
    given = torch.zeros(3)
    kept = [graphed(given + n)[0] for n in range(WARMUP_CALLS + 3)]
    assert len({t.data_ptr() for t in kept[WARMUP_CALLS:]}) == 1
    assert kept[-1].tolist() == [WARMUP_CALLS + 3.0] * 3 and given.tolist() == [0.0] * 3


def test_another_shape_is_refused():
    graphed = StaticCudaGraph(lambda x: (x,), DEVICE)
    graphed(torch.zeros(3))
    with pytest.raises(ValueError, match=r"of \(3,\), but now there is one of \(4,\)"):
        graphed(torch.zeros(4))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_of_recorded_steps_learns_what_others_learn(tmp_path, accumulate):
    plain = train(tmp_path / "plain", grad_accum_steps=accumulate)
    graphed = train(tmp_path / "graphed", grad_accum_steps=accumulate, graph=True)
    same = weights(tmp_path / "plain"), weights(tmp_path / "graphed")
    assert all(torch.allclose(same[0][k], same[1][k], atol=1e-6) for k in same[0])
    assert graphed.best == pytest.approx(plain.best, rel=1e-4)


def test_recorded_runs_resume(tmp_path):
    train(tmp_path / "whole", graph=True)
    train(tmp_path / "parts", graph=True, stop_at=6)
    train(tmp_path / "parts", graph=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_step_is_recorded_anew_once_it_is_compiled(tmp_path, monkeypatch):
    """What was recorded before would be replayed for ever, and timed against itself."""
    calls = {"eager": 0, "compiled": 0}

    class Counted(Line):
        def loss(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            calls["eager"] += 1
            return super().loss(x)

    def compiled(module: torch.nn.Module) -> None:
        def call(*given: torch.Tensor) -> dict[str, torch.Tensor]:
            calls["compiled"] += 1
            return module.forward(*given)

        module._compiled_call_impl = call

    def replayed(self: StaticCudaGraph, *tensors: torch.Tensor) -> list[torch.Tensor]:
        self._calls += 1
        if self._calls <= WARMUP_CALLS + 1:  # the last is the one that is recorded
            self._static_outputs = [t.detach() for t in self.function(*tensors)]
        return self._static_outputs

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    monkeypatch.setattr(auto_compile, "MIN_TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(auto_compile, "cpp_compiler", lambda: "g++")
    monkeypatch.setattr(StaticCudaGraph, "__call__", replayed)
    train(tmp_path, graph=True, compile="auto", steps=TRIAL_STEPS + WARMUP_CALLS + 1, model=Counted)
    assert calls == {"eager": 2 * (WARMUP_CALLS + 1), "compiled": WARMUP_CALLS + 1}


def test_steps_are_recorded_from_where_they_are_alike(tmp_path, monkeypatch):
    recorded: list[int] = []
    call = StaticCudaGraph.__call__

    class Begins(Line):
        """Looks at values in its first five steps, as a codebook does before it has begun."""

        settled, steps = False, 0

        def loss(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            if not self.settled:
                self.steps += 1
                self.settled = self.steps == 5 and bool(x.isfinite().all())
            return super().loss(x)

    def counted(self: StaticCudaGraph, *tensors: torch.Tensor) -> list[torch.Tensor]:
        recorded.append(1)
        return call(self, *tensors)

    train(tmp_path / "plain", model=Begins)
    monkeypatch.setattr(StaticCudaGraph, "__call__", counted)
    run = train(tmp_path / "graphed", model=Begins, graph=True)
    assert len(recorded) == run.train.steps - 5
    same = weights(tmp_path / "plain"), weights(tmp_path / "graphed")
    assert all(torch.allclose(same[0][k], same[1][k], atol=1e-6) for k in same[0])


class Frames:
    def __len__(self) -> int:
        return 30

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        palette = torch.randint(0, 256, (30, 3, 4, 4), generator=torch.Generator().manual_seed(0))
        return palette[torch.from_numpy(indices)].repeat_interleave(8, 2).repeat_interleave(8, 3)


def draws(folder: Path, graph: bool) -> tuple[Trainer, float]:
    torch.manual_seed(0)
    model = VqVae(VqVaeConfig(**SMALL))
    run = Trainer("tokenizer", folder, model, replace(TRAIN, steps=40, graph=graph), IDENTITY)
    loss = 0.0
    for _, x in run.batches(Frames()):
        loss = float(run.train_step(x)["reconstruction"].detach())
    run._lock.close()
    return run, loss


def test_a_vqvae_is_recorded_once_its_codebooks_have_begun(tmp_path):
    _, loss = draws(tmp_path / "plain", graph=False)
    run, again = draws(tmp_path / "graphed", graph=True)
    whole = run.step_fn._graph_step
    assert whole is not None and whole._calls == 40 - SMALL["continuous_steps"] - 1
    if DEVICE.type == "cuda":  # chance is spent otherwise there
        assert whole._graph is not None and again < 2 * loss
    else:
        same = weights(tmp_path / "plain"), weights(tmp_path / "graphed")
        assert all(torch.allclose(same[0][k], same[1][k], atol=1e-5) for k in same[0])


def test_a_recorded_run_stops_at_a_loss_that_is_not_finite(tmp_path):
    class Broken(Line):
        def loss(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"error": self.net(x).mean() * torch.where(x.max() > 0.9, torch.nan, 1.0)}

    with pytest.raises(ValueError, match="the loss is not finite"):
        train(tmp_path, graph=True, model=Broken)


def test_what_cannot_be_recorded_is_refused(tmp_path):
    with pytest.raises(ValueError, match="in bf16 or fp32, but there are 1 process"):
        train(tmp_path, graph=True, precision="fp16")
