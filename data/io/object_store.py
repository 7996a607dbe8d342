"""Files of an object store, by address: s3://bucket/path, or what else fsspec knows."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.io.digests import file_digest
from data.io.files import atomic_path, remove_abandoned
from data.io.messages import first_few, one_line

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://(.*)", re.DOTALL)
OTHER_SCHEMES = ("hf", "http", "https")
NO_STORES = ("file", "local", "memory", "dir", "data")
REQUIREMENTS = "-r requirements-store.txt"
PROBE = ".write-probe"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(ValueError):
    """A store that cannot be reached, or refuses; or a name in it that no file can have."""


def is_store(text: str) -> bool:
    """Whether a text is the address of a place in an object store, right or wrong."""
    found = ADDRESS.fullmatch(text)
    return found is not None and found[1].lower() not in OTHER_SCHEMES


def check_address(address: str) -> None:
    """ValueError where an address is of no store, or names no place below a bucket."""
    found = ADDRESS.fullmatch(address)
    scheme, place = (found[1], found[2]) if found else ("", "")
    if scheme.lower() in NO_STORES or scheme != scheme.lower() or "::" in address:
        raise ValueError(
            f"{address} is no address of an object store; write s3://BUCKET/RUN, or give a folder"
        )
    parts = place.rstrip("/").split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"{address} names no run; write {scheme}://BUCKET/RUN, a path below a bucket without . "
            f"and .. in it"
        )


class ObjectStore:
    """A place in a store. Objects have names relative to it, and are whole or not there."""

    def __init__(self, address: str) -> None:
        """StoreError where no library knows such addresses, or one has to be installed."""
        import fsspec  # takes part of a second to import

        check_address(address)
        self.address = address.rstrip("/")
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.address)
        except ImportError as problem:
            named = re.search(r"[Ii]nstall (\w+)", str(problem))
            package = named[1] if named else problem.name or one_line(problem)
            wanted = REQUIREMENTS if package == "s3fs" else package
            raise StoreError(f"{address} needs {package}: pip install {wanted}") from None
        except ValueError as problem:
            raise StoreError(
                f"{address} is of no store that is known ({one_line(problem)})"
            ) from None

    def stamps(self) -> dict[str, str]:
        """What tells the contents of each object apart: by name, of all below the place.

        StoreError names those that no file can have.
        """
        with self._told("listed"):
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self.root, detail=True)
            except FileNotFoundError:
                return {}
        names = {path[len(self.root) + 1 :]: info for path, info in found.items()}
        names = {name: info for name, info in names.items() if name and not name.endswith("/")}
        bad = [n for n in names if any(p in ("", ".", "..") for p in n.split("/"))]
        bad += [n for n in names if any(str(up) in names for up in Path(n).parents)]
        if bad:
            raise StoreError(
                f"{self.address} holds {first_few([repr(name) for name in sorted(bad)])}, which no "
                f"file here can be; delete it there, or choose another place"
            )
        return {name: _stamp(info) for name, info in names.items()}

    def read(self, name: str) -> bytes:
        """StoreError where it is not there."""
        with self._told(f"read ({name})"):
            return self.fs.cat_file(self._path(name))

    def fetch(self, name: str, path: Path, sha256: str = "") -> None:
        """Copy an object to a file, which is whole or not there.

        StoreError where its contents are others than `sha256` says, or the disk is full.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path.parent, path.name)
            with atomic_path(path) as partial:
                with self._told(f"read ({name})"):
                    self.fs.get_file(self._path(name), str(partial))
                if sha256 and (found := file_digest(partial)) != sha256:
                    raise StoreError(
                        f"{name} in {self.address} was made anew since this command began "
                        f"(SHA-256 {sha256[:12]}, now {found[:12]}); run the same command again"
                    )
        except OSError as problem:
            raise StoreError(
                f"{name} of {self.address} cannot be written to {path} "
                f"({problem.strerror or one_line(problem)}); move away what is there, or free some "
                f"of that disk"
            ) from None

    def put(self, path: Path, name: str) -> str:
        """Copy a file to an object, and give its stamp; readers see the old one until it is
        whole."""
        with self._told(f"written to ({name})"):
            self.fs.put_file(str(path), self._path(name))
            self.fs.invalidate_cache()
            return _stamp(self.fs.info(self._path(name)))

    def remove(self, name: str) -> None:
        with self._told(f"changed ({name})"):
            self.fs.rm_file(self._path(name))

    def check_writable(self) -> None:
        """StoreError where nothing can be written, before anything is computed."""
        with self._told("written to"):
            self.fs.pipe_file(self._path(PROBE), b"")
            self.fs.rm_file(self._path(PROBE))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as problem:
            raise StoreError(
                f"{self.address} cannot be {what}: {one_line(problem)}; is its name right, and "
                f"does its bucket exist?"
            ) from None
        except Exception as problem:  # of the network, of rights, of a store's own library
            if isinstance(problem, OSError) and problem.errno in FULL:
                raise
            raise StoreError(
                f"{self.address} cannot be {what} ({type(problem).__name__}: {one_line(problem)}); "
                f"check the network and the credentials (of s3:// AWS_ACCESS_KEY_ID, "
                f"AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL), and run the same command again"
            ) from None


def endpoint() -> str:
    """Which store an address of s3:// is of."""
    return os.environ.get("AWS_ENDPOINT_URL", "")


def _stamp(info: dict[str, Any]) -> str:
    changed = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("created")
    return f"{info.get('size')} {changed}".replace('"', "")
