import numpy as np
import pytest

from data.pusht.simulator import ACTIONS, GOAL, PushT, random_start
from data.pusht.vector_pusht import VectorPushT
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.protocols import goals, task
from evaluation.protocols.oracle_cem import OracleCem
from evaluation.protocols.policies import GoalAgentPosition, NoOp, Observation, Random, Scripted


def errors(*steps: tuple[float, float, float]) -> np.ndarray:
    return np.array([steps])


def test_chunk_end_tests_only_after_every_25_steps():
    far, near = (99, 99, 99), (5, 5, 5)
    reached_between = errors(*[far] * 10, *[near] * 14, far)
    reached_at_the_end = errors(*[far] * 24, near)
    assert goals.first_hit(reached_between)[0] and not goals.chunk_end(reached_between)[0]
    assert goals.chunk_end(reached_at_the_end)[0]


def test_first_hit_needs_agent_block_and_angle_at_one_step():
    assert goals.first_hit(errors((30, 5, 5), (19, 15, 19)))[0]
    assert not goals.first_hit(errors((19, 15, 21), (21, 1, 1)))[0]


def test_strict_needs_three_steps_in_a_row():
    near, far = (99, 9, 9), (99, 11, 9)
    assert goals.strict(errors(far, near, near, near))[0]
    assert not goals.strict(errors(near, near, far, near, near))[0]


def test_errors_wrap_the_angle():
    a = np.array([[0.0, 0, 3, 4, 0.1]])
    b = np.array([[0.0, 0, 0, 0, 2 * np.pi - 0.1]])
    assert np.allclose(goals.errors_between(a, b), [[5, 5, np.rad2deg(0.2)]])


def test_pairs_are_held_out_repeatable_and_within_an_episode(tmp_path):
    dataset = EpisodeDataset(write_toy_shards(tmp_path, episodes=20, length=30))
    pairs = goals.sample_pairs(dataset, 25, 8, seed=1)
    assert pairs == goals.sample_pairs(dataset, 25, 8, seed=1)
    assert pairs != goals.sample_pairs(dataset, 25, 8, seed=2)
    held_out = dataset.episodes("test")
    for pair in pairs:
        assert pair.episode in held_out and pair.goal == pair.start + 25 < 30


def test_oracle_cem_halves_the_distance_to_the_goal():
    starts = np.stack([random_start(seed) for seed in (3, 4)])
    goal_states = []
    for start in starts:  # a goal that a second of steady motion reaches
        env = PushT(32)
        env.reset(start)
        for _ in range(25):
            env.step(start[2:4])
        goal_states.append(env.state)
    with VectorPushT(2, 32, 1) as envs:
        planner = OracleCem(lambda: envs, num_samples=24, iterations=3)
        obs = Observation(None, starts, np.zeros((2, 2)), np.ones(2, bool))
        planner.reset(
            obs, Observation(None, np.stack(goal_states), np.zeros((2, 2)), np.ones(2, bool))
        )
        plans = planner.plan(starts, np.zeros((2, 2)), np.stack(goal_states))
        reached = envs.rollout(starts, np.zeros((2, 2)), plans[:, None])[:, 0]
    before = np.linalg.norm(starts[:, :4] - np.stack(goal_states)[:, :4], axis=1)
    after = np.linalg.norm(reached[:, :4] - np.stack(goal_states)[:, :4], axis=1)
    assert (after < before / 2).all()


def test_the_task_ranks_the_scripted_policy_above_random_and_repeats_its_starts():
    seeds = [100_000, 100_001, 100_002]
    with VectorPushT(3, 32, 1) as envs:
        best = {
            name: task.run_task(policy, envs, seeds, steps=120).max(1)
            for name, policy in (
                ("noop", NoOp()),
                ("random", Random(ACTIONS, 0)),
                ("scripted", Scripted()),
            )
        }
        again = task.run_task(Random(ACTIONS, 0), envs, seeds, steps=120).max(1)
    assert np.allclose(best["random"], again)
    assert best["scripted"].mean() > best["random"].mean() + 0.2
    starts = [PushT(32), PushT(32), PushT(32)]
    for env, seed, coverage in zip(starts, seeds, best["noop"], strict=True):
        env.reset(random_start(seed))
        assert env.coverage() == pytest.approx(coverage, abs=1e-3)


def test_goal_agent_position_moves_to_the_goals_agent_position():
    obs = Observation(None, np.zeros((1, 5)), np.zeros((1, 2)), np.ones(1, bool))
    goal = Observation(None, np.array([[7.0, 8, *GOAL]]), np.zeros((1, 2)), np.ones(1, bool))
    policy = GoalAgentPosition()
    policy.reset(obs, goal)
    assert policy.act(obs).tolist() == [[7.0, 8.0]]
