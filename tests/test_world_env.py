from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import (
    DictInfoToList,
    FlattenObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    RescaleAction,
)
from pointer_world import PointerWorld
from untrained_run import write_run

from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import MOVES, POINTER, write_toy_shards
from models.layers.sampling import Sampling
from models.world_env import WorldEnv
from pipeline.inference.load_world import load_world


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    folder: Path = write_toy_shards(tmp_path_factory.mktemp("toy"), episodes=6)
    return Clips(EpisodeDataset(folder), "train", clip_length=3)


def make(starts: Clips, **options: Any) -> WorldEnv:
    return WorldEnv(PointerWorld(), starts, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("obs_type", ["frames", "latents"])
@pytest.mark.parametrize("spec", [POINTER, MOVES], ids=["continuous", "discrete"])
# It recommends actions from -1 to 1; gymnasium's RescaleAction makes them so.
# A file that an earlier test left open may be collected meanwhile, which is no fault of this one.
@pytest.mark.filterwarnings(
    "error", "ignore:.*normalized space:UserWarning", "ignore::ResourceWarning"
)
def test_gymnasiums_checker_accepts_one_environment(starts: Clips, obs_type: Any, spec: Any):
    world: Any = PointerWorld(spec)
    check_env(WorldEnv(world, starts, 4, obs_type=obs_type).single(), skip_render_check=True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_checker_accepts_a_trained_world(tmp_path: Path, temperature: float):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards", episodes=6))
    world: Any = load_world(write_run(tmp_path, dataset))
    world.set_sampling(Sampling(temperature))  # it samples from the environment's seed
    held_out = Clips(dataset, "validation", clip_length=world.context)
    check_env(WorldEnv(world, held_out, obs_type="latents").single(), skip_render_check=True)
    many = WorldEnv(world, held_out, 3, horizon=4)
    seen, _ = many.reset(seed=0)
    for _ in range(6):
        assert seen.shape == (3, 32, 32, 3)
        seen, rewards, *_ = many.step(many.action_space.sample())
        assert np.isfinite(rewards).all()


def test_the_checker_accepts_its_rendering(starts: Clips):
    env = make(starts, render_mode="rgb_array").single()
    check_env(env)
    env.reset(seed=0)
    image = env.render()
    assert image is not None and image.shape == (32, 32, 3) and image.dtype == np.uint8


def test_observations_lie_in_their_space_and_follow_from_the_seed(starts: Clips):
    def play(seed: int) -> list[Any]:
        env = make(starts, num_envs=5, horizon=4)
        env.action_space.seed(seed)
        seen, _ = env.reset(seed=seed)
        history: list[Any] = [seen]
        for _ in range(10):
            out = env.step(env.action_space.sample())
            assert env.observation_space.contains(out[0])
            assert out[1].shape == out[2].shape == out[3].shape == (5,)
            assert (out[1].dtype, out[2].dtype, out[3].dtype) == (np.float64, bool, bool)
            history += list(out[:4])
        return history

    first, second, other = play(1), play(1), play(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_step_after_an_end_resets_and_ignores_its_action(starts: Clips):
    world: Any = PointerWorld(ends_at=0.9)
    env = WorldEnv(world, starts, 3, horizon=6, obs_type="latents")
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    seen, _ = env.reset(seed=0)
    right, steps, ended = np.array([[512.0, 256.0]] * 3), np.zeros(3, int), np.zeros(3, bool)
    kinds = set()
    for _ in range(40):
        before = seen
        seen, rewards, terminations, truncations, info = env.step(right)
        for row in range(3):
            if ended[row]:  # this step was the reset
                assert info["_clip"][row] and not terminations[row] and not truncations[row]
                clip = starts.batch(info["clip"][row : row + 1])
                expected = world.reset(clip.frames, clip.actions[:, :2]).latents[0]
                assert seen[row].tolist() == expected.tolist() and rewards[row] == 0
                steps[row] = 0
            else:
                steps[row] += 1
                assert abs(int(seen[row, 0]) - before[row, 0]) <= 41
                assert rewards[row] == pytest.approx(seen[row, 0] / 512)
                assert terminations[row] == (rewards[row] >= 0.9)
                assert truncations[row] == (steps[row] >= 6 and not terminations[row])
        kinds |= {"end"} if terminations.any() else set()
        kinds |= {"cut"} if truncations.any() else set()
        ended = terminations | truncations
    assert kinds == {"end", "cut"}


def test_a_row_gives_the_same_alone_and_in_a_batch(starts: Clips):
    many = make(starts, num_envs=4, horizon=50)
    one = make(starts, horizon=50).single()
    seen, _ = many.reset(seed=0, options={"clips": [0, 5, 9, 2]})
    alone, info = one.reset(seed=3, options={"clip": 9})
    assert info == {"clip": 9}
    many.action_space.seed(0)
    for _ in range(8):
        assert np.array_equal(seen[2], alone)
        actions = many.action_space.sample()
        seen, rewards, *_ = many.step(actions)
        alone, reward, *_ = one.step(actions[2])
        assert reward == pytest.approx(rewards[2])


def test_gymnasiums_wrappers_accept_it(starts: Clips):
    env: Any = RecordEpisodeStatistics(make(starts, num_envs=3, horizon=5))
    env = RescaleAction(env, -1.0, 1.0)
    env = DictInfoToList(NormalizeReward(FlattenObservation(env)))
    seen, _ = env.reset(seed=0)
    assert tuple(seen.shape) == (3, 32 * 32 * 3)
    lengths = []
    for _ in range(12):
        _, _, _, _, info = env.step(env.action_space.sample())
        lengths += [int(i["episode"]["l"]) for i in info if "episode" in i]
    assert lengths == [5] * 6


def test_invalid_arguments_are_refused(starts: Clips):
    with pytest.raises(ValueError, match="num_envs and horizon must be at least 1"):
        make(starts, num_envs=0)
    with pytest.raises(ValueError, match="4 environments"):
        make(starts, num_envs=4).reset(options={"clips": [1]})


def test_it_is_a_vector_environment(starts: Clips):
    env = make(starts, num_envs=2)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    assert isinstance(env.single(), gymnasium.Env)
    assert env.single_action_space == gymnasium.spaces.Box(0, 512, (2,), np.float32)
    env.close()
