"""Where figures are from: the run, the dataset, the machine, the versions, and the time it took."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from data.shards.build_info import read_build_info
from evaluation.session import STAGES, Session, read_facts
from pipeline.device import describe_device
from pipeline.hub.pulled import read_pulled


def provenance(session: Session) -> dict[str, Any]:
    """Give the run, the dataset, the machine and the versions of the figures."""
    return {
        "run": str(session.run),
        "dataset": str(session.dataset.folder),
        "device": describe_device(session.device),
        "kernels": session.kernels,
        "num_workers": session.num_workers,
        "compiled": session.compiled,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "gymnasium": gymnasium.__version__,
            "platform": platform.platform(),
        },
        "fingerprints": session.fingerprints,
        "held_out_episodes": len(session.dataset.episodes("test")),
        "held_out_episodes_trained_on": session.trained_on,
        "methods": {stage: _method(session, stage) for stage in STAGES},
        "pulled": _pulled(session),
    }


def _pulled(session: Session) -> dict[str, Any] | None:
    """Give the repository and the commit that the run was pulled from, and which of its parts
    are others by now; None for a run of one's own."""
    pulled = read_pulled(session.run)
    if pulled is None:
        return None
    now = {
        folder: session.fingerprints.get(folder.removeprefix("controller/"))
        for folder in pulled.fingerprints
    }
    changed = [name for name, value in pulled.fingerprints.items() if now[name] != value]
    return {"repo": pulled.repo, "commit": pulled.commit, "changed": changed}


def _method(session: Session, stage: str) -> str | None:
    """Name the method, and the weights that a frozen encoder started from."""
    config = session.checkpoints[stage].get("config", {})
    keys = ("kind", "pretrained", "revision")
    parts = (str(config[key]) for key in keys if config.get(key))
    return ", ".join(parts) or None


def stage_seconds(run: Path) -> dict[str, float | None]:
    """Give the seconds of training of each stage, all its methods together."""
    stage_seconds: dict[str, float | None] = {"preprocess": _preprocess_seconds(run / "shards")}
    for stage in STAGES:
        folder = run / stage
        paths = list(folder.glob("**/last.pt")) or list(folder.glob("**/best.pt"))
        try:
            seconds = [float(read_facts(path, stage).get("seconds", 0)) for path in paths]
        except ValueError:  # a last.pt is damaged, and no figure depends on it
            seconds = []
        stage_seconds[stage] = round(sum(seconds), 1) if seconds else None
    return stage_seconds


def _preprocess_seconds(shards: Path) -> float | None:
    try:
        return (read_build_info(shards) or {}).get("seconds")
    except ValueError:  # damaged; nothing else of it is needed where another dataset is measured
        return None
