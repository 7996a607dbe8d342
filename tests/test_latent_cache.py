"""Latents that are kept are those of the tokenizer, whatever has become of their files."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.tokenizers.tokenizer import LatentSpec
from pipeline.training.latents import cache_latents


class FakeDataset:
    total, fingerprint = 20, "recorded"

    def read_rows(self, field: str, start: int, stop: int) -> np.ndarray:
        made = np.arange(1, self.num_frames + 1, dtype=np.uint8)[start:stop, None, None, None]
        return np.broadcast_to(made, (len(made), 2, 2, 3))


def made(folder) -> np.ndarray:
    tokenizer = SimpleNamespace(
        latents=LatentSpec("discrete", (2, 2), 1, codebook_size=64),
        encode=lambda frames: frames[:, 0].flatten(1),
    )
    recordings, device = FakeDataset(), torch.device("cpu")
    return cache_latents(folder, tokenizer, "f", recordings, device, batch_size=8)  # type: ignore


EXPECTED = np.repeat(np.arange(1, 21)[:, None], 4, axis=1)


@pytest.mark.parametrize("kept", [0, 80, 159])
def test_latents_that_were_cut_short_are_made_anew(tmp_path, kept):
    assert (made(tmp_path) == EXPECTED).all()
    values = tmp_path / "latents.bin"
    values.write_bytes(values.read_bytes()[:kept])
    assert (made(tmp_path) == EXPECTED).all()


@pytest.mark.parametrize("about", [b"", b"{", b"[]", b"7", b"\xff", b'{"done": "all"}'])
def test_latents_that_say_nothing_of_themselves_are_made_anew(tmp_path, about):
    made(tmp_path)
    (tmp_path / "about.json").write_bytes(about)
    (tmp_path / "latents.bin").write_bytes(bytes(160))
    assert (made(tmp_path) == EXPECTED).all()


def test_a_count_of_another_kind_makes_them_anew(tmp_path):
    made(tmp_path)
    about = tmp_path / "about.json"
    about.write_text(about.read_text().replace('"done": 20', '"done": "20"'))
    assert (made(tmp_path) == EXPECTED).all()
