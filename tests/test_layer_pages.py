"""The Python of the pages on encoders and on layers works, in its order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from models.hooks import auxiliary_losses

ROOT = Path(__file__).parents[1]


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to" / page).read_text(), re.DOTALL)


def test_the_python_of_the_page_on_encoders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(ROOT)
    encoder, probe = python_of("pretrained-encoders.md")
    (tmp_path / "my_encoder.py").write_text(encoder)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {}
    exec(probe, names)
    trained, untrained = names["errors"].values()
    assert 0 < trained < 200 and 0 < untrained < 200 and trained != untrained


def test_the_python_of_the_page_on_layers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(auxiliary_losses, "LOSSES", dict(auxiliary_losses.LOSSES))
    blocks, names = python_of("layers.md"), dict[str, Any]()
    assert len(blocks) == 6
    for block in blocks:
        exec(block.replace("paths, steps=10,", "paths, steps=2,"), names)
    assert names["stream"].shape == (3, 1, 192) and names["drawn"].shape == (3, 3, 64, 64)
    latents = [names[key].latents for key in ("both", "one", "none")]
    assert not torch.equal(latents[0], latents[1]) and not torch.equal(latents[1], latents[2])
    doses = {row["dose"]: row["shift"]["block_x"]["mean"] for row in names["found"]["doses"]}
    assert doses[0] == 0 and doses[-10] < doses[10]
    assert names["observations"].shape == (2, 64, 64, 3)
    assert auxiliary_losses.parse("sparsity:x:1").weight == 1
