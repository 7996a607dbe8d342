"""The stages in their order on the toy world, as a user runs them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from in_process import ROOT, call_script

import train_controller
import train_dynamics
import train_tokenizer
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.tokenizers.vqvae import VqVaeConfig
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.batches.demonstrations import demo_rows
from pipeline.inference.load_controllers import load_controllers, load_goal_policy
from pipeline.inference.load_world import load_world
from pipeline.training.imagined_rewards import improvement
from pipeline.training.trainer import Trainer
from recipes import pusht

STAGES = [
    (train_tokenizer, "tokenizer", 8),
    (train_dynamics, "dynamics", 8),
    (train_controller, "controller", 4),
]
FEW_STEPS = {"train.steps": 8, "train.eval_every": 4, "train.save_every": 2}
FEW_BC_STEPS = {"bc.steps": 8, "bc.eval_every": 4, "bc.save_every": 2}
SHORT_DREAMS = {"model.horizon": 4, "goal_policy.max_goal_offset": 5}
METHODS = ("pusht", "keypoints", "lewm", "dreamer", "minecraft", "flexible")
JOINT = ("dreamer",)  # without stage 2
EACH = pytest.mark.parametrize("run", METHODS, indirect=True, scope="module")
CODES = pytest.mark.parametrize("run", ["pusht"], indirect=True, scope="module")


def stages(run: Path) -> list[tuple[Any, str, int]]:
    return STAGES[1:] if run.name in JOINT else STAGES


def config(stage: Any, run: Path, **changes: Any) -> Any:
    """The config of the recipe that a run's folder is named after, at size debug.

    Minecraft's own debug size takes minutes, so the toy world trains its methods at Push-T's.
    """
    name = next(name for module, name, _ in STAGES if module is stage)
    if run.name == "minecraft":
        made = presets.apply(stage.Config(), name, ["minecraft"])
        size = {
            key: value
            for key, value in pusht.SIZES["debug"][name].items()
            if not key.startswith("goal_policy.")  # its goal policy is another one
        }
        made = presets.changed(made, size, "debug")
    else:
        made = presets.apply(stage.Config(), name, [run.name, "debug"])
    few = FEW_STEPS
    if stage is train_controller:
        dreams = {"model.horizon": 4} if run.name == "minecraft" else SHORT_DREAMS
        few = FEW_BC_STEPS | dreams
    made = presets.changed(replace(made, run=run), few, "few steps")
    if stage is train_tokenizer:
        made = replace(made, model=replace(made.model, image_size=(32, 32)))
        if isinstance(made.model, VqVaeConfig):  # codes from the second step on, 16 a frame
            made = replace(made, model=replace(made.model, vq_start_step=2, downsample=8))
    if stage is train_controller and run.name == "minecraft":  # unlike it, the toy has rewards
        made = replace(made, methods=("bc", "actor_critic", "goal_policy"))
    return replace(made, **changes)


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / request.param
    factored = folder.name == "minecraft"
    write_toy_shards(folder / "shards", episodes=18, length=40, factored=factored)
    for stage, _, _ in stages(folder):
        stage.main(config(stage, folder))
    return folder


@EACH
def test_every_stage_leaves_what_the_next_one_needs(run: Path):
    for _, name, steps in stages(run):
        last = ckpt.load(run / name / "last.pt", name)
        assert last["step"] == steps and last["seconds"] > 0
        assert (run / name / "log.jsonl").read_text().count("\n") > 2
        assert list((run / name / "tensorboard").iterdir())
    assert (run / "tokenizer").exists() == (run.name not in JOINT)
    assert run.name in JOINT or list((run / "tokenizer" / "images").glob("*.png"))
    assert list((run / "dynamics" / "images").glob("*.png"))
    world = load_world(run)
    assert set(load_controllers(run, world)) == {"bc", "actor_critic"}
    assert (load_goal_policy(run, world) is None) == (run.name in ("pusht", "dreamer"))


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in dicts and lists, with its path."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from tensors(inner, f"{path}/{key}")


def check_equal(path: Path, whole: Any, parts: Any) -> None:
    """Compare weights, averages and optimizer state bit for bit."""
    states = [key for key in ("model", "ema", "optimizer") if key in whole]
    assert states == (["model", "ema", "optimizer"] if path.name == "last.pt" else ["model"])
    for key in states:
        found, again = dict(tensors(whole[key])), dict(tensors(parts[key]))
        assert found and found.keys() == again.keys(), f"{path}: {key}"
        for name, tensor in found.items():
            assert torch.equal(tensor, again[name]), f"{path}: {key}{name}"
    for key in ("step", "best", "fingerprint", "bad_validations", "lr_scale"):
        assert whole.get(key) == parts.get(key), f"{path}: {key}"


@EACH
@pytest.mark.parametrize("stage, name", [(stage, name) for stage, name, _ in STAGES])
def test_stopped_and_resumed_equals_never_stopped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, name: str
):
    if (stage, name) not in [made[:2] for made in stages(run)]:
        pytest.skip("this recipe has no such stage")
    again = tmp_path / run.name
    again.mkdir()
    for part in ("shards", "tokenizer", "dynamics"):
        if part != name and (run / part).exists():
            os.symlink(run / part, again / part)
    step = Trainer.step

    def step_or_stop(self: Trainer[Any], *arguments: Any) -> Any:
        losses = step(self, *arguments)
        if self.global_step == self.train.steps // 2:
            signal.raise_signal(signal.SIGTERM)
        return losses

    monkeypatch.setattr(Trainer, "step", step_or_stop)
    made = config(stage, again)
    trained = sorted(path.relative_to(run) for path in (run / name).rglob("last.pt"))
    assert len(trained) == len(getattr(made, "methods", [name]))
    for _ in trained:  # a controller is several, and each is stopped
        with pytest.raises(KeyboardInterrupt):
            stage.main(made)
    stage.main(made)
    for last in trained:
        for path in (last, last.with_name("best.pt")):
            check_equal(path, *(ckpt.load(folder / path, name) for folder in (run, again)))


@CODES
def test_methods_need_what_they_begin_from(run: Path, tmp_path: Path):
    again = tmp_path / run.name
    again.mkdir()
    for part in ("shards", "tokenizer", "dynamics"):
        os.symlink(run / part, again / part)
    made = config(train_controller, again)
    for method, answer in (
        ("actor_critic", "--methods bc actor_critic"),
        ("goal_policy", "codes pass none"),
    ):
        with pytest.raises(ValueError, match=answer):
            train_controller.main(replace(made, methods=(method,)))
    assert not list(again.glob("controller/**/*.pt"))


def test_without_rewards_only_the_actor_critic_is_left_out(capsys: pytest.CaptureFixture[str]):
    world = cast(World, SimpleNamespace(has_rewards=False))
    none: Any = None
    made = train_controller.Config(methods=("bc", "actor_critic", "goal_policy"))
    assert train_controller.possible_methods(made, world, none) == ("bc", "goal_policy")
    assert "so no actor_critic is trained; bc and goal_policy will be" in capsys.readouterr().out
    with pytest.raises(ValueError, match="nothing to train; --methods bc needs no"):
        train_controller.possible_methods(replace(made, methods=("actor_critic",)), world, none)


def test_what_the_data_has_nothing_for_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards", 12, 20))
    world = cast(World, SimpleNamespace(has_rewards=True))
    methods = ("bc", "task_cost", "flow_policy")
    made = train_controller.Config(methods=methods, flow_min_reward=1000.0)
    assert train_controller.possible_methods(made, world, dataset) == ("bc", "task_cost")
    assert "--flow-min-reward 1000.0" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--flow-min-reward 1000"):
        train_controller.possible_methods(replace(made, methods=("flow_policy",)), world, dataset)
    dataset.read_rows = lambda *_: np.ones(9)  # type: ignore[method-assign]
    made = replace(made, methods=("bc", "task_cost"))
    assert train_controller.possible_methods(made, world, dataset) == ("bc",)
    assert "is 1, which shows no goal, so no task_cost is trained" in capsys.readouterr().out


def test_rewards_that_are_all_zero_count_as_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """As a recorder writes them that knows no task."""
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards", 12, 20))
    for read in ("read", "read_rows"):
        real = getattr(dataset, read)
        monkeypatch.setattr(
            dataset, read, lambda *a, real=real: real(*a) * (0 if "rewards" in a else 1)
        )
    world = cast(World, SimpleNamespace(has_rewards=True))
    made = train_controller.Config(methods=("bc", "actor_critic", "task_cost", "flow_policy"))
    assert train_controller.possible_methods(made, world, dataset) == ("bc", "flow_policy")
    said = capsys.readouterr().out
    for method in ("actor_critic", "task_cost"):
        assert f"is 0, which shows no goal, so no {method} is trained" in said
    assert "is 0: all its episodes are imitated" in said
    rows = demo_rows(dataset, "train", made.min_reward)
    assert list(map(len, rows)) == [19] * len(dataset.episodes("train"))


@pytest.mark.parametrize("run", ["keypoints"], indirect=True, scope="module")
def test_methods_that_are_trained_side_by_side_are_those_of_one_process(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("controller"))
    torch.set_num_threads(2)  # one for each
    try:
        train_controller.main(
            replace(config(train_controller, run), run=tmp_path / "run", num_processes=2)
        )
    finally:
        torch.set_num_threads(1)
    trained = sorted(path.relative_to(run) for path in run.glob("controller/**/best.pt"))
    assert len(trained) == 5
    for path in trained:
        alone, beside = (
            ckpt.load(folder / path, "controller") for folder in (run, tmp_path / "run")
        )
        check_equal(path, alone, beside)


def test_methods_that_start_from_one_another_stay_together():
    made = train_controller.Config()
    groups = train_controller.groups_of(
        made, ("bc", "flow_policy", "actor_critic", "goal_policy", "task_cost", "canonical_policy")
    )
    assert groups == [
        ["bc", "actor_critic"], ["flow_policy"], ["goal_policy"], ["task_cost", "canonical_policy"],
    ]  # fmt: skip
    methods = ("task_cost", "canonical_policy", "distilled_policy", "flow_policy")
    expert = replace(made.distilled_policy.expert, proposer="canonical_policy")
    both = replace(made, distilled_policy=replace(made.distilled_policy, expert=expert))
    assert train_controller.groups_of(both, methods) == [list(methods[:3]), ["flow_policy"]]


@CODES
def test_a_users_mistake_is_reported_in_one_line(run: Path, tmp_path: Path):
    write_toy_shards(tmp_path / "shards")
    write_toy_shards(tmp_path / "moves" / "shards", discrete=True)
    os.symlink(run / "tokenizer", tmp_path / "moves" / "tokenizer")
    mistakes = {
        ("train_dynamics.py", "--run", f"{tmp_path}"): "train_tokenizer.py --run",
        ("train_controller.py", "--run", f"{tmp_path}"): "train_dynamics.py --run",
        ("train_tokenizer.py", "--run", f"{tmp_path}/nowhere"): "python preprocess.py",
        ("train_tokenizer.py", "--preset", "debgu"): "did you mean debug",
        ("train_tokenizer.py", "--run", f"{tmp_path}"): "--model.image-size 32 32",
        ("train_dynamics.py", "--run", f"{tmp_path}/moves"): "different action spaces",
    }
    for arguments, answer in mistakes.items():
        result = call_script(*arguments)
        assert result.returncode == 1, result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("error: ") and answer in result.stderr, result.stderr


def test_a_stage_that_a_recipe_does_not_have_has_nothing_to_do(tmp_path: Path):
    """So that `make demo`, which runs all stages, goes on."""
    result = call_script("train_tokenizer.py", "--run", f"{tmp_path}", "--preset", "dreamer", "cpu")
    assert result.returncode == 0 and not result.stderr and not list(tmp_path.iterdir())
    assert result.stdout.startswith("dreamer has no tokenizer of its own, so there is nothing")
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize("stage", ["train_tokenizer", "train_dynamics", "train_controller"])
def test_help_explains_the_stage(stage: str):
    result = call_script(f"{stage}.py", "--help")
    assert result.returncode == 0
    for word in ("Stage", "Reads", "Writes", "--preset", "--run", "--restart", "cpu", "debug"):
        assert word in result.stdout, word


@CODES
def test_a_folder_in_use_is_refused(run: Path):
    hold = (
        "import sys, time; from pathlib import Path; from data.io.files import lock;"
        "f = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, f"{run}/tokenizer"], stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="in use by another process"):
            train_tokenizer.main(config(train_tokenizer, run))
        process.kill()


@CODES
def test_two_processes_take_the_step_of_one(run: Path, tmp_path: Path):
    """torchrun on two CPU processes (gloo): the first step equals the single-process step."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for part in ("shards", "tokenizer"):
            os.symlink(run / part, tmp_path / name / part)
    flags = [
        "--preset", "pusht", "debug", "--train.steps", "1", "--train.precision", "fp32",
        "--train.ema-decay", "0", "--model.scheduled-sampling", "0", "--train.warmup-steps", "1",
    ]  # fmt: skip
    alone = call_script("train_dynamics.py", "--run", f"{tmp_path}/one", *flags)
    assert alone.returncode == 0, alone.stderr[-3000:]
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    result = subprocess.run(
        [sys.executable, *many, "train_dynamics.py", "--run", f"{tmp_path}/two", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = (
        ckpt.load(tmp_path / name / "dynamics" / "last.pt", "dynamics") for name in ("one", "two")
    )
    # Adam's first step is the sign of the gradient, so the gradients themselves are compared
    gradients = [
        torch.cat([s["exp_avg"].flatten() for s in last["optimizer"]["state"].values()])
        for last in (one, two)
    ]
    assert gradients[0].norm() > 0
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-7)
    assert one["fingerprint"] != ckpt.load(run / "dynamics" / "last.pt", "dynamics")["fingerprint"]


@CODES
def test_a_stage_that_is_killed_resumes(run: Path, tmp_path: Path):
    os.symlink(run / "shards", tmp_path / "shards")
    arguments = [
        sys.executable, "train_tokenizer.py", "--run", str(tmp_path), "--preset", "pusht", "debug",
        "--model.image-size", "32", "32", "--train.steps", "100000", "--train.save-every", "1",
    ]  # fmt: skip
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    last = tmp_path / "tokenizer" / "last.pt"
    until = time.monotonic() + 240
    while not last.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = ckpt.load(last, "tokenizer")["step"]
    done = call_script(*arguments[1:-4], "--train.steps", str(step + 2))
    assert done.returncode == 0 and f"resuming from step {step}" in done.stdout, done.stderr
    assert ckpt.load(last, "tokenizer")["step"] == step + 2


def test_an_improvement_must_exceed_chance():
    baseline = torch.rand(30, 64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, generator=torch.Generator().manual_seed(1))
    lucky = baseline + 0.1 * (noise - noise.mean()) + 0.005
    better = baseline + 0.1 * (noise - noise.mean()) + 0.05
    low = "improvement_ci_low"
    assert improvement(baseline, baseline)[low] == 0
    assert improvement(lucky, baseline)["improvement"] > 0
    assert improvement(lucky, baseline)[low] < 0
    assert 0 < improvement(better, baseline)[low] < 0.05
