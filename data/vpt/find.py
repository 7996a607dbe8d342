"""From the files that someone has to pairs of a video and its log."""

from __future__ import annotations

import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePath

from data.vpt.file_slice import Pair, Place

HALVES = (".mp4", ".jsonl")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
BOXES = (b"ftyp", b"free", b"skip", b"wide", b"uuid", b"mdat", b"moov")


def find_local(path: Path, skip_bad: bool) -> tuple[list[Pair], list[str]]:
    """Pairs by name, and a line for each thing left out; other files are passed over.

    path: a folder of NAME.mp4 + NAME.jsonl and of .tar files that hold such pairs, at any depth;
    or a .tar file; or a .mp4 with its .jsonl beside it.  ValueError names the first problem, or
    with `skip_bad` says that nothing is left.
    """
    left_out: list[str] = []

    def leave_out(problem: str) -> None:
        if not skip_bad:
            raise ValueError(f"{problem}, or leave it out with --skip-bad")
        left_out.append(problem)

    found: dict[str, dict[str, Place]] = {}
    for place in _places(path, leave_out):
        stem, suffix = os.path.splitext(str(place))  # 6.10_NAME.mp4 -> 6.10_NAME
        found.setdefault(stem, {})[suffix] = place
    pairs: dict[str, Pair] = {}
    for halves in found.values():
        name = _name(next(iter(halves.values())))
        if problem := _problem(name, halves, pairs.get(name)):
            leave_out(problem)
        else:
            pairs[name] = Pair(name, *(halves[suffix] for suffix in HALVES))
    if not pairs:
        why = f" ({left_out[0]}; {len(left_out)} such)" if left_out else ""
        raise ValueError(f"{path} holds no pair of NAME.mp4 and NAME.jsonl{why}")
    return [pairs[name] for name in sorted(pairs)], left_out


def _name(place: Place) -> str:
    return PurePath(place.member or place.path).stem


def _problem(name: str, halves: dict[str, Place], other: Pair | None) -> str:
    for suffix in HALVES:
        if suffix not in halves:
            (there,) = halves.values()
            return f"{there} has no {name}{suffix} beside it; get that"
        place = halves[suffix]
        size = os.path.getsize(place.path) if place.size is None else place.size
        if size == 0:
            return f"{place} has 0 bytes; get it again"
    if other:
        return f"{halves['.mp4']} has the name of {other.video}; take one of them away"
    return ""


def _places(path: Path, leave_out: Callable[[str], None]) -> list[Place]:
    """All halves of pairs under `path`, whole or not."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    elif path.suffix == ".mp4" and path.is_file():
        log = path.with_name(f"{path.stem}.jsonl")
        files = [path, log] if log.is_file() else [path]
    elif path.is_file() and (path.suffix == ".tar" or path.name.endswith(COMPRESSED)):
        files = [path]
    else:
        known = "a folder, a .tar file or a .mp4 with its .jsonl beside it"
        raise ValueError(f"{path} is {'none' if path.exists() else 'not there'}; give {known}")
    places: list[Place] = []
    for file in files:
        if file.name.startswith("."):  # macOS leaves ._NAME.mp4 beside NAME.mp4
            continue
        if file.name.endswith(COMPRESSED):
            leave_out(f"{file} is compressed; unpack it first")
        elif file.suffix == ".tar":
            places += _members(file, leave_out)
        elif file.suffix in HALVES:
            places.append(Place(str(file)))
    return places


def _members(path: Path, leave_out: Callable[[str], None]) -> list[Place]:
    size = path.stat().st_size
    places: list[Place] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePath(member.name)
                wanted = name.suffix in HALVES and not name.name.startswith(".")
                if not wanted or not member.isreg():
                    continue
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name} has holes")
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} reaches beyond its end")
                places.append(Place(str(path), member.offset_data, member.size, member.name))
            end = tar.offset
        with open(path, "rb") as file:  # tarfile takes a broken header for the end
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end at byte {end}")
    except (tarfile.TarError, OSError, ValueError) as problem:
        leave_out(
            f"{path} is compressed, damaged or cut, not a plain tar file ({problem}); unpack it "
            f"or get it again"
        )
    return places


def flaw(path: Path) -> str:
    """Say how a file is not what its name says; nothing where it is."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        begin = file.read(20)
        if path.suffix == ".jsonl":
            file.seek(max(0, size - 20))
            if begin[:1] == b"{" and file.read().rstrip()[-1:] == b"}":
                return ""
            return f"no whole log (it begins {begin!r}; a log has one {{...}} a line)"
        if begin[4:8] != b"ftyp":
            return f"no MP4 (it begins {begin!r})"
        end = 0
        while end < size:  # from box to box (ISO/IEC 14496-12); what is behind them is let be
            file.seek(end)
            length, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
            if kind not in BOXES or length < 8:
                break
            end += length
    return f"{size} bytes of an MP4 of {end}" if end > size else ""
