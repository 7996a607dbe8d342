"""Each fault of a file of demonstrations is an error in one line."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from data.pusht.demos import Demonstrations, load_demos


def arrays(**changes):
    random = np.random.default_rng(0)
    made = {
        "state": random.uniform(100, 400, (9, 5)).astype(np.float32),
        "action": random.uniform(100, 400, (9, 2)).astype(np.float32),
        "n_contacts": np.zeros((9, 1), np.float32),
        "episode_ends": np.array([4, 9]),
    }
    return {k: v for k, v in (made | changes).items() if v is not None}


def write_store(folder: Path, **changes) -> Path:
    group = zarr.open_group(str(folder), mode="w", zarr_format=2)
    for name, values in arrays(**changes).items():
        place = "meta" if name == "episode_ends" else "data"
        group.create_array(f"{place}/{name}", data=values)
    return folder


def write_zip(folder: Path, inside: str = "", **changes) -> Path:
    store = write_store(folder / "store", **changes)
    path = folder / "pusht.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(store.rglob("*")):
            if file.is_file():
                archive.write(file, f"{inside}{file.relative_to(store)}")
    return path


def write_npz(folder: Path, **changes) -> Path:
    np.savez(folder / "pusht.npz", **arrays(**changes))
    return folder / "pusht.npz"


def test_folder_zip_nested_zip_and_npz_hold_the_same(tmp_path):
    (tmp_path / "nested").mkdir()
    forms = [
        write_zip(tmp_path),
        tmp_path / "store",
        write_zip(tmp_path / "nested", inside="pusht/replay.zarr/"),
        write_npz(tmp_path),
    ]
    for path in forms:
        known = load_demos(path)
        assert np.array_equal(known.states, arrays()["state"]), path
        assert known.episode_ends.tolist() == [4, 9]
    episodes = Demonstrations(str(forms[0]), image_size=32).make_shard(0)
    assert [len(e) for e in episodes] == [4 + 1, 5 + 1] and [e.source for e in episodes] == [0, 1]


FAULTS = {
    "meta/episode_ends": {"episode_ends": None},
    "ends at step 12, but it holds 9": {"episode_ends": np.array([4, 12])},
    "do not rise": {"episode_ends": np.array([5, 5, 9])},
    "NaN or infinity in its states at step 3": {
        "state": np.where(np.arange(9)[:, None] == 3, np.nan, np.full((9, 5), 200.0))
    },
    r"states \(9, 4\)": {"state": np.zeros((9, 4), np.float32)},
    r"images \(9, 64, 96, 3\)": {"img": np.zeros((9, 64, 96, 3), np.float32)},
}


@pytest.mark.parametrize("message", FAULTS)
@pytest.mark.parametrize("write", [write_zip, write_npz])
def test_a_fault_is_named(tmp_path, write, message):
    with pytest.raises(ValueError, match=message) as problem:
        load_demos(write(tmp_path, **FAULTS[message]))
    assert "\n" not in str(problem.value) and str(tmp_path) in str(problem.value)


@pytest.mark.parametrize("write", [write_zip, write_npz])
def test_a_truncated_file_and_a_missing_one_are_named(tmp_path, write):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"not a whole zip file|cannot be read"):
        load_demos(path)
    with pytest.raises(ValueError, match="does not exist"):
        load_demos(tmp_path / "elsewhere.zip")
