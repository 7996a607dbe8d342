import errno
import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.io import memory
from models import registry
from models.registry import DataSpec
from models.tokenizers.keypoints import KeypointsConfig
from models.tokenizers.tokenizer import LatentSpec
from pipeline import checkpoint as ckpt
from pipeline.lineage import check_parent


def one(stage: str = "tokenizer", **changes: Any) -> ckpt.Checkpoint:
    fields = {
        "format": ckpt.FORMAT,
        "stage": stage,
        "config": {"kind": "vqvae", "codebook_size": 4},
        "image_size": [32, 48],
        "latents": {"kind": "continuous", "grid": [1, 1], "dim": 4},
        "actions": {"kind": "none", "names": []},
        "data_actions": {"kind": "none", "names": []},
        "parent": {"path": "shards", "fingerprint": "0"},
        "model": {"w": torch.arange(6.0).view(2, 3)},
        "best": None,
    } | changes
    if "fingerprint" not in fields:
        fields["fingerprint"] = ckpt.fingerprint(fields["model"], fields["config"])
    return fields


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
    ckpt.save(tmp_path / "a.pt", one(stage, **fields))
    back = ckpt.load(tmp_path / "a.pt", stage)
    built_for = data if stage == "tokenizer" else replace(data, latents=latents)
    assert ckpt.data_spec(back, tmp_path) == built_for
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
    with pytest.raises(ValueError, match=r"train_controller\.py .*toy --methods goal_policy wri"):
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
    path.parent.mkdir(parents=True)
    written = one()
    written["model"]["w"][1] = 1.0000001
    ckpt.save(path, written)
    with pytest.raises(ValueError, match=r"damaged: its weights .* --run .*toy --restart") as e:
        ckpt.load(path, "tokenizer")
    assert "\n" not in str(e.value)


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
        check_parent(child, path, one(), tmp_path / "p")
    check_parent(
        one("dynamics", parent={"path": "x", "fingerprint": one()["fingerprint"]}),
        tmp_path / "c",
        one(),
        tmp_path / "p",
    )


# -- damage, and whole files that say odd things ---------------------------------------------------


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints hold the same values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("version", [ckpt.FORMAT, ckpt.WITHOUT_DIGEST])
def test_a_flipped_bit_is_refused_or_changes_no_value(tmp_path, version):
    path = tmp_path / "last.pt"
    state = {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}}
    written = one(
        format=version, step=7, seconds=1.5, lr_scale=1.0, bad_validations=0,
        ema={"w": torch.randn(2, 3)}, optimizer={"state": state, "param_groups": [{"lr": 0.1}]},
    )  # fmt: skip
    if version == ckpt.FORMAT:
        ckpt.save(path, written)
    else:
        torch.save(written, path)
    whole, content = ckpt.load(path, "tokenizer"), path.read_bytes()
    refused = 0
    for number in range(400):
        damaged = bytearray(content)
        damaged[number * len(content) // 400] ^= 1 << number % 8
        path.write_bytes(damaged)
        try:
            assert same(ckpt.load(path, "tokenizer"), whole)
        except ValueError as problem:
            assert str(path) in str(problem) and "\n" not in str(problem)
            refused += 1
    assert refused > 100  # the rest is padding


@pytest.mark.parametrize(
    "key, value", [("step", 8), ("seconds", 2.0), ("best", 0.5), ("recordings", {"dataset": "0"})]
)
def test_a_value_that_differs_from_what_was_written_is_refused(tmp_path, key, value):
    path = tmp_path / "last.pt"
    ckpt.save(path, one(step=7, seconds=1.5))
    content = torch.load(path, weights_only=True)
    torch.save(content | {key: value}, path)
    with pytest.raises(ValueError, match="is damaged: its digest is that of other values"):
        ckpt.load(path, "tokenizer")
    torch.save({k: v for k, v in content.items() if k != "digest"}, path)
    with pytest.raises(ValueError, match="is damaged: its digest is that of other values"):
        ckpt.load(path, "tokenizer")


def test_the_older_format_without_a_digest_is_read(tmp_path):
    torch.save(one(format=ckpt.WITHOUT_DIGEST), tmp_path / "a.pt")
    assert ckpt.load(tmp_path / "a.pt", "tokenizer")["config"] == one()["config"]


ODD = [
    ("config", 7), ("config", {}), ("config", {"kind": 3}),
    ("config", {"kind": "a", "b": Tensor()}), ("parent", None), ("parent", {}),
    ("parent", {"path": "a", "fingerprint": 3}),
    ("model", [1]), ("model", {"w": 1.0}), ("model", {3: Tensor()}), ("fingerprint", 3),
    ("image_size", 32), ("image_size", [32]), ("image_size", [32, -1]), ("image_size", [32, "a"]),
    ("stage", 5), ("stage", "vision"), ("best", "high"), ("best", float("nan")), ("step", "one"),
    ("step", -5),
    ("seconds", None), ("optimizer", 3), ("ema", {"w": 3}), ("recordings", 3), ("train", []),
    ("latents", 3), ("actions", []), ("data_actions", None), ("bc", 3), ("format", [1] * 1000),
]  # fmt: skip


@pytest.mark.parametrize("key, value", ODD)
def test_a_whole_file_that_says_odd_things_of_itself_is_refused_in_one_line(tmp_path, key, value):
    path = tmp_path / "toy" / "tokenizer" / "best.pt"
    path.parent.mkdir(parents=True)
    try:
        written = one(**{key: value})
    except (TypeError, AttributeError, IndexError):  # there is no fingerprint of such
        written = one(fingerprint="0", **{key: value})
    ckpt.save(path, written)
    with pytest.raises(ValueError, match=r"best\.pt .*--run .*toy") as problem:
        ckpt.load(path, "tokenizer")
    assert "\n" not in str(problem.value) and len(str(problem.value)) < 400 + len(str(path)) * 3


@pytest.mark.parametrize(
    "key, value",
    [
        ("data_actions", {"kind": "none", "names": [], "unknown": 1}),
        ("data_actions", {}),
        ("data_actions", {"kind": "continuous", "names": [3], "low": "a", "high": [1]}),
        ("latents", {}),
        ("latents", {"kind": "discrete", "grid": 3, "dim": "a", "codebook_size": 1}),
    ],
)
def test_a_description_of_data_that_is_none_is_refused_in_one_line(tmp_path, key, value):
    ckpt.save(tmp_path / "a.pt", one("dynamics", **{key: value}))
    back = ckpt.load(tmp_path / "a.pt", "dynamics")
    with pytest.raises(ValueError, match=rf"a\.pt cannot be used .*its {key}: .*--restart") as e:
        ckpt.data_spec(back, tmp_path / "a.pt")
    assert "\n" not in str(e.value)


NO_ACTIONS = DataSpec((32, 48), ActionSpec("none", ()))
KEYPOINTS = registry.describe(KeypointsConfig((32, 48), num_keypoints=4, channels=16))


@pytest.mark.parametrize(
    "key, value, answer",
    [
        ("channels", 10**9, "channels"),
        ("channels", 2**12, "other weights"),  # found before it takes memory
        ("channels", "wide", "channels"),
        ("image_size", [32], "image_size"),
        ("kind", "magic", "unknown kind"),
        ("unknown", 1, "unknown"),
    ],
)
def test_a_config_that_describes_no_model_is_refused_in_one_line(tmp_path, key, value, answer):
    model = registry.build_tokenizer(KEYPOINTS, NO_ACTIONS)
    path = tmp_path / "a.pt"
    ckpt.save(path, one(config=KEYPOINTS | {key: value}, model=model.state_dict()))
    back = ckpt.load(path, "tokenizer")
    with pytest.raises(ValueError, match=rf"a\.pt .*{answer}.*--restart") as problem:
        ckpt.build(registry.build_tokenizer, back, path, NO_ACTIONS)
    assert "\n" not in str(problem.value)


def test_a_model_beyond_the_machines_memory_is_refused_before_it_takes_any(monkeypatch):
    monkeypatch.setattr(registry, "SMALL", 0)
    monkeypatch.setattr(memory, "memory_bytes", lambda: 4096)
    config = KeypointsConfig((32, 48), num_keypoints=4, channels=16)
    with pytest.raises(
        ValueError, match=r"weights of this keypoints would take .*, and there are .* of memory"
    ):
        registry.build_tokenizer(config, NO_ACTIONS)


def test_a_file_that_cannot_be_placed_is_not_told_as_damaged(tmp_path, monkeypatch):
    ckpt.save(tmp_path / "a.pt", one())

    def full(*arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 10 bytes")

    def denied(*arguments: Any, **keywords: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for load, answer in ((full, "does not fit into the memory"), (denied, "Permission denied")):
        monkeypatch.setattr(torch, "load", load)
        with pytest.raises(ValueError, match=rf"a\.pt .*{answer}") as problem:
            ckpt.load(tmp_path / "a.pt", "tokenizer")
        assert "damaged" not in str(problem.value) and "--restart" not in str(problem.value)


def test_a_path_with_blanks_is_quoted_in_the_command_to_copy(tmp_path):
    with pytest.raises(ValueError, match=r"train_dynamics\.py --run '.*my run' writes it"):
        ckpt.load(tmp_path / "my run" / "dynamics" / "best.pt", "dynamics")


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
