"""Files are named for what they begin with."""

import io
import zipfile

import h5py
import numpy as np
import pytest

from data.io.sniff import describe_content, describe_head


def npy() -> bytes:
    memory = io.BytesIO()
    np.save(memory, np.zeros(3))
    return memory.getvalue()


def zipped() -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("a", "b")
    return memory.getvalue()


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html>", "an HTML page"),
        (b"\xef\xbb\xbf<html lang=de>", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML document"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "macOS"),
        (b"\x1f\x8b\x08\0", "compressed with gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "git lfs pull"),
        (npy(), "a NumPy .npy file"),
        (zipped(), "a zip archive"),
        (b"\0\0\0\x20ftypisom", "an MP4 video"),
        (b"RIFF\0\0\0\0AVI LIST", "an AVI video"),
        (b"\x80\x04\x95", "a Python pickle"),
        (bytes(600), "zeros"),
        (b'{"message": "not found"}', 'a JSON text (it begins with \'{"message"'),
        ("Grüße, Welt".encode() * 100, "a text (it begins with 'Grüße, Welt"),
        (b"\xf3\x01\xffabc", "of an unknown kind"),
    ],
)
def test_a_file_is_named_for_its_first_bytes(tmp_path, content, kind):
    (tmp_path / "a.npz").write_bytes(content)
    found = describe_content(tmp_path / "a.npz")
    assert found.startswith(kind) or kind in found
    assert "\n" not in found and len(found) < 120


def test_an_hdf5_file_is_known(tmp_path):
    with h5py.File(tmp_path / "a", "w") as file:
        file["x"] = 1
    assert describe_content(tmp_path / "a") == "an HDF5 file"


def test_a_cut_character_at_the_end_of_what_is_read_is_still_text():
    assert describe_head(("x" * 511 + "ü").encode()[:512]).startswith("a text")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="nothing cannot be read"):
        describe_content(tmp_path / "nothing")
