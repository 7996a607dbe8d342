"""Addresses of published runs: hf://USER/NAME, or hf://USER/NAME@REVISION."""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEME = "hf://"
MAIN = "main"
NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
REPO = re.compile(f"{NAME}/{NAME}")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")  # a branch, a tag, a commit


def is_address(text: str) -> bool:
    return text.startswith(SCHEME)


@dataclass(frozen=True)
class HubAddress:
    repo: str
    """USER/NAME."""
    revision: str = MAIN
    """A branch, a tag or a commit."""

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.revision}"

    def at(self, commit: str) -> HubAddress:
        """The same repository at a commit, which is never another one."""
        return HubAddress(self.repo, commit)


def parse_address(text: str, given: str) -> HubAddress:
    """Return the address; ValueError names `given`, what holds it, such as a flag."""
    repo, at, revision = text.removeprefix(SCHEME).partition("@")
    if not is_address(text) or not _is_repo(repo) or (at and not REVISION.fullmatch(revision)):
        raise ValueError(
            f"{given} {text[:200]!r} is no address of a published run; write "
            f"{SCHEME}USER/NAME, or {SCHEME}USER/NAME@REVISION with a branch, a tag or a commit"
        )
    return HubAddress(repo, revision or MAIN)


def check_repo(repo: str, given: str) -> str:
    """Return USER/NAME as it is; ValueError where it is none."""
    if not _is_repo(repo):
        raise ValueError(
            f"{given} {repo[:200]!r} is no name of a repository; write USER/NAME, of letters, "
            f"digits, '-', '_' and '.'"
        )
    return repo


def _is_repo(repo: str) -> bool:
    return REPO.fullmatch(repo) is not None and ".." not in repo and "--" not in repo
