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
from data.actions import ActionSpec
from data.shards import EpisodeDataset
from data.toy import MOVES, POINTER, SPEED, write_toy_shards
from models.controllers.planner import PlannerConfig
from pipeline.play.action_input import ActionInput
from pipeline.play.game import Game, write_actions
from pipeline.play.panels import CAPTION_HEIGHT, GAP
from pipeline.play.player import Player, StartSampler
from pipeline.play.simulators import open_simulator


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


def panel(picture: np.ndarray, number: int, size: int = 64) -> np.ndarray:
    left = number * (size + GAP)
    return picture[CAPTION_HEIGHT:, left : left + size]


def frames(run: Path) -> list[np.ndarray]:
    return [imageio.imread(p) for p in sorted((run / "play/frames").iterdir())]


# -- films ---------------------------------------------------------------------------------------


def test_recorded_actions_stand_beside_the_recording(toy: Path, capsys: Any):
    play.main(config(toy, episode=0))
    shots = frames(toy)
    assert min(p.name for p in (toy / "play/frames").iterdir()) == "00000.png"
    assert len(shots) == 9 and shots[0].shape == (CAPTION_HEIGHT + 64, 2 * 64 + GAP, 3)
    recordings = EpisodeDataset(toy / "shards")
    episode = recordings.episodes("test")[0]
    truth = recordings.read(episode, "frames")
    # the pointer world moves its disc exactly as the toy world does, so both must agree
    for step, shot in enumerate(shots):
        agent = recordings.read(episode, "states")[2 + step, :2] / 512
        assert np.abs(np.array(blue_at(panel(shot, 1))) - agent).max() < 0.06
        if step == 0:  # no ring of a pointer yet: the very picture
            np.testing.assert_array_equal(panel(shot, 0)[::2, ::2], truth[2])
    np.testing.assert_array_equal(
        np.load(toy / "play/actions.npy"), recordings.read(episode, "actions")[2:10]
    )
    assert len(imageio.imread(toy / "play/film.gif")) == 9
    assert len(imageio.imread(toy / "play/film.mp4", plugin="pyav")) == 9
    assert "the recording beside what is imagined" in capsys.readouterr().out


def test_the_simulator_goes_through_the_recorded_states(toy: Path):
    play.main(config(toy, episode=0, frame=5, compare_simulator=True))
    recordings = EpisodeDataset(toy / "shards")
    truth = recordings.read(recordings.episodes("test")[0], "frames")
    for step, shot in enumerate(frames(toy)):
        seen = panel(shot, 0)[::2, ::2].astype(int)
        different = (np.abs(seen - truth[5 + step]) > 60).any(-1).mean()
        assert different < 0.05  # the pointer's ring alone


@pytest.mark.parametrize("source", ["random", "controller", "file"])
def test_others_may_act(toy: Path, source: Any):
    given = np.tile(np.array([30, 480], np.float32), (5, 1))
    path = toy / "actions.npy" if source == "file" else None
    np.save(toy / "actions.npy", given)
    play.main(config(toy, actions=source, actions_file=path))
    actions = np.load(toy / "play/actions.npy")
    shots = frames(toy)
    assert shots[0].shape[1] == 64  # nothing is known of the truth
    if source == "file":
        assert len(shots) == 6
        np.testing.assert_array_equal(actions, given)
    elif source == "controller":
        x, y = zip(*(blue_at(panel(s, 0)) for s in shots), strict=True)
        assert (np.diff(x) > -0.02).all() and (np.diff(y) < 0.02).all()
    else:
        assert ((actions >= 0) & (actions <= 512)).all()


def test_films_are_the_same_again_by_seed(toy: Path):
    seen = []
    for seed in (1, 1, 2):
        play.main(config(toy, actions="random", seed=seed))
        seen.append(np.stack(frames(toy)))
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])


def test_the_start_that_is_said_can_be_asked_for_again(toy: Path, capsys: Any):
    play.main(config(toy, seed=3))
    drawn = frames(toy)
    said = re.search(r"from frame (\d+) of episode (\d+) \(test\)", capsys.readouterr().out)
    assert said
    frame, episode = (int(number) for number in said.groups())
    play.main(config(toy, episode=episode, frame=frame))
    assert np.array_equal(frames(toy), drawn)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_the_actions_before_stay_whole_when_the_disk_is_full(tmp_path: Path):
    write_actions(tmp_path, [np.ones(2)])
    (tmp_path / "actions.npy.partial").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"actions.npy was not written"):
        write_actions(tmp_path, [np.zeros(2)] * 9)
    assert np.array_equal(np.load(tmp_path / "actions.npy"), [[1, 1]])


def test_a_recording_that_ends_early_shortens_the_film_and_says_so(toy: Path, capsys: Any):
    play.main(config(toy, episode=0, frame=20))
    assert len(frames(toy)) == 4
    assert "3 steps instead of 8" in capsys.readouterr().out


def test_a_discrete_world_is_played_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_toy_shards(tmp_path / "shards", discrete=True)
    monkeypatch.setattr(play, "load_world", lambda run, int8: PointerWorld(MOVES))
    play.main(config(tmp_path, compare_simulator=True))
    np.save(tmp_path / "a.npy", np.array([2, 2, 3, 0]))
    play.main(config(tmp_path, actions="file", actions_file=tmp_path / "a.npy"))
    assert len(frames(tmp_path)) == 5
    np.save(tmp_path / "a.npy", np.array([2, 7]))
    with pytest.raises(ValueError, match=r"action 7 at step 1, outside 0 to 4"):
        play.main(config(tmp_path, actions="file", actions_file=tmp_path / "a.npy"))


def test_films_of_keys_say_what_is_pressed_in_frames_of_one_size(tmp_path: Path, monkeypatch: Any):
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
    assert not np.array_equal(words[0], words[1]), "the start is no action"
    assert np.array_equal(words[1], words[2]) and not np.array_equal(words[2], words[3])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"actions": "file"}, "belong together"),
        ({"actions_file": Path("x.npy")}, "belong together"),
        ({"frame": 3}, "give --episode too"),
        ({"episode": 99}, r"numbered from 0; --episode 99"),
        ({"episode": 0, "frame": 1}, r"can start at frames 2 to 22"),
        ({"fps": 0.0}, "--fps 0.0 is no pace to see; give 0.01 to 1000"),
        ({"fps": 1e-9}, "--fps 1e-09 is"),
        ({"fps": float("inf")}, "--fps inf is"),
        ({"fps": float("nan")}, "--fps nan is"),
        ({"size": -5}, "--size -5 is no picture; give 16 to 2048"),
        ({"size": 100_000}, "--size 100000 is"),
        ({"steps": 0}, "--steps 0 is below 1"),
        ({"goal_steps": -3}, "--goal-steps -3 is below 1"),
        ({"headless": False, "actions": "random"}, "add --headless"),
    ],
)
def test_what_does_not_go_together_is_one_line(toy: Path, fields: Any, message: str):
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
        (b"not a picture", "no .npy file"),
        (np.full((4, 2), "up"), "holds <U2, but actions are real numbers"),
        (np.ones((4, 2), complex), "holds complex128"),
        ({"actions": np.zeros((4, 2))}, "holds several arrays"),
    ],
)
def test_wrong_action_files_are_one_line(toy: Path, content: Any, message: str):
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


def test_without_a_display_one_line_names_headless(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ValueError, match=r"no DISPLAY is set; --headless writes a film"):
        play.main(config(toy, headless=False))


def test_a_run_of_the_stages_is_played(tmp_path: Path, capsys: Any):
    write_toy_shards(tmp_path / "shards", episodes=6)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"))
    for source in ("recorded", "controller"):
        play.main(config(tmp_path, steps=5, actions=source, compare_simulator=True))
        assert len(frames(tmp_path)) == 6
    assert "controller actions" in capsys.readouterr().out


def test_a_plan_and_the_controller_for_goals_lead_to_what_was_recorded_later(tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=6, length=40)
    run = write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), method="goals")
    small = PlannerConfig(num_samples=4, iterations=2, num_elites=2)
    done = {}
    for source in ("planner", "amortised", "guided"):
        made = config(run, steps=27, actions=source, planner=small, goal_offset=8)
        play.main(made)
        film = frames(run)
        assert len(film) == 28
        done[source] = np.load(run / "play" / "actions.npy")
        # the goal stands still beside what is imagined
        assert all(np.array_equal(panel(f, 0), panel(film[0], 0)) for f in film[1:])
    assert not np.allclose(done["planner"], done["amortised"])
    # nothing moves in a world that has learnt nothing: no way is better than the guide's own
    assert np.allclose(done["guided"], done["amortised"], atol=1e-3)
    legs = np.diff(done["amortised"][:25].reshape(5, 5, 2), axis=1)
    assert np.allclose(legs, legs[:, :1], atol=1e-2)  # it moves evenly along each leg
    (run / "controller" / "goals" / "best.pt").unlink()
    with pytest.raises(ValueError, match="--methods cloning goals makes it"):
        play.main(config(run, actions="amortised"))


@pytest.mark.parametrize(
    ("world", "advice"),
    [
        ({}, "none can learn in a world of codes, .* --actions planner needs none"),
        ({"factored": True}, "train_controller.py --run .* --preset minecraft makes it"),
        ({"discrete": True}, "its actions are no choices .*; give other --actions"),
    ],
)
def test_a_controller_for_goals_is_advised_only_where_one_can_be_made(
    tmp_path: Path, world: Any, advice: str
):
    write_toy_shards(tmp_path / "shards", episodes=6, **world)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), controllers=False)
    with pytest.raises(ValueError, match=f"holds no controller for goals; {advice}$"):
        play.main(config(tmp_path, actions="amortised"))


def test_a_run_without_a_controller_says_which_command_makes_it(tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=6)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), controllers=False)
    with pytest.raises(ValueError, match=r"train_controller.py --run .* makes it"):
        play.main(config(tmp_path, actions="controller"))
    play.main(config(tmp_path, steps=2))


# -- the game, without a window --------------------------------------------------------------------


@pytest.fixture
def game(toy: Path) -> Game:
    recordings = EpisodeDataset(toy / "shards")
    world = PointerWorld()
    starts = StartSampler(recordings, "test", world.context, seed=0)
    player = Player(world, ToTheRight(), open_simulator(recordings))
    return Game(player, starts, starts.at(0), toy / "play", size=64, fps=10)


def imagined(game: Game) -> tuple[float, float]:
    return blue_at(game.player.model_frame)


def test_the_mouse_is_the_target(game: Game):
    for x, y in ((10, CAPTION_HEIGHT + 50), (60, CAPTION_HEIGHT + 8)):
        game.move_pointer(x, y)
        for _ in range(14):
            game.tick()
        assert np.abs(np.array(imagined(game)) * 64 - (x, y - CAPTION_HEIGHT)).max() < 4


def test_the_mouse_over_the_simulator_means_the_same_place(game: Game):
    game.press("b")
    game.move_pointer(64 + GAP + 20, CAPTION_HEIGHT + 30)
    right = game.action_input.action.copy()
    game.move_pointer(20, CAPTION_HEIGHT + 30)
    np.testing.assert_array_equal(game.action_input.action, right)


def test_arrows_move_the_target(game: Game):
    game.move_pointer(32, CAPTION_HEIGHT + 32)
    before = game.action_input.action.copy()
    for key in ("right", "right", "up"):
        game.press(key)
    np.testing.assert_allclose(game.action_input.action - before, [2 * 20.48, -20.48], rtol=1e-4)
    for _ in range(100):
        game.press("left")
    assert game.action_input.action[0] == 0


def test_a_pause_holds_the_world_and_n_moves_it_by_one(game: Game):
    game.tick()
    for key in ("space", "p", "p"):
        game.press(key)
    assert game.paused
    still = game.player.model_frame
    game.tick()
    assert game.player.steps == 1 and game.player.model_frame is still
    assert "PAUSED" in game.status()
    game.press("n")
    game.tick()
    game.tick()
    assert game.player.steps == 2


def test_r_goes_to_another_start(game: Game):
    places = set()
    for _ in range(12):
        game.press("r")
        places.add((game.player.start.episode, game.player.start.frame))
        assert game.player.steps == 0
    assert len(places) > 6
    held_out = set(game.start_sampler.dataset.episodes("test"))
    assert {episode for episode, _ in places} <= held_out


def test_the_controller_takes_over_and_gives_back(game: Game):
    game.press("c")
    assert "controller" in game.status()
    game.move_pointer(3, CAPTION_HEIGHT + 60)  # the mouse lies there, but the controller plays
    for _ in range(20):
        game.tick()
    x, y = imagined(game)
    assert x > 0.9 and y < 0.1
    game.press("c")
    game.tick()
    np.testing.assert_array_equal(game.action_input.action, [512, 0])  # until the hand moves
    game.move_pointer(3, CAPTION_HEIGHT + 60)
    for _ in range(20):
        game.tick()
    assert imagined(game)[0] < 0.2


def test_the_simulator_goes_along_unseen_and_shows_itself(game: Game):
    alone = game.tick()
    game.move_pointer(50, CAPTION_HEIGHT + 50)
    for _ in range(15):
        game.tick()
    assert "coverage" not in game.status()
    game.press("b")
    scene = game.render_panels()
    assert scene.shape[1] == 2 * 64 + GAP and game.render().shape[1] >= alone.shape[1]
    true_agent = blue_at(game.player.simulator_frame())
    assert np.abs(np.array(true_agent) - imagined(game)).max() < 0.08
    assert "coverage" in game.status()


def test_a_recording_is_a_film_and_its_actions(game: Game, toy: Path, capsys: Any):
    for _ in range(2):
        game.press("v")
        assert "REC" in game.status()
        for _ in range(4):
            game.tick()
        game.press("b")  # a wider picture in the middle of it
        game.tick()
        game.press("v")
    for number in range(2):
        folder = toy / f"play/recording-00{number}"
        assert len(list((folder / "frames").iterdir())) == 6
        assert len(imageio.imread(folder / "film.mp4", plugin="pyav")) == 6
        assert np.load(folder / "actions.npy").shape == (5, 2)
    assert "REC" not in game.status() and "kept in" in game.status()
    # and it can be played again
    path = toy / "play/recording-000/actions.npy"
    play.main(config(toy, actions="file", actions_file=path))
    game.press("v")
    game.tick()
    game.close()
    assert (toy / "play/recording-002/film.gif").exists()


def test_keys_without_a_meaning_here_say_so(game: Game):
    game.player.controller = game.player.simulator = None
    game.press("c")
    assert "no controller" in game.status() and not game.use_controller
    game.press("b")
    assert "no simulator" in game.status() and not game.show_simulator
    game.press("~")
    game.press("h")
    without = game.render().shape[0]
    game.press("h")
    assert game.render().shape[0] > without
    game.press("q")
    assert game.quit_requested


def test_the_line_tells_speed_and_latency(game: Game):
    for _ in range(5):
        game.tick()
    line = game.status()
    assert "frames/s" in line and " ms" in line and "step 5" in line and "reward 0." in line
    assert float(line.split()[0]) > 10


# -- hands -----------------------------------------------------------------------------------------


def test_a_hand_for_codes():
    hand = ActionInput(MOVES)
    assert hand.describe() == "stay"
    for key, name in (("left", "left"), ("up", "up"), ("5", "down"), ("9", "down"), (".", "stay")):
        hand.press(key)
        assert hand.describe() == name
    hand.press(",")
    assert int(hand.action) == 4 and hand.action.dtype == np.int64
    assert hand.pointer is None and "2 left" in hand.help
    hand.move_pointer(0.2, 0.2)
    assert int(hand.action) == 4
    walk = ActionInput(ActionSpec("discrete", ("noop", "forward", "back")))
    walk.press("up")
    assert walk.describe() == "forward"


def test_a_hand_for_numbers_that_are_no_place():
    hand = ActionInput(ActionSpec("continuous", ("a", "b", "c"), (-1, -1, 0), (1, 1, 10), "m"))
    np.testing.assert_allclose(hand.action, [0, 0, 5])
    for key in ("right", "up", "3", "+", "+", "-"):
        hand.press(key)
    np.testing.assert_allclose(hand.action, [0.08, -0.08, 5.4], rtol=1e-5)
    assert "c 5.4" in hand.describe() and "+ -" in hand.help
    hand.move_pointer(0, 0)
    np.testing.assert_allclose(hand.action[0], 0.08, rtol=1e-5)


def test_the_hand_rests_where_another_left_it():
    hand, action = ActionInput(POINTER), np.array([100, 200], np.float32)
    hand.set_action(action)
    hand.press("right")
    assert action[0] == 100 and hand.action[0] > 100
    assert hand.pointer == pytest.approx((hand.action[0] / 512, 200 / 512))
    assert SPEED < 512
