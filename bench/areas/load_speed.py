"""Batches of random clips, of frames and of tokens, against HDF5 as others store it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from bench.peers.plain_reads import PlainChunks, PlainCopy
from bench.peers.stable_worldmodel import INSTALL, submodule
from bench.races.ceiling import share_of_ceiling
from bench.races.pairs import Incorrect, Options, Row, compare, missing_row, race, value_row
from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import h5_dataset
from data.toy import write_toy_shards
from pipeline.batches.clip_batches import ClipBatches
from pipeline.device import data_memory_limit

AREA = "loading"
BATCH_SIZE = 64
LENGTHS = (16, 4)
TOKENS = 64
NEEDS = frozenset({"latents", "actions", "rewards", "continues"})
GZIP = "h5py, automatic chunks, gzip"
CONTIGUOUS = "h5py, contiguous"
STABLE_WORLDMODEL = "stable-worldmodel HDF5"
TARGETS = {GZIP: (300.0, 600.0), STABLE_WORLDMODEL: (3.0, 10.0)}
NOTE = "one process, warm page cache"
IN_MEMORY, FROM_SHARDS, ON_GPU = "in memory", "from the shards", "on the GPU"
CEILINGS = {
    IN_MEMORY: "a plain copy of the same frames",
    FROM_SHARDS: "the same chunks read, decompressed and copied, alone",
}
"""What no reader can be faster than, by what ours reads from."""

Loader = Callable[[np.ndarray], Tensor]


def rows(options: Options) -> Iterator[Row]:
    """Load frames of 64 x 64, from memory, from the shards and on a GPU; then codes from a memory
    map."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        dataset = _open_dataset(folder, options)
        files = _write_peers(folder, dataset)
        for frames in LENGTHS:
            yield from _frames(dataset, files, frames, options)
        yield from _tokens(folder, dataset, options)


def _open_dataset(folder: Path, options: Options) -> EpisodeDataset:
    if options.run is not None:
        return EpisodeDataset(options.run / "shards")
    episodes, length = (18, 40) if options.quick else (60, 150)
    return EpisodeDataset(write_toy_shards(folder / "shards", episodes, length, size=64))


def _write_peers(folder: Path, dataset: EpisodeDataset) -> dict[str, Path]:
    """Write the training episodes, in the order of `Clips`, to a file of each peer's format."""
    episodes = dataset.episodes("train")
    frames = np.concatenate([dataset.read(e, "frames") for e in episodes])
    files = {GZIP: folder / "gzip.h5", CONTIGUOUS: folder / "contiguous.h5"}
    with h5py.File(files[GZIP], "w") as file:
        file.create_dataset("frames", data=frames, chunks=True, compression="gzip")
    with h5py.File(files[CONTIGUOUS], "w") as file:
        file.create_dataset("frames", data=frames)
    try:
        peer = submodule("data.formats.hdf5")
    except ImportError:
        return files
    path = files[STABLE_WORLDMODEL] = folder / "stable_worldmodel.h5"
    with peer.HDF5Writer(path) as writer:
        for episode in episodes:
            pixels, actions = (dataset.read(episode, name) for name in ("frames", "actions"))
            writer.write_episode({"pixels": pixels, "action": actions})
    return files


def _frames(
    dataset: EpisodeDataset, files: dict[str, Path], clip_length: int, options: Options
) -> Iterator[Row]:
    memory = Clips(dataset, "train", clip_length, memory_limit=2**62)
    shards = Clips(dataset, "train", clip_length, memory_limit=0)
    ours = {IN_MEMORY: memory, FROM_SHARDS: shards}
    if options.device.type == "cuda":  # as training keeps them where they fit
        on_gpu = ours[ON_GPU] = Clips(dataset, "train", clip_length)
        on_gpu.cache_on_device(options.device, data_memory_limit(options.device))
    loaders: dict[str, Loader] = {
        name: lambda indices, clips=clips: clips.batch(indices).frames
        for name, clips in ours.items()
    }
    loaders[CEILINGS[IN_MEMORY]] = PlainCopy(memory)
    loaders[CEILINGS[FROM_SHARDS]] = PlainChunks(shards)
    lengths = dataset.lengths[dataset.episodes("train")]
    starts = _starts(lengths, clip_length)
    with h5py.File(files[GZIP], "r") as gzip, h5py.File(files[CONTIGUOUS], "r") as contiguous:
        for name, file in ((GZIP, gzip), (CONTIGUOUS, contiguous)):
            loaders[name] = _slices(h5_dataset(file, "frames"), starts, clip_length)
        if STABLE_WORLDMODEL in files:
            peer = submodule("data.formats.hdf5")
            clips = peer.HDF5Dataset(path=files[STABLE_WORLDMODEL], num_steps=clip_length)
            loaders[STABLE_WORLDMODEL] = _collated(clips)
        _check(loaders, len(memory))
        runners = {name: BatchLoader(loader, len(memory)) for name, loader in loaders.items()}
        seconds = race(runners, options.rounds, warmup=1, device=options.device)
    # automatic chunks grow with the file, and --quick's is too short for that target
    targets = {k: v for k, v in TARGETS.items() if k != GZIP or not options.quick}
    for name in ours:
        what = f"{BATCH_SIZE} clips of {clip_length} frames, {name}"
        left_out = {*ours, *CEILINGS.values()} - {name}
        taken = {k: v for k, v in seconds.items() if k not in left_out}
        if name == FROM_SHARDS:  # how fast gzip is differs more among machines than how fast we are
            targets.pop(GZIP, None)
        yield from compare(
            AREA, what, taken, targets, name, "frames/s", amount=BATCH_SIZE * clip_length,
            notes=dict.fromkeys(taken, NOTE + "; theirs in main memory" * (name == ON_GPU)),
        )  # fmt: skip
        if name in CEILINGS:
            ceiling = CEILINGS[name]
            yield share_of_ceiling(AREA, what, seconds[name], seconds[ceiling], ceiling)
    if STABLE_WORLDMODEL not in files:
        what = f"{BATCH_SIZE} clips of {clip_length} frames"
        yield missing_row(AREA, what, STABLE_WORLDMODEL, INSTALL)


@dataclass
class BatchLoader:
    """Loads other clips at each call, in the same order for every loader."""

    load: Loader
    count: int
    calls: int = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.load(sample_indices(self.calls, self.count))


def sample_indices(call: int, count: int) -> np.ndarray:
    """Draw the clips of a call: (B,) below `count`."""
    return np.random.default_rng(call).integers(0, count, BATCH_SIZE)


def _starts(lengths: np.ndarray, frames: int) -> np.ndarray:
    """Return the first row of every clip of consecutive episodes."""
    first = np.cumsum(lengths) - lengths
    per_episode = [
        f + np.arange(max(0, n - frames + 1)) for f, n in zip(first, lengths, strict=True)
    ]
    return np.concatenate(per_episode)


def _slices(frames: h5py.Dataset, starts: np.ndarray, length: int) -> Loader:
    def load(indices: np.ndarray) -> Tensor:
        # in the order of the file, which reads faster
        order = np.argsort(starts[indices], kind="stable")
        frames_out = np.empty((len(indices), length, *frames.shape[1:]), np.uint8)
        for clip in order:
            start = int(starts[indices[clip]])
            frames_out[clip] = frames[start : start + length]  # read_direct is slower
        return torch.from_numpy(frames_out).permute(0, 1, 4, 2, 3)

    return load


def _collated(clips: Any) -> Loader:
    """Load as a DataLoader does in its own process."""
    return lambda indices: default_collate([clips[int(i)] for i in indices])["pixels"]


def _check(loaders: dict[str, Loader], count: int) -> None:
    wanted = sample_indices(0, count)
    first, truth = None, None
    for name, load in loaders.items():
        read = load(wanted).cpu()
        if truth is None:
            first, truth = name, read
        elif not torch.equal(read, truth):
            raise Incorrect(f"{name} reads other frames than {first}")


def _latents(clips: ClipBatches, indices: np.ndarray) -> Tensor:
    """Load a whole batch; return its latents."""
    return clips.batch(indices).require("latents")[0]


def _tokens(folder: Path, dataset: EpisodeDataset, options: Options) -> Iterator[Row]:
    path, shape = folder / "latents.bin", (dataset.num_frames, TOKENS)
    store = np.memmap(path, np.int16, "w+", shape=shape)
    store[:] = np.random.default_rng(0).integers(0, 1024, shape)
    store.flush()
    clips = Clips(dataset, "train", LENGTHS[0])
    mapped = np.memmap(path, np.int16, "r", shape=shape)
    variants = {"from a memory map": ClipBatches(clips, NEEDS, mapped)}
    if options.device.type == "cuda":
        on_gpu = variants[ON_GPU] = ClipBatches(clips, NEEDS, mapped)
        on_gpu.cache_on_device(options.device, data_memory_limit(options.device))
    wanted = sample_indices(0, len(clips))
    for latents in variants.values():
        read = _latents(latents, wanted).cpu().numpy()
        if not np.array_equal(read, store[clips.rows(wanted)]):
            raise Incorrect("latents are not those of the clips' frames")
    loaders = {
        variant: BatchLoader(
            lambda indices, latents=latents: _latents(latents, indices), len(clips)
        )
        for variant, latents in variants.items()
    }
    what = f"clips of {LENGTHS[0]} x {TOKENS} tokens, with actions"
    seconds = race(loaders, options.rounds, device=options.device, repeats=20)
    for variant, taken in seconds.items():
        rate = BATCH_SIZE / float(np.median(taken))
        note = f"batches of {BATCH_SIZE} {variant}, {NOTE}"
        yield value_row(AREA, what, "clips/s", rate, rounds=options.rounds, note=note)
