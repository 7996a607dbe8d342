"""States that are seen from a goal, and an imitator that knows every goal by them."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from models.controllers.canonical_policy import CanonicalPolicy, CanonicalPolicyConfig
from models.controllers.flow_policy import FlowPolicy, FlowPolicyConfig
from models.controllers.goal_frame import GoalFrame, as_columns, goal_poses
from models.controllers.policy import PolicyConfig
from models.controllers.task_cost import TaskCost
from models.registry import DataSpec, build_controller, describe
from models.tokenizers.tokenizer import LatentSpec
from pipeline.inference.load_controllers import pick_proposer

NAMES = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")
HOME = (50.0, 50.0, 0.5)
PLACES = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (100.0, 100.0), "", pointer=True)
LATENTS = LatentSpec("continuous", (1, 1), 5)
CONFIG = CanonicalPolicyConfig(
    PolicyConfig(hidden_dim=64, dropout=0.0),
    chunk_length=4,
    receding_horizon=2,
    num_layers=2,
    state_names=NAMES,
    goal=HOME,
)
IS_ANGLE = [name.endswith("angle") for name in NAMES]


def random_states(count: int, goals: Tensor, spread: float = 15.0) -> Tensor:
    """States around the goals, (B, 3): (B, 5)."""
    near = goals[:, [0, 1, 0, 1, 2]] + spread * torch.randn(count, 5)
    return torch.cat([near[:, :4], goals[:, 2:] + torch.randn(count, 1)], 1)


def random_goals(count: int) -> Tensor:
    return torch.rand(count, 3) * torch.tensor([40.0, 40.0, 2 * math.pi]) + torch.tensor(
        [30, 30, 0]
    )


def test_a_state_is_the_same_from_its_goal_wherever_that_lies() -> None:
    torch.manual_seed(0)
    frame, goals = GoalFrame(NAMES, HOME), random_goals(50)
    home = torch.tensor(HOME).expand(50, -1)
    states = random_states(50, home)
    sin, cos = (goals[:, 2] - HOME[2]).sin(), (goals[:, 2] - HOME[2]).cos()
    moved = states.clone()
    for x in (0, 2):
        dx, dy = (states[:, x] - HOME[0]), (states[:, x + 1] - HOME[1])
        moved[:, x] = goals[:, 0] + cos * dx - sin * dy
        moved[:, x + 1] = goals[:, 1] + sin * dx + cos * dy
    moved[:, 4] += goals[:, 2] - HOME[2]
    seen = frame.move(as_columns(moved, IS_ANGLE), goals)
    torch.testing.assert_close(seen, as_columns(states, IS_ANGLE), atol=1e-4, rtol=0)
    same = frame.move(as_columns(states, IS_ANGLE), home)
    torch.testing.assert_close(same, as_columns(states, IS_ANGLE), atol=1e-4, rtol=0)
    points = torch.rand(50, 7, 2) * 100
    back = frame.from_home(frame.to_home(points, goals), goals)
    torch.testing.assert_close(back, points, atol=1e-4, rtol=0)


def test_a_goal_has_a_pose_only_where_one_thing_turns() -> None:
    assert GoalFrame(NAMES, HOME).is_known and GoalFrame(NAMES, HOME).body == "block"
    assert not GoalFrame(NAMES, ()).is_known
    assert not GoalFrame(("agent_x", "agent_y"), HOME).is_known
    two = (*NAMES, "tool_x", "tool_y", "tool_angle")
    assert not GoalFrame(two, HOME).is_known
    assert goal_poses(None) is None and goal_poses(torch.zeros(2, 1, 5)) is None
    assert goal_poses(torch.zeros(2, 3)) is not None


def demos(count: int, goals: Tensor) -> Batch:
    """The agent goes straight to the goal, in four steps."""
    states = random_states(count, goals)
    share = torch.linspace(0.25, 1, 4)[:, None]
    chunk = states[:, None, :2] + share * (goals[:, None, :2] - states[:, None, :2])
    actions = PLACES.normalize(chunk)
    return Batch(actions=actions, extra={"states": states[:, None], "goals": goals})


class Reader:
    """Latents are the states."""

    def read_states(self, latents: Tensor) -> Tensor:
        return latents[:, 0]


@pytest.fixture(scope="module")
def trained() -> CanonicalPolicy:
    """On demonstrations of one goal alone."""
    torch.manual_seed(0)
    model = CanonicalPolicy(CONFIG, LATENTS, PLACES)
    home = torch.tensor(HOME).expand(256, -1)
    model.begin(demos(2000, torch.tensor(HOME).expand(2000, -1)))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(500):
        loss = model.loss(demos(256, home))["flow_matching"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.read_with(cast(TaskCost, Reader()))
    return model.eval()


def test_it_reaches_goals_that_nobody_demonstrated(trained: CanonicalPolicy) -> None:
    torch.manual_seed(1)
    goals = random_goals(200)
    states = random_states(200, goals, 10.0)
    chunk = trained.sample(states[:, None], torch.zeros(200, 4, 2), goal=goals)
    ends = PLACES.denormalize(chunk)[:, -1]
    assert (ends - goals[:, :2]).norm(dim=1).median() < 3
    elsewhere = trained.sample(states[:, None], torch.zeros(200, 4, 2))
    assert (PLACES.denormalize(elsewhere)[:, -1] - torch.tensor(HOME[:2])).norm(dim=1).median() < 10
    held_out = trained.validate(demos(100, random_goals(100)))
    assert held_out["action_error"] < 0.1


def test_far_goals_are_approached_by_way_of_nearer_ones(trained: CanonicalPolicy) -> None:
    reach = float(trained.reach)
    assert 20 < reach < 60
    goals = torch.tensor([[95.0, 10.0, 2.0], [20.0, 12.0, 1.0]])
    states = torch.tensor([[5.0, 5.0, 10.0, 10.0, 0.0]]).expand(2, -1)
    near = trained.nearer(states, goals)
    torch.testing.assert_close(near[0], torch.tensor([10 + reach, 10.0, 2.0]))
    torch.testing.assert_close(near[1], goals[1])


def test_chunks_are_imitated_as_demonstrations_are(trained: CanonicalPolicy) -> None:
    """From latents, towards its own goal; what is far from it is seen from a nearer one."""
    torch.manual_seed(2)
    home = torch.tensor(HOME).expand(32, -1)
    batch = demos(32, home)
    states, actions = batch.require("states", "actions")
    for shift in (0.0, 60.0):
        states[:, 0, [0, 2]] += shift
        nearer = trained.nearer(states[:, 0], home)
        assert torch.allclose(nearer, home, atol=20) == (shift == 0)
        torch.manual_seed(0)
        imitated = trained.imitate(states, actions)["flow_matching"]
        torch.manual_seed(0)
        extra = {"states": states, "goals": nearer}
        seen = trained.loss(Batch(actions=actions, extra=extra))["flow_matching"]
        torch.testing.assert_close(imitated, seen)


def test_a_checkpoint_builds_it_again_and_what_it_cannot_move_is_refused() -> None:
    data = DataSpec((64, 64), PLACES, LATENTS)
    again: Any = build_controller(describe(CONFIG), data)
    assert again.config == CONFIG
    with pytest.raises(ValueError, match="moves places of the plane: it needs states"):
        build_controller(CanonicalPolicyConfig(), data)
    moves = ActionSpec("continuous", ("dx", "dy"), (-1.0, -1.0), (1.0, 1.0), "")
    with pytest.raises(ValueError, match="leave canonical_policy out of --methods"):
        CanonicalPolicy(CONFIG, LATENTS, moves)


def test_chunks_are_those_of_a_policy_that_knows_the_goal() -> None:
    own = FlowPolicy(FlowPolicyConfig(PolicyConfig(hidden_dim=8)), LATENTS, PLACES)
    any_goal = CanonicalPolicy(CONFIG, LATENTS, PLACES)
    planners = {"flow_policy": own, "canonical_policy": any_goal, "distilled_policy": None}
    assert pick_proposer(planners, "auto", other_goal=False) == ("flow_policy", own)
    assert pick_proposer(planners, "auto", other_goal=True) == ("canonical_policy", any_goal)
    assert pick_proposer({"flow_policy": own}, "auto", other_goal=True) == ("flow_policy", own)
    assert pick_proposer(planners, "canonical_policy", False) == ("canonical_policy", any_goal)
    assert pick_proposer(planners, "distilled_policy", False) is None
    student = {"flow_policy": None, "distilled_policy": any_goal}
    assert pick_proposer(student, "auto", other_goal=False) == ("distilled_policy", any_goal)
    student["flow_policy"] = own
    assert pick_proposer(student, "auto", other_goal=True) == ("distilled_policy", any_goal)
    assert pick_proposer({}, "auto", other_goal=False) is None
