"""From an address on the Hub to a run folder: pulled once, then found without the Hub.

Only weights (safetensors), JSON and, where they were published, shards (HDF5) are taken: no file
that runs code when it is loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from data.io.files import lock
from data.io.hub_address import HubAddress, parse_address
from data.io.hub_client import hub_api, page_of, plain_errors
from data.io.messages import first_few
from data.shards.episode_dataset import EpisodeDataset
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.hub import published_checkpoint, pulled
from pipeline.hub.pulled import PulledFrom

STAGES = ("tokenizer", "dynamics", "controller")
TAKEN = (
    presets.FILE,
    "README.md",
    *(f"{stage}/*{published_checkpoint.FIELDS_FILE}" for stage in STAGES),
    *(f"{stage}/*{published_checkpoint.WEIGHTS_FILE}" for stage in STAGES),
    "shards/build.json",
    "shards/shard-*.h5",
    "report/metrics.json",
)
PUBLISHED_REPORT = "published-metrics.json"
"""The figures of the card; RUN/report is for those that are measured here."""


def local_run(text: str, given: str) -> Path:
    """Return the run folder of an address, which is pulled unless it has been.

    ValueError names `given`, the flag that holds the address.
    """
    address = parse_address(text, given)
    found = pulled.find_pulled(address)
    if found is None:
        return pull(address)
    origin = pulled.read_pulled(found)
    assert origin is not None
    print(f"{address}: {found} (commit {origin.commit})")
    return found


def pinned(text: str, given: str) -> str:
    """Return an address with its commit in the place of a branch or tag, and pull it."""
    origin = pulled.read_pulled(local_run(text, given))
    assert origin is not None
    return str(origin.address)


def pull(address: HubAddress, out: Path | None = None) -> Path:
    """Pull what an address stands for now into `out`, or a folder in runs/hub; return the folder.

    Interrupted, it resumes.  Where the commit is there already, nothing is pulled.
    """
    print(f"{address}: asking {page_of(address.repo)}", flush=True)
    with plain_errors(address):
        about = hub_api().model_info(address.repo, revision=address.revision)
    commit = about.sha or ""
    names = [file.rfilename for file in about.siblings or ()]
    folder = out or pulled.folder_of(address.at(commit))
    download = folder.with_name(f".{folder.name}.download")
    if out is not None:
        check_out(out, address.at(commit))
    with lock(download, waiting_for=f"pulls {address}", flag="--out"):  # another rank, perhaps
        origin = pulled.read_pulled(folder)
        if origin is None:
            _download(address.at(commit), names, download)
            _build(address, commit, download, folder)
            state = "pulled"
        else:
            state = "there already"
        if out is None:
            pulled.remember_revision(folder, address)
        shutil.rmtree(download, ignore_errors=True)
    print(f"{address}: {folder} ({state}, commit {commit})")
    return folder


def check_out(out: Path, address: HubAddress) -> None:
    """Raise ValueError where `out` holds anything else than what is to be pulled."""
    origin = pulled.read_pulled(out)
    if origin is not None and origin.address != address:
        raise ValueError(f"--out {out} holds {origin.address}, not {address}; choose another")
    if origin is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} holds something else; choose a folder that is not there yet")


def _download(address: HubAddress, names: list[str], folder: Path) -> None:
    """Download what is taken of the files that a commit has; ValueError where one is missing."""
    wanted = [name for name in names if _is_taken(name)]
    with plain_errors(address):
        hub_api().snapshot_download(
            address.repo, revision=address.revision, local_dir=folder, allow_patterns=wanted
        )
    # where the Hub is lost on the way, the client gives back what is there
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"{address}: {first_few(missing)} did not come; run the same command again to resume"
        )


def _is_taken(name: str) -> bool:
    matches = any(fnmatchcase(name, pattern) for pattern in TAKEN)
    return matches and ".." not in name.split("/")


def _build(address: HubAddress, commit: str, download: Path, folder: Path) -> None:
    """Make the run folder of what was downloaded, whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        fingerprints = _assemble(download, partial, shutil.move)
    except ValueError as problem:
        shutil.rmtree(download / ".cache", ignore_errors=True)  # the next pull takes all anew
        raise ValueError(
            f"{address} (commit {commit}) cannot be used: {problem}; pull again, or choose another "
            f"revision"
        ) from None
    pulled.write_pulled(partial, PulledFrom(address.repo, commit, (), fingerprints))
    _finish(partial, folder)


def unpack(published: Path, run: Path) -> None:
    """Make a run folder of the files that `publish --out` wrote; ValueError where they are none."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"--out {run} holds something; choose a folder that is not there yet")
    partial = run.with_name(f".{run.name}.partial")
    try:
        _assemble(published, partial, _copy)
    except ValueError as problem:
        raise ValueError(f"{published} cannot be made a run: {problem}") from None
    _finish(partial, run)
    print(f"{published}: {run} holds the run; python play.py --run {run} plays it")


def _copy(source: Path, target: Path) -> None:
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)


def _finish(partial: Path, folder: Path) -> None:
    if folder.exists():  # empty
        folder.rmdir()
    partial.replace(folder)


def _assemble(
    published: Path, partial: Path, take: Callable[[Path, Path], object]
) -> dict[str, str]:
    """Put together in `partial` a run of published files, which `take` moves or copies; give the
    fingerprints of its checkpoints.  ValueError where they are not whole, and nothing is left."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fingerprints = _write_checkpoints(published, partial)
        presets.remembered(published)  # raises where it names presets that are not known here
        for name, target in (
            (presets.FILE, presets.FILE),
            ("README.md", "README.md"),
            ("report/metrics.json", PUBLISHED_REPORT),
            ("shards", "shards"),
        ):
            if (published / name).exists():
                take(published / name, partial / target)
        if (partial / "shards").exists():
            EpisodeDataset(partial / "shards")
    except ValueError:
        shutil.rmtree(partial)
        raise
    return fingerprints


def _write_checkpoints(download: Path, run: Path) -> dict[str, str]:
    """Write a best.pt for each published checkpoint; give their fingerprints by folder."""
    fingerprints = {}
    for stage in STAGES:
        for path in sorted((download / stage).glob(f"**/{published_checkpoint.FIELDS_FILE}")):
            name = path.parent.relative_to(download)
            try:
                checkpoint = published_checkpoint.read(path.parent)
                (run / name).mkdir(parents=True, exist_ok=True)
                ckpt.save(run / name / "best.pt", checkpoint)
                ckpt.load(run / name / "best.pt", stage)
            except ValueError as problem:
                raise ValueError(f"{name}: {problem}") from None
            fingerprints[str(name)] = checkpoint["fingerprint"]
    if not fingerprints:
        raise ValueError("it holds no world model of this project")
    return fingerprints
