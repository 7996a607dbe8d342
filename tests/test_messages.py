"""Messages stay short, however much there is to say."""

import pytest

from data.io.messages import LONGEST, counted, first_few, one_line


@pytest.mark.parametrize(
    "count, text",
    [
        (0, ""),
        (1, "e0"),
        (6, "e0, e1, e2, e3, e4, e5"),
        (7, "e0, e1, e2, e3, e4 and 2 more"),
        (400, "e0, e1, e2, e3, e4 and 395 more"),
    ],
)
def test_a_list_names_the_first_few_and_counts_the_others(count, text):
    assert first_few(f"e{i}" for i in range(count)) == text


def test_one_of_a_thing_has_no_plural():
    assert [counted(n, "shard") for n in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]


def test_another_librarys_error_is_one_short_line():
    assert one_line(OSError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(OSError("x" * 5000))) < LONGEST + 10
