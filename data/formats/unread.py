"""What a path is that cannot be read, and what to do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.io.messages import first_few
from data.io.sniff import describe_content

GUIDE = "docs/how-to/your-recordings.md"
READ = (
    "an HDF5 file, a folder of .npz, of HDF5 files, of numbered images or of .mp4, or a folder or "
    "stem of frames.npy"
)
# A file that gives a kind of folder away, what the folder is, and the way out.
MARKS: tuple[tuple[str, str], ...] = (
    ("dataset_info.json", "an RLDS (TensorFlow) dataset, which is not read"),
    ("ep_len.npz", "stable-worldmodel's folder format: convert it to HDF5 with its swm convert"),
    (".zgroup", "a zarr store (preprocess.py pusht --demos reads those of Push-T)"),
    ("zarr.json", "a zarr store (preprocess.py pusht --demos reads those of Push-T)"),
    ("build.json", "a folder of shards already: give its run to train_tokenizer.py --run"),
)


def known_folder(path: Path) -> str:
    """Name a folder of a known kind that is not read; empty where it is none."""
    return next((kind for mark, kind in MARKS if (path / mark).exists()), "")


def refuse_folder(path: Path, files: Sequence[Path]) -> ValueError:
    """Return the error for a folder without recordings."""
    kind = known_folder(path)
    if kind:
        return ValueError(f"{path} is {kind}; {GUIDE} shows how to write any recordings")
    suffixes = Counter(file.suffix.lower() or "no suffix" for file in files)
    listed = first_few(f"{count} of {suffix}" for suffix, count in suffixes.most_common())
    looks = f"; {files[0].name} is {describe_content(files[0])}" if files else ""
    return ValueError(
        f"{path} holds no recordings ({listed or 'it is empty'}{looks}); give {READ}, or write "
        f"yours as {GUIDE} shows"
    )


def refuse_file(path: Path) -> ValueError:
    """Return the error for a file that is none of those read."""
    return ValueError(
        f"{path} is {describe_content(path)}, and none of what is read: {READ}; {GUIDE} shows how "
        f"to write yours"
    )
