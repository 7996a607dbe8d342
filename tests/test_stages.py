"""The stages one behind the other on the toy world, as a user runs them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evaluate
import play
import preprocess
import train_controller
import train_dynamics
import train_tokenizer
from data.toy import write_toy_shards
from pipeline import checkpoint as ckpt
from pipeline.cli import parse
from pipeline.inference.load_controllers import load_controllers, load_goal_policy
from pipeline.inference.load_world import load_world
from pipeline.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
STAGES = [
    (train_tokenizer, "tokenizer", 40),
    (train_dynamics, "dynamics", 40),
    (train_controller, "controller", 4),
]
METHODS = {"codes": (), "goals": ("goals",), "latent": ("latent",), "keys": ("minecraft",)}
EACH = pytest.mark.parametrize("run", METHODS, indirect=True, scope="module")
CODES = pytest.mark.parametrize("run", ["codes"], indirect=True, scope="module")


def config(stage, run: Path, **changes):
    """The debug preset of the method that a run's folder is named after."""
    made = stage.Config()
    for preset in (*METHODS[run.name], "debug"):
        made = stage.PRESETS[preset](made)
    made = replace(made, run=run)
    if stage is train_tokenizer:
        made = replace(made, model=replace(made.model, image_size=(32, 32)))
    if stage is train_controller and run.name == "keys":  # unlike Minecraft, the toy has rewards
        made = replace(made, methods=("cloning", "actor_critic", "goals"))
    return replace(made, **changes)


@pytest.fixture(scope="module")
def run(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / request.param
    write_toy_shards(folder / "shards", episodes=18, length=40, factored=folder.name == "keys")
    for stage, _, _ in STAGES:
        stage.main(config(stage, folder))
    return folder


@EACH
def test_every_stage_leaves_what_the_next_one_needs(run):
    for _, name, steps in STAGES:
        last = ckpt.load(run / name / "last.pt", name)
        assert last["step"] == steps and last["seconds"] > 0
        assert (run / name / "log.jsonl").read_text().count("\n") > 2
        assert list((run / name / "tensorboard").iterdir())
    assert list((run / "tokenizer" / "pictures").glob("*.png"))
    assert list((run / "dynamics" / "pictures").glob("*.png"))
    world = load_world(run)
    assert set(load_controllers(run, world)) == {"cloning", "controller"}
    assert (load_goal_policy(run, world) is None) == (run.name == "codes")


@EACH
@pytest.mark.parametrize("stage, name", [(stage, name) for stage, name, _ in STAGES])
def test_stopped_and_resumed_equals_never_stopped(run, tmp_path, monkeypatch, stage, name):
    again = tmp_path / run.name
    again.mkdir()
    for part in ("shards", "tokenizer", "dynamics"):
        if part != name:
            os.symlink(run / part, again / part)
    descend = Trainer.train_step

    def descend_or_stop(self: Trainer, *tensors: torch.Tensor | None):
        losses = descend(self, *tensors)
        if self.step == self.train.steps // 2:
            signal.raise_signal(signal.SIGTERM)
        return losses

    monkeypatch.setattr(Trainer, "descend", descend_or_stop)
    made = config(stage, again)
    trained = sorted(path.relative_to(run) for path in (run / name).rglob("last.pt"))
    for _ in trained:  # a controller is several, and each is stopped
        with pytest.raises(KeyboardInterrupt):
            stage.main(made)
    stage.main(made)
    for last in trained:
        for path in (last, last.with_name("best.pt")):
            whole, parts = (ckpt.load(r / path, name) for r in (run, again))
            assert whole["step"] == parts["step"] and whole["best"] == parts["best"], path
            for kind in {"model", "average"} & set(whole):
                assert whole[kind].keys() == parts[kind].keys(), path
                for k, weight in whole[kind].items():
                    assert torch.equal(weight, parts[kind][k]), f"{path}: {kind} {k}"


@CODES
def test_methods_need_what_they_begin_from(run, tmp_path):
    again = tmp_path / run.name
    again.mkdir()
    for part in ("shards", "tokenizer", "dynamics"):
        os.symlink(run / part, again / part)
    made = config(train_controller, again)
    for method, answer in (("actor_critic", "--methods cloning actor_critic"), ("goals", "codes")):
        with pytest.raises(ValueError, match=answer):
            train_controller.main(replace(made, methods=(method,)))
    assert not list(again.glob("controller/**/*.pt"))


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@CODES
def test_a_users_mistake_is_answered_in_one_line(run, tmp_path):
    write_toy_shards(tmp_path / "shards")
    write_toy_shards(tmp_path / "moves" / "shards", discrete=True)
    os.symlink(run / "tokenizer", tmp_path / "moves" / "tokenizer")
    mistakes = {
        ("train_dynamics.py", "--run", f"{tmp_path}"): "train_tokenizer.py --run",
        ("train_controller.py", "--run", f"{tmp_path}"): "train_dynamics.py --run",
        ("train_tokenizer.py", "--run", f"{tmp_path}/nowhere"): "python -m data.preprocess",
        ("train_tokenizer.py", "--preset", "debgu"): "did you mean debug",
        ("train_tokenizer.py", "--run", f"{tmp_path}"): "--model.image-size 32 32",
        ("train_dynamics.py", "--run", f"{tmp_path}/moves"): "different action spaces",
    }
    for arguments, answer in mistakes.items():
        said = ask(*arguments)
        assert said.returncode == 1, said.stderr
        assert said.stderr.count("\n") == 1 and said.stderr.startswith("error: "), said.stderr
        assert answer in said.stderr, said.stderr


def test_presets_that_one_stage_knows_are_known_to_all():
    """A user gives every script of a run the same ones."""
    stages = (train_tokenizer, train_dynamics, train_controller, play, evaluate)
    known = [{name for name in stage.PRESETS if " " not in name} for stage in stages]
    assert all(names == known[0] for names in known)
    pusht, minecraft = set(preprocess.PRESETS), set(preprocess.VPT_PRESETS)
    assert pusht | minecraft == known[0]
    assert {"high_res", "tokens", "cpu", "hour", "debug"} <= pusht & minecraft


@pytest.mark.parametrize("method", ["goals", "dinov2", "latent"])
def test_codes_one_by_one_are_not_asked_of_vectors(method):
    for both in (["tokens", method], [method, "tokens"]):
        with pytest.raises(ValueError, match="leave out the one or the other"):
            parse(train_dynamics.Config, train_dynamics.PRESETS, ["--preset", *both])


@pytest.mark.parametrize("stage", ["train_tokenizer", "train_dynamics", "train_controller"])
def test_help_explains_the_stage(stage):
    said = ask(f"{stage}.py", "--help")
    assert said.returncode == 0
    for word in ("Stage", "Reads", "Writes", "--preset", "--run", "--restart", "cpu", "debug"):
        assert word in said.stdout, word


@CODES
def test_a_folder_in_use_is_refused(run):
    hold = (
        "import sys, time; from pathlib import Path; from data.files import lock;"
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
def test_two_processes_take_the_step_of_one(run, tmp_path):
    """torchrun on two CPU processes (gloo): the first step equals the single-process step."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for part in ("shards", "tokenizer"):
            os.symlink(run / part, tmp_path / name / part)
    flags = [
        "--preset", "debug", "--train.steps", "1", "--train.precision", "fp32",
        "--train.average", "0", "--model.imagined", "0", "--train.warmup", "1",
    ]  # fmt: skip
    script = str(ROOT / "train_dynamics.py")
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    for arguments in (
        [script, "--run", f"{tmp_path}/one", *flags],
        [*many, script, "--run", f"{tmp_path}/two", *flags],
    ):
        said = ask(*arguments)
        assert said.returncode == 0, said.stderr[-3000:]
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
def test_a_stage_that_is_killed_goes_on(run, tmp_path):
    os.symlink(run / "shards", tmp_path / "shards")
    arguments = [
        sys.executable, "train_tokenizer.py", "--run", str(tmp_path), "--preset", "debug",
        "--model.image-size", "32", "32", "--train.steps", "100000", "--train.save-every", "1",
    ]  # fmt: skip
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    last = tmp_path / "tokenizer" / "last.pt"
    until = time.monotonic() + 60
    while not last.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = ckpt.load(last, "tokenizer")["step"]
    done = ask(*arguments[1:-4], "--train.steps", str(step + 2))
    assert done.returncode == 0 and f"goes on from step {step}" in done.stdout, done.stderr
    assert ckpt.load(last, "tokenizer")["step"] == step + 2


def test_an_update_has_to_be_better_by_more_than_chance():
    known = torch.rand(30, 64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, generator=torch.Generator().manual_seed(1))
    lucky = known + 0.1 * (noise - noise.mean()) + 0.005
    better = known + 0.1 * (noise - noise.mean()) + 0.05
    assert train_controller.improvement(known, known)["value"] == 0
    assert train_controller.improvement(lucky, known)["figures"]["better"] > 0
    assert train_controller.improvement(lucky, known)["value"] < 0
    assert 0 < train_controller.improvement(better, known)["value"] < 0.05
