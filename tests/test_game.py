"""The game, without a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import imageio.v3 as imageio
import numpy as np
import pytest
from pointer_world import PointerWorld, ToTheRight, blue_at

import play
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from pipeline.play.game import Game
from pipeline.play.panels import CAPTION_HEIGHT, GAP
from pipeline.play.player import Player, StartSampler
from pipeline.play.simulators import open_simulator


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "shards"
    write_toy_shards(folder, episodes=12)
    return folder


@pytest.fixture
def toy(shards: Path, tmp_path: Path) -> Path:
    (tmp_path / "shards").symlink_to(shards)
    return tmp_path


@pytest.fixture
def game(toy: Path) -> Game:
    dataset = EpisodeDataset(toy / "shards")
    world = PointerWorld()
    starts = StartSampler(dataset, "test", world.context, seed=0)
    player = Player(cast(Any, world), cast(Any, ToTheRight()), open_simulator(dataset))
    return Game(player, starts, starts.at(0), toy / "play", size=64, fps=10)


def agent(game: Game) -> tuple[float, float]:
    return blue_at(game.player.model_frame)


def test_the_mouse_is_the_target(game: Game):
    for x, y in ((10, CAPTION_HEIGHT + 50), (60, CAPTION_HEIGHT + 8)):
        game.move_pointer(x, y)
        for _ in range(14):
            game.tick()
        assert np.abs(np.array(agent(game)) * 64 - (x, y - CAPTION_HEIGHT)).max() < 4


def test_the_mouse_over_the_simulator_means_the_same_target(game: Game):
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
    held_out = set(cast(StartSampler, game.start_sampler).dataset.episodes("test"))
    assert {episode for episode, _ in places} <= held_out


def test_the_controller_takes_over_and_hands_back(game: Game):
    game.press("c")
    assert "controller" in game.status()
    game.move_pointer(3, CAPTION_HEIGHT + 60)  # the mouse is there, but the controller acts
    for _ in range(20):
        game.tick()
    x, y = agent(game)
    assert x > 0.9 and y < 0.1
    game.press("c")
    game.tick()
    np.testing.assert_array_equal(game.action_input.action, [512, 0])  # until the mouse moves
    game.move_pointer(3, CAPTION_HEIGHT + 60)
    for _ in range(20):
        game.tick()
    assert agent(game)[0] < 0.2


def test_the_simulator_takes_every_step_shown_or_not(game: Game):
    alone = game.tick()
    game.move_pointer(50, CAPTION_HEIGHT + 50)
    for _ in range(15):
        game.tick()
    assert "coverage" not in game.status()
    game.press("b")
    scene = game.render_panels()
    assert scene.shape[1] == 2 * 64 + GAP and game.render().shape[1] >= alone.shape[1]
    true_agent = blue_at(game.player.simulator_frame())
    assert np.abs(np.array(true_agent) - agent(game)).max() < 0.08
    assert "coverage" in game.status()


def test_a_recording_is_a_video_and_its_actions(
    game: Game, toy: Path, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(2):
        game.press("v")
        assert "REC" in game.status()
        for _ in range(4):
            game.tick()
        game.press("b")  # wider frames from here on
        game.tick()
        game.press("v")
    for number in range(2):
        folder = toy / f"play/recording-00{number}"
        assert len(list((folder / "frames").iterdir())) == 6
        assert len(imageio.imread(folder / "rollout.mp4", plugin="pyav")) == 6
        assert np.load(folder / "actions.npy").shape == (5, 2)
    assert "REC" not in game.status() and "saved to" in game.status()
    # and it can be played again
    path = toy / "play/recording-000/actions.npy"
    monkeypatch.setattr(play, "load_world", lambda run, int8: PointerWorld())
    config = play.Config(toy, headless=True, steps=8, size=64, actions="file", actions_file=path)
    play.main(config)
    game.press("v")
    game.tick()
    game.close()
    assert (toy / "play/recording-002/rollout.gif").exists()


def test_keys_without_an_effect_say_so(game: Game):
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


def test_the_status_line_has_speed_and_latency(game: Game):
    for _ in range(5):
        game.tick()
    line = game.status()
    assert "frames/s" in line and " ms" in line and "step 5" in line and "reward 0." in line
    assert float(line.split()[0]) > 10


def test_a_held_key_of_the_game_acts_once_and_one_that_steers_again(game: Game):
    game.press("p")
    game.press("p", repeated=True)
    assert game.paused
    before = game.action_input.action.copy()
    for _ in range(2):
        game.press("left", repeated=True)
    assert game.action_input.action[0] < before[0]


def test_a_letter_that_lies_elsewhere_on_the_layout_is_told(game: Game):
    game.press("h", label="h")
    assert "here" not in game.status()
    game.press("q", label="a")  # AZERTY's A
    assert game.quit_requested and "A is Q here (keys by place)" in game.status()


def test_a_recording_that_cannot_be_written_is_not_begun(game: Game, tmp_path: Path):
    (tmp_path / "file").write_text("")
    game.folder = tmp_path / "file" / "play"
    game.press("v")
    assert game.recording is None and "cannot be written to" in game.status()
    game.tick()


def test_going_back_and_on_again_is_the_way_that_was_not_left(game: Game):
    game.press("b")
    game.point(0.9, 0.2)
    seen = [(game.player.state.latents.clone(), game.player.simulator_frame())]
    for _ in range(12):
        game.tick()
        seen.append((game.player.state.latents.clone(), game.player.simulator_frame()))
    game.press("z")
    for steps in range(11, 3, -1):
        game.tick()
        assert game.player.steps == steps == len(game.player.actions)
        assert game.player.state.latents.equal(seen[steps][0])
        np.testing.assert_array_equal(game.player.simulator_frame(), seen[steps][1])
    game.release("z")
    game.point(0.9, 0.2)
    for steps in range(5, 13):
        game.tick()
        assert game.player.state.latents.equal(seen[steps][0])
        np.testing.assert_array_equal(game.player.simulator_frame(), seen[steps][1])


def test_a_branch_is_another_course_of_events(game: Game):
    game.point(0.9, 0.5)
    for _ in range(8):
        game.tick()
    right = agent(game)
    game.press("z")
    for _ in range(30):
        game.tick()  # further back than the start is the start
    assert game.player.steps == 0 and "go back" in game.message
    game.release("z")
    game.point(0.1, 0.5)
    for _ in range(8):
        game.tick()
    assert agent(game)[0] < right[0] - 0.1 and len(game.player.actions) == 8


def test_a_recording_keeps_the_branch_alone_and_no_longer_than_it_may(game: Game):
    saved = []
    game.save = lambda recording: saved.append(recording) or "kept"
    game.tick()
    game.press("v")
    for _ in range(4):
        game.tick()
    game.press("z")
    for _ in range(9):
        game.tick()  # not back beyond the recording's own start
    game.release("z")
    assert game.player.steps == 1
    game.longest_recording = 4
    for _ in range(5):
        game.tick()
    (recording,) = saved
    assert len(recording.frames) == 4 and len(recording.actions) == 3 and game.message == "kept"


def test_a_simulator_that_refuses_is_hidden_and_the_game_goes_on(game: Game):
    def refuse(*_: Any) -> Any:
        raise ValueError("this episode has no seed")

    cast(Any, game.player.simulator).reset = refuse
    game.press("b")
    assert game.show_simulator
    width = game.tick().shape[1]
    assert not game.show_simulator and "no seed" in game.status() and not game.paused
    steps = game.player.steps
    assert game.tick().shape[1] == width and game.player.steps == steps + 1
