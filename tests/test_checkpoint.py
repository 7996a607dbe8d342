import errno
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.actions import ActionSpec
from models.registry import DataSpec
from models.tokenizers.keypoints import KeypointsConfig
from models.tokenizers.tokenizer import LatentSpec
from pipeline import checkpoint as ckpt


def one(stage: str = "tokenizer", **changes):
    weights = {"w": torch.arange(6.0).view(2, 3)}
    config = {"kind": "vqvae", "codebook_size": 4}
    return {
        "format": ckpt.FORMAT,
        "stage": stage,
        "config": config,
        "image_size": [32, 48],
        "latents": {"kind": "continuous", "grid": [1, 1], "dim": 4},
        "actions": {"kind": "none", "names": []},
        "data_actions": {"kind": "none", "names": []},
        "parent": {"path": "shards", "fingerprint": "0"},
        "model": weights,
        "fingerprint": ckpt.fingerprint(changes.get("model", weights), config),
        "best": None,
    } | changes


def test_what_is_saved_comes_back_with_weights_only(tmp_path):
    ckpt.save(tmp_path / "a.pt", one())
    back = torch.load(tmp_path / "a.pt", weights_only=True)
    assert torch.equal(back["model"]["w"], one()["model"]["w"])
    assert ckpt.load(tmp_path / "a.pt", "tokenizer")["config"] == one()["config"]


@pytest.mark.parametrize("stage", ["tokenizer", "dynamics", "controller"])
def test_a_checkpoint_describes_the_data_of_its_model(tmp_path, stage):
    latents = LatentSpec("continuous", (2, 3), 4, is_xy=True)
    taken = ActionSpec("continuous", ("x", "y"), (0.0, -1.0), (1.0, 1.0), "pixels", True)
    own = ActionSpec("discrete", ("left", "right"))  # of a model that infers its own
    data = DataSpec((32, 48), taken)
    fields = ckpt.describe(KeypointsConfig((32, 48)), data, latents, own, (Path("a"), "beef"))
    assert set(ckpt.REQUIRED_KEYS) - fields.keys() == {"stage", "model", "fingerprint"}
    ckpt.save(tmp_path / "a.pt", one(stage) | fields)
    back = ckpt.load(tmp_path / "a.pt", stage)
    built_for = data if stage == "tokenizer" else replace(data, latents=latents)
    assert ckpt.data_spec(back) == built_for
    assert ActionSpec.from_dict(back["actions"]) == own
    assert back["config"]["kind"] == "keypoints" and back["parent"]["fingerprint"] == "beef"


def test_the_fingerprint_changes_with_a_weight_and_with_a_setting():
    weights = {"w": torch.zeros(3)}
    first = ckpt.fingerprint(weights, {"a": 1})
    assert first == ckpt.fingerprint({"w": torch.zeros(3)}, {"a": 1})
    assert first != ckpt.fingerprint({"w": torch.tensor([0.0, 0.0, 1e-7])}, {"a": 1})
    assert first != ckpt.fingerprint(weights, {"a": 2})


def old_format() -> bytes:
    """What torch wrote before its files were zip archives: a pickle, which can be cut anywhere."""
    memory = io.BytesIO()
    torch.save(one(), memory, _use_new_zipfile_serialization=False)
    return memory.getvalue()


PICKLE = old_format()
BROKEN = [b"", b"not a checkpoint", b"e = mc^2\n", *(PICKLE[:n] for n in (1, 5, 40, 200, -9)), None]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_file_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "last.pt"
    ckpt.save(path, one())
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint") as problem:
        ckpt.load(path, "tokenizer")
    assert "\n" not in str(problem.value) and str(path) in str(problem.value)


def test_a_missing_file_names_the_command_that_writes_it(tmp_path):
    with pytest.raises(ValueError, match=r"train_dynamics\.py --run .*toy writes it"):
        ckpt.load(tmp_path / "toy" / "dynamics" / "best.pt", "dynamics")
    with pytest.raises(ValueError, match=r"train_controller\.py --run .*toy writes it"):
        ckpt.load(tmp_path / "toy" / "controller" / "goal_policy" / "best.pt", "controller")


@pytest.mark.parametrize("key", ckpt.REQUIRED_KEYS)
def test_a_missing_key_is_named(tmp_path, key):
    path = tmp_path / "toy" / "tokenizer" / "best.pt"
    path.parent.mkdir(parents=True)
    ckpt.save(path, {k: v for k, v in one().items() if k != key})
    with pytest.raises(ValueError, match=rf"holds no {key}; .*--run .*toy --restart"):
        ckpt.load(path, "tokenizer")


def test_a_weight_that_differs_from_what_was_written_is_refused(tmp_path):
    path = tmp_path / "toy" / "tokenizer" / "best.pt"
    weights = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    written = one(model=weights)
    weights["bias"][1] = 1.0000001
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"damaged: its weights .* --run .*toy --restart") as e:
        ckpt.restore(model, written, path)
    assert "\n" not in str(e.value) and not (model.bias == 1).any()


def test_another_stage_and_another_format_are_refused(tmp_path):
    ckpt.save(tmp_path / "a.pt", one())
    with pytest.raises(ValueError, match="holds a tokenizer checkpoint, but a dynamics one"):
        ckpt.load(tmp_path / "a.pt", "dynamics")
    ckpt.save(tmp_path / "b.pt", one(format=99))
    with pytest.raises(ValueError, match="has format 99"):
        ckpt.load(tmp_path / "b.pt", "tokenizer")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        ckpt.load(tmp_path / "c.pt", "tokenizer")


def test_weights_of_another_version_are_refused_in_one_line(tmp_path):
    weights = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    model = torch.nn.Linear(3, 2)
    ckpt.restore(model, one(model=weights), tmp_path / "a.pt")
    assert torch.equal(model.weight, weights["weight"])
    narrow, more = torch.ones(2, 2), weights | {"gain": torch.ones(2)}
    for other in (weights | {"weight": narrow}, more, {"weight": weights["weight"]}):
        with pytest.raises(
            ValueError, match=r"a\.pt was written by another version.*--restart"
        ) as e:
            ckpt.restore(model, one(model=other), tmp_path / "a.pt")
        assert "\n" not in str(e.value)


def test_a_child_of_another_parent_is_refused(tmp_path):
    child = one("dynamics", parent={"path": "x", "fingerprint": "beef"})
    path = tmp_path / "toy" / "dynamics" / "best.pt"
    with pytest.raises(ValueError, match=r"fingerprint beef.*--run .*toy --restart"):
        ckpt.check_parent(child, path, one(), tmp_path / "p")
    ckpt.check_parent(
        one("dynamics", parent={"path": "x", "fingerprint": one()["fingerprint"]}),
        tmp_path / "c",
        one(),
        tmp_path / "p",
    )


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    ckpt.save(path, one())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, ValueError), match="No space left on device") as problem:
        ckpt.save(path, one(best=1.0))
    assert str(path) in str(problem.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
