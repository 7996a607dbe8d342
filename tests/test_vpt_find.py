import gzip
import io
import struct
import tarfile
from typing import Literal

import pytest

from data.vpt.find import file_problem, find_local

VIDEO = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + bytes(100)
LOG = b'{"tick": 0}\n{"tick": 1}\n'


def put(folder, name, video: bytes | None = VIDEO, log: bytes | None = LOG):
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".mp4", video), (".jsonl", log)):
        if content is not None:
            (folder / f"{name}{suffix}").write_bytes(content)


def put_tar(path, files, mode: Literal["w", "w:gz"] = "w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def names(path, skip_invalid=False):
    return [pair.name for pair in find_local(path, skip_invalid)[0]]


def problem_and_skipped(path):
    """Return the error message, and the lines that replace it with --skip-invalid."""
    with pytest.raises(ValueError) as problem:
        find_local(path, skip_invalid=False)
    return str(problem.value), find_local(path, skip_invalid=True)[1]


def test_pairs_are_found_at_any_depth_and_sorted_by_name(tmp_path):
    put(tmp_path / "z", "a")
    put(tmp_path / "b" / "c", "m", video=VIDEO + b"m")
    put(tmp_path, "q")
    pairs, skipped = find_local(tmp_path, skip_invalid=False)
    assert [pair.name for pair in pairs] == ["a", "m", "q"] and skipped == []
    assert pairs[1].video.read() == VIDEO + b"m" and pairs[1].log.read() == LOG


def test_other_files_are_ignored(tmp_path):
    put(tmp_path, "a")
    for name in ("a-options.json", "a.zip", "Thumbs.db", "b.mp4.partial", "._a.mp4", "README"):
        (tmp_path / name).write_bytes(b"")
    assert names(tmp_path) == ["a"]


def test_only_the_last_suffix_is_removed_from_the_name(tmp_path):
    put(tmp_path, "6.10_a")
    put(tmp_path, "6.13_a")
    put_tar(tmp_path / "t.tar", {"7.1_a.mp4": VIDEO, "7.1_a.jsonl": LOG})
    assert names(tmp_path) == ["6.10_a", "6.13_a", "7.1_a"]


def test_members_of_a_tar_read_as_written(tmp_path):
    files = {"a.jsonl": LOG, "deep/er/b.mp4": VIDEO + b"b", "a.mp4": VIDEO, "x.json": b"{}"}
    long = "n" * 120  # needs a second header
    files |= {"deep/er/b.jsonl": LOG * 9, f"{long}.mp4": VIDEO, f"{long}.jsonl": LOG}
    path = put_tar(tmp_path / "all.tar", files)
    pairs, _ = find_local(path, skip_invalid=False)
    assert [pair.name for pair in pairs] == ["a", "b", long]
    assert pairs[1].video.read() == VIDEO + b"b" and pairs[1].log.read() == LOG * 9
    assert str(pairs[1].video) == f"{path}:deep/er/b.mp4"


def test_a_folder_may_hold_files_and_tars(tmp_path):
    put(tmp_path / "x", "b")
    put_tar(tmp_path / "x" / "1.tar", {"a.mp4": VIDEO, "a.jsonl": LOG})
    put_tar(tmp_path / "2.tar", {"c.mp4": VIDEO, "c.jsonl": LOG})
    assert names(tmp_path) == ["a", "b", "c"]


def test_one_video_is_found_with_its_log(tmp_path):
    put(tmp_path, "6.10_a")
    put(tmp_path, "b", log=None)
    assert names(tmp_path / "6.10_a.mp4") == ["6.10_a"]
    with pytest.raises(ValueError, match=r"b\.mp4 has no b\.jsonl next to it.*--skip-invalid"):
        find_local(tmp_path / "b.mp4", skip_invalid=False)


@pytest.mark.parametrize(
    ("halves", "named"),
    [
        ({"log": None}, "bad.mp4 has no bad.jsonl next to it"),
        ({"video": None}, "bad.jsonl has no bad.mp4 next to it"),
        ({"video": b""}, "bad.mp4 has 0 bytes"),
        ({"log": b""}, "bad.jsonl has 0 bytes"),
    ],
)
def test_half_a_pair_is_named_and_can_be_skipped(tmp_path, halves, named):
    put(tmp_path, "good")
    put(tmp_path, "bad", **halves)
    problem, skipped = problem_and_skipped(tmp_path)
    assert named in problem and "--skip-invalid" in problem and "\n" not in problem
    assert len(skipped) == 1 and named in skipped[0] and "--skip-invalid" not in skipped[0]
    assert names(tmp_path, skip_invalid=True) == ["good"]


def test_halves_in_different_folders_are_not_a_pair(tmp_path):
    put(tmp_path, "good")
    put(tmp_path / "x", "bad", log=None)
    put(tmp_path / "y", "bad", video=None)
    assert len(problem_and_skipped(tmp_path)[1]) == 2


def test_an_empty_member_of_a_tar_is_a_problem_of_its_pair(tmp_path):
    path = put_tar(
        tmp_path / "t.tar", {"a.mp4": b"", "a.jsonl": LOG, "b.mp4": VIDEO, "b.jsonl": LOG}
    )
    assert f"{path}:a.mp4 has 0 bytes" in problem_and_skipped(path)[0]
    assert names(path, skip_invalid=True) == ["b"]


def test_a_duplicate_name_is_refused_or_used_once(tmp_path):
    put(tmp_path / "x", "a")
    put_tar(tmp_path / "y.tar", {"s/a.mp4": VIDEO, "s/a.jsonl": LOG})
    problem, skipped = problem_and_skipped(tmp_path)
    assert "y.tar:s/a.mp4 has the same name as" in problem and "x/a.mp4" in problem
    assert len(skipped) == 1 and names(tmp_path, skip_invalid=True) == ["a"]


def test_suffixes_may_be_in_capital_letters(tmp_path):
    put(tmp_path, "a")
    (tmp_path / "a.mp4").rename(tmp_path / "a.MP4")
    put_tar(tmp_path / "T.TAR", {"b.Mp4": VIDEO, "b.JSONL": LOG})
    pairs, _ = find_local(tmp_path, skip_invalid=False)
    assert [pair.name for pair in pairs] == ["a", "b"] and pairs[0].video.read() == VIDEO
    (tmp_path / "a.jsonl").rename(tmp_path / "a.JSONL")
    assert names(tmp_path / "a.MP4") == ["a"]
    (tmp_path / "a.mp4").write_bytes(VIDEO)
    problem, skipped = problem_and_skipped(tmp_path)
    assert "a.mp4 has the same name as" in problem and len(skipped) == 1


def test_linked_folders_are_followed_once(tmp_path):
    put(tmp_path / "here", "a")
    put(tmp_path / "disk" / "deep", "b")
    (tmp_path / "here" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "here" / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "deep" / "loop").symlink_to(tmp_path / "here")
    assert names(tmp_path / "here") == ["a", "b"]


def test_a_link_to_a_missing_file_is_named(tmp_path):
    put(tmp_path, "good")
    for suffix in (".mp4", ".jsonl"):
        (tmp_path / f"bad{suffix}").symlink_to(tmp_path / f"gone{suffix}")
    problem, skipped = problem_and_skipped(tmp_path)
    assert "is a link to" in problem and "gone" in problem and len(skipped) == 2


def test_folders_of_minerl_are_named(tmp_path):
    put(tmp_path / "one", "recording", log=None)
    (tmp_path / "one" / "rendered.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"recording\.mp4 is of a MineRL folder.*arrays"):
        find_local(tmp_path, skip_invalid=False)


@pytest.mark.parametrize("skip_invalid", [False, True])
def test_nothing_to_read_is_always_an_error(tmp_path, skip_invalid):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match="holds no pair"):
        find_local(tmp_path, skip_invalid)
    with pytest.raises(ValueError, match=r"missing does not exist; give a folder, a \.tar"):
        find_local(tmp_path / "missing", skip_invalid)
    with pytest.raises(ValueError, match=r"notes\.txt is of another kind; give a folder, a \.tar"):
        find_local(tmp_path / "notes.txt", skip_invalid)


def test_only_invalid_pairs_are_an_error_that_names_one(tmp_path):
    put(tmp_path, "a", log=None)
    put(tmp_path, "b", log=None)
    with pytest.raises(ValueError, match=r"holds no pair .*a\.mp4 has no a\.jsonl.*2 such"):
        find_local(tmp_path, skip_invalid=True)


@pytest.mark.parametrize("name", ["t.tar.gz", "t.tgz", "t.tar.zst"])
def test_a_compressed_tar_has_to_be_unpacked_first(tmp_path, name):
    put(tmp_path, "good")
    (tmp_path / name).write_bytes(gzip.compress(b"x"))
    problem, skipped = problem_and_skipped(tmp_path)
    assert f"{name} is compressed; unpack it first" in problem and len(skipped) == 1
    with pytest.raises(ValueError, match="unpack it first"):
        find_local(tmp_path / name, skip_invalid=False)


def test_a_compressed_tar_is_detected_without_its_suffix(tmp_path):
    put(tmp_path, "good")
    put_tar(tmp_path / "t.tar", {"a.mp4": VIDEO, "a.jsonl": LOG}, "w:gz")
    assert "t.tar is compressed, damaged or truncated" in problem_and_skipped(tmp_path)[0]


BLOCK = tarfile.BLOCKSIZE


@pytest.mark.parametrize(
    ("cut", "whole"),
    [
        (0, []),
        (100, []),  # in the first header
        (BLOCK + 50, []),  # in a video
        (4 * BLOCK, ["a"]),  # between pairs
        (5 * BLOCK, ["a"]),  # behind a header
        (7 * BLOCK + 5, ["a"]),  # in a log
    ],
)
def test_a_truncated_tar_is_named_and_its_whole_pairs_can_be_used(tmp_path, cut, whole):
    files = {"a.mp4": VIDEO, "a.jsonl": LOG, "b.mp4": VIDEO, "b.jsonl": LOG}
    path = put_tar(tmp_path / "t.tar", files)
    path.write_bytes(path.read_bytes()[:cut])
    put(tmp_path, "good")
    problem, skipped = problem_and_skipped(tmp_path)
    assert "t.tar is compressed, damaged or truncated" in problem and "--skip-invalid" in problem
    assert "t.tar is compressed, damaged or truncated" in skipped[0]
    assert names(tmp_path, skip_invalid=True) == [*whole, "good"]


def test_a_damaged_header_is_not_taken_for_the_end_of_a_tar(tmp_path):
    files = {"a.mp4": VIDEO, "a.jsonl": LOG, "b.mp4": VIDEO, "b.jsonl": LOG}
    path = put_tar(tmp_path / "t.tar", files)
    content = bytearray(path.read_bytes())
    content[4 * BLOCK + 150] ^= 0xFF  # in the checksum of b.mp4's header
    path.write_bytes(content)
    problem, _ = problem_and_skipped(path)
    assert f"no header and no end at byte {4 * BLOCK}" in problem
    assert names(path, skip_invalid=True) == ["a"]


def box(kind, size=8, more=b""):
    return struct.pack(">I4s", size, kind) + more


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.mp4", VIDEO, ""),
        ("a.mp4", VIDEO[:16] + box(b"mdat", 28, bytes(20)) + box(b"moov"), ""),
        ("a.mp4", VIDEO[:16] + box(b"moov") + box(b"mdat", 0, bytes(50)), ""),  # to the end
        ("a.mp4", VIDEO[:16] + box(b"mdat", 1, struct.pack(">Q", 2**33)), ""),  # a long one
        ("a.mp4", VIDEO[:16] + box(b"mdat", 28, bytes(19)), "43 bytes of an MP4 of 44"),
        ("a.mp4", b"<html>sorry</html>", "no MP4 (it starts with b'<html>"),
        ("a.mp4", b"", "no MP4"),
        ("a.jsonl", LOG, ""),
        ("a.jsonl", LOG.strip(), ""),
        ("a.jsonl", LOG[:-3], "no whole log"),
        ("a.jsonl", b"<html>sorry</html>", "no whole log (it starts with b'<html>"),
        ("a.jsonl", b"", "no whole log"),
    ],
)
def test_the_start_and_end_of_a_file_are_checked(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    problem = file_problem(tmp_path / name, (tmp_path / name).suffix)
    assert problem.startswith(found) and bool(found) == bool(problem)
