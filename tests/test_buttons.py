"""Play in a world of latent actions: buttons with what they do, prompts, and true actions."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from square_run import square_run
from square_world import MOVES, NAMES, STICK, VECTORS, draw, find

import play
from data.shards.episode_dataset import EpisodeDataset
from evaluation.readers.label_budget import cached_action_map
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.inference.load_world import load_world
from pipeline.play.action_file import read_actions
from pipeline.play.buttons import find_buttons
from pipeline.play.game import Game
from pipeline.play.player import Player
from pipeline.play.prompt import PromptStarts


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return square_run(monkeypatch, tmp_path / "run")


def opened(run: Path) -> tuple[World, EpisodeDataset]:
    return load_world(run), EpisodeDataset(run / "shards")


def image_file(path: Path, x: float = 12.0, y: float = 20.0, scale: int = 1) -> Path:
    frame = draw(torch.tensor([[x, y]]))[0].permute(1, 2, 0).numpy()
    cv2.imwrite(str(path), frame.repeat(scale, 0).repeat(scale, 1)[..., ::-1])
    return path


def learn_map(run: Path, budget: int = 60) -> None:
    world, dataset = opened(run)
    fingerprint = ckpt.load(run / "dynamics" / "best.pt", "dynamics")["fingerprint"]
    assert cached_action_map(run, world, dataset, budget, fingerprint) is not None


def test_a_button_says_where_it_moves_and_keeps_its_name(run: Path):
    world, dataset = opened(run)
    found = find_buttons(run, world, dataset)
    motion = np.array(found.motion)[NAMES]
    cosine = (motion[1:] * VECTORS[1:]).sum(1) / np.linalg.norm(motion[1:], axis=1)
    assert cosine.min() > 0.98 and found.n == 32
    named = find_buttons(run, world, dataset, ("left", "stay"))
    assert named.describe(0) == "1 left" and named.describe(2) == "3"
    again = find_buttons(run, world, dataset, ("links",))
    assert again.names[:3] == ("links", "stay", "") and again.motion == found.motion
    with pytest.raises(ValueError, match="gives 10 names, and this world has 9 latent actions"):
        find_buttons(run, world, dataset, ("x",) * 10)


def test_buttons_are_measured_once_and_anew_for_another_model(run: Path):
    world, dataset = opened(run)
    find_buttons(run, world, dataset, ("left",))
    path = run / "buttons.json"
    saved = json.loads(path.read_text())
    saved["n"] = 7
    path.write_text(json.dumps(saved))
    assert find_buttons(run, world, dataset).n == 7
    path.write_text(json.dumps(saved | {"dynamics": "another"}))
    assert find_buttons(run, world, dataset).n == 32
    path.write_text("{")
    with pytest.raises(ValueError, match="buttons.json is damaged"):
        find_buttons(run, world, dataset)


def test_buttons_are_drawn_below_the_frame_and_the_pressed_one_stands_out(run: Path):
    found = find_buttons(run, *opened(run))
    image = np.full((64, 64, 3), 9, np.uint8)
    drawn, pressed = found.draw(image), found.draw(image, 3)
    assert drawn.shape == (64 + 34, 400, 3) and (drawn[:64, :64] == 9).all()
    changed = np.argwhere((drawn != pressed).any(-1))
    assert len(changed) > 0 and changed[:, 1].min() >= 3 * 44 and changed[:, 1].max() < 4 * 44


def test_a_video_by_codes_from_an_image_of_any_size(run: Path, tmp_path: Path, capsys):
    prompt = image_file(tmp_path / "start.png", scale=3)
    code = int(NAMES[1])  # to the right
    np.save(tmp_path / "codes.npy", np.full(4, code))
    play.main(
        play.Config(
            run, headless=True, prompt=(str(prompt),), actions="file", steps=9,
            actions_file=tmp_path / "codes.npy", button_names=("a",),
        )
    )  # fmt: skip
    out = capsys.readouterr().out
    assert f"5 frames, model rollout, file actions, from the image {prompt}" in out
    assert (run / "play" / "rollout.mp4").exists()
    last = cv2.imread(str(run / "play" / "frames" / "00004.png"))
    assert last is not None and last.shape[0] > 256  # the buttons are below
    world, _ = opened(run)
    assert read_actions(run / "play" / "actions.npy", world.actions).tolist() == [code] * 4


def test_in_a_window_digits_are_buttons_and_a_reset_goes_back_to_the_prompt(run, tmp_path):
    world, dataset = opened(run)
    starts = PromptStarts([str(image_file(tmp_path / "start.png"))], world)
    player = Player(world)
    game = Game(
        player, starts, starts.sample(), tmp_path, size=64, fps=10,
        buttons=find_buttons(run, world, dataset, ("first",)),
    )  # fmt: skip
    first = player.model_frame.copy()
    game.press(str(NAMES[1] + 1))
    game.tick()
    moved = find(torch.from_numpy(player.model_frame).permute(2, 0, 1)[None])[0]
    assert (moved - torch.tensor([14.0, 20.0])).abs().max() < 0.2
    game.press("1")
    assert "1 first" in game.status()
    game.press("r")
    assert np.array_equal(player.model_frame, first)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"episode": 1}, "--episode needs an episode"),
        ({"compare_simulator": True}, "--compare-simulator needs an episode"),
        ({}, "has no recorded actions; give --actions random"),
        ({"actions": "planner"}, "no later frame to reach; give --goal"),
    ],
)
def test_what_needs_an_episode_is_refused_with_a_prompt(run, tmp_path, changes, message):
    prompt = (str(image_file(tmp_path / "start.png")),)
    with pytest.raises(ValueError, match=message):
        play.main(play.Config(run, headless=True, prompt=prompt, **changes))


def test_a_prompt_that_is_no_image_is_one_line(run: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no image")
    config = play.Config(
        run, headless=True, prompt=(str(tmp_path / "notes.txt"),), actions="random"
    )
    with pytest.raises(ValueError, match=r"notes.txt is no image"):
        play.main(config)


@pytest.mark.parametrize("spec", [STICK, MOVES])
def test_true_actions_steer_a_latent_world_through_the_map(tmp_path, monkeypatch, spec):
    run = square_run(monkeypatch, tmp_path / "run", spec)
    learn_map(run)
    right = np.array([1.0, 0.0], np.float32) if spec is STICK else np.array(1)
    np.save(tmp_path / "right.npy", np.stack([right] * 3))
    play.main(
        play.Config(
            run, headless=True, true_actions=True, label_budget=60, actions="file",
            actions_file=tmp_path / "right.npy", prompt=(str(image_file(tmp_path / "a.png")),),
            size=32,
        )
    )  # fmt: skip
    last = cv2.imread(str(run / "play" / "frames" / "00003.png"))
    assert last is not None
    panel = last[22:54, :32, ::-1].copy()
    place = find(torch.from_numpy(panel).permute(2, 0, 1)[None])[0]
    assert (place - torch.tensor([18.0, 20.0])).abs().max() < 0.5


def test_true_actions_without_a_map_or_without_latent_ones_are_one_line(run: Path):
    config = play.Config(run, headless=True, true_actions=True)
    with pytest.raises(ValueError, match="200.pt holds no map"):
        play.main(config)
