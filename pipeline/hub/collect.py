"""Put together in a folder what is published of a run."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from data.io.hub_address import HubAddress, is_address, parse_address
from data.shards.build_info import BUILD_FILE, read_build_info, shard_paths
from data.shards.shard_header import read_header
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.export.checkpoints import KEPT_KEYS, load_all
from pipeline.hub import figures, published_checkpoint
from pipeline.hub.card import Card
from pipeline.hub.pulled import read_pulled

LOCAL_KEYS = ("run", "dataset")  # of a report's provenance: paths of this machine


def collect(
    run: Path,
    address: HubAddress,
    folder: Path,
    license: str,
    data_license: str,
    description: str = "",
    with_shards: bool = False,
    with_figures: bool = True,
) -> None:
    """Write the files of a publication into `folder`: checkpoints, presets, figures, card, shards.

    ValueError where the run lacks one of them.
    """
    found = load_all(run)
    checkpoints = {
        str(path.parent.relative_to(run)): shareable(checkpoint)
        for path, checkpoint in found.items()
    }
    if "dynamics" not in checkpoints:
        raise ValueError(
            f"{run} holds no world: dynamics/best.pt is not there; "
            f"{ckpt.train_command('dynamics', run / 'dynamics' / 'best.pt')} writes it"
        )
    metrics: dict[str, Any] | None = None
    if with_figures:
        metrics = figures.read_report(run)
        prints = {name: checkpoint["fingerprint"] for name, checkpoint in checkpoints.items()}
        figures.check_measured(metrics, prints, run)
    for name, checkpoint in checkpoints.items():
        published_checkpoint.write(folder / name, checkpoint)
    if (run / presets.FILE).exists():
        shutil.copyfile(run / presets.FILE, folder / presets.FILE)
    if with_shards:
        _copy_shards(run / "shards", folder / "shards")
    base_models, finetuned = _base_models(run, checkpoints)
    base_models = [repo for repo in base_models if repo != address.repo]
    card = Card(
        address,
        license,
        data_license,
        description,
        checkpoints,
        _data(run / "shards"),
        with_shards,
        figures.figures_of(metrics) if metrics else (),
        metrics["provenance"] if metrics else {},
        base_models,
        finetuned and bool(base_models),
    )
    if metrics:
        own = {k: v for k, v in metrics["provenance"].items() if k not in LOCAL_KEYS}
        (folder / "report").mkdir()
        text = json.dumps(metrics | {"provenance": own}, indent=1)
        (folder / figures.FILE).write_text(text + "\n")
    (folder / "README.md").write_text(card.text())


def shareable(checkpoint: ckpt.Checkpoint) -> ckpt.Checkpoint:
    """Leave out what only resuming needs, and paths of this machine."""
    kept = {key: checkpoint[key] for key in KEPT_KEYS if key in checkpoint}
    parent = checkpoint["parent"]
    kept |= {
        "format": ckpt.FORMAT,
        "parent": {"path": Path(parent["path"]).name, "fingerprint": parent["fingerprint"]},
    }
    source = checkpoint.get("train", {}).get("init_from", "")
    if source and not is_address(source):
        kept["train"] = checkpoint["train"] | {"init_from": Path(source).name}
    return kept


def _base_models(run: Path, checkpoints: dict[str, ckpt.Checkpoint]) -> tuple[list[str], bool]:
    """Name the repositories whose weights it began with, or reads; and whether it was trained on
    from them."""
    found: dict[str, None] = {}
    pulled = read_pulled(run)
    finetuned = False
    if pulled is not None:
        found[pulled.repo] = None
        now = {name: checkpoint["fingerprint"] for name, checkpoint in checkpoints.items()}
        finetuned = now != pulled.fingerprints
    for checkpoint in checkpoints.values():
        source = checkpoint.get("train", {}).get("init_from", "")
        if is_address(source):
            found[parse_address(source, "init_from").repo] = None
            finetuned = True
    for checkpoint in checkpoints.values():
        if checkpoint["config"].get("revision"):  # weights that it names instead of holding
            found[checkpoint["config"]["pretrained"]] = None
    return list(found), finetuned


def _data(shards: Path) -> dict[str, Any]:
    """What the shards say of themselves; nothing where there are none."""
    paths = sorted(shards.glob("shard-*.h5"))
    return read_header(paths[0]).description if paths else {}


def _copy_shards(shards: Path, folder: Path) -> None:
    paths = shard_paths(shards)  # ValueError where some are missing
    folder.mkdir()
    for path in paths:
        shutil.copyfile(path, folder / path.name)
    build = read_build_info(shards)
    if build is not None:  # its command without the paths of this machine
        words = (word.rsplit("/", 1)[-1] or word for word in shlex.split(build["command"]))
        text = json.dumps(build | {"command": shlex.join(words)}, indent=1)
        (folder / BUILD_FILE).write_text(text)
