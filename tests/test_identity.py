"""Shards know what they were made from: other data under the same name is noticed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.arrays.array_source import ArraySource, _read_info
from data.io.folders import visible_files
from data.shards import identity
from data.shards.build_info import read_build_info
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset


def write_episodes(folder: Path, count: int, length: int = 5, seed: int = 0) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        frames = random.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{number:02d}.npz", frames=frames, actions=np.arange(length) % 3)
    return folder


def digest_of(path: Path) -> dict[str, Any]:
    return identity.digest_of(path, visible_files(path))


def make(path: Path, run: Path, restart: bool = False, **settings) -> int:
    _read_info.cache_clear()  # as in another process
    return build(ArraySource(str(path), **settings), run, "-", restart=restart)


def test_a_digest_is_of_content_and_not_of_place_or_time(tmp_path):
    a = write_episodes(tmp_path / "a", 3)
    known = digest_of(a)
    shutil.copytree(a, tmp_path / "deep" / "b", copy_function=shutil.copyfile)
    (tmp_path / "deep" / "b" / ".DS_Store").write_text("of a file manager")
    assert digest_of(tmp_path / "deep" / "b") == known
    assert identity.digest_of(a, reversed(sorted(a.iterdir()))) == known
    shutil.move(a / "00.npz", a / "03.npz")
    assert digest_of(a)["bytes"] == known["bytes"] and digest_of(a) != known


def test_a_flipped_bit_and_a_missing_chunk_change_the_digest(tmp_path):
    folder = tmp_path / "store" / "data" / "state"
    folder.mkdir(parents=True)
    for number in range(300):
        (folder / f"{number}.0").write_bytes(bytes([number % 256]) * 50)
    (folder / "zarr.json").write_text("{}")
    seen = {digest_of(tmp_path / "store")["sha256"]}
    content = bytearray((folder / "7.0").read_bytes())
    content[3] ^= 1
    (folder / "7.0").write_bytes(content)
    seen.add(digest_of(tmp_path / "store")["sha256"])
    (folder / "9.0").unlink()
    seen.add(digest_of(tmp_path / "store")["sha256"])
    (folder / "zarr.json").write_text("{ }")
    seen.add(digest_of(tmp_path / "store")["sha256"])
    assert len(seen) == 4
    with pytest.raises(ValueError, match="nothing cannot be read"):
        identity.digest_of(tmp_path, [tmp_path / "nothing"])


def test_recordings_that_grew_are_noticed_and_a_copy_elsewhere_is_not(tmp_path):
    path, run = write_episodes(tmp_path / "grow", 6), tmp_path / "run"
    assert make(path, run) == 1
    shutil.copytree(path, tmp_path / "other" / "grow")
    assert make(tmp_path / "other" / "grow", run) == 0
    write_episodes(path, 12)
    with pytest.raises(ValueError) as problem:
        make(path, run)
    assert str(problem.value) == (
        f"grow now has 12 episodes, and the shards in {run} are of 6; --restart makes them anew, "
        f"another --run keeps both"
    )
    assert len(EpisodeDataset(run)) == 6
    make(path, run, restart=True)
    assert len(EpisodeDataset(run)) == 12


@pytest.mark.parametrize(
    "change, message",
    [
        ({"length": 7}, "mine now has 42 frames, and the shards in .* are of 30"),
        ({"seed": 1}, "mine has other content than when the shards in .* were made"),
    ],
)
def test_other_data_under_the_same_name_is_noticed(tmp_path, change, message):
    make(write_episodes(tmp_path / "1" / "mine", 6), tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        make(write_episodes(tmp_path / "2" / "mine", 6, **change), tmp_path / "run")


def test_what_else_lies_in_the_folder_does_not_count(tmp_path):
    path = write_episodes(tmp_path / "mine", 3)
    make(path, path / "run")
    (path / "notes.txt").write_text("recorded on a Sunday")
    assert make(path, path / "run") == 0


def forget_recordings(run: Path) -> None:
    """Make shards and their build file as before they knew what they were made from."""
    import h5py

    info = read_build_info(run)
    assert info is not None
    del info["description"]["recordings"]
    (run / "build.json").write_text(json.dumps(info))
    for shard in run.glob("shard-*.h5"):
        with h5py.File(shard, "a") as file:
            description = json.loads(str(file.attrs["description"]))
            del description["recordings"]
            file.attrs["description"] = json.dumps(description, sort_keys=True)


def test_shards_that_are_older_than_the_digest_are_kept_and_finished(tmp_path, monkeypatch):
    monkeypatch.setattr("data.arrays.array_source.BYTES_PER_SHARD", 2 * 5 * 8 * 8 * 3)
    path, run = write_episodes(tmp_path / "mine", 6), tmp_path / "run"
    assert make(path, run) == 3
    forget_recordings(run)
    (run / "shard-00001.h5").unlink()
    assert make(path, run) == 1
    assert len(EpisodeDataset(run)) == 6
    write_episodes(path, 8)
    with pytest.raises(ValueError, match="is of 3 shards, but now there are 4; --restart makes"):
        make(path, run)


def test_settings_of_older_shards_have_the_defaults_of_now(tmp_path):
    path = write_episodes(tmp_path / "mine", 3)
    make(path, tmp_path / "run")
    settings = EpisodeDataset(tmp_path / "run").description["settings"]
    assert settings == {"path": "mine", "layout": "auto", "scale": 1.0}
    with pytest.raises(ValueError, match="holds shards with settings layout auto, but now it is H"):
        make(path, tmp_path / "run", layout="HWC")
