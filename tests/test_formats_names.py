"""Arrays of other names are asked about, renamed by a flag, or left aside with a word."""

from pathlib import Path

import numpy as np
import pytest
from recorded_steps import episodes, frames, times, values

import preprocess
from data.shards.episode_dataset import EpisodeDataset

STEPS = {"frames": frames(0, 1, 2), "actions": np.arange(3)}


def save(path, **arrays):
    np.savez(path / "0.npz", **arrays)
    return path


@pytest.mark.parametrize(
    "name, field",
    [
        ("reward", "rewards"),
        ("done", "terminals"),
        ("dones", "terminals"),
        ("terminated", "terminals"),
        ("terminations", "terminals"),
        ("is_terminal", "terminals"),
        ("timeouts", "truncations"),
        ("state", "states"),
    ],
)
def test_a_name_near_to_a_field_is_asked_about(tmp_path, name, field):
    path = save(tmp_path, **STEPS, **{name: np.zeros((3, 1))})
    with pytest.raises(ValueError, match=f"holds {name}, which may be {field}") as problem:
        episodes(path)
    assert f"--rename {name}={field}" in str(problem.value)
    raw = episodes(path, rename=[f"{name}={field}"])
    assert field in raw.keys | {"truncations"}
    assert f"read {name} as {field}" in raw.remarks
    aside = episodes(path, rename=[f"{name}="])
    assert aside.keys == {"frames", "actions"}
    assert f"left aside, not read: {name}" in aside.remarks


def test_the_flags_that_an_error_gives_are_all_that_is_needed(tmp_path):
    path = save(
        tmp_path, image=STEPS["frames"], action=np.arange(3), reward=np.zeros(3), other=np.zeros(3)
    )
    with pytest.raises(ValueError, match="--frames-key image --rename action=actions reward=rewa"):
        episodes(path)
    raw = episodes(path, "image", ["action=actions", "reward=rewards"])
    assert times(raw, 0) == [0, 1, 2] and values(raw, 0, "actions") == [0, 1, 2]
    assert "left aside, not read: other" in raw.remarks


def test_an_array_that_may_be_actions_is_asked_about(tmp_path):
    """Flags that are copied from the error do not lose the actions in silence."""
    path = save(
        tmp_path, rgb=STEPS["frames"], cmd=np.zeros((3, 2)), done=np.zeros(3), name=np.zeros(9)
    )
    asked = (
        r"--frames-key rgb --rename done=terminals \(done=truncations if time limits "
        r"count as done\); cmd \(3, 2\) float64 may be actions: --rename cmd=actions$"
    )
    with pytest.raises(ValueError, match=asked):
        episodes(path)
    with pytest.raises(ValueError, match="aside with --rename done=; cmd .* --rename cmd=actions"):
        episodes(path, "rgb")
    raw = episodes(path, "rgb", ["done=terminals"])
    assert any(r.startswith("warning: there are no actions; cmd (3, 2)") for r in raw.remarks)
    raw = episodes(path, "rgb", ["done=terminals", "cmd=actions"])
    assert "actions" in raw.keys and not any("warning" in remark for remark in raw.remarks)


def test_a_near_name_next_to_the_field_itself_is_left_aside(tmp_path):
    raw = episodes(save(tmp_path, **STEPS, action=np.zeros(3), image=frames(0, 0, 0)))
    assert times(raw, 0) == [0, 1, 2] and "left aside, not read: action, image" in raw.remarks


@pytest.mark.parametrize(
    "rename, message",
    [
        ("other", "must be STORED=FIELD"),
        ("actions=reward", "must be STORED=FIELD"),
        ("absent=rewards", "has no array 'absent', but actions"),
    ],
)
def test_a_rename_that_means_nothing_is_refused(tmp_path, rename, message):
    with pytest.raises(ValueError, match=message):
        episodes(save(tmp_path, **STEPS), rename=[rename])


def test_two_arrays_cannot_be_one_field(tmp_path):
    path = save(tmp_path, frames=STEPS["frames"], a=np.arange(3), b=np.arange(3))
    with pytest.raises(ValueError, match="two arrays actions"):
        episodes(path, rename=["a=actions", "b=actions"])


def test_hundreds_of_unread_arrays_make_one_short_remark(tmp_path):
    raw = episodes(save(tmp_path, **STEPS, **{f"x{i}": np.zeros(3) for i in range(300)}))
    assert max(map(len, raw.remarks)) < 200 and any("295 more" in r for r in raw.remarks)


def test_stage_1_says_what_it_took_for_what(tmp_path, capsys):
    for number in range(3):
        steps = {"image": np.zeros((4, 16, 16, 3), np.uint8), "action": np.array([9, 0, 1, 2])}
        np.savez(tmp_path / f"{number}.npz", **steps, reward=np.arange(4.0), other=np.zeros(4))
    run = tmp_path / "run"
    preprocess.arrays(
        preprocess.ArraysConfig(
            Path(tmp_path),
            run,
            frames_key="image",
            rename=("action=actions", "reward=rewards"),
            alignment="previous",
            num_workers=1,
        )
    )
    shown = capsys.readouterr().out
    assert "read image as frames, action as actions, reward as rewards" in shown
    assert "left aside, not read: other" in shown
    assert EpisodeDataset(run / "shards").read(0, "actions").tolist() == [0, 1, 2, 2]
