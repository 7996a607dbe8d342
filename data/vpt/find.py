"""Find pairs of a video and its log in local files."""

from __future__ import annotations

import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePath

from data.io.folders import visible_files
from data.io.messages import one_line
from data.vpt.file_slice import FileSlice, VideoAndLog

SUFFIXES = VIDEO, LOG = (".mp4", ".jsonl")  # in capital letters too
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
MINERL_ACTIONS = "rendered.npz"  # next to recording.mp4
MP4_BOXES = (b"ftyp", b"free", b"skip", b"wide", b"uuid", b"mdat", b"moov")


def find_local(path: Path, skip_invalid: bool) -> tuple[list[VideoAndLog], list[str]]:
    """Return the pairs, sorted by name, and a line for each one skipped; ignore other files.

    path: a folder of NAME.mp4 + NAME.jsonl and of .tar files that hold such pairs, at any depth;
    or a .tar file; or a .mp4 with its .jsonl next to it. ValueError names the first problem, or,
    with `skip_invalid`, that no pair is left.
    """
    skipped: list[str] = []

    def skip(problem: str) -> None:
        if not skip_invalid:
            raise ValueError(f"{problem}, or skip it with --skip-invalid")
        skipped.append(problem)

    found: dict[str, dict[str, FileSlice]] = {}
    for file in _find_files(path, skip):
        stem, suffix = os.path.splitext(str(file))  # 6.10_NAME.mp4 -> 6.10_NAME
        files = found.setdefault(stem, {})
        if (other := files.setdefault(suffix.lower(), file)) is not file:
            skip(f"{file} has the same name as {other}; remove one of them")
    pairs: dict[str, VideoAndLog] = {}
    for files in found.values():
        name = _name(next(iter(files.values())))
        if problem := _pair_problem(name, files, pairs.get(name)):
            skip(problem)
        else:
            pairs[name] = VideoAndLog(name, *(files[suffix] for suffix in SUFFIXES))
    if not pairs:
        why = f" ({skipped[0]}; {len(skipped)} such)" if skipped else ""
        raise ValueError(f"{path} holds no pair of NAME.mp4 and NAME.jsonl{why}")
    return [pairs[name] for name in sorted(pairs)], skipped


def _name(file: FileSlice) -> str:
    return PurePath(file.member or file.path).stem


def _pair_problem(name: str, files: dict[str, FileSlice], other: VideoAndLog | None) -> str:
    for suffix in SUFFIXES:
        if suffix not in files:
            (there,) = files.values()
            if not there.member and Path(there.path).with_name(MINERL_ACTIONS).exists():
                return f"{there} is of a MineRL folder, which python preprocess.py arrays reads"
            return f"{there} has no {name}{suffix} next to it; get that file"
        file = files[suffix]
        size = os.path.getsize(file.path) if file.size is None else file.size
        if size == 0:
            return f"{file} has 0 bytes; get it again"
    if other:
        return f"{files['.mp4']} has the same name as {other.video}; remove one of them"
    return ""


def _find_files(path: Path, skip: Callable[[str], None]) -> list[FileSlice]:
    """List all videos and logs under `path`, paired or not."""

    def report(file: Path, problem: str) -> None:
        wanted = (*SUFFIXES, ".tar", *COMPRESSED)
        if not file.is_symlink() or _has_suffix(file, wanted):
            skip(f"{file} {problem}")

    suffix = path.suffix.lower()
    if path.is_dir():
        files = sorted(visible_files(path, report))
    elif suffix == ".mp4" and path.is_file():
        logs = [f for f in path.parent.iterdir() if f.stem == path.stem and _has_suffix(f, LOG)]
        files = [path, *sorted(logs)]
    elif path.is_file() and (suffix == ".tar" or _has_suffix(path, COMPRESSED)):
        files = [path]
    else:
        known = "a folder, a .tar file or a .mp4 with its .jsonl next to it"
        problem = "is of another kind" if path.exists() else "does not exist"
        raise ValueError(f"{path} {problem}; give {known}")
    slices: list[FileSlice] = []
    for file in files:
        if _has_suffix(file, COMPRESSED):
            skip(f"{file} is compressed; unpack it first")
        elif _has_suffix(file, ".tar"):
            slices += _tar_members(file, skip)
        elif _has_suffix(file, SUFFIXES):
            slices.append(FileSlice(str(file)))
    return slices


def _has_suffix(file: PurePath, suffixes: str | tuple[str, ...]) -> bool:
    return file.name.lower().endswith(suffixes)


def _tar_members(path: Path, skip: Callable[[str], None]) -> list[FileSlice]:
    size = path.stat().st_size
    slices: list[FileSlice] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePath(member.name)
                wanted = _has_suffix(name, SUFFIXES) and not name.name.startswith(".")
                if not wanted or not member.isreg():
                    continue
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name} has holes")
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} reaches beyond its end")
                slices.append(FileSlice(str(path), member.offset_data, member.size, member.name))
            end = tar.offset
        with open(path, "rb") as file:  # tarfile takes a damaged header for the end
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end at byte {end}")
    except (tarfile.TarError, OSError, ValueError) as problem:
        skip(
            f"{path} is compressed, damaged or truncated, not a plain tar file "
            f"({one_line(problem)}); unpack it or get it again"
        )
    return slices


def file_problem(path: Path, suffix: str) -> str:
    """Describe how a file's content does not fit the suffix; empty where it fits."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(20)
        if suffix == LOG:
            file.seek(max(0, size - 20))
            if head[:1] == b"{" and file.read().rstrip()[-1:] == b"}":
                return ""
            return f"no whole log (it starts with {head!r}; a log has one {{...}} per line)"
        if head[4:8] != b"ftyp":
            return f"no MP4 (it starts with {head!r})"
        end = 0
        while end < size:  # from box to box (ISO/IEC 14496-12); ignores what is behind them
            file.seek(end)
            length, box_type = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
            if box_type not in MP4_BOXES or length < 8:
                break
            end += length
    return f"{size} bytes of an MP4 of {end}" if end > size else ""
