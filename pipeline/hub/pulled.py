"""Which commit of which repository a run folder was pulled from: RUN/pulled.json.

A commit is never another one, so what was pulled once is found without the Hub.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data.io.files import atomic_write, parse_json, read_text
from data.io.hub_address import HubAddress

FILE = "pulled.json"
FOLDER = Path("runs/hub")  # of all that are pulled without --out
SHORTEST, DIGITS = 7, 12  # of a commit: that name it, and that a folder's name has


@dataclass(frozen=True)
class PulledFrom:
    repo: str
    commit: str
    """40 hex digits: what counts."""
    revisions: tuple[str, ...]
    """Branches and tags that stood for the commit when they were pulled."""
    fingerprints: dict[str, str]
    """Of each checkpoint, by its folder in the run, as it was published."""

    @property
    def address(self) -> HubAddress:
        return HubAddress(self.repo, self.commit)

    def is_at(self, address: HubAddress) -> bool:
        """Whether this is what an address stands for."""
        is_commit = len(address.revision) >= SHORTEST and self.commit.startswith(address.revision)
        return self.repo == address.repo and (is_commit or address.revision in self.revisions)


def read_pulled(run: Path) -> PulledFrom | None:
    """Read RUN/pulled.json; None without one, ValueError where it is damaged."""
    path = run / FILE
    if not path.exists():
        return None
    try:
        content = parse_json(read_text(path))
        found = PulledFrom(
            content["repo"],
            content["commit"],
            tuple(content["revisions"]),
            dict(content["fingerprints"]),
        )
        if not isinstance(found.repo, str) or not re.fullmatch("[0-9a-f]{40}", found.commit):
            raise ValueError("it names no commit")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"{path} is damaged ({type(problem).__name__}: {problem}); delete {run} and pull it "
            f"again"
        ) from None
    return found


def write_pulled(run: Path, pulled: PulledFrom) -> None:
    text = json.dumps({"format": 1} | asdict(pulled), indent=1)
    atomic_write(run / FILE, f"{text}\n".encode())


def find_pulled(address: HubAddress) -> Path | None:
    """Return the run folder of what an address stood for when it was pulled; None before that."""
    for run in _pulled_runs(address.repo):
        pulled = read_pulled(run)
        if pulled is not None and pulled.is_at(address):
            return run
    return None


def remember_revision(run: Path, address: HubAddress) -> PulledFrom:
    """Let a branch or tag stand for the commit in `run`, and for no other any more."""
    now = read_pulled(run)
    assert now is not None, run
    for other in _pulled_runs(address.repo):
        pulled = read_pulled(other)
        if pulled and other != run and _names(pulled, address):
            kept = tuple(name for name in pulled.revisions if name != address.revision)
            write_pulled(other, replace(pulled, revisions=kept))
    if not now.is_at(address):
        now = replace(now, revisions=(*now.revisions, address.revision))
        write_pulled(run, now)
    return now


def _names(pulled: PulledFrom, address: HubAddress) -> bool:
    return pulled.repo == address.repo and address.revision in pulled.revisions


def folder_of(address: HubAddress) -> Path:
    """Where a commit is pulled to."""
    return FOLDER / f"{_prefix(address.repo)}{address.revision[:DIGITS]}"


def _prefix(repo: str) -> str:
    return f"{repo.replace('/', '--')}@"


def _pulled_runs(repo: str) -> list[Path]:
    return sorted(path.parent for path in FOLDER.glob(f"{_prefix(repo)}*/{FILE}"))
