"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

from pathlib import Path

HEAD = 512  # bytes that are looked at
APPLE_DOUBLE = b"\0\5\x16\7"  # the ._NAME files that macOS leaves on foreign file systems
HDF5 = b"\x89HDF\r\n\x1a\n"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# First bytes, and what such a file is called. Longer ones come before those that they begin with.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (LFS_POINTER, "a Git LFS pointer, not the file itself (git lfs pull gets it)"),
    (APPLE_DOUBLE, "an AppleDouble file, which macOS leaves next to the file itself"),
    (HDF5, "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy .npy file"),
    (b"PK\3\4", "a zip archive (unpack it first, unless it is an .npz)"),
    (b"PK\5\6", "an empty zip archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x1f\x8b", "compressed with gzip (unpack it first)"),
    (b"BZh", "compressed with bzip2 (unpack it first)"),
    (b"\xfd7zXZ\0", "compressed with xz (unpack it first)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd (unpack it first)"),
    (b"\x04\x22\x4d\x18", "compressed with lz4 (unpack it first)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive (unpack it first)"),
    (b"Rar!\x1a\7", "a RAR archive (unpack it first)"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"%PDF-", "a PDF document"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"#ROSBAG", "a ROS bag"),
    (b"\x89MCAP", "an MCAP log"),
)


def describe_content(path: Path) -> str:
    """Say what the file is by its first bytes, for "PATH is ..."; ValueError if it is unreadable.

    A remark in parentheses says what to do where that is known.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as problem:
        raise ValueError(f"{path} cannot be read ({problem.strerror or problem})") from None
    return describe_head(head)


def describe_head(head: bytes) -> str:
    """Say what a file is that begins with `head`, the first HEAD bytes or all there are."""
    if not head:
        return "empty"
    for signature, kind in SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[4:8] == b"ftyp":
        return "an MP4 video"
    if head[:4] == b"RIFF":
        return "an AVI video" if head[8:11] == b"AVI" else "a RIFF file"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a Python pickle, which can run any code (it is never read)"
    if not head.strip(b"\0"):
        return "zeros, as a file is that was reserved and never filled (get it again)"
    return _describe_text(head)


def _describe_text(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, not the file itself (its address leads to a web page)"
    if text.startswith(b"<?xml"):
        return "an XML document, such as a server sends with an error"
    beginning = repr(head[:20].decode(errors="replace"))
    if _is_text(head):
        kind = "a JSON text" if text[:1] in (b"{", b"[") else "a text"
        return f"{kind} (it begins with {beginning})"
    return f"of an unknown kind (it begins with {head[:12]!r})"


def _is_text(head: bytes) -> bool:
    try:
        decoded = head[:-3].decode() if len(head) == HEAD else head.decode()  # a cut character
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\r\n\t" for letter in decoded)
