"""NumPy's files: what they hold, what is damaged, and what only pretends to be one."""

import io
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from recorded_steps import episodes, frames, times, values


def write(folder: Path, count: int = 3, **more) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        steps = {"frames": frames(number, number + 1, number + 2), "actions": np.arange(3)}
        np.savez_compressed(folder / f"{number}.npz", **steps, **more)
    return folder


def npy(array: np.ndarray) -> bytes:
    memory = io.BytesIO()
    np.save(memory, array)
    return memory.getvalue()


def test_one_npz_may_hold_one_episode_or_stacked_ones(tmp_path):
    write(tmp_path, 1)
    assert episodes(tmp_path / "0.npz").lengths == (3,)
    stacked = np.stack([frames(0, 1), frames(5, 6)])
    np.savez(tmp_path / "all.npz", frames=stacked, actions=np.zeros((2, 2), int))
    raw = episodes(tmp_path / "all.npz")
    assert raw.lengths == (2, 2) and times(raw, 1) == [5, 6]
    with pytest.raises(ValueError, match="stacked episodes"):
        episodes(tmp_path)


def test_linked_files_and_folders_are_followed(tmp_path):
    real = write(tmp_path / "real", 2)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a.npz").symlink_to(real / "0.npz")
    (linked / "more").symlink_to(real)
    (linked / "more" / "circle").symlink_to(linked)
    assert len(episodes(linked).lengths) == 3
    (tmp_path / "link").symlink_to(real)
    assert len(episodes(tmp_path / "link").lengths) >= 2


def test_a_link_to_what_is_not_there_is_named(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "1.npz").symlink_to(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"1\.npz is a link to what is not there .*absent"):
        episodes(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    write(tmp_path, 1)
    os.mkfifo(tmp_path / "1.npz")
    assert episodes(tmp_path).lengths == (3,)
    with pytest.raises(ValueError, match="is no file and no folder"):
        episodes(tmp_path / "1.npz")
    os.mkfifo(tmp_path / "frames.npy")
    assert episodes(tmp_path).lengths == (3,)


def test_suffixes_are_compared_without_case(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "0.npz").rename(tmp_path / "0.NPZ")
    assert episodes(tmp_path).lengths == (3,) == episodes(tmp_path / "0.NPZ").lengths


def test_files_that_macos_leaves_are_passed_over(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "._0.npz").write_bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert len(episodes(tmp_path).lengths) == 2


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"PAR1", "a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"", "empty"),
        (npy(np.zeros(3)), "a NumPy .npy file"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path, content, kind):
    write(tmp_path, 2)
    (tmp_path / "1.npz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"1\.npz is {kind}.*, not an \.npz file"):
        episodes(tmp_path)
    shutil.copy(tmp_path / "1.npz", tmp_path / "frames.npy")
    if not content.startswith(b"\x93"):
        with pytest.raises(ValueError, match=rf"frames\.npy is {kind}.*, not a NumPy"):
            episodes(tmp_path)


@pytest.mark.parametrize("as_npz", [True, False])
def test_python_objects_are_never_loaded_and_numpys_advice_to_is_not_given(tmp_path, as_npz):
    ragged = np.empty(2, object)
    ragged[:] = [frames(0)[0], frames(1)[0]]
    if as_npz:
        np.savez(tmp_path / "0.npz", frames=ragged, actions=np.arange(2))
    else:
        np.save(tmp_path / "frames.npy", ragged)
    with pytest.raises(ValueError, match="Python objects.*never loaded") as problem:
        episodes(tmp_path).read(0, "frames")
    assert "allow_pickle" not in str(problem.value)


def test_objects_that_nobody_reads_do_no_harm(tmp_path):
    write(tmp_path, 1, info=np.array([{"level": 3}, None, None]))
    raw = episodes(tmp_path)
    assert times(raw, 0) == [0, 1, 2] and "left aside, not read: info" in raw.remarks


def rewrite(path: Path, method: int | None = None, **members: bytes) -> None:
    """Write an .npz of raw members; `method` is what its directory calls their compression."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    if method is not None:
        content = path.read_bytes()
        for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            parts = content.split(mark)
            parts[1:] = [
                part[: place - 4] + struct.pack("<H", method) + part[place - 2 :]
                for part in parts[1:]
            ]
            content = mark.join(parts)
        path.write_bytes(content)


def test_a_compression_that_zipfile_does_not_know_is_one_line(tmp_path):
    members = {"frames": npy(frames(0, 1)), "actions": npy(np.arange(2))}
    rewrite(tmp_path / "0.npz", 9, **members)  # Deflate64, as Windows writes large zips
    with pytest.raises(ValueError, match=r"0\.npz cannot be read .*compression.*") as problem:
        episodes(tmp_path)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("shape", [(10**12, 8, 8, 3), (1, 8, 8, 3)])
def test_a_header_that_declares_other_values_than_are_there_is_refused(tmp_path, shape):
    memory = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(memory, header)
    memory.write(bytes(2 * 8 * 8 * 3))
    rewrite(tmp_path / "0.npz", frames=memory.getvalue(), actions=npy(np.arange(2)))
    with pytest.raises(ValueError, match=r"declared as uint8 .* but 384 are there"):
        episodes(tmp_path)


def test_every_flipped_bit_is_read_or_refused_in_one_line(tmp_path):
    write(tmp_path, 1)
    path = tmp_path / "0.npz"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 97):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            raw = episodes(path)
            found = raw.read(0, "frames"), raw.read(0, "actions")
        except ValueError as problem:
            assert "\n" not in str(problem) and len(str(problem)) < 700
        else:
            assert np.array_equal(found[0], frames(0, 1, 2)) and found[1].tolist() == [0, 1, 2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "0.npz").chmod(0)
    with pytest.raises(ValueError, match=r"0\.npz cannot be read \(Permission denied\)"):
        episodes(tmp_path)


def test_npy_files_of_other_names_are_not_lost(tmp_path):
    np.save(tmp_path / "run[1]_frames.npy", np.stack([frames(0, 1)]))
    np.save(tmp_path / "run[1]_reward.npy", np.zeros((1, 2)))
    with pytest.raises(ValueError, match="--rename reward=rewards"):
        episodes(tmp_path / "run[1]")
    raw = episodes(tmp_path / "run[1]", rename=["reward=rewards"])
    assert values(raw, 0, "rewards") == [0, 0]


def test_steps_in_a_row_in_npy_files_are_cut_at_their_ends(tmp_path):
    np.save(tmp_path / "frames.npy", frames(0, 1, 5))
    np.save(tmp_path / "ep_len.npy", np.array([2, 1]))
    raw = episodes(tmp_path)
    assert raw.lengths == (2, 1) and times(raw, 1) == [5]
