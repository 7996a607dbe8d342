"""Files are written whole or not at all; what is no file is not waited for."""

import errno
import os
import subprocess
import sys

import pytest

from data.io.files import (
    atomic_path,
    atomic_write,
    check_regular,
    parse_json,
    partial_path,
    remove_abandoned,
    writable_folder,
)


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_each_process_writes_to_a_partial_file_of_its_own(tmp_path):
    path = tmp_path / "a.json"
    with atomic_path(path) as partial:
        assert partial.name == f"a.json.{os.getpid()}.partial"
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as partial:
        partial.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    path, parent = tmp_path / "a.json", os.getppid()
    left = tmp_path / f"a.json.{dead_process()}.partial"
    other = tmp_path / f"b.json.{dead_process()}.partial"
    kept = [tmp_path / f"a.json.{parent}.partial", tmp_path / "a.json.partial"]
    for file in (left, other, *kept):
        file.write_text("half")
    atomic_write(path, b"new")
    assert sorted(tmp_path.iterdir()) == sorted([path, other, *kept])
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([path, *kept])


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 100_000, '{"a":' * 100_000])
def test_whatever_is_wrong_with_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_a_pipe_is_named_for_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "shard")
    with pytest.raises(ValueError, match="shard is a named pipe, not a file"):
        check_regular(tmp_path / "shard")
    with pytest.raises(ValueError, match="null is a device"):
        check_regular(tmp_path.__class__("/dev/null"))
    (tmp_path / "file").touch()
    check_regular(tmp_path / "file")


def test_a_folder_that_cannot_be_written_to_is_named_with_its_flag(tmp_path, monkeypatch):
    assert writable_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/b cannot be written to \(Not a dir.*another --out"):
        writable_folder(tmp_path / "file" / "b", "--out")
    with pytest.raises(
        ValueError, match="file is a file, not a folder; delete it, or choose another --run"
    ):
        writable_folder(tmp_path / "file")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.touch", refuse)  # root may write where nobody else may
    with pytest.raises(ValueError, match=r"\(Read-only file system\); choose another --run"):
        writable_folder(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_one_line(tmp_path):
    partial_path(tmp_path / "a").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"a was not written: No space left on device$"):
        atomic_write(tmp_path / "a", b"x" * 9)
    assert not list(tmp_path.iterdir())
