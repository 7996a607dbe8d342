"""Cached latents are those of the tokenizer, whatever has happened to their files."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from screen import Screen
from torch import Tensor

from models.tokenizers.tokenizer import LatentSpec
from pipeline.batches import latent_cache, row_file
from pipeline.batches.latent_cache import cache_latents

CPU = torch.device("cpu")
EXPECTED = np.repeat(np.arange(1, 21)[:, None], 4, axis=1)


class FakeDataset:
    """Frame n has the shade n + 1."""

    def __init__(self, fingerprint: str, num_frames: int) -> None:
        self.fingerprint, self.num_frames = fingerprint, num_frames

    def read_rows(self, field: str, start: int, stop: int) -> np.ndarray:
        shades = np.arange(1, self.num_frames + 1, dtype=np.uint8)[start:stop, None, None, None]
        return np.broadcast_to(shades, (len(shades), 2, 2, 3))


class FakeEncoder:
    """The codes of a frame are its pixels; counts the frames, and may fail after some."""

    latents, temporal_context = LatentSpec("discrete", (2, 2), 1, codebook_size=64), 1

    def __init__(self, fails_after: int = 100) -> None:
        self.encoded, self.fails_after = 0, fails_after

    def encode_clip(self, frames: Tensor) -> Tensor:
        if self.encoded >= self.fails_after:
            raise KeyboardInterrupt
        self.encoded += len(frames)
        return frames[:, :, 0].flatten(2)

    def latents_key(self, fingerprint: str) -> str:
        return fingerprint


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch) -> None:
    monkeypatch.setattr(latent_cache, "CHUNK", 8)
    monkeypatch.setattr(latent_cache, "FLUSH_EVERY", 1)


def cached(
    folder: Path,
    encoder: FakeEncoder | None = None,
    tokenizer: str = "f",
    dataset: str = "d",
    num_frames: int = 20,
) -> np.ndarray:
    """tokenizer, dataset: their fingerprints."""
    frames: Any = FakeDataset(dataset, num_frames)
    return cache_latents(folder, encoder or FakeEncoder(), tokenizer, frames, CPU)


def test_latents_are_encoded_once(tmp_path):
    first, again = FakeEncoder(), FakeEncoder()
    assert (cached(tmp_path, first) == EXPECTED).all()
    assert (cached(tmp_path, again) == EXPECTED).all()
    assert first.encoded == 20 and again.encoded == 0


def test_an_interrupted_pass_resumes_at_its_chunk(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, FakeEncoder(fails_after=16))
    rest = FakeEncoder()
    assert (cached(tmp_path, rest) == EXPECTED).all() and rest.encoded == 4


def test_another_tokenizer_and_another_dataset_encode_again(tmp_path):
    cached(tmp_path)
    changed: list[dict[str, Any]] = [
        {"tokenizer": "other"}, {"dataset": "other"}, {"dataset": "other", "num_frames": 19},
    ]  # fmt: skip
    for changes in changed:
        encoder, count = FakeEncoder(), changes.get("num_frames", 20)
        assert (cached(tmp_path, encoder, **changes) == EXPECTED[:count]).all()
        assert encoder.encoded == count


@pytest.mark.parametrize("kept", [0, 80, 159])
def test_truncated_latents_are_encoded_again(tmp_path, kept):
    assert (cached(tmp_path) == EXPECTED).all()
    values = tmp_path / "latents.bin"
    values.write_bytes(values.read_bytes()[:kept])
    assert (cached(tmp_path) == EXPECTED).all()


NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"[]", b"7", b"\xff", b'{"num_encoded": "all"}', NESTED]
)
def test_latents_with_broken_metadata_are_encoded_again(tmp_path, metadata):
    cached(tmp_path)
    (tmp_path / "metadata.json").write_bytes(metadata)
    (tmp_path / "latents.bin").write_bytes(bytes(160))
    assert (cached(tmp_path) == EXPECTED).all()


@pytest.mark.parametrize("field", ["num_encoded", "checksum"])
@pytest.mark.parametrize("value", [None, -5, "20", 20.5, True, [20], 10**9])
def test_metadata_of_other_values_is_encoded_again(tmp_path, field, value):
    cached(tmp_path)
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {field: value}))
    encoder = FakeEncoder()
    assert (cached(tmp_path, encoder) == EXPECTED).all() and encoder.encoded == 20


def test_a_pipe_in_place_of_the_metadata_is_not_waited_for(tmp_path):
    cached(tmp_path)
    (tmp_path / "metadata.json").unlink()
    os.mkfifo(tmp_path / "metadata.json")
    assert (cached(tmp_path) == EXPECTED).all()


@pytest.mark.parametrize("damage", ["zeros", "a bit"])
def test_latents_other_than_were_encoded_are_encoded_again(tmp_path, damage):
    cached(tmp_path)
    values = tmp_path / "latents.bin"
    content = bytearray(values.read_bytes())
    content = bytes(len(content)) if damage == "zeros" else content[:-3] + b"\x40\0\0"
    values.write_bytes(content)
    again = FakeEncoder()
    assert (cached(tmp_path, again) == EXPECTED).all() and again.encoded == 20
    last = FakeEncoder()
    assert (cached(tmp_path, last) == EXPECTED).all() and last.encoded == 0


def test_damage_in_an_interrupted_pass_is_found(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, FakeEncoder(fails_after=16))
    partial = tmp_path / "latents.bin.partial"
    partial.write_bytes(bytes(partial.stat().st_size))
    assert (cached(tmp_path) == EXPECTED).all()


def test_codes_outside_of_the_codebook_are_refused(tmp_path):
    encoder = FakeEncoder()
    encoder.latents = replace(encoder.latents, codebook_size=16)
    with pytest.raises(ValueError, match="frames 8 to 15 have codes from 9 to 16, .* has 16; "):
        cached(tmp_path, encoder)
    assert not (tmp_path / "latents.bin").exists()


class FakeVectors(FakeEncoder):
    """Frame n is four vectors of one number, n + 1, times a factor."""

    latents = LatentSpec("continuous", (2, 2), 1)

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def encode_clip(self, frames: Tensor) -> Tensor:
        return super().encode_clip(frames)[..., None] * torch.tensor(self.factor)


@pytest.mark.parametrize("factor", [float("nan"), 60_000.0])
def test_vectors_that_are_not_finite_as_stored_are_refused(tmp_path, factor):
    assert np.isfinite(cached(tmp_path / "right", FakeVectors(2.0))).all()
    with pytest.raises(ValueError, match="frames 0 to 7 are not finite numbers of float16"):
        cached(tmp_path, FakeVectors(factor))


def test_a_full_disk_is_one_line_and_the_pass_resumes(tmp_path, monkeypatch):
    class FullDisk(io.FileIO):
        def write(self, content: Any) -> int:
            if self.tell() > 60:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content)

    with monkeypatch.context() as full:
        full.setattr(row_file, "open", FullDisk, raising=False)
        with pytest.raises(ValueError, match=r"latents.bin was not written: No space left .* room"):
            cached(tmp_path)
    rest = FakeEncoder()
    assert (cached(tmp_path, rest) == EXPECTED).all() and rest.encoded == 12


def test_a_disk_too_small_is_named_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"it needs .* GiB, and the disk has .* GiB free"):
        cached(tmp_path)


def test_a_mapped_cache_stays_whole_while_another_is_made(tmp_path):
    first = cached(tmp_path)
    assert (cached(tmp_path, num_frames=9) == EXPECTED[:9]).all()
    assert (first == EXPECTED).all()


def test_a_second_process_waits_and_uses_what_the_first_made(tmp_path, monkeypatch):
    screen = Screen(monkeypatch)
    started, others = threading.Event(), FakeEncoder()

    class Slow(FakeEncoder):
        def encode_clip(self, frames: Tensor) -> Tensor:
            started.set()
            waiting.wait(timeout=90)
            return super().encode_clip(frames)

    waiting = threading.Event()
    first = threading.Thread(target=cached, args=(tmp_path, Slow()))
    first.start()
    assert started.wait(timeout=10)
    results = []
    second = threading.Thread(target=lambda: results.append(cached(tmp_path, others)))
    second.start()
    screen.wait_for(f"waiting for process {os.getpid()}, which makes the latents in {tmp_path}")
    waiting.set()
    first.join()
    second.join()
    assert (results[0] == EXPECTED).all() and others.encoded == 0
