"""Where episodes end, and which action, reward and end belong to which frame."""

import numpy as np
import pytest
from recorded_steps import episodes, frames, times, values

LONG = frames(*range(6))


def save(path, **arrays):
    np.savez(path / "0.npz", **arrays)
    return path


def test_an_episode_ends_at_a_terminal_inside_a_file(tmp_path):
    ends = np.array([0, 0, 1, 0, 0, 0], bool)
    raw = episodes(save(tmp_path, frames=LONG, actions=np.arange(6), terminals=ends))
    assert [times(raw, e) for e in range(2)] == [[0, 1, 2], [3, 4, 5]]
    assert [values(raw, e, "actions") for e in range(2)] == [[0, 1, 2], [3, 4, 5]]
    assert values(raw, 0, "terminals") == [False, False, True]
    assert not any(values(raw, 1, "terminals"))
    assert raw.location(1).startswith("episode 1 of ")
    assert any("1 of 1 recordings go on" in r and "2 episodes" in r for r in raw.remarks)


def test_a_time_limit_ends_an_episode_and_is_no_terminal(tmp_path):
    ends = np.array([0, 0, 1, 0, 0, 0], bool)
    raw = episodes(save(tmp_path, frames=LONG, terminals=np.zeros(6, bool), truncations=ends))
    assert raw.lengths == (3, 3) and "truncations" not in raw.keys
    assert not any(values(raw, 0, "terminals"))


def test_an_end_that_is_said_again_and_again_ends_once(tmp_path):
    ends = np.array([0, 0, 1, 1, 1, 1], bool)
    assert episodes(save(tmp_path, frames=LONG, terminals=ends)).lengths == (6,)
    ends = np.array([0, 1, 1, 0, 0, 1], bool)
    assert episodes(save(tmp_path, frames=LONG, terminals=ends)).lengths == (3, 3)


def test_an_end_at_the_last_frame_cuts_nothing(tmp_path):
    raw = episodes(save(tmp_path, frames=LONG, terminals=np.arange(6) == 5))
    assert raw.lengths == (6,) and not raw.remarks


def test_one_more_frame_than_actions_is_gymnasiums_way(tmp_path):
    raw = episodes(
        save(
            tmp_path,
            frames=LONG,
            actions=np.arange(5),
            rewards=np.arange(5) * 10.0,
            terminals=np.arange(5) == 4,
        )
    )
    assert values(raw, 0, "actions") == [0, 1, 2, 3, 4, 4]
    assert values(raw, 0, "rewards") == [0, 0, 10, 20, 30, 40]
    assert values(raw, 0, "terminals") == [False] * 5 + [True]


def test_a_file_with_an_action_less_among_others_is_named(tmp_path):
    np.savez(tmp_path / "0.npz", frames=LONG, actions=np.arange(6))
    np.savez(tmp_path / "1.npz", frames=LONG, actions=np.arange(5))
    with pytest.raises(ValueError, match=r"1\.npz has 6 frames but 5 actions.*as many"):
        episodes(tmp_path)


def test_states_belong_to_frames_and_may_not_lack_a_row(tmp_path):
    with pytest.raises(ValueError, match="6 frames but 5 states"):
        episodes(save(tmp_path, frames=LONG, states=np.zeros((5, 2))))


def test_actions_that_led_to_their_frame_are_moved_by_one(tmp_path):
    """DreamerV3's replay: the first action is a dummy."""
    raw = episodes(
        save(
            tmp_path,
            frames=LONG,
            actions=np.array([99, 0, 1, 2, 99, 4]),
            rewards=np.arange(6.0),
            terminals=np.array([0, 0, 0, 1, 0, 1], bool),
        ),
        alignment="previous",
    )
    assert [values(raw, e, "actions") for e in range(2)] == [[0, 1, 2, 2], [4, 4]]
    assert values(raw, 0, "rewards") == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="--alignment previous needs as many actions as frames"):
        episodes(save(tmp_path, frames=LONG, actions=np.arange(5)), alignment="previous")


def test_nan_where_an_action_leads_nowhere_or_a_first_reward_is_none_is_no_fault(tmp_path):
    actions = np.arange(6.0)[:, None]
    actions[-1] = np.nan
    rewards = np.array([np.nan, 1, 2, 3, 4, 5])
    raw = episodes(save(tmp_path, frames=LONG, actions=actions, rewards=rewards))
    assert values(raw, 0, "actions")[-2:] == [[4], [4]] and values(raw, 0, "rewards")[0] == 0
    actions[2] = np.nan  # but elsewhere it is one, which the import refuses
    raw = episodes(save(tmp_path, frames=LONG, actions=actions))
    assert np.isnan(raw.read(0, "actions")).sum() == 1


def test_a_column_of_rewards_is_a_reward_a_step(tmp_path):
    raw = episodes(save(tmp_path, frames=LONG, rewards=np.ones((6, 1)), terminals=np.zeros((6, 1))))
    assert raw.read(0, "rewards").shape == raw.read(0, "terminals").shape == (6,)
