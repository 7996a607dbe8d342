"""What we are raced against does the same work, and no time is taken of what is wrong."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import ceilings, decode, planning, training
from bench.pairs import EXACT, INT8, Options, Wrong
from bench.peers import hugging_face
from bench.peers import stable_worldmodel as peer
from kernels import written

SMALL = training.Work(training.sized(32, 2, 2, 48, frames=3), 64, (2, 4), batch=2)
ONCE = Options(rounds=1)
CPU = torch.device("cpu")

needs_stable_worldmodel = pytest.mark.skipif(
    importlib.util.find_spec("stable_worldmodel") is None,
    reason="not installed: pip install --no-deps -r requirements-bench.txt",
)


def seeded(work: training.Work) -> training.TokenModel:
    torch.manual_seed(0)
    return training.TokenModel(work).eval()


def their_llama(model: training.TokenModel, attention: hugging_face.Attention = "sdpa"):
    work = model.work
    llama = hugging_face.llama(work.config, work.length, work.vocabulary, attention)
    hugging_face.adopt(llama, model)
    return llama.eval()


@pytest.mark.parametrize("grid", [(1, 1), (2, 4)])
def test_a_llama_with_our_weights_has_our_loss_and_gradients(grid: tuple[int, int]) -> None:
    model = seeded(replace(SMALL, grid=grid))
    batch = model.work.sample(model.work.length, CPU), model.work.sample(model.work.length, CPU)
    training.check_gradients(model, batch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_llama_with_our_weights_has_our_logits(attention: hugging_face.Attention) -> None:
    model = seeded(SMALL)
    tokens = SMALL.sample(SMALL.length, CPU)
    with torch.no_grad():
        theirs = their_llama(model, attention)(tokens).logits
        assert torch.allclose(model.logits(tokens), theirs, atol=1e-4)


def test_every_weight_of_ours_is_one_of_llamas_and_the_other_way_round() -> None:
    model = seeded(SMALL)
    llama = their_llama(model)
    seen = [id(theirs) for theirs, _, _ in hugging_face.pairs(llama, model)]
    assert sorted(seen) == sorted(id(p) for p in llama.parameters())
    taken = sum(ours[rows].numel() for _, ours, rows in hugging_face.pairs(llama, model))
    assert taken == sum(p.numel() for p in model.parameters())


def test_a_gradient_that_is_off_stops_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(SMALL)
    batch = SMALL.sample(SMALL.length, CPU), SMALL.sample(SMALL.length, CPU)
    right = training.linear_cross_entropy

    def wrong(x, *rest):
        x.register_hook(lambda grad: 1.1 * grad)
        return right(x, *rest)

    monkeypatch.setattr(training, "linear_cross_entropy", wrong)
    with pytest.raises(Wrong, match="gradient of weight"):
        training.check_gradients(model, batch)


def test_losses_that_part_stop_the_race() -> None:
    batch = SMALL.sample(SMALL.length, CPU), SMALL.sample(SMALL.length, CPU)
    same, other = seeded(SMALL), seeded(SMALL)
    runners = {"Hugging Face eager, fp32": training.Trainer(same, same, batch, "fp32")}
    runners["ours"] = training.Trainer(other, other, batch, "fp32")
    training.check_losses(runners, "Hugging Face eager, fp32")
    runners["ours"].optimizer.param_groups[0]["lr"] *= 10
    with pytest.raises(Wrong, match="losses of ours"):
        training.check_losses(runners, "Hugging Face eager, fp32")


@pytest.mark.parametrize("how", ["dynamic cache", "static cache"])
def test_we_decode_the_same_tokens_as_generate(how: hugging_face.Decoding) -> None:
    model = seeded(replace(SMALL, batch=1))
    prompt = model.work.sample(SMALL.frame, CPU)
    new = SMALL.length - SMALL.frame
    ours = decode.decode_ours(model, prompt, new)
    assert ours.shape == (1, SMALL.length)
    assert torch.equal(ours, hugging_face.decoder(their_llama(model), prompt, new, how)())
    decode.check_greedy("ours", model, ours, slack=1e-4)


def test_a_token_that_is_not_the_likeliest_stops_the_race() -> None:
    model = seeded(replace(SMALL, batch=1))
    prompt = model.work.sample(SMALL.frame, CPU)
    tokens = decode.decode_ours(model, prompt, SMALL.length - SMALL.frame).clone()
    tokens[0, -1] = (tokens[0, -1] + 1) % SMALL.vocabulary
    with pytest.raises(Wrong, match="less likely than the likeliest"):
        decode.check_greedy("ours", model, tokens, slack=1e-3)


def test_training_gives_a_row_for_each_peer_and_a_share_of_the_ceiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ceilings, "sizes", lambda device, quick: (1, 256))
    rows = list(training.measure(ONCE, SMALL, compiled=False))
    raced = {row.against: row for row in rows if row.ratio is not None}
    assert any("eager, fp32" in name for name in raced)
    assert any("SDPA" in name for name in raced)
    (share,) = [row for row in rows if row.unit == "%"]
    assert share.ours is not None and 0 < share.ours < 100


def test_the_products_of_a_step_are_those_that_are_multiplied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # frame by frame, every product is one that the counter knows, and none is out of view
    monkeypatch.setattr(written, "_share_in_view", lambda *_: 0.0)
    tokens = SMALL.sample(SMALL.length, CPU)
    with FlopCounterMode(display=False) as counter:
        seeded(SMALL)(tokens, tokens).backward()
    # but for the norms, whose gradient takes a product with one column
    assert counter.get_total_flops() == pytest.approx(training.matrix_flops(SMALL), rel=5e-3)


def test_decoding_gives_a_row_for_each_cache_exact_and_in_8_bits() -> None:
    rows = list(decode.measure(ONCE, replace(SMALL, batch=1), compiled=False))
    for name, (bar, _) in decode.BARS.items():
        raced = [row for row in rows if name in row.what]
        assert len(raced) >= 2 and all(row.ratio is not None for row in raced)
        assert [row.bar for row in raced].count(bar) == 1, "the fastest peer alone has the bar"


def test_a_model_in_8_bits_is_another_one_and_leaves_the_exact_one_alone() -> None:
    model = seeded(replace(SMALL, batch=1))
    tokens = model.work.sample(SMALL.length, CPU)
    with torch.no_grad():
        before = model.logits(tokens)
        rough = decode.quantised(model).logits(tokens)
        assert torch.equal(model.logits(tokens), before)
    assert 0 < (rough - before).norm() < 0.1 * before.norm()


def test_no_time_is_taken_of_decoding_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(model, prompt, new, write=None):
        return torch.cat([prompt, torch.zeros(1, new, dtype=torch.int64)], dim=1)

    monkeypatch.setattr(decode, "decode_ours", lazy)
    monkeypatch.setattr(decode, "race", lambda *_, **__: pytest.fail("a time was taken"))
    with pytest.raises(Wrong):
        list(decode.measure(ONCE, replace(SMALL, batch=1), compiled=False))


def test_our_solver_finds_the_optimum_of_a_plane() -> None:
    found = planning.our_toy_plan(planning.CEM)
    planning.check_solvers(found, found)


@needs_stable_worldmodel
def test_their_solver_finds_the_same_optimum() -> None:
    ours, theirs = planning.our_toy_plan(planning.CEM), planning.their_toy_plan(planning.CEM)
    planning.check_solvers(ours, theirs)
    assert ours.shape == theirs.shape == (1, 25, 2)
    early = planning.their_toy_plan(replace(planning.CEM, iterations=1))
    with pytest.raises(Wrong, match="their plan"):
        planning.check_solvers(ours, early)


@needs_stable_worldmodel
def test_both_planners_imagine_with_models_of_one_size() -> None:
    world = planning.our_world()
    theirs = peer.le_world_model(10)
    sizes = planning.parameters(world.dynamics), planning.parameters(theirs)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    now, goal = torch.randn(2, 1, 192)
    given = {
        k: v[:, None].expand(-1, 6, *v.shape[1:]) for k, v in peer.encoded(now, goal[0]).items()
    }
    with torch.no_grad():
        end = theirs.rollout(given, torch.randn(1, 6, 5, 10))["predicted_emb"][0, :, -1]
        state = planning.begin(world, now).repeat(6)
        assert world.rollout(state, torch.zeros(6, 25, 2)).latents[:, 0].shape == end.shape


@needs_stable_worldmodel
def test_planning_gives_a_row_exact_and_in_8_bits_with_both_sizes_in_its_note() -> None:
    few = replace(planning.CEM, samples=8, iterations=1, best=4)
    rows = list(planning.measure(ONCE, few, compiled=False))
    for row, weights in zip(rows, (EXACT, INT8), strict=True):
        assert row.ratio is not None and (row.bar, row.aim) == (4.0, 12.0)
        assert "parameters" in row.note and "TFLOP" in row.note
        assert "1 (of 30)" in row.what and weights in row.what


@needs_stable_worldmodel
def test_a_plan_that_costs_more_alone_stops_the_race() -> None:
    torch.manual_seed(0)
    world, plane = planning.our_world(), torch.randn(2, 1, 192)
    config = replace(planning.CEM, samples=4, iterations=1, best=2)
    state = planning.begin(world, plane[0])
    plan = planning.Planner(config, world).to_goal(state, plane[1:], None, None)
    planning.check_plan(plan, world, state, plane[1, 0], slack=1e-3)
    with pytest.raises(Wrong, match="imagined alone"):
        planning.check_plan(replace(plan, cost=2 * plan.cost), world, state, plane[1, 0], 1e-3)


def test_a_missing_peer_is_one_row_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in [name for name in sys.modules if name.startswith("stable_worldmodel")]:
        monkeypatch.delitem(sys.modules, name)
    (row,) = planning.measure(ONCE, planning.CEM)
    assert row.ratio is None
    assert row.note == "not measured: pip install --no-deps -r requirements-bench.txt"
