import numpy as np
import pytest

from data.pusht.simulator import ACTIONS, GOAL, PushT, random_start
from data.pusht.vector_pusht import VectorPushT
from data.shards import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.protocols import goals, task
from evaluation.protocols.oracle_cem import OracleCem
from evaluation.protocols.policies import GoalAgentPosition, NoOp, Observation, Random, Scripted


def errors(*steps: tuple[float, float, float]) -> np.ndarray:
    return np.array([steps])


def test_chunk_end_looks_after_every_25_steps_alone():
    far, near = (99, 99, 99), (5, 5, 5)
    there_between = errors(*[far] * 10, *[near] * 14, far)
    there_at_the_end = errors(*[far] * 24, near)
    assert goals.first_hit(there_between)[0] and not goals.chunk_end(there_between)[0]
    assert goals.chunk_end(there_at_the_end)[0]


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
    recordings = EpisodeDataset(write_toy_shards(tmp_path, episodes=20, length=30))
    pairs = goals.sample_pairs(recordings, 25, 8, seed=1)
    assert pairs == goals.sample_pairs(recordings, 25, 8, seed=1)
    assert pairs != goals.sample_pairs(recordings, 25, 8, seed=2)
    held_out = recordings.episodes("test")
    for pair in pairs:
        assert pair.episode in held_out and pair.goal == pair.start + 25 < 30


def test_the_simulator_under_a_planner_comes_nearer_than_standing_still():
    starts = np.stack([random_start(seed) for seed in (3, 4)])
    wanted = []
    for start in starts:  # a goal that a second of steady motion reaches
        world = PushT(32)
        world.reset(start)
        for _ in range(25):
            world.step(start[2:4])
        wanted.append(world.state)
    with VectorPushT(2, 32, 1) as pool:
        planner = OracleCem(lambda: pool, num_samples=24, iterations=3)
        view = Observation(None, starts, np.zeros((2, 2)), np.ones(2, bool))
        planner.reset(view, Observation(None, np.stack(wanted), np.zeros((2, 2)), np.ones(2, bool)))
        plans = planner.plan(starts, np.zeros((2, 2)), np.stack(wanted))
        reached = pool.rollout(starts, np.zeros((2, 2)), plans[:, None])[:, 0]
    before = np.linalg.norm(starts[:, :4] - np.stack(wanted)[:, :4], axis=1)
    after = np.linalg.norm(reached[:, :4] - np.stack(wanted)[:, :4], axis=1)
    assert (after < before / 2).all()


def test_the_task_ranks_the_pusher_above_random_and_random_plays_the_same_starts():
    seeds = [100_000, 100_001, 100_002]
    with VectorPushT(3, 32, 1) as pool:
        best = {
            name: task.run_task(policy, pool, seeds, steps=120)
            for name, policy in (
                ("still", NoOp()),
                ("random", Random(ACTIONS, 0)),
                ("scripted", Scripted()),
            )
        }
        again = task.run_task(Random(ACTIONS, 0), pool, seeds, steps=120)
    assert np.allclose(best["random"], again)
    assert best["scripted"].mean() > best["random"].mean() + 0.2
    starts = [PushT(32), PushT(32), PushT(32)]
    for world, seed, still in zip(starts, seeds, best["still"], strict=True):
        world.reset(random_start(seed))
        assert world.coverage() == pytest.approx(still, abs=1e-3)


def test_a_score_is_coverage_over_its_threshold_and_one_at_most():
    made = task.summarize(np.array([0.0, 0.475, 0.96, 0.95]))
    assert made["score"] == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert made["success"] == 0.5 and made["n"] == 4
    assert made["low"] <= made["score"] <= made["high"]


def test_agent_only_goes_to_the_goals_agent_position():
    view = Observation(None, np.zeros((1, 5)), np.zeros((1, 2)), np.ones(1, bool))
    goal = Observation(None, np.array([[7.0, 8, *GOAL]]), np.zeros((1, 2)), np.ones(1, bool))
    policy = GoalAgentPosition()
    policy.reset(view, goal)
    assert policy.act(view).tolist() == [[7.0, 8.0]]
