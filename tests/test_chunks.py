"""Rows of many shards, read chunk by chunk within bounds."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numcodecs.fletcher32 import Fletcher32

from data.actions import ActionSpec
from data.shards import episode_dataset
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.shards.write_shard import write_shard
from data.toy import write_toy_shards

NOTHING = {"image_size": [16, 16], "actions": ActionSpec("none", ()).as_dict()}


def by_hdf5(dataset: EpisodeDataset, field: str) -> np.ndarray:
    """All rows of a field, as HDF5 itself reads them."""
    parts = []
    for header in dataset.headers:
        with h5py.File(header.path) as file:
            column: Any = file[field]
            parts.append(column[:])
    return np.concatenate(parts)


def test_rows_are_those_that_hdf5_reads_whatever_is_kept(tmp_path, monkeypatch):
    dataset = EpisodeDataset(write_toy_shards(tmp_path, episodes=30))
    assert len(dataset.headers) == 5
    truth = {name: by_hdf5(dataset, name) for name in dataset.headers[0].fields}
    rng = np.random.default_rng(0)
    for files, kept in ((64, 2**28), (2, 2**28), (1, 100_000), (1, 0)):
        monkeypatch.setattr(episode_dataset, "OPEN_FILES", files)
        monkeypatch.setattr(episode_dataset, "CACHE_BYTES", kept)
        read = EpisodeDataset(tmp_path)
        for _ in range(60):
            start, stop = np.sort(rng.integers(0, dataset.num_frames + 1, 2)).tolist()
            for name in ("frames", "actions", "terminals"):
                assert np.array_equal(read.read_rows(name, start, stop), truth[name][start:stop])
        reader = read._chunks
        sizes = [values.nbytes for values in reader._kept.values()]
        assert sum(sizes) == reader._kept_bytes <= max(kept, *sizes)
        assert len(reader._files) <= files


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def test_no_file_stays_open_behind_a_dataset(tmp_path, monkeypatch):
    write_toy_shards(tmp_path, episodes=60)
    monkeypatch.setattr(episode_dataset, "OPEN_FILES", 3)
    before = descriptors()
    dataset = EpisodeDataset(tmp_path)
    dataset.read_rows("frames", 0, dataset.num_frames)
    assert descriptors() == before + 3
    del dataset
    assert descriptors() == before


def test_noise_that_blosc_leaves_as_it_is_is_read_and_checked(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    path = tmp_path / shard_name(0)
    write_shard(path, [Episode(frames=noise, actions=None)], NOTHING)
    dataset = EpisodeDataset(tmp_path)
    assert np.array_equal(dataset.read(0, "frames", 3, 37), noise[3:37])
    column = dataset._chunks.column(0, "frames")
    with open(path, "r+b") as file:
        file.seek(int(column.places[1, 0]) + 1000)
        file.write(b"changed")
    again = EpisodeDataset(tmp_path)
    assert np.array_equal(again.read(0, "frames", 0, 16), noise[:16])
    with pytest.raises(ValueError, match="shard-00000.h5 is damaged .frames 3 to 37.*checksum"):
        again.read(0, "frames", 3, 37)


@pytest.mark.parametrize("options", [{}, {"fletcher32": True}])
def test_columns_that_are_not_compressed_are_read(tmp_path, options):
    frames = by_hdf5(EpisodeDataset(write_toy_shards(tmp_path)), "frames")
    with h5py.File(tmp_path / shard_name(0), "r+") as file:
        column: Any = file["frames"]
        own = column[:]
        del file["frames"]
        file.create_dataset("frames", data=own, chunks=(10, *own.shape[1:]), **options)
    assert np.array_equal(EpisodeDataset(tmp_path).read_rows("frames", 0, len(frames)), frames)


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ((16, 16, 32, 3), {}, r"frames have chunks of \(16, 16, 32, 3\)"),
        ((16, 32, 32, 3), {"compression": "gzip"}, r"the filters \(1,\)"),
    ],
)
def test_frames_that_are_stored_otherwise_are_refused(tmp_path, rows, options, reason):
    path = write_toy_shards(tmp_path) / shard_name(0)
    with h5py.File(path, "r+") as file:
        column: Any = file["frames"]
        own = column[:]
        del file["frames"]
        file.create_dataset("frames", data=own, chunks=rows, **options)
    with pytest.raises(ValueError, match=f"shard-00000.h5 is damaged .*{reason}"):
        EpisodeDataset(tmp_path)


@pytest.mark.parametrize("at", [4, 12])
def test_a_chunk_that_says_another_size_is_refused_before_it_is_decompressed(tmp_path, at):
    path = write_toy_shards(tmp_path) / shard_name(0)
    dataset = EpisodeDataset(tmp_path)
    offset, size, _ = dataset._chunks.column(0, "frames").places[0].tolist()
    with open(path, "r+b") as file:
        file.seek(offset)
        packed = bytearray(file.read(size - 4))
        packed[at : at + 4] = (10_000).to_bytes(4, "little")
        file.seek(offset)
        file.write(Fletcher32().encode(packed))
    with pytest.raises(ValueError, match="is damaged .*chunk 0 is not of 49152 bytes"):
        EpisodeDataset(tmp_path).read(0, "frames")


def test_a_shard_that_ends_early_since_it_was_opened_is_refused(tmp_path):
    write_toy_shards(tmp_path)
    dataset = EpisodeDataset(tmp_path)
    first = dataset.read(0, "frames")
    path = tmp_path / shard_name(0)
    os.truncate(path, int(dataset._chunks.column(0, "frames").places[6, 0]) + 10)
    with pytest.raises(ValueError, match="shard-00000.h5 is damaged .* ends after 10 of"):
        dataset.read_rows("frames", 100, 144)
    assert len(pickle.loads(pickle.dumps(dataset)).read(8, "rewards")) == 24
    with pytest.raises(ValueError, match="it has .* bytes, and had .* before"):
        pickle.loads(pickle.dumps(dataset)).read(0, "frames")
    assert np.array_equal(dataset.read(0, "frames"), first)


def _sum(dataset: EpisodeDataset) -> int:
    return int(dataset.read_rows("frames", 0, dataset.num_frames).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_through_what_their_parent_opened(tmp_path: Path, method: str):
    dataset = EpisodeDataset(write_toy_shards(tmp_path, episodes=30))
    expected = _sum(dataset)
    with multiprocessing.get_context(method).Pool(2) as pool:
        answers = pool.map_async(_sum, [dataset] * 4)
        assert _sum(dataset) == expected
        assert answers.get(300) == [expected] * 4


def test_a_process_that_may_open_few_files_reads_many_shards(tmp_path):
    write_toy_shards(tmp_path, episodes=60)
    dataset = EpisodeDataset(tmp_path)
    expected = by_hdf5(dataset, "actions")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open(os.devnull, os.O_RDONLY)
    os.close(spare)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 3, before[1]))
        assert np.array_equal(dataset.read_rows("actions", 0, len(expected)), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("code", "way"), [(errno.EACCES, "chmod"), (errno.EPERM, "chmod"), (errno.EMFILE, "ulimit")]
)
def test_a_shard_that_cannot_be_opened_is_not_called_damaged(tmp_path, monkeypatch, code, way):
    path = write_toy_shards(tmp_path) / shard_name(0)

    def refuse(*_args: object, **_named: object) -> None:
        raise OSError(code, "no", str(path))

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(ValueError, match=f"shard-00000.h5 cannot be opened .*{way}") as refused:
        EpisodeDataset(tmp_path)
    assert "delete" not in str(refused.value)


def test_lost_bytes_of_noise_are_no_black_frames(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    path = tmp_path / shard_name(0)
    write_shard(path, [Episode(frames=noise, actions=None)], NOTHING)
    dataset = EpisodeDataset(tmp_path)
    offset, size, left_out = dataset._chunks.column(0, "frames").places[1].tolist()
    assert left_out == 1  # Blosc
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    with pytest.raises(ValueError, match="is damaged .*chunk 1 is empty"):
        EpisodeDataset(tmp_path).read(0, "frames")


def test_a_chunk_behind_all_files_is_refused(tmp_path):
    path = write_toy_shards(tmp_path) / shard_name(0)
    offset = int(EpisodeDataset(tmp_path)._chunks.column(0, "frames").places[0, 0])
    packed = path.read_bytes()
    address = offset.to_bytes(8, "little")
    assert packed.count(address) == 1
    path.write_bytes(packed.replace(address, address[:7] + b"\xf0"))
    with pytest.raises(ValueError, match="shard-00000.h5 is damaged"):
        EpisodeDataset(tmp_path)


def test_a_shard_of_the_same_size_in_the_place_of_another_is_refused(tmp_path):
    path, rng = tmp_path / shard_name(0), np.random.default_rng(0)
    sizes = []
    for lengths in ((10, 30), (30, 10)):
        frames = [rng.integers(0, 256, (length, 16, 16, 3), np.uint8) for length in lengths]
        write_shard(path, [Episode(frames=part, actions=None) for part in frames], NOTHING)
        sizes.append(path.stat().st_size)
        if len(sizes) == 1:
            dataset = EpisodeDataset(tmp_path)
    assert sizes[0] == sizes[1]
    with pytest.raises(ValueError, match="shard-00000.h5 was written again while it was in use"):
        dataset.read(0, "frames")
    assert np.array_equal(EpisodeDataset(tmp_path).read(0, "frames"), frames[0])


@pytest.mark.parametrize("length", [1, 8, 48, 127, 128, 300])
def test_zeros_that_are_too_few_to_compress_are_read(tmp_path, length):
    frames = np.random.default_rng(0).integers(0, 255, (length, 16, 16, 3), np.uint8)
    rewards, ends = np.zeros(length, np.float32), np.zeros(length, bool)
    episode = Episode(frames, None, rewards=rewards, terminals=ends)
    write_shard(tmp_path / shard_name(0), [episode], NOTHING)
    dataset = EpisodeDataset(tmp_path)
    assert np.array_equal(dataset.read(0, "rewards"), rewards)
    assert np.array_equal(dataset.read(0, "terminals"), ends)
    assert np.array_equal(dataset.read(0, "frames"), frames)
