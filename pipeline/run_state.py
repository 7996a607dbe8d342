"""How far a run folder has come, by what lies in it; no weights are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.io.files import parse_json, read_text
from data.io.lock_holder import lock_holder
from data.io.messages import command, one_line
from data.shards.build_info import read_build_info, rebuild_command, shard_paths
from models import registry
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.lineage import follows

Progress = Literal["missing", "running", "broken", "stopped", "finished"]
STAGE_FOLDERS = ("tokenizer", "dynamics", "controller")


@dataclass(frozen=True)
class StageState:
    stage: str
    """shards, tokenizer, dynamics, controller, or controller/METHOD."""
    progress: Progress
    next_command: str
    """What continues it; empty where there is nothing to do."""
    step: int | None = None
    steps: int | None = None
    best: float | None = None
    reason: str = ""
    """Why it is broken, or which process runs it."""
    metric: str = ""
    """What `best` is."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, or the beginning of one."""
    names = ("shards", *STAGE_FOLDERS)
    return (folder / presets.FILE).is_file() or any((folder / name).is_dir() for name in names)


def find_runs(folder: Path, depth: int = 3) -> Iterator[Path]:
    """Find the runs in a folder, itself among them, and in its folders down to `depth`."""
    if is_run(folder):
        yield folder
    elif depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from find_runs(inner, depth - 1)


def stage_states(run: Path) -> list[StageState]:
    """Give the state of each stage of a run, in their order, and of the report in the end."""
    try:
        names = presets.remembered(run) or []
    except ValueError as problem:
        return [StageState("run.json", "broken", "", reason=one_line(problem))]
    states = [_shards(run, names)]
    trained: dict[str, dict[str, Any]] = {}
    for stage in STAGE_FOLDERS:
        if stage == "dynamics" and _is_of_still_images(run):
            return [*states, *_latents(run, trained.get("tokenizer"))]
        if presets.lacks(names, stage) or (stage == "tokenizer" and _is_joint(run)):
            continue
        folders = [run / stage]
        if stage == "controller":
            folders = [p.parent for p in sorted(run.glob("controller/*/*.pt"))]
            folders = [*dict.fromkeys(folders), run / stage]
        for folder in folders:
            state, facts = _trained(run, stage, folder)
            if state.progress == "missing" and len(folders) > 1 and folder == run / stage:
                continue  # all methods of this recipe have a folder of their own
            parent = facts.get("parent", {}).get("fingerprint")
            below = trained.get({"dynamics": "tokenizer", "controller": "dynamics"}.get(stage, ""))
            if below and parent and not _fits(parent, below):
                reason = f"it was trained on another {below['stage']} than that of now"
                restart = f"{ckpt.train_command(stage, folder / 'best.pt')} --restart"
                state = StageState(state.stage, "broken", restart, reason=reason)
            states.append(state)
            if folder == run / stage and facts:
                trained[stage] = facts
    states.append(_report(run))
    return states


def current(states: list[StageState]) -> StageState:
    """The stage that tells most of a run: what runs, what is broken, what is to be done next."""
    for progress in ("running", "broken", "stopped", "missing"):
        for state in states:
            if state.progress == progress:
                return state
    return states[-1]


def _shards(run: Path, names: list[str]) -> StageState:
    folder = run / "shards"
    holder = lock_holder(folder)
    if holder:
        return StageState("shards", "running", "", reason=f"process {holder}")
    if not folder.is_dir() or not any(folder.iterdir()):
        if (run / "dynamics").is_dir():  # of a published world they may be left out
            return StageState("shards", "finished", "")
        return StageState("shards", "missing", presets.first_command(run, names))
    try:
        shard_paths(folder)
    except ValueError as problem:
        unfinished = "finish them with" in str(problem)
        state: Progress = "stopped" if unfinished else "broken"
        again = rebuild_command(folder) if unfinished else ""
        return StageState("shards", state, again, reason=one_line(problem))
    return StageState("shards", "finished", "")


def _trained(run: Path, stage: str, folder: Path) -> tuple[StageState, dict[str, Any]]:
    """Give the state of a folder of checkpoints, and what its best.pt, or else last.pt, says."""
    name = folder.relative_to(run).as_posix()
    best, last = folder / "best.pt", folder / "last.pt"
    train = ckpt.train_command(stage, best)
    holder = lock_holder(folder)
    if not best.exists() and not last.exists():
        if holder:
            return StageState(name, "running", "", reason=f"process {holder}"), {}
        return StageState(name, "missing", train), {}
    found: dict[str, dict[str, Any]] = {}
    for path in (best, last):
        try:
            if path.exists():
                found[path.name] = _facts(path)
        except ValueError as problem:
            reason = f"{path.name}: {one_line(problem)}"
            return StageState(name, "broken", f"{train} --restart", reason=reason), {}
    latest = found.get("last.pt") or found["best.pt"]
    best_facts = found.get("best.pt", {})
    given = latest.get("train") or {}
    step, steps = latest.get("step"), given.get("steps")
    patience = given.get("patience") or 0
    early = bool(patience) and latest.get("bad_validations", 0) >= patience
    whole = "last.pt" not in found or early or (step or 0) >= (steps or 0)
    done = whole and "best.pt" in found
    progress: Progress = "running" if holder else "finished" if done else "stopped"
    return (
        StageState(
            name, progress, train if progress == "stopped" else "", step, steps,
            latest.get("best"), f"process {holder}" if holder else "", _metric(latest),
        ),
        best_facts or latest,
    )  # fmt: skip


def _facts(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; its weights stay on the disk, and unchecked."""
    import torch

    try:
        facts = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as problem:  # reading what is damaged can raise anything
        raise ValueError(f"it cannot be read ({type(problem).__name__})") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("fingerprint"), str):
        raise ValueError("it is no checkpoint of this project")
    return facts


def _is_joint(run: Path) -> bool:
    """Whether the dynamics was trained without a tokenizer, which is not there."""
    return not (run / "tokenizer").is_dir() and (run / "dynamics" / "best.pt").exists()


def _is_of_still_images(run: Path) -> bool:
    """Whether its episodes are single images, which no dynamics is trained on."""
    try:
        info = read_build_info(run / "shards") if (run / "shards").is_dir() else None
    except ValueError:
        return False
    has_dynamics = (run / "dynamics").is_dir()
    return info is not None and info["description"].get("source") == "images" and not has_dynamics


def _latents(run: Path, tokenizer: dict[str, Any] | None) -> list[StageState]:
    """What of a tokenizer alone can be measured: an image world model predicts views."""
    if ((tokenizer or {}).get("config") or {}).get("kind") != "iwm":
        return []
    if (run / "report" / "latents.json").exists():
        return [StageState("latents", "finished", command("serve.py", "--run", run))]
    return [StageState("latents", "missing", f"python -m evaluation.latents --run {run}")]


def _fits(parent: str, below: dict[str, Any]) -> bool:
    return parent == below["fingerprint"] or follows(below, parent)


def _metric(facts: dict[str, Any]) -> str:
    """The name of what best.pt is chosen by; empty for a method that is not known here."""
    kind = str((facts.get("config") or {}).get("kind"))
    for methods in (registry.TOKENIZERS, registry.DYNAMICS, registry.CONTROLLERS):
        if kind in methods:
            return methods[kind]()[1].best.metric
    return ""


def _report(run: Path) -> StageState:
    path, measure = run / "report" / "metrics.json", command("evaluate.py", "--run", run)
    if holder := lock_holder(run / "report"):
        return StageState("report", "running", "", reason=f"process {holder}")
    if not path.exists():
        return StageState("report", "missing", measure)
    try:
        parse_json(read_text(path))
    except (OSError, ValueError) as problem:
        return StageState("report", "broken", measure, reason=f"{path.name}: {one_line(problem)}")
    return StageState("report", "finished", command("play.py", "--run", run))
