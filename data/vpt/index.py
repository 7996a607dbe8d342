"""From OpenAI's index files, which list recordings on a server, to pairs on this disk."""

from __future__ import annotations

import hashlib
import json
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from tqdm import tqdm

from data.download import RETRY_DELAY, DownloadError, fetch
from data.vpt.file_slice import FileSlice, VideoAndLog
from data.vpt.find import file_problem

JOIN_SECONDS = 1.0  # seconds that downloads have to end in; those that wait for a server are left


def load_index(index: str, folder: Path) -> list[str]:
    """Read an index file, or the one at a URL, which is kept in `folder`: its stems."""
    if "://" not in index:
        path = Path(index)
        if not path.is_file():
            raise ValueError(f"{index} is not there; --index takes an index file or its URL")
        return read_index(path.read_bytes(), index)
    # two servers can have an index of one name
    path = fetch(index, folder / hashlib.sha256(index.encode()).hexdigest()[:8])
    try:
        return read_index(path.read_bytes(), index)
    except ValueError:
        path.unlink()
        raise


def read_index(content: bytes, where: str) -> list[str]:
    """Give the stems of an index, URLs without .mp4 and .jsonl.

    Both forms are known: the files' own, with relpaths that end in .mp4, and the README's, without.
    """
    need = 'an index is {"basedir": "https://...", "relpaths": ["8.0/NAME", ...]}'
    try:
        index = json.loads(content)
    except ValueError:
        raise ValueError(f"{where} begins {content[:40]!r}, not JSON; {need}") from None
    index = index if isinstance(index, dict) else {}
    base, paths = index.get("basedir"), index.get("relpaths")
    base = base.rstrip("/") if isinstance(base, str) else ""
    if not _is_plain(base.partition("://")[2]):
        raise ValueError(f"{where} has the basedir {index.get('basedir')!r}; {need}")
    if not isinstance(paths, list) or not paths:
        raise ValueError(f"{where} has the relpaths {str(paths)[:40]}; {need}")
    for number, path in enumerate(paths):
        if not isinstance(path, str) or not _is_plain(path.removesuffix(".mp4")):
            raise ValueError(f"{where} has {path!r} as relpath {number}; {need}")
    return list(dict.fromkeys(f"{base}/{path.removesuffix('.mp4')}" for path in paths))


def _is_plain(path: str) -> bool:
    """Tell whether it stays what it is in a URL and below a folder."""
    odd = re.search(r"[\s?#\\\x00-\x1f]", path) or not path.isascii()
    return not odd and not {"", ".", ".."} & set(path.split("/"))


def sample_recordings(stems: Sequence[str], num_recordings: int, seed: int) -> list[str]:
    """Draw so many stems. More of one seed begin with the same; order and server do not matter."""
    if not 1 <= num_recordings <= len(stems):
        raise ValueError(
            f"--clips {num_recordings} was asked for, but the index lists {len(stems)} clips"
        )

    def drawn(stem: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed} {local_name(stem)}".encode()).digest(), stem

    return sorted(stems, key=drawn)[:num_recordings]


def local_name(stem: str) -> str:
    """Where a clip is kept: 10.0/NAME. A name can come back in another version."""
    return "/".join(stem.split("/")[-2:])


def download_recordings(
    stems: Sequence[str],
    folder: Path,
    num_workers: int,
    skip_invalid: bool,
    retry_delay: float = RETRY_DELAY,
    timeout: float | None = None,
) -> tuple[list[VideoAndLog], list[str]]:
    """Download each clip's log and video, `workers` clips at a time; what is there whole is kept.

    Gives the pairs in the order of `stems`, and with `skip_bad` a line for each clip that could
    not be had; without it, the first such is a ValueError. However it ends, what came of a file
    stays, and the next call goes on from there.
    """
    if num_workers < 1:
        raise ValueError(f"--workers {num_workers} downloads nothing; give 1 or more")
    stem_by_name: dict[str, str] = {}
    for stem in stems:
        if stem_by_name.setdefault(local_name(stem), stem) != stem:
            raise ValueError(
                f"{stem} and {stem_by_name[local_name(stem)]} would both be kept as {local_name(stem)}"
            )

    def get(stem: str, report: Callable[[int], None]) -> None:
        for suffix in (".jsonl", ".mp4"):  # the small one first: without it the other is no use
            url = stem + suffix
            path = fetch(
                url, (folder / local_name(stem)).parent, None, retry_delay, timeout, report
            )
            if problem := file_problem(path):
                path.unlink()
                raise DownloadError(f"{url} gave {problem}; it was not kept: see to the address")

    problems: dict[str, str] = {}
    received = 0
    progress = tqdm(total=2 * len(stem_by_name), desc="clips", unit="file", miniters=0)
    with progress, closing(_run_in_threads(stem_by_name.values(), num_workers, get)) as events:
        for event in events:
            if isinstance(event, int):
                received += event
                progress.set_postfix_str(f"{received / 1e6:.1f} MB", refresh=False)
                progress.update(0)
                continue
            stem, problem = event
            if isinstance(problem, DownloadError):
                if not skip_invalid:
                    raise ValueError(f"{problem}, or leave such clips out with --skip-bad")
                problems[stem] = str(problem)
            elif problem:
                raise problem
            progress.update(2)
    skipped = [problems[stem] for stem in stem_by_name.values() if stem in problems]
    if len(skipped) == len(stem_by_name):
        raise ValueError(
            f"none of {len(stem_by_name)} clips could be had: {'; '.join(skipped[:1])}"
        )
    return [
        VideoAndLog(
            name, FileSlice(str(folder / f"{name}.mp4")), FileSlice(str(folder / f"{name}.jsonl"))
        )
        for name, stem in stem_by_name.items()
        if stem not in problems
    ], skipped


def _run_in_threads(
    stems: Collection[str], num_workers: int, get: Callable[[str, Callable[[int], None]], None]
) -> Generator[int | tuple[str, Exception | None]]:
    """`get` each stem: gives the bytes that come, and each stem that is done with its problem.

    Closing it stops the threads.
    """
    pending = deque(stems)
    events: queue.SimpleQueue[int | tuple[str, Exception | None]] = queue.SimpleQueue()
    stop = threading.Event()

    def report(count: int) -> None:
        if stop.is_set():
            raise RuntimeError("stopped")
        events.put(count)

    def work() -> None:
        with suppress(IndexError):  # none is waiting
            while not stop.is_set():
                stem = pending.popleft()
                try:
                    get(stem, report)
                    events.put((stem, None))
                except Exception as problem:
                    events.put((stem, problem))

    # daemons: one that hears nothing from its server does not keep the program from ending
    threads = [
        threading.Thread(target=work, name="download", daemon=True)
        for _ in range(min(num_workers, len(stems)))
    ]
    try:
        for thread in threads:
            thread.start()
        num_done = 0
        while num_done < len(stems):
            with suppress(queue.Empty):
                event = events.get(timeout=0.2)  # a wait without end may not hear Ctrl-C
                num_done += isinstance(event, tuple)
                yield event
    finally:
        stop.set()
        end = time.monotonic() + JOIN_SECONDS
        for thread in threads:
            if thread.ident:
                thread.join(max(0.0, end - time.monotonic()))
