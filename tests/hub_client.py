"""A run that can be published, and the Hub's client turned to the one on this machine."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from untrained_run import write_run

import evaluate
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from pipeline import checkpoint as ckpt
from pipeline import presets, publish

PRESETS = ["pusht", "debug"]
REPO = "user/world"


def turn_client(monkeypatch: pytest.MonkeyPatch, home: Path, hub: FakeHub, token: str) -> None:
    """Let the client of this process ask `hub`, logged in with `token`, and wait for nothing.

    What the client reads when it is imported is set in its modules.
    """
    import huggingface_hub.constants as constants
    import huggingface_hub.utils._http as http
    from huggingface_hub import hf_api
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    http.close_session()  # one that a test before left offline
    for name, value in environment(home, hub, token).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.address)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set HF_HUB_OFFLINE for the client of this process, until the test ends."""
    import huggingface_hub.constants as constants
    import huggingface_hub.utils._http as http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    http.close_session()  # it was opened before


def environment(home: Path, hub: FakeHub, token: str) -> dict[str, str]:
    """The same for a process that is started."""
    return {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(home),
        "HF_TOKEN": token,
    }


def measured_run(run: Path) -> Path:
    """Write an untrained run of the toy, with shards, presets and a report."""
    measure(toy_run(run))
    return run


def toy_run(run: Path) -> Path:
    """The same without a report."""
    write_toy_shards(run / "shards", episodes=40, factored=True)
    write_run(run, EpisodeDataset(run / "shards"), recordings=True)
    presets.remember(run, PRESETS)
    return run


def measure(run: Path) -> None:
    config = presets.apply(evaluate.Config(), "evaluate", PRESETS)
    evaluate.main(replace(config, run=run, num_workers=1, num_clips=8, num_videos=0))


def copy_run(run: Path, to: Path) -> Path:
    shutil.copytree(run, to, ignore=shutil.ignore_patterns(".lock"))
    return to


def settings(run: Path, **changes: Any) -> publish.Config:
    """What a run is published with."""
    config = publish.Config(run, REPO, license="mit", data_license="cc0-1.0", with_shards=True)
    return replace(config, **changes)


def card_of(hub: FakeHub) -> str:
    return hub.files(REPO)["README.md"].decode()


def figures_of(card: str) -> dict[str, tuple[float, float, float, int]]:
    """Value, ends of the interval and n of each figure in a card's table."""
    rows = re.findall(r"\| `(.*?)` \| (\S+) \| \[(\S+), (\S+)\] \| (\d+) \|", card)
    return {key: (float(v), float(low), float(high), int(n)) for key, v, low, high, n in rows}


def retrain(path: Path, stage: str) -> None:
    """Change the weights of a checkpoint, as if it were trained again."""
    checkpoint = ckpt.load(path, stage)
    next(iter(checkpoint["model"].values())).add_(1)
    changed = ckpt.fingerprint(checkpoint["model"], checkpoint["config"])
    ckpt.save(path, checkpoint | {"fingerprint": changed})
