"""Download recordings listed in OpenAI's index files."""

from __future__ import annotations

import hashlib
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data.io.download import RETRY_DELAY, DownloadError, fetch, local_file, move_earlier
from data.io.files import parse_json
from data.io.urls import SCHEMES, check_url, url_key
from data.vpt.file_slice import FileSlice, VideoAndLog
from data.vpt.find import file_problem

MAX_QUOTED = 80  # characters of an index's value in a message
JOIN_SECONDS = 1.0  # seconds that download threads have to end in; stalled ones are abandoned


def load_index(index: str, folder: Path) -> list[str]:
    """Read an index file, or a URL of one, which is downloaded to `folder`; return its stems."""
    path = local_file(index, folder, "--index")
    if not path.is_file():
        problem = "is no file" if path.exists() else "does not exist"
        raise ValueError(f"{index} {problem}; --index takes an index file or its URL")
    try:
        return read_index(path.read_bytes(), index)
    except ValueError:
        if "://" in index:
            path.unlink(missing_ok=True)
        raise


def read_index(content: bytes, where: str) -> list[str]:
    """Return the stems of an index: URLs without .mp4 and .jsonl.

    Accepts both forms: the files' own, with relpaths that end in .mp4, and the README's, without.
    """
    need = 'an index is {"basedir": "https://...", "relpaths": ["8.0/NAME", ...]}'
    try:
        index = parse_json(content)
    except ValueError:
        raise ValueError(f"{where} starts with {content[:40]!r}, not JSON; {need}") from None
    index = index if isinstance(index, dict) else {}
    base, paths = index.get("basedir"), index.get("relpaths")
    base = base.rstrip("/") if isinstance(base, str) else ""
    if not _is_plain(base.partition("://")[2]):
        raise ValueError(f"{where} has the basedir {_quoted(index.get('basedir'))}; {need}")
    if base.partition("://")[0].lower() not in SCHEMES:
        raise ValueError(
            f"{where} has the basedir {_quoted(base)}, but only http and https are read; {need}. "
            f"--recordings takes recordings of this machine"
        )
    check_url(base, f"{where}: its basedir")
    if not isinstance(paths, list) or not paths:
        raise ValueError(f"{where} has the relpaths {str(paths)[:40]}; {need}")
    for number, path in enumerate(paths):
        if not isinstance(path, str) or not _is_plain(path.removesuffix(".mp4")):
            raise ValueError(f"{where} has {_quoted(path)} as relpath {number}; {need}")
    return list(dict.fromkeys(f"{base}/{path.removesuffix('.mp4')}" for path in paths))


def _quoted(value: object) -> str:
    return repr(value)[:MAX_QUOTED]


def _is_plain(path: str) -> bool:
    """Return whether the path is unchanged in a URL and stays inside a folder."""
    odd = re.search(r"[\s?#\\\x00-\x1f]", path) or not path.isascii()
    return not odd and not {"", ".", ".."} & set(path.split("/"))


def sample_recordings(stems: Sequence[str], num_recordings: int, seed: int) -> list[str]:
    """Draw stems, regardless of their order and server; a larger draw of a seed extends a
    smaller one."""
    if not 1 <= num_recordings <= len(stems):
        raise ValueError(
            f"--num-recordings {num_recordings} must be between 1 and {len(stems)}, the number of "
            f"recordings in the index"
        )

    def drawn(stem: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed} {local_name(stem)}".encode()).digest(), stem

    return sorted(stems, key=drawn)[:num_recordings]


def local_name(stem: str) -> str:
    """Return VERSION/NAME, such as 10.0/NAME: a name can occur in several versions."""
    return "/".join(stem.split("/")[-2:])


def download_recordings(
    stems: Sequence[str],
    folder: Path,
    num_workers: int,
    skip_invalid: bool,
    retry_delay: float = RETRY_DELAY,
    timeout: float | None = None,
    earlier: bool = False,
) -> tuple[list[VideoAndLog], list[str]]:
    """Download each recording's log and video, `num_workers` recordings at a time.

    Returns the pairs in the order of `stems`, and with `skip_invalid` a line for each recording
    that could not be downloaded; without it, the first one is a ValueError. Complete files are
    kept, by their URL, and the next call resumes partial ones. `earlier` takes files of the same
    stems from where earlier versions kept them.
    """
    if num_workers < 1:
        raise ValueError(f"--download-workers must be at least 1, not {num_workers}")
    stem_by_name: dict[str, str] = {}
    for stem in stems:
        if stem_by_name.setdefault(local_name(stem), stem) != stem:
            raise ValueError(
                f"{stem} and {stem_by_name[local_name(stem)]} would both be named "
                f"{local_name(stem)}"
            )

    def get(stem: str, report: Callable[[int], None]) -> None:
        for suffix in (".jsonl", ".mp4"):  # the small one first: a video without a log is useless
            target = _place_of_stem(stem, folder, suffix)
            if earlier:
                move_earlier(folder / f"{local_name(stem)}{suffix}", target)
            fetch(
                stem + suffix,
                target,
                retry_delay=retry_delay,
                timeout=timeout,
                on_progress=report,
                given="the index",
                check=partial(file_problem, suffix=suffix),
            )

    problems: dict[str, str] = {}
    received = 0
    progress = tqdm(total=2 * len(stem_by_name), desc="recordings", unit="file", miniters=0)
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
                    raise ValueError(f"{problem}, or skip such recordings with --skip-invalid")
                problems[stem] = str(problem)
            elif problem:
                raise problem
            progress.update(2)
    skipped = [problems[stem] for stem in stem_by_name.values() if stem in problems]
    if len(skipped) == len(stem_by_name):
        raise ValueError(
            f"none of {len(stem_by_name)} recordings could be downloaded: {'; '.join(skipped[:1])}"
        )
    return [
        VideoAndLog(
            name, *(FileSlice(str(_place_of_stem(stem, folder, s))) for s in (".mp4", ".jsonl"))
        )
        for name, stem in stem_by_name.items()
        if stem not in problems
    ], skipped


def _place_of_stem(stem: str, folder: Path, suffix: str) -> Path:
    """Return where a file is kept: below a folder of its server's folder, as another one may have
    another file of the same name."""
    name = local_name(stem)
    return folder / url_key(stem.removesuffix(name)) / f"{name}{suffix}"


def _run_in_threads(
    stems: Collection[str], num_workers: int, get: Callable[[str, Callable[[int], None]], None]
) -> Generator[int | tuple[str, Exception | None]]:
    """Call `get` for each stem; yield received byte counts, and each finished stem with its error.

    Closing the generator stops the threads.
    """
    pending = deque(stems)
    events: queue.SimpleQueue[int | tuple[str, Exception | None]] = queue.SimpleQueue()
    stop = threading.Event()

    def report(count: int) -> None:
        if stop.is_set():
            raise RuntimeError("stopped")
        events.put(count)

    def work() -> None:
        with suppress(IndexError):  # the queue is empty
            while not stop.is_set():
                stem = pending.popleft()
                try:
                    get(stem, report)
                    events.put((stem, None))
                except Exception as problem:
                    events.put((stem, problem))

    # daemons: a stalled download must not keep the program from exiting
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
                event = events.get(timeout=0.2)  # without a timeout, Ctrl-C may not arrive
                num_done += isinstance(event, tuple)
                yield event
    finally:
        stop.set()
        end = time.monotonic() + JOIN_SECONDS
        for thread in threads:
            if thread.ident:
                thread.join(max(0.0, end - time.monotonic()))
