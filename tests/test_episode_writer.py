"""Episodes written by hand: docs/how-to/your-recordings.md runs, and mistakes are named."""

import re
from pathlib import Path

import numpy as np
import pytest
from recorded_steps import episodes, frames, times, values

import preprocess
from data.arrays.episode_writer import write_episode
from data.shards.episode_dataset import EpisodeDataset

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "your-recordings.md"


def test_the_code_of_the_page_writes_recordings_that_are_imported(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {})
    commands = re.findall(
        r"^ +python preprocess\.py (\S+) (\S*square)(.*)$", PAGE.read_text(), re.M
    )
    assert [name for name, _, _ in commands] == ["arrays", "check"]
    run = Path(commands[1][1])
    preprocess.arrays(preprocess.ArraysConfig(Path(commands[0][1]), run, num_workers=1))
    preprocess.check(preprocess.CheckConfig(run))
    shown = capsys.readouterr().out
    assert "all shards are valid" in shown and "warning" not in shown.lower()
    dataset = EpisodeDataset(run / "shards")
    assert len(dataset) == 12 and set(dataset.lengths) == {41}
    squares = dataset.read(0, "frames")[..., 0] > 200  # (T, H, W)
    rows, actions = squares.any(2).argmax(1), dataset.read(0, "actions")
    moved = {1: -2, 2: 2}
    inside = (rows[:-1] > 2) & (rows[:-1] < 54)
    assert all(
        rows[t + 1] - rows[t] == moved.get(int(actions[t]), 0) for t in np.flatnonzero(inside)
    )


def test_written_episodes_are_read_back_in_order(tmp_path):
    for first in (5, 50):
        path = write_episode(
            tmp_path / "new",
            frames(first, first + 1, first + 2),
            [3, 1],
            rewards=[0.5, 1.0],
            terminals=[False, True],
            states=np.zeros((3, 2)),
        )
    assert path.name == "episode_000001.npz"
    raw = episodes(tmp_path / "new")
    assert times(raw, 1) == [50, 51, 52] and values(raw, 1, "actions") == [3, 1, 1]
    assert values(raw, 0, "rewards") == [0, 0.5, 1]
    assert values(raw, 0, "terminals") == [False, False, True]


def test_an_episode_is_numbered_after_the_greatest_that_is_there(tmp_path):
    (tmp_path / "episode_000041.npz").write_bytes(b"")
    assert write_episode(tmp_path, frames(0, 1), [0]).name == "episode_000042.npz"


GOOD = {"frames": frames(0, 1, 2), "actions": [0, 1]}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"frames": frames(0, 1, 2) / 255}, "frames are float64 .* but uint8"),
        ({"frames": frames(0, 1, 2)[..., :1]}, "frames are uint8 .*, 1., but uint8"),
        ({"frames": [frames(0)[0], frames(0)[0, :4]]}, "frames must be an array of numbers"),
        ({"frames": []}, "frames must be an array of numbers"),
        ({"actions": [0]}, "3 frames, but 1 actions; 2 or 3 are needed"),
        ({"actions": [0.5, 1]}, "actions are float64 .2,., but whole numbers"),
        ({"actions": [[0.5], [np.nan]]}, "actions hold NaN or infinity at row 1"),
        ({"actions": ["up", "down"]}, "actions must be an array of numbers"),
        ({"rewards": np.zeros((2, 1))}, "rewards are .2, 1., but one number a step"),
        ({"terminals": [False]}, "3 frames, but 1 terminals"),
        ({"states": np.zeros((2, 4))}, "3 frames, but 2 states; 3 are needed"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_episode(tmp_path / "new", **(GOOD | wrong))
    assert not list(tmp_path.rglob("*.npz"))
