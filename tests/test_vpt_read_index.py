"""Reading of OpenAI's index files, and drawing from them."""

import json
import re
from pathlib import Path

import pytest

from data.vpt.index import load_index, read_index, sample_recordings

REAL = Path(__file__).parents[2] / "shared" / "data" / "vpt" / "index"


def index(**keys):
    return json.dumps(keys).encode()


def test_the_real_form_and_the_readmes_name_the_same_recordings():
    real = index(basedir="https://s/rl/", relpaths=["data/8.0/a.mp4", "data/6.10/b.mp4"])
    readme = index(basedir="https://s/rl/data/", relpaths=["8.0/a", "6.10/b"])
    stems = ["https://s/rl/data/8.0/a", "https://s/rl/data/6.10/b"]
    assert read_index(real, "i") == read_index(readme, "i") == stems


def test_the_last_slash_may_be_missing_and_one_mp4_is_stripped():
    content = index(basedir="https://s/rl", relpaths=["x/a.mp4.mp4", "x/b", "x/b.mp4"])
    assert read_index(content, "i") == ["https://s/rl/x/a.mp4", "https://s/rl/x/b"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<html>sorry</html>", "starts with b'<html>sorry</html>', not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"", "not JSON"),
        (b"[1, 2]", "basedir None"),
        (index(relpaths=["a/b"]), "basedir None"),
        (index(basedir=3, relpaths=["a/b"]), "basedir 3"),
        (index(basedir="data/", relpaths=["a/b"]), "basedir 'data/'"),
        (index(basedir="https://s/../", relpaths=["b"]), "basedir 'https://s/../'"),
        (index(basedir="file://localhost/etc", relpaths=["a/b"]), "localhost/etc', but only"),
        (index(basedir="ftp://s/data", relpaths=["a/b"]), "ftp://s/data', but only http"),
        (b"[" * 100_000, "not JSON"),
        (index(basedir="https://s/"), "relpaths None"),
        (index(basedir="https://s/", relpaths=[]), "relpaths []"),
        (index(basedir="https://s/", relpaths="a/b"), "relpaths a/b"),
        *(
            (index(basedir="https://s/", relpaths=["a/b", path]), f"{path!r} as relpath 1")
            for path in (7, None, "", ".mp4", "../b", "a/../../b", "/etc/b", "a//b", "a/..",
                         "a/b?c", "a/b#c", "a b", "a\\..\\b", "a/b\x00", "a/\N{SNOWMAN}")
        ),
    ],
)  # fmt: skip
def test_an_invalid_index_is_refused_in_one_line(content, found):
    with pytest.raises(
        ValueError, match=f"^some.json .*{re.escape(found)}.*an index is"
    ) as problem:
        read_index(content, "some.json")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"basedir": "x" * 9000, "relpaths": ["a/b"]},
        {"basedir": "https://" + "x" * 9000, "relpaths": ["a/b"]},
        {"basedir": "https://s/", "relpaths": ["a?" * 9000]},
        {"basedir": "https://s/", "relpaths": "a" * 9000},
    ],
)
def test_what_is_said_of_an_index_is_short(keys):
    with pytest.raises(ValueError) as problem:
        read_index(index(**keys), "some.json")
    assert len(str(problem.value)) < 500


@pytest.mark.skipif(not REAL.is_dir(), reason="the real index files are not on this machine")
def test_the_real_index_files_are_read():
    files = sorted(REAL.glob("*.json"))
    assert files
    for file in files:
        stems = load_index(str(file), Path("unused"))
        assert len(stems) == len(json.loads(file.read_bytes())["relpaths"])
        clip = re.compile(r"https://[^/]+/minecraft-rl/data/[^/]+/[^/.]+-[0-9a-f]{12}-\d{8}-\d{6}")
        assert all(clip.fullmatch(stem) for stem in stems)


STEMS = [f"https://s/data/10.0/clip{n}" for n in range(200)]


def test_a_larger_draw_of_one_seed_extends_a_smaller_one():
    few, many = sample_recordings(STEMS, 20, 3), sample_recordings(STEMS, 90, 3)
    assert many[:20] == few and len(set(many)) == 90 and set(many) <= set(STEMS)


def test_a_draw_depends_on_its_seed_but_not_on_the_order_or_the_server():
    assert (
        sample_recordings(STEMS, 20, 3)
        == sample_recordings(STEMS[::-1], 20, 3)
        != sample_recordings(STEMS, 20, 4)
    )
    mirror = [stem.replace("https://s/", "http://mirror/vpt/") for stem in STEMS]
    ends = [stem.rsplit("/", 1)[1] for stem in sample_recordings(mirror, 20, 3)]
    assert ends == [stem.rsplit("/", 1)[1] for stem in sample_recordings(STEMS, 20, 3)]


def test_a_draw_is_the_same_in_every_process_and_release():
    assert [stem[-3:] for stem in sample_recordings(STEMS, 4, 0)] == ["124", "p99", "169", "158"]


@pytest.mark.parametrize("count", [0, 201])
def test_more_recordings_than_in_the_index_are_an_error_with_both_numbers(count):
    with pytest.raises(ValueError, match=f"--num-recordings {count} must be between 1 and 200"):
        sample_recordings(STEMS, count, 0)
