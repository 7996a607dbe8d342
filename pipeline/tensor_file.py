"""Files of tensors and plain values that hold what was written into them, or are refused.

Each is written whole or not at all.  The archive's own checksums are looked at before anything is
unpickled, and a digest of the values afterwards.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.io.files import atomic_write, check_regular

DIGEST = "digest"
WEIGHTS = "model"  # a checkpoint has a fingerprint of them, so that no byte is hashed twice


class Damaged(ValueError):
    """A file is not what was written; says why, without the file's name."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write through a `.partial` file that is flushed and renamed: an interrupted save, or a full
    disk, leaves the old file whole."""
    buffer = io.BytesIO()
    torch.save(content | {DIGEST: digest(content)}, buffer)
    atomic_write(path, buffer.getbuffer())


def read(path: Path) -> Any:
    """Read a file to the CPU.

    Raises Damaged where its bytes are not those that were written, and OSError or MemoryError where
    a whole file cannot be read here.
    """
    check_regular(path)
    whole = _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as problem:  # reading what is damaged can raise anything
        if "allocate memory" in str(problem):
            raise MemoryError from None
        reason = (str(problem).splitlines() or ["it is empty"])[0][:120]
        if whole:
            reason = f"PyTorch {torch.__version__} cannot read it: {reason}"
        raise Damaged(f"{type(problem).__name__}: {reason}") from None


def check_digest(content: dict[str, Any]) -> None:
    """Raise Damaged where the values are not those that were written."""
    if content.get(DIGEST) != digest(content):
        raise Damaged("its digest is that of other values")


def digest(content: dict[str, Any]) -> str:
    """Give 32 hex digits that change with any value but the weights and the digest itself."""
    hashed = hashlib.sha256()
    _update(hashed, {k: v for k, v in content.items() if k not in (DIGEST, WEIGHTS)})
    return hashed.hexdigest()[:32]


def update_with_tensor(hashed: Any, tensor: Tensor) -> None:
    """Hash a tensor's dtype, shape and bytes."""
    tensor = tensor.detach().cpu().contiguous()
    hashed.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    hashed.update(tensor.flatten().view(torch.uint8).numpy().data)


def _update(hashed: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        update_with_tensor(hashed, value)
    elif isinstance(value, dict | list | tuple):
        # the length, so that no two structures give the same bytes
        hashed.update(f"{'dict' if isinstance(value, dict) else 'list'} {len(value)};".encode())
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            hashed.update(f"{key!r}:".encode())
            _update(hashed, inner)
    else:
        hashed.update(f"{value!r};".encode())


def _check_archive(path: Path) -> bool:
    """Compare each part of a zip archive with its checksum, which PyTorch leaves aside.

    Returns False where the file is no archive, as those of an old PyTorch are not.
    """
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except OSError:
        raise
    except Exception as problem:  # as above
        raise Damaged(f"{type(problem).__name__}: {str(problem)[:120]}") from None
    if part is not None:
        raise Damaged(f"the checksum of its part {part[:60]} is another")
    return True
