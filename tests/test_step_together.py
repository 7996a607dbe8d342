"""Many players in one world: a step of all at once is the step of each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from untrained_run import write_run

from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.world import World
from pipeline.inference.load_world import load_world
from pipeline.play.player import Player, StartSampler
from pipeline.play.step_together import join, step_together


@pytest.fixture(scope="module", params=["vqvae", "keypoints"])
def world_and_starts(request: Any, tmp_path_factory: Any) -> tuple[World, StartSampler]:
    run: Path = tmp_path_factory.mktemp(request.param)
    write_toy_shards(run / "shards", episodes=12)
    dataset = EpisodeDataset(run / "shards")
    write_run(run, dataset, controllers=False, method=request.param)
    world = load_world(run)
    return world, StartSampler(dataset, "train", world.context, seed=0)


def players(world: World, starts: StartSampler, count: int) -> list[Player]:
    made = [Player(world) for _ in range(count)]
    for number, player in enumerate(made):
        player.reset(starts.at(number))
    return made


def test_players_stepped_together_go_where_each_goes_alone(
    world_and_starts: tuple[World, StartSampler],
):
    world, starts = world_and_starts
    together, alone = players(world, starts, 3), players(world, starts, 3)
    random = np.random.default_rng(0)
    for _ in range(7):
        actions = world.actions.sample(3, random)
        forwards = step_together(together, list(actions))
        assert forwards == 1  # they began together
        for player, action in zip(alone, actions, strict=True):
            player.step(action)
    for one, other in zip(together, alone, strict=True):
        assert one.steps == other.steps == 7
        if world.latents.kind == "discrete":
            assert (one.state.latents == other.state.latents).float().mean() > 0.9
        else:
            torch.testing.assert_close(one.state.latents, other.state.latents, atol=0.03, rtol=0.03)
        difference = one.model_frame.astype(int) - other.model_frame
        assert np.abs(difference).mean() < 4
    if world.latents.kind == "continuous":  # untrained codes are all alike
        apart = [one.state.latents.equal(together[0].state.latents) for one in together[1:]]
        assert not any(apart)  # each went its own way


def test_players_who_remember_differently_are_stepped_in_groups(
    world_and_starts: tuple[World, StartSampler],
):
    world, starts = world_and_starts
    all_players = players(world, starts, 4)
    action = world.actions.sample(1, np.random.default_rng(0))[0]
    all_players[0].step(action)
    all_players[2].step(action)
    groups = [rows for rows, _ in join([player.state for player in all_players])]
    assert sorted(map(tuple, groups)) == [(0, 2), (1, 3)]
    assert step_together(all_players, [action] * 4) == 2
    assert [player.steps for player in all_players] == [2, 1, 2, 1]


def test_one_player_alone_is_not_copied(world_and_starts: tuple[World, StartSampler]):
    world, starts = world_and_starts
    (player,) = players(world, starts, 1)
    ((_, state),) = join([player.state])
    assert state is player.state and step_together([], []) == 0
