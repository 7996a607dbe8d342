"""Fetch a file: with progress, on from where it broke off, and checked."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

TRIES = 5
PAUSE = 1.0  # seconds before the second try; twice as long before each next one
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18
FINAL = (400, 401, 403, 404, 410)  # answers that another try will not change


def fetch(url: str, folder: Path, sha256: str | None = None, pause: float = PAUSE) -> Path:
    """Download `url` into `folder` and give the file's path; a whole file there is kept.

    What has come so far stays in NAME.partial and is resumed, after a break or by the next call.
    ValueError says in one line what went wrong.
    """
    name = Path(urllib.parse.urlparse(url).path).name or "download"
    target, partial = folder / name, folder / f"{name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    if target.exists():
        _check(target, sha256, url)
        return target
    problem = "no answer"
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _receive(url, partial)
            break
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
            if error.code == 416:  # what is there is longer than what the server has
                partial.unlink(missing_ok=True)
            elif error.code in FINAL:
                raise ValueError(f"{url} cannot be had: {problem}; see to the address") from None
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
    else:
        raise ValueError(
            f"{url} could not be fetched in {TRIES} tries ({problem}); what came is kept in "
            f"{partial}: run the same command again to go on"
        )
    _check(partial, sha256, url)
    partial.replace(target)
    return target


def _receive(url: str, partial: Path) -> None:
    """Append what is missing to `partial`; an OSError when the connection ends before that."""
    there = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url)
    if there:
        request.add_header("Range", f"bytes={there}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.status != 206:
            there = 0  # the server sends all of it again
        size = answer.headers.get("Content-Length")
        total = None if size is None else there + int(size)
        bar = tqdm(total=total, initial=there, desc=partial.stem, unit="B", unit_scale=True)
        with open(partial, "ab" if there else "wb") as file, bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
                there += len(block)
    if total is not None and there != total:
        raise OSError(f"the connection ended at {there} of {total} bytes")


def _check(path: Path, sha256: str | None, url: str) -> None:
    if sha256 is None:
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256.lower():
        path.unlink()
        raise ValueError(
            f"{url} has the SHA-256 {digest.hexdigest()}, but {sha256.lower()} was asked for; the "
            f"file was thrown away: fetch it again, or see to --checksum"
        )
