"""What imported actions are taken for, and what their range is."""

from pathlib import Path

import numpy as np
import pytest

from data.actions import ActionSpec
from data.arrays.array_actions import ActionOptions
from data.arrays.array_source import ArraySource

LENGTH = 6
RANDOM = np.random.default_rng(0)
CODES = RANDOM.integers(0, 4, (3, LENGTH))
CODES[0, 0] = 3
NUMBERS = RANDOM.uniform(-1, 1, (3, LENGTH, 2)).astype(np.float32)
PAIRS = np.stack([CODES % 2, CODES // 2 + 1], -1)
ONE_HOT = np.eye(4, dtype=np.float32)[CODES]


def source(folder: Path, actions: np.ndarray, **options) -> ArraySource:
    folder.mkdir(parents=True, exist_ok=True)
    for number, values in enumerate(actions):
        frames = RANDOM.integers(0, 256, (len(values), 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{number}.npz", frames=frames, actions=values)
    return ArraySource(str(folder), actions=ActionOptions(**options))


def imported(source: ArraySource) -> tuple[ActionSpec, list[np.ndarray], str]:
    """The action space, the actions of each episode, and what is said of them."""
    actions = [episode.actions for episode in source.make_shard(0)]
    assert all(values is not None for values in actions)
    spec = ActionSpec.from_dict(source.description()["actions"])
    return spec, [np.asarray(values) for values in actions], "\n".join(source.remarks)


@pytest.mark.parametrize("stored", [CODES, CODES[..., None], CODES[..., None].astype(np.uint8)])
def test_a_column_of_codes_is_codes(tmp_path, stored):
    spec, actions, remark = imported(source(tmp_path, stored))
    assert spec == ActionSpec("discrete", ("0", "1", "2", "3"))
    assert np.array_equal(actions, CODES) and actions[0].dtype == np.int64
    assert "taken as codes 0 to 3; --actions continuous if" in remark


@pytest.mark.parametrize("kind", [np.float32, np.int64, bool])
def test_one_hot_rows_are_codes(tmp_path, kind):
    spec, actions, remark = imported(source(tmp_path, ONE_HOT.astype(kind)))
    assert spec == ActionSpec("discrete", ("0", "1", "2", "3"))
    assert np.array_equal(actions, CODES) and actions[0].dtype == np.int64
    assert "one-hot rows (T, 4), taken as 4 codes" in remark


def test_vectors_of_codes_are_factors(tmp_path):
    spec, actions, remark = imported(source(tmp_path, PAIRS))
    assert spec.kind == "discrete" and spec.factor_sizes == (2, 3)
    assert [f.name for f in spec.factors] == ["action_0", "action_1"]
    assert np.array_equal(spec.unravel(np.stack(actions)), PAIRS)
    assert "taken as 2 x 3 choices" in remark


@pytest.mark.parametrize("change", [lambda a: a - 1, lambda a: a * 20])
def test_vectors_of_whole_numbers_that_are_no_codes_are_continuous(tmp_path, change):
    spec, actions, _ = imported(source(tmp_path, change(PAIRS)))
    assert spec.kind == "continuous" and actions[0].dtype == np.float32
    assert np.array_equal(actions, change(PAIRS))


def test_what_actions_are_can_be_said(tmp_path):
    for number, (stored, kind, expected) in enumerate([
        (CODES, "continuous", CODES[..., None]),
        (PAIRS, "continuous", PAIRS),
        (ONE_HOT, "continuous", ONE_HOT),
        (CODES.astype(np.float32), "codes", CODES),
        (CODES.astype(np.float32), "continuous", CODES[..., None]),
        (ONE_HOT, "codes", np.einsum("ntk,k->nt", ONE_HOT, [1, 2, 4, 8]).astype(int)),
    ]):  # fmt: skip
        spec, actions, _ = imported(source(tmp_path / str(number), stored, kind=kind))
        assert np.array_equal(actions, expected), (kind, spec)
        assert spec.kind == ("continuous" if kind == "continuous" else "discrete")


def test_the_next_session_of_a_world_keeps_its_action_space(tmp_path):
    first, _, _ = imported(source(tmp_path / "a", NUMBERS))
    other = NUMBERS * np.float32(1.01)
    spec, actions, remark = imported(source(tmp_path / "b", other, spec=first))
    assert spec == first and np.allclose(actions, np.clip(other, spec.low, spec.high))
    assert "of action_0 lie outside of" in remark and "they are clipped to it" in remark
    codes, _, _ = imported(source(tmp_path / "c", CODES))
    assert imported(source(tmp_path / "d", np.minimum(CODES, 1), spec=codes))[0] == codes
    assert imported(source(tmp_path / "e", ONE_HOT, spec=codes))[0] == codes
    pairs, _, _ = imported(source(tmp_path / "f", PAIRS))
    spec, actions, _ = imported(source(tmp_path / "g", PAIRS[:, :, ::1] * 0, spec=pairs))
    assert spec == pairs and not np.any(actions)


def test_ranges_and_numbers_of_codes_can_be_given(tmp_path):
    low, high = (-2.0,), (2.0, 3.0)
    spec, actions, remark = imported(source(tmp_path / "a", NUMBERS, low=low, high=high))
    assert spec.low == (-2, -2) and spec.high == (2, 3) and "outside" not in remark
    assert np.array_equal(actions, NUMBERS)
    spec, _, _ = imported(source(tmp_path / "b", CODES, num_codes=(7,)))
    assert spec.size == 7
    spec, _, _ = imported(source(tmp_path / "c", PAIRS, num_codes=(2, 5)))
    assert spec.factor_sizes == (2, 5)


CONTINUOUS = ActionSpec("continuous", ("x",), (-1.0,), (1.0,))
DISCRETE = ActionSpec("discrete", ("a", "b", "c"))
ZERO_FIRST = np.concatenate([ONE_HOT[:, :1] * 0, ONE_HOT[:, 1:]], axis=1)
WRONG = [
    (NUMBERS, {"kind": "codes"}, r"0\.npz has actions of float32 \(2,\) .* not all whole"),
    (NUMBERS, {"kind": "one-hot"}, "not all rows hold a single one"),
    (NUMBERS[..., 0], {}, "say whether they are codes or a quantity: --actions codes"),
    (ZERO_FIRST, {}, r"0\.npz begins with an action of zeros, .* give --alignment previous"),
    (PAIRS - 1, {"kind": "codes"}, "has the action code -1; codes start at 0"),
    (CODES + 10**6, {}, "end below 65536: renumber them, or give --actions continuous"),
    (PAIRS * 300, {"kind": "codes"}, "actions of 301 x 601 codes, and at most 65536"),
    (CODES, {"num_codes": (3,)}, r"0\.npz has the action code 3, and codes go from 0 to 2"),
    (CODES, {"num_codes": (3, 3)}, "--num-codes has 2 numbers, but an action has 1 codes"),
    (CODES, {"low": (0.0,), "high": (3.0,), "kind": "codes"}, "are for continuous actions"),
    (NUMBERS, {"num_codes": (3,)}, "--num-codes is for codes"),
    (NUMBERS, {"low": (0.0,)}, "give both --low and --high"),
    (NUMBERS, {"low": (0.0, 1.0, 2.0), "high": (3.0,)}, "--low has 3 numbers, but an action has 2"),
    (NUMBERS, {"low": (1.0,), "high": (-1.0,)}, "--low 1 must be below --high -1"),
    (NUMBERS, {"spec": CONTINUOUS}, "has actions of 2 numbers, and the run of --like of 1"),
    (CODES, {"spec": DISCRETE}, "has the action code 3, and codes go from 0 to 2"),
    (PAIRS, {"spec": DISCRETE}, "has actions of 2 codes, but 1 are expected"),
    (NUMBERS, {"spec": DISCRETE}, "not all whole"),
    (NUMBERS, {"spec": ActionSpec("none", ())}, "but the run of --like has none"),
]


@pytest.mark.parametrize("actions, options, message", WRONG)
def test_options_that_do_not_fit_the_actions_are_refused(tmp_path, actions, options, message):
    with pytest.raises(ValueError, match=message) as problem:
        source(tmp_path, actions, **options).description()
    assert "\n" not in str(problem.value)


def test_a_value_that_sets_the_range_alone_is_warned_of(tmp_path):
    assert "warning" not in imported(source(tmp_path / "a", NUMBERS))[2]
    outlier = NUMBERS.copy()
    outlier[1, 3, 0] = 1e9
    remark = imported(source(tmp_path / "b", outlier))[2]
    assert "warning: action_0 goes from" in remark and "look at" in remark and "1.npz" in remark
    assert "action_1 goes" not in remark
    limits = {"low": (-1.0,), "high": (1.0,)}
    spec, actions, remark = imported(source(tmp_path / "c", outlier, **limits))
    assert actions[1][3, 0] == 1 and spec.high == (1, 1)
    assert "5.56% of action_0 lie outside of -1 to 1, from" in remark and "to 1e+09" in remark
