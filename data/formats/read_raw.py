"""Find out what lies at a path, and read it as episodes."""

from __future__ import annotations

from pathlib import Path

from data.formats import hdf5, image_folders, video_files
from data.formats.hdf5 import is_hdf5, read_hdf5
from data.formats.image_folders import read_image_folders
from data.formats.lerobot import is_lerobot, read_lerobot
from data.formats.minerl import is_minerl, read_minerl
from data.formats.numpy_files import npy_files, read_npy, read_npz
from data.formats.raw_episodes import RawEpisodes, ReadOptions, assemble
from data.formats.recording import RecordingSet
from data.formats.unread import READ, known_folder, refuse_file, refuse_folder
from data.formats.video_files import read_videos
from data.io.folders import has_suffix, visible_files

NPZ = (".npz",)


def read_raw(path: Path, options: ReadOptions | None = None) -> RawEpisodes:
    """Read the episodes at `path`; ValueError names what cannot be read, and what to do."""
    options = options or ReadOptions()
    return assemble(_find(path, options.frames_key), options)


def _find(path: Path, frames_key: str) -> RecordingSet:
    if arrays := npy_files(path):
        return read_npy(arrays, path, frames_key)
    if path.is_dir():
        return _find_in_folder(path, frames_key)
    if not path.exists():
        raise ValueError(f"{path} is none of these, because it does not exist: {READ}")
    if not path.is_file():
        raise ValueError(f"{path} is no file and no folder; give {READ}")
    if has_suffix(path, NPZ):
        return read_npz([path], frames_key)
    if is_hdf5(path):
        return read_hdf5([path], frames_key, one_episode=False)
    if has_suffix(path, video_files.SUFFIXES):
        return read_videos([path])
    raise refuse_file(path)


def _find_in_folder(path: Path, frames_key: str) -> RecordingSet:
    """Read what the folder holds at its least depth: HDF5 files, .npz, videos or images."""
    if is_lerobot(path):
        return read_lerobot(path)
    files = [] if known_folder(path) else list(visible_files(path))
    if is_minerl(files):
        return read_minerl(files)
    for depth in sorted({len(file.parts) for file in files}):
        level = [file for file in files if len(file.parts) == depth]
        if any(has_suffix(file, hdf5.SUFFIXES) for file in level):
            found = [file for file in files if has_suffix(file, hdf5.SUFFIXES)]
            return read_hdf5(found, frames_key, one_episode=True)
        if any(has_suffix(file, NPZ) for file in level):
            return read_npz([f for f in files if has_suffix(f, NPZ)], frames_key)
        if any(has_suffix(file, video_files.SUFFIXES) for file in level):
            return read_videos(files)
        if any(has_suffix(file, image_folders.SUFFIXES) for file in level):
            return read_image_folders(files)
    raise refuse_folder(path, files)
