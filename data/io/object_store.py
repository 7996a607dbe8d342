"""Files of an object store, by address: s3://bucket/path, or what else fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.io.files import atomic_path
from data.io.messages import one_line

ADDRESS = re.compile(r"(?!hf:|https?:)[a-z][a-z0-9+.-]*://.+")
INSTALL = "pip install -r requirements-store.txt"


class StoreError(ValueError):
    """A store that cannot be reached, or refuses."""


def is_store(text: str) -> bool:
    """Whether a text is the address of a place in an object store."""
    return ADDRESS.fullmatch(text) is not None


class ObjectStore:
    """A place in a store. Objects have names relative to it, and are whole or not there."""

    def __init__(self, address: str) -> None:
        """StoreError where no library knows such addresses, or one has to be installed."""
        import fsspec  # takes part of a second to import

        self.address = address.rstrip("/")
        with self._told("opened"):
            try:
                self.fs, self.root = fsspec.core.url_to_fs(self.address)
            except ImportError as problem:
                package = problem.name or one_line(problem)
                raise StoreError(f"{address} needs {package}; {INSTALL}") from None

    def stamps(self) -> dict[str, str]:
        """What tells the contents of each object apart: by name, of all below the place."""
        with self._told("listed"):
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self.root, detail=True)
            except FileNotFoundError:
                return {}
        return {
            str(Path(path).relative_to(self.root)): _stamp(info)
            for path, info in found.items()
            if not path.endswith("/") and path != self.root
        }

    def read(self, name: str) -> bytes:
        """StoreError where it is not there."""
        with self._told(f"read ({name})"):
            return self.fs.cat_file(self._path(name))

    def fetch(self, name: str, path: Path) -> None:
        """Copy an object to a file, which is whole or not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial, self._told(f"read ({name})"):
            self.fs.get_file(self._path(name), str(partial))

    def put(self, path: Path, name: str) -> str:
        """Copy a file to an object, and give its stamp; readers see the old one until it is
        whole."""
        with self._told(f"written to ({name})"):
            self.fs.put_file(str(path), self._path(name))
            return self._stamp_of(name)

    def write(self, content: bytes, name: str) -> str:
        with self._told(f"written to ({name})"):
            self.fs.pipe_file(self._path(name), content)
            return self._stamp_of(name)

    def remove(self, name: str) -> None:
        with self._told(f"changed ({name})"):
            self.fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _stamp_of(self, name: str) -> str:
        self.fs.invalidate_cache()
        return _stamp(self.fs.info(self._path(name)))

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as problem:
            raise StoreError(
                f"{self.address} cannot be {what}: {one_line(problem)}; is its name right, and "
                f"does its bucket exist?"
            ) from None
        except Exception as problem:  # of the network, of rights, of a store's own library
            raise StoreError(
                f"{self.address} cannot be {what} ({type(problem).__name__}: {one_line(problem)}); "
                f"check the network and the credentials (of s3:// AWS_ACCESS_KEY_ID, "
                f"AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL), and run the same command again"
            ) from None


def _stamp(info: dict[str, Any]) -> str:
    changed = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("created")
    return f"{info.get('size')} {changed}".replace('"', "")
