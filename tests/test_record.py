"""Recording: what an action led to, in single environments and in every autoreset mode."""

from __future__ import annotations

from typing import Any

import counting_env  # noqa: F401  (registers Counting-v0)
import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from data.gym.env_group import EnvGroup, SeparateEnvs
from data.gym.env_spec import EnvSpec
from data.gym.record import Recorder, record_episodes, record_steps
from data.gym.recording_policies import RandomPolicy
from data.gym.vector_group import VectorGroup
from data.shards.episodes import Episode

SPEC = EnvSpec("Counting-v0", image_size=16)
DRAWN = EnvSpec("Counting-v0", {"drawn": True}, "render", image_size=16)
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


def vector_group(mode: AutoresetMode, num_envs: int, spec: EnvSpec = SPEC) -> VectorGroup:
    def make() -> gymnasium.Env:
        return gymnasium.make(spec.id, render_mode="rgb_array", **spec.kwargs)

    return VectorGroup(SyncVectorEnv([make] * num_envs, autoreset_mode=mode), spec)


GROUPS: dict[str, Any] = {
    "single": lambda: SeparateEnvs(SPEC, 1),
    "separate": lambda: SeparateEnvs(SPEC, 3),
    "drawn": lambda: SeparateEnvs(DRAWN, 3),
    **{mode.value: lambda mode=mode: vector_group(mode, 3) for mode in MODES},
    "drawn NEXT_STEP": lambda: vector_group(AutoresetMode.NEXT_STEP, 3, DRAWN),
}


def episodes(envs: EnvGroup, made: list[Recorder]) -> list[Episode]:
    return [recorder.to_episode(envs.actions, 0) for recorder in made]


def check(episode: Episode) -> None:
    """The frames count from 0 without a hole, show the action that led to them, and belong to one
    episode of the environment."""
    steps, actions, numbers = episode.frames[:, 0, 0].T
    length = len(episode)
    assert episode.actions is not None and episode.rewards is not None
    assert steps.tolist() == [*range(length)]
    assert actions[0] == 0 and (actions[1:] == episode.actions[:-1] + 1).all()
    assert len(set(numbers.tolist())) == 1
    assert episode.rewards.tolist() == [float(step) for step in range(length)]
    assert episode.lives is not None and episode.lives.tolist() == [3, 3, *[2] * (length - 2)]
    assert episode.terminals is not None and episode.truncations is not None
    assert not episode.terminals[:-1].any() and not episode.truncations[:-1].any()
    assert episode.terminals[-1] != episode.truncations[-1]


@pytest.mark.parametrize("group", GROUPS)
def test_no_step_across_a_reset_is_recorded(group: str):
    envs: EnvGroup = GROUPS[group]()
    made = episodes(envs, record_episodes(envs, RandomPolicy(envs.actions), lambda k: k, 20))
    assert len(made) == 20 and len({len(episode) for episode in made}) > 2
    for episode in made:
        check(episode)
        assert 4 <= len(episode) <= 8  # whole: 3 to 7 steps
        assert episode.terminals is not None
        assert bool(episode.terminals[-1]) == (len(episode) % 2 == 0)  # an odd number of steps


@pytest.mark.parametrize("group", GROUPS)
def test_an_episode_depends_on_its_own_seed_alone(group: str):
    """Whatever steps the environments together, and however many there are."""
    envs, alone = GROUPS[group](), SeparateEnvs(SPEC, 1)
    made, expected = (
        episodes(e, record_episodes(e, RandomPolicy(e.actions), lambda k: 100 + k, 7))
        for e in (envs, alone)
    )
    for episode, other in zip(made, expected, strict=True):
        assert np.array_equal(episode.actions, other.actions)  # type: ignore[arg-type]
        assert np.array_equal(episode.frames, other.frames)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_a_number_of_steps_is_kept_exactly(group: str, steps: int):
    envs: EnvGroup = GROUPS[group]()
    recorders = record_steps(envs, RandomPolicy(envs.actions), lambda k: k, steps)
    made = episodes(envs, recorders)
    assert sum(len(episode) - 1 for episode in made) == steps
    for episode, recorder in zip(made, recorders, strict=True):
        assert episode.terminals is not None and episode.truncations is not None
        assert episode.frames[:, 0, 0, 0].tolist() == [*range(len(episode))]
        # one that was cut counts as truncated, and never as a true end
        assert episode.truncations[-1] == (recorder.cut or len(episode) % 2 == 1)
        assert not (episode.terminals & episode.truncations).any()


def test_a_time_limit_of_ours_truncates_and_does_not_terminate():
    for group in (
        SeparateEnvs(EnvSpec("Counting-v0", image_size=16, max_episode_steps=3), 2),
        vector_group(
            AutoresetMode.NEXT_STEP, 2, EnvSpec("Counting-v0", image_size=16, max_episode_steps=3)
        ),
    ):
        made = episodes(group, record_episodes(group, RandomPolicy(group.actions), lambda k: k, 40))
        assert {len(episode) for episode in made} == {4}
        ends = [bool(e.terminals[-1]) for e in made if e.terminals is not None]
        assert any(ends) and not all(ends)  # those of 3 steps end by themselves
        assert all(e.truncations[-1] != e.terminals[-1] for e in made)  # type: ignore[index]


def test_what_is_reset_within_its_last_step_cannot_be_drawn():
    with pytest.raises(ValueError, match="its last frame is never drawn"):
        vector_group(AutoresetMode.SAME_STEP, 2, DRAWN)


def test_observed_numbers_are_states():
    envs = SeparateEnvs(DRAWN, 1)
    (episode,) = episodes(envs, record_episodes(envs, RandomPolicy(envs.actions), lambda k: k, 1))
    assert envs.state_dim == 2 and episode.states is not None and episode.actions is not None
    assert episode.states[:, 0].tolist() == [*range(len(episode))]
    assert episode.states[1:, 1].tolist() == episode.actions[:-1].tolist()
    assert GROUPS["single"]().state_dim == 0


@pytest.mark.parametrize("mode", MODES)
def test_an_environment_gives_nothing_after_its_end_until_all_are_reset(mode: AutoresetMode):
    group = vector_group(mode, 2)
    group.reset([0, 1])
    ended = np.zeros(2, bool)
    for _ in range(20):
        for number, result in enumerate(group.step(np.zeros(2, np.int64), np.ones(2, bool))):
            assert (result is None) == bool(ended[number])
            ended[number] |= result is not None and result.done
    assert ended.all()
    assert [result.frame[0, 0, 0] for result in group.reset([2, 3])] == [0, 0]
