"""Cached latents are those of the tokenizer, whatever has happened to their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.tokenizers.tokenizer import LatentSpec
from pipeline.training import latent_cache
from pipeline.training.latent_cache import cache_latents

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


@pytest.mark.parametrize("metadata", [b"", b"{", b"[]", b"7", b"\xff", b'{"num_encoded": "all"}'])
def test_latents_with_broken_metadata_are_encoded_again(tmp_path, metadata):
    cached(tmp_path)
    (tmp_path / "metadata.json").write_bytes(metadata)
    (tmp_path / "latents.bin").write_bytes(bytes(160))
    assert (cached(tmp_path) == EXPECTED).all()


def test_a_count_of_another_type_encodes_again(tmp_path):
    cached(tmp_path)
    metadata = tmp_path / "metadata.json"
    before = metadata.read_text()
    metadata.write_text(before.replace('"num_encoded": 20', '"num_encoded": "20"'))
    assert metadata.read_text() != before
    (tmp_path / "latents.bin").write_bytes(bytes(160))
    assert (cached(tmp_path) == EXPECTED).all()
