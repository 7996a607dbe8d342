from pathlib import Path

import numpy as np
import pytest
import shapely

from data.opencv import resize_area
from data.pusht import canvas
from data.pusht.demo_data import load_demos
from data.pusht.demos import Demonstrations
from data.pusht.perturbed_demos import PerturbedDemos
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.pusht.scripted_policy import ScriptedPolicy
from data.pusht.simulator import GOAL, PushT, angle_difference, random_start, reward
from data.pusht.symmetries import mirror
from data.pusht.vector_pusht import VectorPushT

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "pusht"
LOWDIM = FOLDER / "pusht_cchi_v7_replay_lowdim.npz"
STORE = FOLDER / "pusht_cchi_v7_replay.zarr.zip"
needs_demos = pytest.mark.skipif(not LOWDIM.exists(), reason=f"{LOWDIM} does not exist")


def error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the largest error of agent and block, in pixels, and of the angle, in radians."""
    turn = np.abs(angle_difference(a[..., 4], b[..., 4]))
    return np.array([np.abs(a[..., :4] - b[..., :4]).max(), turn.max()])


def test_reset_sets_the_exact_state():
    random, world = np.random.default_rng(0), PushT()
    for _ in range(20):
        state = np.array([*random.uniform(20, 60, 2), *random.uniform(200, 300, 2), 0])
        state[4] = random.uniform(0, 2 * np.pi)
        world.reset(state, (30.0, -10.0))
        assert error(world.state, state).max() < 1e-6
        assert np.allclose(world.velocity, (30, -10))


def test_a_reset_does_not_depend_on_earlier_steps():
    world, fresh = PushT(), PushT()
    for _ in range(5):
        world.step((300, 280))
    start = random_start(1)
    world.reset(start)
    fresh.reset(start)
    for _ in range(10):
        world.step((256, 256))
        fresh.step((256, 256))
    assert np.array_equal(world.state, fresh.state)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e30, -1e30])
def test_a_reset_to_an_invalid_state_is_refused(number):
    with pytest.raises(ValueError, match="five finite numbers"):
        PushT().reset(np.array([1, 2, number, 4, 5]))


def test_frames_are_those_of_gym_pusht():
    import pygame

    world = PushT()
    world.reset(random_start(3))
    world.step((100, 400))
    own = pygame.surfarray.array3d(world._env._draw()).transpose(1, 0, 2)
    assert np.array_equal(world.render(512), own)
    assert not ((own[..., 0] > 200) & (own[..., 1] < 50)).any()  # no red cross
    area = own.reshape(64, 8, 64, 8, 3).mean((1, 3))
    assert np.abs(world.render(64) - area).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("size", [64, 96, 128])
def test_a_frame_does_not_depend_on_what_was_drawn_before(size):
    """Off the screen, at other goals, among frames of another size: as if drawn as a whole."""
    import pygame

    random, world, other = np.random.default_rng(0), PushT(size), PushT(32)
    for episode in range(40):
        state = random_start(episode)
        if episode % 2:
            state = np.array([*random.uniform(-100, 600, 4), random.uniform(-7, 7)])
        goal = GOAL if episode % 4 < 2 else np.array([*random.uniform(-50, 560, 2), 1.0])
        world.reset(state, goal=goal)
        other.reset(random_start(1000 + episode))
        world.step(random.uniform(0, 512, 2))
        other.render()
        whole = pygame.surfarray.array3d(world._env._draw()).transpose(1, 0, 2)
        assert np.array_equal(world.render(), resize_area(np.ascontiguousarray(whole), size))


def test_a_block_on_the_goal_covers_it():
    world = PushT()
    world.reset(np.array([30.0, 30.0, *GOAL]))
    assert world.coverage() == pytest.approx(1.0, abs=1e-6)
    assert reward(world.coverage()) == 1.0
    world.reset(np.array([30.0, 30.0, 440.0, 300.0, 1.0]))
    assert world.coverage() == 0.0


def test_coverage_is_that_of_gym_pusht_to_the_bit_whatever_the_goal():
    rng, world, covered = np.random.default_rng(0), PushT(), []
    for trial in range(40):
        goal = np.array([*rng.uniform(150, 350, 2), rng.uniform(0, 6)])
        state = np.array(
            [50.0, 50.0, *(goal[:2] + rng.normal(0, 20, 2)), goal[2] + rng.normal(0, 1)]
        )
        world.reset(state, goal=goal if trial % 3 else None)
        for _ in range(2):
            covered.append(world.coverage())
            assert covered[-1] == world.coverage() == world._env._get_coverage()
            world.step((256, 256))
    assert len(set(covered)) > 20


def test_task_starts_are_drawn_in_the_legacy_order():
    random = np.random.RandomState(100_000)
    agent = [random.randint(50, 450), random.randint(50, 450)]
    block = [random.randint(100, 400), random.randint(100, 400)]
    angle = random.randn() * 2 * np.pi - np.pi
    world = PushT()
    env = world._env
    env._setup()
    env.block.position = block  # position before angle, which rotates about the center
    env.block.angle = angle
    expected = np.array([*agent, *env.block.position, angle % (2 * np.pi)])
    assert error(random_start(100_000), expected).max() < 1e-6


@needs_demos
@pytest.mark.parametrize("number", [0, 57, 205])
def test_an_executed_demonstration_stays_within_half_a_pixel(number):
    source = PerturbedDemos(str(LOWDIM), num_copies=4)
    episode, mirrored = (source.episode(PushT(), number, copy) for copy in (0, 1))
    known = load_demos(LOWDIM)
    assert episode.states is not None and mirrored.states is not None
    away = error(episode.states[:-1], known.states[known.rows(number)])
    assert away[0] < 0.5 and away[1] < 0.01
    assert mirrored.actions is not None and episode.actions is not None
    assert np.allclose(mirror(mirrored.actions), episode.actions, atol=1e-3)
    assert error(mirrored.states[0], mirror(episode.states[0])).max() < 1e-4
    for copy, start in (3, mirror(episode.states[0])), (2, episode.states[0]):
        again = source.episode(PushT(), number, copy)
        assert again.states is not None
        assert error(again.states[0], start).max() < 1e-4
        turned = mirror(again.states) if copy == 3 else again.states
        assert error(turned, episode.states)[0] > 5
        assert np.abs(turned - episode.states)[:, :2].mean() < 40  # the same trajectory, perturbed
        assert again.source == episode.source == number
        twice = source.episode(PushT(), number, copy)
        assert again.actions is not None and twice.actions is not None
        assert np.array_equal(again.actions, twice.actions)


@needs_demos
def test_a_reset_in_the_middle_needs_the_agents_velocity():
    known = load_demos(LOWDIM)
    world, errors = PushT(), {True: [], False: []}
    for number in range(0, 200, 10):
        rows = known.rows(number)
        states, actions = known.states[rows], known.actions[rows]
        first = len(states) // 3
        for given in (True, False):
            velocity = (states[first] - states[first - 1])[:2] / 0.1 if given else (0, 0)
            world.reset(states[first], velocity)
            world.step(actions[first])
            errors[given].append(error(world.state, states[first + 1])[0])
    assert np.mean(errors[True]) < 0.5 < np.mean(errors[False])


@needs_demos
def test_npz_and_zarr_hold_the_same_demonstrations():
    if not STORE.exists():
        pytest.skip(f"{STORE} does not exist")
    a, b = load_demos(LOWDIM), load_demos(STORE)
    assert np.array_equal(a.episode_ends, b.episode_ends) and len(a.episode_ends) == 206
    assert np.allclose(a.states, b.states, atol=1e-4) and np.allclose(a.actions, b.actions)
    episode = Demonstrations(str(STORE)).episode(PushT(), 5)
    assert episode.frames.shape == (len(episode), 64, 64, 3)
    assert episode.rewards is not None and episode.rewards.max() > 0.8


@needs_demos
def test_the_last_action_of_a_demonstration_is_executed():
    demos, ends = load_demos(LOWDIM), []
    for number in range(0, 206, 29):
        direct = Demonstrations(str(LOWDIM), image_size=32).episode(PushT(32), number)
        executed = PerturbedDemos(str(LOWDIM), image_size=32).episode(PushT(32), number, 0)
        assert len(direct) == len(executed) == len(demos.states[demos.rows(number)]) + 1
        assert direct.states is not None and executed.states is not None
        assert error(direct.states[-1:], executed.states[-1:])[0] < 1.5
        assert direct.rewards is not None and direct.terminals is not None
        assert direct.terminals[-1] == (direct.rewards[-1] >= 1) and not direct.terminals[:-1].any()
        ends.append(direct.rewards[-1] - direct.rewards[-2])
    assert np.mean(ends) > 0.01


def test_mirrored_actions_give_mirrored_states():
    assert np.allclose(mirror(np.array([256, 400, *GOAL])), [112, 256, *GOAL])
    world, twin, policy, moved = PushT(), PushT(), ScriptedPolicy(), 0.0
    for seed in range(300_000, 300_004):
        start = random_start(seed)
        world.reset(start)
        twin.reset(mirror(start))
        for _ in range(60):
            target = policy.act(world.state)
            world.step(target)
            twin.step(mirror(target))
        assert error(mirror(twin.state), world.state).max() < 1e-3
        assert twin.coverage() == pytest.approx(world.coverage(), abs=1e-4)
        moved = max(moved, error(world.state, start)[0])
    assert moved > 50


def test_the_scripted_policy_brings_the_block_to_the_goal():
    world, policy, best = PushT(), ScriptedPolicy(), []
    for seed in range(300_000, 300_008):
        world.reset(random_start(seed))
        covered = [world.coverage()]
        for _ in range(250):
            world.step(policy.act(world.state))
            covered.append(world.coverage())
            if covered[-1] > 0.9:
                break
        best.append(max(covered))
    assert np.mean(best) > 0.8


def test_scripted_episodes_are_a_function_of_seed_and_number():
    source = ScriptedEpisodes(episodes=4, image_size=32, seed=3, steps=40)
    one, again = source.episode(PushT(32), 2), source.make_shard(0)[2]
    assert one.actions is not None and again.actions is not None
    assert np.array_equal(one.frames, again.frames) and np.array_equal(one.actions, again.actions)
    other = ScriptedEpisodes(episodes=4, image_size=32, seed=4, steps=40).episode(PushT(32), 2)
    assert other.actions is not None
    assert not np.array_equal(one.actions[:5], other.actions[:5])


def test_an_action_leads_from_its_frame_to_the_next():
    episode = ScriptedEpisodes(image_size=32, steps=30).episode(PushT(32), 0)
    assert episode.states is not None and episode.rewards is not None
    assert episode.actions is not None
    world = PushT(32)
    world.reset(episode.states[0].astype(np.float64))
    for t in range(10):
        assert np.abs(world.render().astype(int) - episode.frames[t]).mean() < 0.5
        assert reward(world.coverage()) == pytest.approx(episode.rewards[t], abs=0.01)
        world.step(episode.actions[t])
        assert error(world.state, episode.states[t + 1])[0] < 0.5


def test_simulators_that_stand_still_are_not_measured_again(monkeypatch):
    calls, intersection = [], shapely.intersection
    monkeypatch.setattr(shapely, "intersection", lambda *a: calls.append(a) or intersection(*a))
    with VectorPushT(3, 32, num_workers=1) as envs:
        envs.reset(np.arange(3), np.tile([30.0, 30.0, *GOAL], (3, 1)), np.zeros((3, 2)))
        for _ in range(4):
            envs.step(np.full((3, 2), 256.0), np.array([True, False, False]))
    assert len(calls) == 4 + 2


def test_vector_pusht_equals_single_simulators():
    starts = np.stack([random_start(seed) for seed in range(5)])
    targets = np.random.default_rng(0).uniform(100, 400, (6, 5, 2))
    singles = []
    for start, path in zip(starts, targets.transpose(1, 0, 2), strict=True):
        world = PushT(32)
        world.reset(start)
        for target in path:
            world.step(target)
        singles.append((world.state, world.coverage(), world.render()))
    for workers in (1, 2):
        with VectorPushT(5, 32, workers) as envs:
            envs.reset(np.arange(5), starts, np.zeros((5, 2)))
            for step in targets:
                states, coverages = envs.step(step)
            frames = envs.frames()
            rolled = envs.rollout(starts, np.zeros((5, 2)), targets.transpose(1, 0, 2)[:, None])
            active = np.array([True, False, True, True, True])
            after, _ = envs.step(targets[0], active)
            envs.step(targets[1])
            later, then = envs.frames(active), envs.frames()
        for i, (state, coverage, frame) in enumerate(singles):
            assert np.array_equal(states[i], state)
            assert coverages[i] == pytest.approx(coverage, abs=1e-9)
            assert np.array_equal(frames[i], frame.transpose(2, 0, 1))
            assert np.array_equal(rolled[i, 0], state)
        changed = [not np.array_equal(a, b) for a, b in zip(frames, later, strict=True)]
        assert changed == active.tolist()
        assert np.array_equal(later[active], then[active]) and not np.array_equal(later, then)
        assert np.array_equal(after[1], states[1]) and not np.array_equal(after[0], states[0])


def test_simulators_end_while_an_answer_waits_to_be_read():
    with VectorPushT(80, 96, 2) as envs:
        (pipe, _), processes = envs._pipes, envs._processes
        pipe.send(("frames", np.ones(40, bool)))  # more than a pipe holds, as after a Ctrl-C
    assert len(processes) == 2 and all(process.exitcode is not None for process in processes)


def test_an_error_in_a_worker_is_raised_here():
    for workers in (1, 2):
        with VectorPushT(2, 32, workers) as envs, pytest.raises(ValueError, match="five finite nu"):
            envs.reset(np.arange(2), np.full((2, 5), np.nan), np.zeros((2, 2)))


def test_a_frame_that_could_not_be_drawn_leaves_no_trace(monkeypatch):
    world, other = PushT(), PushT()
    other.reset(random_start(3))
    expected = world.render()
    with pytest.raises(ValueError, match="1 pixel or more, not -64"):
        other.render(-64)

    def fail(*_args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(canvas, "resize_area", fail)
        with pytest.raises(MemoryError):
            other.render(100)
    assert np.array_equal(world.render(), expected)
