import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from pointer_world import PointerWorld, ToTheRight, blue_at
from untrained_run import write_run
from walk_world import SPEC, WalkWorld, write_walks

import play
from data.io.files import partial_path
from data.shards.episode_dataset import EpisodeDataset
from data.toy import MOVES, write_toy_shards
from models.planning.planner import PlannerConfig
from pipeline.play.action_file import write_actions
from pipeline.play.panels import CAPTION_HEIGHT, GAP


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_toy_shards(folder / "shards", episodes=12)
    return folder


@pytest.fixture
def toy(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose world is the pointer world, and whose controller goes to the right."""
    (tmp_path / "shards").symlink_to(run / "shards")
    monkeypatch.setattr(play, "load_world", lambda run, int8: PointerWorld())
    monkeypatch.setattr(play, "load_controller", lambda run, world: ToTheRight())
    return tmp_path


def config(run: Path, **fields: Any) -> play.Config:
    return replace(play.Config(run=run, headless=True, steps=8, size=64), **fields)


def panel(image: np.ndarray, number: int, size: int = 64) -> np.ndarray:
    left = number * (size + GAP)
    return image[CAPTION_HEIGHT:, left : left + size]


def read_frames(run: Path) -> list[np.ndarray]:
    return [imageio.imread(p) for p in sorted((run / "play/frames").iterdir())]


# -- videos --------------------------------------------------------------------------------------


def test_the_datasets_actions_are_shown_next_to_its_frames(toy: Path, capsys: Any):
    play.main(config(toy, episode=0))
    shots = read_frames(toy)
    assert min(p.name for p in (toy / "play/frames").iterdir()) == "00000.png"
    assert len(shots) == 9 and shots[0].shape == (CAPTION_HEIGHT + 64, 2 * 64 + GAP, 3)
    dataset = EpisodeDataset(toy / "shards")
    episode = dataset.episodes("test")[0]
    truth = dataset.read(episode, "frames")
    # the pointer world moves its disc exactly as the toy world does, so both must agree
    for step, shot in enumerate(shots):
        agent = dataset.read(episode, "states")[2 + step, :2] / 512
        assert np.abs(np.array(blue_at(panel(shot, 1))) - agent).max() < 0.06
        if step == 0:  # no ring of a pointer yet
            np.testing.assert_array_equal(panel(shot, 0)[::2, ::2], truth[2])
    np.testing.assert_array_equal(
        np.load(toy / "play/actions.npy"), dataset.read(episode, "actions")[2:10]
    )
    assert len(imageio.imread(toy / "play/rollout.gif")) == 9
    assert len(imageio.imread(toy / "play/rollout.mp4", plugin="pyav")) == 9
    assert "dataset next to the model rollout" in capsys.readouterr().out


def test_the_simulator_follows_the_datasets_states(toy: Path):
    play.main(config(toy, episode=0, frame=5, compare_simulator=True))
    dataset = EpisodeDataset(toy / "shards")
    truth = dataset.read(dataset.episodes("test")[0], "frames")
    for step, shot in enumerate(read_frames(toy)):
        seen = panel(shot, 0)[::2, ::2].astype(int)
        different = (np.abs(seen - truth[5 + step]) > 60).any(-1).mean()
        assert different < 0.05  # the pointer's ring alone


@pytest.mark.parametrize("source", ["random", "actor_critic", "file"])
def test_other_sources_act(toy: Path, source: Any):
    given = np.tile(np.array([30, 480], np.float32), (5, 1))
    path = toy / "actions.npy" if source == "file" else None
    np.save(toy / "actions.npy", given)
    play.main(config(toy, actions=source, actions_file=path))
    actions = np.load(toy / "play/actions.npy")
    shots = read_frames(toy)
    assert shots[0].shape[1] == 64  # there is no truth to show
    if source == "file":
        assert len(shots) == 6
        np.testing.assert_array_equal(actions, given)
    elif source == "actor_critic":
        x, y = zip(*(blue_at(panel(s, 0)) for s in shots), strict=True)
        assert (np.diff(x) > -0.02).all() and (np.diff(y) < 0.02).all()
    else:
        assert ((actions >= 0) & (actions <= 512)).all()


def test_a_video_is_reproduced_by_its_seed(toy: Path):
    seen = []
    for seed in (1, 1, 2):
        play.main(config(toy, actions="random", seed=seed))
        seen.append(np.stack(read_frames(toy)))
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])


def test_the_printed_start_can_be_asked_for(toy: Path, capsys: Any):
    play.main(config(toy, seed=3))
    sampled = read_frames(toy)
    printed = re.search(r"from frame (\d+) of episode (\d+) \(test\)", capsys.readouterr().out)
    assert printed
    frame, episode = (int(number) for number in printed.groups())
    play.main(config(toy, episode=episode, frame=frame))
    assert np.array_equal(read_frames(toy), sampled)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_the_old_actions_stay_whole_when_the_disk_is_full(tmp_path: Path):
    write_actions(tmp_path, [np.ones(2)])
    partial_path(tmp_path / "actions.npy").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"actions.npy was not written"):
        write_actions(tmp_path, [np.zeros(2)] * 9)
    assert np.array_equal(np.load(tmp_path / "actions.npy"), [[1, 1]])


def test_an_episode_that_ends_early_shortens_the_video_and_says_so(toy: Path, capsys: Any):
    play.main(config(toy, episode=0, frame=20))
    assert len(read_frames(toy)) == 4
    assert "3 steps instead of 8" in capsys.readouterr().out


def test_a_discrete_world_is_played_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_toy_shards(tmp_path / "shards", discrete=True)
    monkeypatch.setattr(play, "load_world", lambda run, int8: PointerWorld(MOVES))
    play.main(config(tmp_path, compare_simulator=True))
    np.save(tmp_path / "a.npy", np.array([2, 2, 3, 0]))
    play.main(config(tmp_path, actions="file", actions_file=tmp_path / "a.npy"))
    assert len(read_frames(tmp_path)) == 5
    np.save(tmp_path / "a.npy", np.array([2, 7]))
    with pytest.raises(ValueError, match=r"action 7 at step 1, outside 0 to 4"):
        play.main(config(tmp_path, actions="file", actions_file=tmp_path / "a.npy"))


def test_videos_name_the_keys_in_frames_of_one_size(tmp_path: Path, monkeypatch: Any):
    write_walks(tmp_path / "shards", length=24)
    monkeypatch.setattr(play, "load_world", lambda run, int8: WalkWorld())
    longest = SPEC.ravel(np.array([0, 0, 1, 1, 6]))
    assert SPEC.describe(int(longest)) == "yaw -10.0  pitch -10.0  attack  jump  forward right"
    np.save(tmp_path / "codes.npy", np.array([60, 60, longest]))
    made = {"actions": "file", "actions_file": tmp_path / "codes.npy", "size": 96, "steps": 3}
    play.main(config(tmp_path, **made))
    shots = [imageio.imread(p) for p in sorted((tmp_path / "play/frames").iterdir())]
    assert len({shot.shape for shot in shots}) == 1
    words = [shot[CAPTION_HEIGHT + 96 :] for shot in shots]
    assert not np.array_equal(words[0], words[1]), "the start has no action"
    assert np.array_equal(words[1], words[2]) and not np.array_equal(words[2], words[3])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"actions": "file"}, "belong together"),
        ({"actions_file": Path("x.npy")}, "belong together"),
        ({"frame": 3}, "give --episode too"),
        ({"episode": 99}, r"numbered from 0; --episode 99"),
        ({"episode": 0, "frame": 1}, r"can start at frames 2 to 22"),
        ({"fps": 0.0}, "--fps 0.0 is out of range; it must be between 0.01 and 1000"),
        ({"fps": 1e-9}, "--fps 1e-09 is out of range"),
        ({"fps": float("inf")}, "--fps inf is out of range"),
        ({"fps": float("nan")}, "--fps nan is not a number"),
        ({"size": -5}, "--size -5 is out of range; it must be 0, or between 16 and 2048"),
        ({"size": 100_000}, "--size 100000 is out of range"),
        ({"steps": 0}, "--steps 0 is out of range"),
        ({"goal_offset": -3}, "--goal-offset -3 is out of range"),
        ({"headless": False, "actions": "random"}, "add --headless"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(
    toy: Path, fields: Any, message: str
):
    with pytest.raises(ValueError, match=message) as problem:
        play.main(config(toy, **fields))
    assert "\n" not in str(problem.value) and not (toy / "play").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (np.zeros((4, 3), np.float32), r"holds \(4, 3\)"),
        (np.full((4, 2), np.nan), "at step 0"),
        (np.full((4, 2), 513.0), "outside"),
        (np.zeros((0, 2)), r"holds \(0, 2\)"),
        (b"not an array", "must be a .npy file"),
        (np.full((4, 2), "up"), "holds <U2, but actions are real numbers"),
        (np.ones((4, 2), complex), "holds complex128"),
        ({"actions": np.zeros((4, 2))}, "holds several arrays"),
    ],
)
def test_wrong_action_files_are_refused_in_one_line(toy: Path, content: Any, message: str):
    path = toy / "a.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        path = toy / "a.npz"
        np.savez(path, **content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=message):
        play.main(config(toy, actions="file", actions_file=path))
    assert not (toy / "play").exists()


def test_a_world_of_other_actions_is_refused(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(play, "load_world", lambda run, int8: PointerWorld(MOVES))
    with pytest.raises(ValueError, match="different action spaces"):
        play.main(config(toy))


def test_a_video_that_could_be_longer_names_what_ends_it(toy: Path, capsys: Any):
    play.main(config(toy, episode=0, steps=3))
    assert "play: 4 frames (--steps 3), dataset" in capsys.readouterr().out
    play.main(config(toy, episode=0, frame=20, steps=50))
    assert "--steps 50)" not in capsys.readouterr().out


def test_without_a_display_one_line_names_headless(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ValueError, match=r"no DISPLAY is set; --headless writes a video"):
        play.main(config(toy, headless=False))


def test_a_run_of_the_stages_is_played(tmp_path: Path, capsys: Any):
    write_toy_shards(tmp_path / "shards", episodes=6)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"))
    for source in ("dataset", "actor_critic"):
        play.main(config(tmp_path, steps=5, actions=source, compare_simulator=True))
        assert len(read_frames(tmp_path)) == 6
    assert "actor_critic actions" in capsys.readouterr().out


def test_planner_goal_policy_and_policy_prior_act_towards_the_datasets_later_frame(tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=6, length=40)
    run = write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), method="keypoints")
    small = PlannerConfig(num_samples=4, iterations=2, num_elites=2)
    done = {}
    for source in ("planner", "goal_policy", "policy_prior"):
        made = config(run, steps=27, actions=source, planner=small, goal_offset=8)
        play.main(made)
        shots = read_frames(run)
        assert len(shots) == 28
        done[source] = np.load(run / "play" / "actions.npy")
        # the goal does not change next to the model rollout
        assert all(np.array_equal(panel(s, 0), panel(shots[0], 0)) for s in shots[1:])
    assert not np.allclose(done["planner"], done["goal_policy"])
    # nothing moves in an untrained world: no candidate is better than the policy prior's own
    assert np.allclose(done["policy_prior"], done["goal_policy"], atol=1e-3)
    deltas = np.diff(done["goal_policy"][:25].reshape(5, 5, 2), axis=1)
    assert np.allclose(deltas, deltas[:, :1], atol=1e-2)  # linear within each action block
    (run / "controller" / "goal_policy" / "best.pt").unlink()
    with pytest.raises(ValueError, match="--methods bc goal_policy trains one"):
        play.main(config(run, actions="goal_policy"))


@pytest.mark.parametrize(
    ("world", "advice"),
    [
        ({}, r"none can be trained in a world of discrete latents, .*; give other --actions"),
        ({"factored": True}, "python train_controller.py --run .* --preset minecraft trains one"),
        ({"discrete": True}, "none can be trained for discrete actions .*; give other --actions"),
    ],
)
def test_a_goal_policy_is_advised_only_where_one_can_be_trained(
    tmp_path: Path, world: Any, advice: str
):
    write_toy_shards(tmp_path / "shards", episodes=6, **world)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), controllers=False)
    with pytest.raises(ValueError, match=f"holds no goal policy; {advice}$"):
        play.main(config(tmp_path, actions="goal_policy"))


@pytest.mark.parametrize("source", ["planner", "policy_prior"])
def test_a_world_of_codes_is_not_planned_in_as_evaluation_refuses_it(tmp_path: Path, source: Any):
    write_toy_shards(tmp_path / "shards", episodes=6)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), controllers=False)
    with pytest.raises(ValueError, match=f"--actions {source}: .* this one has discrete latents"):
        play.main(config(tmp_path, actions=source))
    assert not (tmp_path / "play").exists()


def test_videos_go_where_out_says(toy: Path, tmp_path: Path):
    play.main(config(toy, out=tmp_path / "elsewhere", steps=2))
    assert (tmp_path / "elsewhere" / "rollout.gif").exists() and not (toy / "play").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(
    toy: Path, monkeypatch: pytest.MonkeyPatch
):
    (toy / "file").write_text("")
    monkeypatch.setattr(play, "play_headless", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(
        ValueError, match=r"file/play cannot be written to .*; choose another --out"
    ):
        play.main(config(toy, out=toy / "file" / "play"))


def test_a_video_beyond_the_memory_is_refused_before_the_first_step(
    toy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(play, "play_headless", lambda *_: pytest.fail("a step was taken"))
    message = r"--steps 100000 makes a video of 18.3 GB, and at most 4 GB .* a smaller --size"
    with pytest.raises(ValueError, match=message):
        play.main(config(toy, actions="random", steps=100_000, size=256))


def test_a_goal_beyond_the_end_of_the_episode_is_told(tmp_path: Path, capsys: Any):
    write_toy_shards(tmp_path / "shards", episodes=6)
    run = write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), method="keypoints")
    play.main(config(run, actions="goal_policy", steps=2, episode=0, goal_offset=500))
    printed = capsys.readouterr().out
    assert re.search(r"play: the goal is 1\d steps ahead, where the episode ends", printed)


def test_a_run_without_a_controller_says_which_command_trains_one(tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=6)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), controllers=False)
    with pytest.raises(ValueError, match=r"train_controller.py --run .* trains one"):
        play.main(config(tmp_path, actions="actor_critic"))
    play.main(config(tmp_path, steps=2))
