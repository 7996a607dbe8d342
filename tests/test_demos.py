"""Each fault of a file of demonstrations is an error in one line."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import preprocess
from data.pusht.demo_data import load_demos
from data.pusht.demo_ends import describe_ends
from data.pusht.demos import Demonstrations
from data.pusht.perturbed_demos import PerturbedDemos
from data.pusht.simulator import goal_of
from data.pusht.symmetries import mirror
from data.pusht.vector_pusht import VectorPushT


@pytest.fixture(autouse=True)
def each_file_is_read_anew():
    load_demos.cache_clear()


def arrays(**changes):
    random = np.random.default_rng(0)
    state = random.uniform(100, 400, (9, 5)).astype(np.float32)
    state[:, 4] /= 100
    made = {
        "state": state,
        "action": random.uniform(100, 400, (9, 2)).astype(np.float32),
        "n_contacts": np.zeros((9, 1), np.float32),
        "episode_ends": np.array([4, 9]),
    }
    return {k: v for k, v in (made | changes).items() if v is not None}


def write_store(folder: Path, zarr_format: Any = 2, chunks: int | None = None, **changes) -> Path:
    group = zarr.open_group(str(folder), mode="w", zarr_format=zarr_format)
    for name, values in arrays(**changes).items():
        place = "meta" if name == "episode_ends" else "data"
        rows = min(chunks or len(values), len(values))
        group.create_array(f"{place}/{name}", data=values, chunks=(rows, *values.shape[1:]))
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
    "NaN or infinity in its positions at step 3": {
        "state": np.where(np.arange(9)[:, None] == 3, np.nan, np.full((9, 5), 20.0))
    },
    "1e\\+30 in its positions at step 0": {"state": np.full((9, 5), 1e30)},
    "359 in its angles at step 0, but radians": {"state": np.full((9, 5), 359.0)},
    "700 in its actions at step 0": {"action": np.full((9, 2), 700.0)},
    "0.5, which look like fractions": {"state": np.full((9, 5), 0.5)},
    r"states \(9, 4\)": {"state": np.full((9, 4), 20.0)},
    r"actions \(8, 2\)": {"action": np.full((8, 2), 20.0)},
    "state holds <U5, but numbers are needed": {"state": np.full((9, 5), "above")},
    "episode_ends holds <U2, but numbers": {"episode_ends": np.array(["4", "9x"])},
    r"9 states, but n_contacts of \(7, 1\)": {"n_contacts": np.ones((7, 1))},
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


def rezip(path: Path, change) -> None:
    """Write the members of a zip anew: `change` maps name and content to content, or to None."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if (new := change(name, content)) is not None:
                archive.writestr(name, new)


@pytest.mark.parametrize("lost", ["data/state/1.0", "data/action/0.0", "meta/episode_ends/0"])
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_store_that_lacks_a_chunk_is_refused(tmp_path, lost, form):
    path = write_zip(tmp_path, chunks=5)
    if form == "folder":
        path = tmp_path / "store"
        (path / lost).unlink()
    else:
        rezip(path, lambda name, content: None if name == lost else content)
    with pytest.raises(ValueError, match=f"not whole: 1 of . chunks of .*, first {lost}; get"):
        load_demos(path)


def test_contacts_may_leave_out_zeros_only_where_the_block_stands_still(tmp_path):
    state = arrays()["state"]
    contacts = np.arange(9)[:, None] >= 5  # the chunk of the first five rows is zeros: left out
    still = np.where(np.arange(9)[:, None] < 5, state[:1], state)
    known = load_demos(write_store(tmp_path / "a", chunks=5, state=still, n_contacts=contacts * 2))
    assert known.contacts is not None and known.contacts.tolist() == [0] * 5 + [2] * 4
    with pytest.raises(ValueError, match="1 of 3 chunks of data/n_contacts are missing, first"):
        load_demos(write_store(tmp_path / "b", chunks=4, n_contacts=contacts * 2))


def test_contacts_that_were_never_counted_are_zeros(tmp_path):
    contacts = load_demos(write_store(tmp_path / "a")).contacts
    assert contacts is not None and not contacts.any()


def test_contacts_that_are_not_recorded_are_not_made_up(tmp_path):
    path = write_npz(tmp_path, n_contacts=None)
    assert Demonstrations(str(path), 16).make_shard(0)[0].contacts is None


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("chunk", [None, 5])
def test_stores_of_both_formats_are_read_from_zips_of_their_folder(tmp_path, zarr_format, chunk):
    path = write_zip(tmp_path, inside="replay.zarr/", zarr_format=zarr_format, chunks=chunk)
    with zipfile.ZipFile(path, "a") as archive:  # as the file manager of macOS writes it
        archive.writestr("__MACOSX/replay.zarr/data/state/._zarr.json", b"\0\5\x16\7")
    assert np.array_equal(load_demos(path).states, arrays()["state"])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_path_above_the_store_finds_it_and_two_stores_are_refused(tmp_path, zarr_format):
    write_store(tmp_path / "a" / "pusht" / "replay.zarr", zarr_format=zarr_format)
    assert np.array_equal(load_demos(tmp_path / "a").actions, arrays()["action"])
    write_store(tmp_path / "a" / "pusht" / "second.zarr", zarr_format=zarr_format)
    load_demos.cache_clear()
    with pytest.raises(ValueError, match="holds 2 stores, pusht/replay.zarr and .*; give the path"):
        load_demos(tmp_path / "a")


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_flipped_bit_in_a_zip_is_refused(tmp_path):
    path = write_zip(tmp_path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("data/state/0.0")
    position = content.index(b"data/state/0.0", member.header_offset) + 14 + member.file_size // 2
    path.write_bytes(
        content[:position] + flip(content[position : position + 1]) + content[position + 1 :]
    )
    with pytest.raises(
        ValueError, match=r"pusht\.zip: its data/state cannot be read \("
    ) as problem:
        load_demos(path)
    assert "\n" not in str(problem.value)


DAMAGE = {
    "an unknown codec": ({"compressor": {"id": "nonsense"}}, "cannot be read"),
    "another codec": ({"compressor": {"id": "zlib", "level": 1}}, "cannot be read"),
    "a length that cannot be": ({"shape": [10**12, 5]}, "is of 1111.* chunks, and . files"),
    "a chunk that cannot be": ({"chunks": [10**12, 5]}, "at most 1000000000 are read"),
    "a type that is none": ({"dtype": "nonsense"}, "cannot be read"),
    "a text for a shape": ({"shape": "text"}, "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_metadata_is_refused_in_one_line(tmp_path, damage):
    changes, message = DAMAGE[damage]
    store = write_store(tmp_path / "store")
    file = store / "data" / "state" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message) as problem:
        load_demos(store)
    assert "\n" not in str(problem.value) and str(store) in str(problem.value)


def test_an_npz_that_declares_more_than_it_holds_is_refused(tmp_path):
    path, header = write_npz(tmp_path), io.BytesIO()
    declared = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 5)}
    np.lib.format.write_array_header_1_0(header, declared)
    rezip(path, lambda name, content: header.getvalue() if name == "state.npy" else content)
    with pytest.raises(ValueError, match=r"pusht\.npz cannot be read"):
        load_demos(path)


def test_what_is_no_archive_is_named_for_what_it_is(tmp_path):
    for name in ("page.npz", "page.zip"):
        (tmp_path / name).write_text("<!DOCTYPE html><html>not found</html>")
        with pytest.raises(ValueError, match="an HTML page"):
            load_demos(tmp_path / name)


def identity(path: Path) -> dict:
    load_demos.cache_clear()
    return Demonstrations(str(path)).description()["recordings"]


def test_the_identity_of_demonstrations_is_that_of_their_numbers(tmp_path):
    zipped = identity(write_zip(tmp_path))
    assert zipped["episodes"] == 2 and zipped["frames"] == 9
    (tmp_path / "other").mkdir()
    packed = identity(write_npz(tmp_path / "other"))
    assert zipped["sha256"] == packed["sha256"]
    changed = arrays()["state"]
    changed[3, 0] += 1
    assert identity(write_npz(tmp_path / "other", state=changed))["sha256"] != packed["sha256"]


def ends_at(folder: Path, x: float, y: float, degrees: float) -> Path:
    state = arrays()["state"]
    state[[3, 8], 2:] = x, y, np.deg2rad(degrees)
    load_demos.cache_clear()
    return write_npz(folder, state=state)


def test_a_goal_that_is_not_the_tasks_is_noticed(tmp_path):
    line = describe_ends(ends_at(tmp_path, 250, 260, 44), None)
    assert line.startswith("the demonstrations end with the block at 250 260 44 (x, y, degrees)")
    path = ends_at(tmp_path, 150, 300, 350)
    line = describe_ends(path, None)
    assert line.startswith("warning: ") and "need --goal 150 300 350" in line
    assert not describe_ends(path, (150, 300, -10)).startswith("warning")
    state = arrays()["state"]
    state[3, 2:4], state[8, 2:4] = (90, 90), (420, 420)
    load_demos.cache_clear()
    assert "no goal in common" in describe_ends(write_npz(tmp_path, state=state), None)


def test_frames_and_rewards_are_those_of_the_given_goal(tmp_path):
    path, goal = ends_at(tmp_path, 150, 300, 350), (150.0, 300.0, -10.0)
    ours, theirs = (Demonstrations(str(path), 32, goal=g) for g in (goal, None))
    own, standard = ours.make_shard(0)[0], theirs.make_shard(0)[0]
    assert own.rewards is not None and standard.rewards is not None
    assert own.rewards[3] > 0.99 and standard.rewards[3] < 0.5
    assert (own.frames != standard.frames).any()
    assert ours.description()["goal"] == [150, 300, -10] and "goal" not in theirs.description()
    assert np.allclose(goal_of(ours.description()), [150, 300, np.deg2rad(-10)])


def test_simulators_of_an_evaluation_have_the_goal_of_the_shards():
    goal = goal_of({"goal": [150, 300, -10]})
    with VectorPushT(1, 32, 1, goal) as envs:
        envs.reset(np.arange(1), np.array([[400, 400, *goal]]), np.zeros((1, 2)))
        _, coverages = envs.step(np.array([[400.0, 400.0]]), np.ones(1, bool))
    assert coverages[0] > 0.99


def test_copies_are_mirrored_only_for_the_tasks_own_goal(tmp_path):
    path = str(write_npz(tmp_path))
    first = arrays()["state"][0]
    for goal, start in ((None, mirror(first)), ((150.0, 300.0, 0.0), first)):
        episode = PerturbedDemos(path, 2, 16, goal=goal).make_shard(0)[1]
        assert episode.states is not None
        assert np.allclose(episode.states[0, :4], start[:4], atol=0.1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"goal": (1.0, 2.0, 3.0)}, "--goal needs --demos"),
        ({"goal": (-5.0, 2.0, 3.0), "demos": "x.npz"}, "--goal -5 2 is outside of the world"),
        ({"perturb": 2}, "--perturb needs --demos"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        preprocess.pusht(preprocess.PushTConfig(tmp_path / "run", **options))


def test_stage_1_says_where_demonstrations_end_and_notices_other_ones(tmp_path, capsys):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    first, second = write_npz(tmp_path / "1"), ends_at(tmp_path / "2", 150, 300, 350)
    config = preprocess.PushTConfig(tmp_path / "run", str(first), resolution=16, num_workers=1)
    preprocess.pusht(config)
    assert "the demonstrations end with the block at" in capsys.readouterr().out
    preprocess.pusht(replace(config, goal=(256, 256, 45)))  # the task's own
    assert "all shards exist" in capsys.readouterr().out
    with pytest.raises(ValueError, match="other content than when the shards in .* --restart"):
        preprocess.pusht(replace(config, demos=str(second)))
    with pytest.raises(ValueError, match="goal the default, but now it is"):
        preprocess.pusht(replace(config, goal=(150, 300, -10)))
