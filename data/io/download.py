"""Download a file: with progress, resumable, and verified."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.io.digests import file_digest
from data.io.files import lock
from data.io.messages import shortened
from data.io.urls import check_url, http_opener, url_key

MAX_ATTEMPTS = 5
RETRY_DELAY = 1.0  # seconds before the second attempt; doubled before each next one
TIMEOUT = 30.0  # seconds without a byte
BLOCK_SIZE = 1 << 18
RETRYABLE = (408, 416, 425, 429)  # of the 4xx, those that another attempt may change


class DownloadError(ValueError):
    """The server does not send the file that was requested."""


def local_file(
    address: str,
    folder: Path,
    given: str,
    sha256: str | None = None,
    check: Callable[[Path], str] | None = None,
    earlier: bool = False,
) -> Path:
    """Return the path of a file or folder that is given as a path, or as a URL, which is downloaded
    below `folder`, by one process at a time.

    sha256: checked for both. `earlier` takes the file from where earlier versions kept it.
    ValueError names `given`, the flag.
    """
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"--checksum {sha256[:80]} is no SHA-256, which has 64 hexadecimal digits")
    if "://" not in address:
        path = Path(address)
        if sha256 and path.is_dir():
            raise ValueError(f"{path} is a folder, and --checksum is that of a file; leave it out")
        if problem := checksum_mismatch(path, sha256) if path.exists() else "":
            raise ValueError(f"{path}: {problem}; get the file again, or correct --checksum")
        return path
    check_url(address, given)
    target = place_of(address, folder)
    with lock(target.parent, waiting_for=f"downloads {address}"):  # another rank, perhaps
        if earlier:
            move_earlier(folder / target.name, target)
        return fetch(address, target, sha256, given=given, check=check)


def place_of(url: str, folder: Path) -> Path:
    """Return where a download of `url` is kept: another URL, even of the same name, lies
    elsewhere."""
    name = Path(urllib.parse.urlsplit(url).path).name
    return folder / url_key(url) / ("download" if name in ("", "..") else name)


def move_earlier(flat: Path, target: Path) -> None:
    """Move a download to its place from where earlier versions kept it, by its name alone."""
    if flat.is_file() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        flat.replace(target)


def fetch(
    url: str,
    target: Path,
    sha256: str | None = None,
    retry_delay: float = RETRY_DELAY,
    timeout: float | None = None,
    on_progress: Callable[[int], None] | None = None,
    given: str = "the address",
    check: Callable[[Path], str] | None = None,
) -> Path:
    """Download `url` to `target`, and return it; a complete file there is kept.

    Received bytes stay in NAME.partial, and are resumed after a broken connection or by the next
    call. ValueError gives the reason in one line, and names `given`, where the address is from.
    `on_progress` replaces the progress bar: it gets 0 before each attempt and the size of each
    block, and an exception from it ends the download. `check` says what else a file is than what
    was wanted, as in "an HTML page": such a one is deleted, and fetched anew by the next call.
    """
    check_url(url, given)
    partial = target.with_name(f"{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if problem := checksum_mismatch(target, sha256):
            raise ValueError(
                f"{target} is there, but {problem}; delete it to download it again, or "
                f"correct --checksum"
            )
        if not (check and check(target)):
            return target
        target.unlink()
    problem = "no answer"
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            time.sleep(retry_delay * 2 ** (attempt - 1))
        if on_progress:
            on_progress(0)
        try:
            _download(url, partial, timeout or TIMEOUT, on_progress)
            break
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {shortened(str(error.reason))}"
            if error.code == 416:
                if _is_complete(partial, error):
                    break
                partial.unlink(missing_ok=True)  # longer than what the server has
            elif error.code < 500 and error.code not in RETRYABLE:
                raise DownloadError(
                    f"{url} cannot be downloaded: {problem}; check {given}"
                ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)  # what urllib wraps
            problem = shortened(str(reason) or type(reason).__name__)
            if _is_final(reason):
                raise ValueError(f"{url} cannot be downloaded: {problem}; check {given}") from None
    else:
        kept = f"received bytes are kept in {partial}: " if partial.exists() else ""
        raise DownloadError(
            f"{url} could not be downloaded in {MAX_ATTEMPTS} attempts ({problem}); {kept}run the "
            f"same command again to resume"
        )
    if problem := checksum_mismatch(partial, sha256):
        partial.unlink()
        raise ValueError(
            f"{url}: {problem}; the file was deleted: download it again, or correct --checksum"
        )
    if problem := check(partial) if check else "":
        partial.unlink()
        raise DownloadError(f"{url} gave {problem}; it was deleted: check {given}")
    partial.replace(target)
    return target


def _is_final(reason: object) -> bool:
    """Return whether no other attempt can help: there is no such host, it does not prove itself, or
    does not speak TLS."""
    if isinstance(reason, socket.gaierror):
        return reason.errno == socket.EAI_NONAME
    if isinstance(reason, ssl.SSLError):
        return reason.reason in ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")
    return isinstance(reason, http.client.InvalidURL)


def _download(
    url: str, partial: Path, timeout: float, on_progress: Callable[[int], None] | None
) -> None:
    """Append the missing bytes to `partial`; OSError when the connection ends too early."""
    received = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url)
    if received:
        request.add_header("Range", f"bytes={received}-")
    with http_opener().open(request, timeout=timeout) as response:
        received = _first_byte(response, received)
        size = response.headers.get("Content-Length", "")
        total = received + int(size) if size.isdecimal() else None
        progress = tqdm(
            total=total,
            initial=received,
            desc=partial.stem,
            unit="B",
            unit_scale=True,
            disable=on_progress is not None,
        )
        with progress, _PartialFile(partial, received) as file:
            while block := response.read1(BLOCK_SIZE):  # bytes received before a stall are kept
                file.write(block)
                progress.update(len(block))
                if on_progress:
                    on_progress(len(block))
                received += len(block)
    if received == 0:
        raise OSError("the answer was empty")
    if total is not None and received != total:
        raise OSError(f"the connection ended at {received} of {total} bytes")


def _first_byte(response: Any, received: int) -> int:
    """Return the offset in the file at which the answer starts, at most `received`."""
    if response.status != 206:
        return 0  # the server sends the whole file again
    begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    first = int(begins[1]) if begins else received
    if first > received:
        raise OSError(f"the server sent bytes from {first}, but {received} was requested")
    return first


def _is_complete(partial: Path, response: urllib.error.HTTPError) -> bool:
    """Compare "bytes */SIZE" to see whether the last call received all bytes."""
    size = response.headers.get("Content-Range", "").removeprefix("bytes */")
    return partial.exists() and size == str(partial.stat().st_size)


class _PartialFile:
    """Writes `partial` from byte `first` on. A full disk is a ValueError: no retry can help."""

    def __init__(self, partial: Path, first: int) -> None:
        self.path = partial
        try:
            self.file = open(partial, "r+b" if first else "wb", buffering=0)  # noqa: SIM115
            self.file.truncate(first)
            self.file.seek(first)
        except OSError as error:
            raise self.write_error(error) from None

    def write(self, block: bytes) -> None:
        remaining = memoryview(block)
        try:
            while remaining:
                remaining = remaining[self.file.write(remaining) :]
        except OSError as error:
            raise self.write_error(error) from None

    def write_error(self, error: OSError) -> ValueError:
        reason = error.strerror or error
        return ValueError(f"{self.path} cannot be written ({reason}); run again to resume")

    def __enter__(self) -> _PartialFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def checksum_mismatch(path: Path, sha256: str | None) -> str:
    """Say how the file's checksum differs, as in "its SHA-256 is ..."; empty where it does not."""
    if sha256 is None:
        return ""
    found = file_digest(path)
    if found == sha256.lower():
        return ""
    return f"its SHA-256 is {found}, and {sha256.lower()} is required"
