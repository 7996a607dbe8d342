"""Captured functions, steps and searches; on a CPU a stand-in with the same fixed tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_planner import GOALS, STARTS, Follower, Straight
from test_trainer import IDENTITY, TRAIN, Line, equal, train, weights
from test_vqvae import SMALL
from torch import Tensor
from untrained_run import write_run

from data.batch import Batch
from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.dynamics.dynamics import State
from models.planning.planner import Planner, PlannerConfig
from models.tokenizers.vqvae import VqVae, VqVaeConfig
from pipeline.cuda_graph import WARMUP_CALLS, CudaGraphed, CudaGraphedWorld, StaticCudaGraph
from pipeline.inference.load_world import load_world
from pipeline.pytree import flatten
from pipeline.training import auto_compile
from pipeline.training.auto_compile import TRIAL_STEPS
from pipeline.training.trainer import Trainer

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# -- a function of tensors -----------------------------------------------------------------------


def test_a_captured_function_returns_what_the_function_returns():
    captured = StaticCudaGraph(lambda x, none, y: (x * y, (x + y).sum()), DEVICE)
    for seed in range(WARMUP_CALLS + 3):
        random = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(4, 3, generator=random) for _ in range(2))
        product, total = captured(x, None, y)
        assert torch.allclose(product.cpu(), x * y)
        assert torch.allclose(total.cpu(), (x + y).sum(), atol=1e-5)


def test_outputs_keep_their_address_and_inputs_are_copied():
    captured = StaticCudaGraph(lambda x: (x + 1,), DEVICE)
    given = torch.zeros(3)
    kept = [captured(given + n)[0] for n in range(WARMUP_CALLS + 3)]
    assert len({t.data_ptr() for t in kept[WARMUP_CALLS:]}) == 1
    assert kept[-1].tolist() == [WARMUP_CALLS + 3.0] * 3 and given.tolist() == [0.0] * 3


def test_another_shape_is_refused():
    captured = StaticCudaGraph(lambda x: (x,), DEVICE)
    captured(torch.zeros(3))
    with pytest.raises(ValueError, match=r"of \(3,\), but now there is one of \(4,\)"):
        captured(torch.zeros(4))


# -- training steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_a_run_of_captured_steps_learns_what_others_learn(tmp_path: Path, grad_accum_steps: int):
    plain = train(tmp_path / "plain", grad_accum_steps=grad_accum_steps)
    captured = train(tmp_path / "captured", grad_accum_steps=grad_accum_steps, cuda_graph=True)
    same = weights(tmp_path / "plain"), weights(tmp_path / "captured")
    assert all(torch.allclose(same[0][k], same[1][k], atol=1e-6) for k in same[0])
    assert captured.best == pytest.approx(plain.best, rel=1e-4)


def test_captured_runs_resume(tmp_path: Path):
    train(tmp_path / "whole", cuda_graph=True)
    train(tmp_path / "parts", cuda_graph=True, stop_at=6)
    train(tmp_path / "parts", cuda_graph=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_step_is_captured_again_once_it_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The eager graph would be replayed forever, and timed against itself."""
    calls = {"eager": 0, "compiled": 0}

    class Counted(Line):
        def loss(self, batch: Batch) -> dict[str, Tensor]:
            calls["eager"] += 1
            return super().loss(batch)

    def compiled(module: torch.nn.Module) -> None:
        def call(*args: Any) -> dict[str, Tensor]:
            calls["compiled"] += 1
            return module.forward(*args)

        module._compiled_call_impl = call

    def replayed(self: StaticCudaGraph, *tensors: Tensor) -> list[Tensor]:
        self._calls += 1
        if self._calls <= WARMUP_CALLS + 1:  # the last one is the capture
            self._static_outputs = [t.detach() for t in self.function(*tensors)]
        return self._static_outputs

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    monkeypatch.setattr(auto_compile, "MIN_TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(auto_compile, "cpp_compiler", lambda: "g++")
    monkeypatch.setattr(auto_compile, "compile_problem", lambda device: None)
    monkeypatch.setattr(StaticCudaGraph, "__call__", replayed)
    steps = TRIAL_STEPS + WARMUP_CALLS + 1
    train(tmp_path, cuda_graph=True, compile="auto", steps=steps, model=Counted)
    assert calls == {"eager": 2 * (WARMUP_CALLS + 1), "compiled": WARMUP_CALLS + 1}


def test_steps_are_captured_from_where_they_are_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    captured_steps: list[int] = []
    call = StaticCudaGraph.__call__

    class Initializes(Line):
        """Reads values in its first five steps, as a codebook does until it is initialized."""

        initialized, steps = False, 0

        @property
        def capturable(self) -> bool:
            return self.initialized

        def loss(self, batch: Batch) -> dict[str, Tensor]:
            if not self.initialized:
                self.steps += 1
                self.initialized = self.steps == 5 and bool(_first(batch).isfinite().all())
            return super().loss(batch)

    def counted(self: StaticCudaGraph, *tensors: Tensor) -> list[Tensor]:
        captured_steps.append(1)
        return call(self, *tensors)

    train(tmp_path / "plain", model=Initializes)
    monkeypatch.setattr(StaticCudaGraph, "__call__", counted)
    trainer = train(tmp_path / "captured", model=Initializes, cuda_graph=True)
    assert len(captured_steps) == trainer.train.steps - 5
    same = weights(tmp_path / "plain"), weights(tmp_path / "captured")
    assert all(torch.allclose(same[0][k], same[1][k], atol=1e-6) for k in same[0])


def _first(batch: Batch) -> Tensor:
    tensors: list[Tensor] = []
    flatten(batch, tensors)
    return tensors[0]


class Frames:
    def __len__(self) -> int:
        return 30

    def batch(self, indices: np.ndarray) -> Batch:
        palette = torch.randint(0, 256, (30, 3, 4, 4), generator=torch.Generator().manual_seed(0))
        frames = palette[torch.from_numpy(indices)]
        frames = frames.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return Batch(frames=frames[:, None])


def train_vqvae(folder: Path, cuda_graph: bool) -> tuple[Trainer[VqVae], float]:
    torch.manual_seed(0)
    model = VqVae(VqVaeConfig(**SMALL))
    config = replace(TRAIN, steps=40, cuda_graph=cuda_graph)
    trainer = Trainer("tokenizer", folder, model, config, IDENTITY)
    loss = 0.0
    for batch in trainer.batches(Frames()):
        loss = float(trainer.step(model.loss, batch)["reconstruction"].detach())
    trainer._lock.close()
    return trainer, loss


def test_a_vqvae_is_captured_once_its_codebooks_are_initialized(tmp_path: Path):
    _, loss = train_vqvae(tmp_path / "plain", cuda_graph=False)
    trainer, again = train_vqvae(tmp_path / "captured", cuda_graph=True)
    graph_step = trainer.step_fn._graph_step
    assert graph_step is not None and graph_step._calls == 40 - SMALL["vq_start_step"]
    if DEVICE.type == "cuda":  # random numbers are used in another order there
        assert graph_step._graph is not None and again < 2 * loss
    else:
        same = weights(tmp_path / "plain"), weights(tmp_path / "captured")
        assert all(torch.allclose(same[0][k], same[1][k], atol=1e-5) for k in same[0])


def test_a_captured_run_stops_at_a_loss_that_is_not_finite(tmp_path: Path):
    class Broken(Line):
        def loss(self, batch: Batch) -> dict[str, Tensor]:
            factor = torch.where(_first(batch).max() > 0.9, torch.nan, 1.0)
            return {"error": super().loss(batch)["error"] * factor}

    with pytest.raises(ValueError, match="the loss is not finite"):
        train(tmp_path, cuda_graph=True, model=Broken)


def test_what_cannot_be_captured_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="in bf16 or fp32, but there are 1 process"):
        train(tmp_path, cuda_graph=True, precision="fp16")


# -- steps of a world, and searches --------------------------------------------------------------


@pytest.mark.parametrize("method", ["vqvae", "keypoints"])
def test_a_rollout_of_a_captured_world_is_that_of_the_world(tmp_path: Path, method: str):
    write_toy_shards(tmp_path / "shards", episodes=6, length=20)
    dataset = EpisodeDataset(tmp_path / "shards")
    world = load_world(write_run(tmp_path, dataset, controllers=False, method=method), DEVICE)
    captured = CudaGraphedWorld(world)
    clip = Clips(dataset, "train", 20).batch(np.arange(2)).to(DEVICE)
    rollouts = []
    with torch.no_grad():
        for each in (world, captured):
            state = each.reset(clip.frames[:, :3], clip.actions[:, :2])
            rollout = []
            # past the warm-up of every shape on the way
            for t in range(2, 2 + 2 * WARMUP_CALLS + 4):
                state = each.step(state, clip.actions[:, t])
                rollout.append((each.decode(state), state.reward))
            rollouts.append(rollout)
    for (frame, reward), (other_frame, other_reward) in zip(*rollouts, strict=True):
        assert torch.equal(frame, other_frame)
        assert torch.allclose(reward, other_reward, atol=1e-5)
    assert captured.actions is world.actions


def test_no_call_overwrites_the_result_of_another():
    world = Follower()
    step = CudaGraphed(lambda state, action: world.rollout(state, action), CPU)
    start = world.state(STARTS)
    sequences = [torch.full((3, 2, 2), float(n)) for n in range(WARMUP_CALLS + 3)]
    ends = [step(start, actions) for actions in sequences]
    for actions, end in zip(sequences, ends, strict=True):
        assert torch.equal(end.latents, world.rollout(start, actions).latents)
    assert torch.equal(start.latents[:, 0], STARTS)


def test_other_shapes_and_other_nones_are_captured_apart():
    def add(x: Tensor, y: Tensor | None) -> Tensor:
        return x if y is None else x + y

    captured = CudaGraphed(add, CPU)
    for _ in range(WARMUP_CALLS + 2):
        for size in (2, 3):
            x = torch.rand(size)
            assert torch.equal(captured(x, None), x)
            assert torch.equal(captured(x, x), x + x)


@pytest.mark.parametrize("policy_prior", [None, Straight()])
@pytest.mark.parametrize("method", ["cem", "mppi", "gradient", "shooting"])
def test_a_captured_plan_is_the_plan(method: Any, policy_prior: Any):
    config = PlannerConfig(
        method, num_samples=32, iterations=4, num_elites=8, horizon=2, action_block=3
    )

    def capture(search: Any) -> CudaGraphed:
        return CudaGraphed(search, CPU)

    world: Any = Follower()
    plain = Planner(config, world, policy_prior=policy_prior)
    captured = Planner(config, world, capture, policy_prior)
    for number in range(WARMUP_CALLS + 2):
        start, goal = world.state(STARTS + 0.01 * number), GOALS[:, None]
        one, two = (p.plan(start, goal, None, None) for p in (plain, captured))
        assert torch.equal(one.actions, two.actions) and torch.equal(one.cost, two.cost)
        warm = (start, goal, one.actions[:, 0], one.knots)
        assert torch.equal(captured.plan(*warm).actions, plain.plan(*warm).actions)


def test_nested_values_come_back_nested():
    state = replace(Follower().state(STARTS), reward=torch.arange(3.0))
    seen = CudaGraphed(lambda state, rest: (state, rest), CPU)(state, [1, None, "x"])
    assert isinstance(seen[0], State) and seen[0].reward.tolist() == [0, 1, 2]
    assert seen[1] == [1, None, "x"]
