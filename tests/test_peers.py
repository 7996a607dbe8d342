"""Peers do the same work as ours, and incorrect results are not timed."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama import modeling_llama

from bench.areas import (
    controller_speed,
    decode_speed,
    plan_speed,
    play_speed,
    roofline,
    train_speed,
)
from bench.operations import attention_peers
from bench.peers import hugging_face
from bench.peers import stable_worldmodel as peer
from bench.races.pairs import EXACT, INT8, Incorrect, Options
from kernels import BlockMask, eager, reference
from pipeline.cuda_graph import CudaGraphedWorld
from pipeline.inference.load_controllers import load_controller

SMALL = train_speed.Workload(
    train_speed.llama_config(32, 2, 2, 48, context_frames=3), 64, (2, 4), batch_size=2
)
ONCE = Options(rounds=1)
LIGER_REPLACES = ("LlamaRMSNorm", "LlamaMLP", "apply_rotary_pos_emb")
CPU = torch.device("cpu")

needs_stable_worldmodel = pytest.mark.skipif(
    importlib.util.find_spec("stable_worldmodel") is None,
    reason="not installed: pip install --no-deps -r requirements-bench.txt",
)


def seeded(work: train_speed.Workload) -> train_speed.TokenModel:
    torch.manual_seed(0)
    return train_speed.TokenModel(work).eval()


def their_llama(model: train_speed.TokenModel, attention: hugging_face.Attention = "sdpa"):
    work = model.work
    llama = hugging_face.llama(work.config, work.sequence_length, work.vocab_size, attention)
    hugging_face.copy_weights(llama, model)
    return llama.eval()


@pytest.mark.parametrize("grid", [(1, 1), (2, 4)])
def test_a_llama_with_our_weights_has_our_loss_and_gradients(grid: tuple[int, int]) -> None:
    model = seeded(replace(SMALL, grid=grid))
    batch = (
        model.work.sample(model.work.sequence_length, CPU),
        model.work.sample(model.work.sequence_length, CPU),
    )
    train_speed.check_gradients(model, batch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_llama_with_our_weights_has_our_logits(attention: hugging_face.Attention) -> None:
    model = seeded(SMALL)
    tokens = SMALL.sample(SMALL.sequence_length, CPU)
    with torch.no_grad():
        theirs = their_llama(model, attention)(tokens).logits
        assert torch.allclose(model.logits(tokens), theirs, atol=1e-4)


def test_our_weights_and_llamas_match_one_to_one() -> None:
    model = seeded(SMALL)
    llama = their_llama(model)
    seen = [id(theirs) for theirs, _, _ in hugging_face.matching_weights(llama, model)]
    assert sorted(seen) == sorted(id(p) for p in llama.parameters())
    taken = sum(ours[rows].numel() for _, ours, rows in hugging_face.matching_weights(llama, model))
    assert taken == sum(p.numel() for p in model.parameters())


def test_an_incorrect_gradient_stops_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(SMALL)
    batch = SMALL.sample(SMALL.sequence_length, CPU), SMALL.sample(SMALL.sequence_length, CPU)
    right = train_speed.linear_cross_entropy

    def wrong(x, *rest):
        x.register_hook(lambda grad: 1.1 * grad)
        return right(x, *rest)

    monkeypatch.setattr(train_speed, "linear_cross_entropy", wrong)
    with pytest.raises(Incorrect, match="gradient of weight"):
        train_speed.check_gradients(model, batch)


def test_losses_that_diverge_stop_the_race() -> None:
    batch = SMALL.sample(SMALL.sequence_length, CPU), SMALL.sample(SMALL.sequence_length, CPU)
    same, other = seeded(SMALL), seeded(SMALL)
    runners = {"Hugging Face eager, fp32": train_speed.StepRunner(same, same, batch, "fp32")}
    runners["ours"] = train_speed.StepRunner(other, other, batch, "fp32")
    train_speed.check_losses(runners, "Hugging Face eager, fp32")
    runners["ours"].optimizer.param_groups[0]["lr"] *= 10
    with pytest.raises(Incorrect, match="losses of ours"):
        train_speed.check_losses(runners, "Hugging Face eager, fp32")


@pytest.mark.parametrize("how", ["dynamic cache", "static cache"])
def test_we_decode_the_same_tokens_as_generate(how: hugging_face.Decoding) -> None:
    model = seeded(replace(SMALL, batch_size=1))
    prompt = model.work.sample(SMALL.frame_tokens, CPU)
    new = SMALL.sequence_length - SMALL.frame_tokens
    ours = decode_speed.decode_ours(model, prompt, new)
    assert ours.shape == (1, SMALL.sequence_length)
    assert torch.equal(ours, hugging_face.decoder(their_llama(model), prompt, new, how)())
    decode_speed.check_greedy("ours", model, ours, slack=1e-4)


def test_a_token_that_is_not_the_likeliest_stops_the_race() -> None:
    model = seeded(replace(SMALL, batch_size=1))
    prompt = model.work.sample(SMALL.frame_tokens, CPU)
    tokens = decode_speed.decode_ours(
        model, prompt, SMALL.sequence_length - SMALL.frame_tokens
    ).clone()
    tokens[0, -1] = (tokens[0, -1] + 1) % SMALL.vocab_size
    with pytest.raises(Incorrect, match="less likely than the likeliest"):
        decode_speed.check_greedy("ours", model, tokens, slack=1e-3)


def test_training_has_a_row_for_each_peer_and_a_share_of_the_hardware_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roofline, "sizes", lambda device, quick: (1, 256))
    rows = list(train_speed.measure(ONCE, SMALL, compiled=False))
    raced = {row.baseline: row for row in rows if row.ratio is not None}
    assert any("eager, fp32" in name for name in raced)
    assert any("SDPA" in name for name in raced)
    shares = [row for row in rows if row.unit == "%"]
    assert len(shares) == 2  # of a large product, and of the step's own products
    for share in shares:
        # both of its times are measured: beside other programs it can be over 100
        assert share.ours is not None and share.ours > 0


def test_the_flops_of_a_step_are_those_that_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # block by block, every product is one that the counter knows, and none is masked
    monkeypatch.setattr(eager, "_visible_fraction", lambda *_: 0.0)
    tokens = SMALL.sample(SMALL.sequence_length, CPU)
    with FlopCounterMode(display=False) as counter:
        seeded(SMALL)(tokens, tokens).backward()
    # except the norms, whose gradient takes a product with one column
    assert counter.get_total_flops() == pytest.approx(train_speed.matrix_flops(SMALL), rel=5e-3)


def test_decoding_has_a_row_for_each_cache_exact_and_in_8_bits() -> None:
    rows = list(decode_speed.measure(ONCE, replace(SMALL, batch_size=1), compiled=False))
    for name, (target, _) in decode_speed.TARGETS.items():
        raced = [row for row in rows if name in row.name]
        assert len(raced) >= 2 and all(row.ratio is not None for row in raced)
        targets = [row.target for row in raced]
        assert targets.count(target) == 1, "only the fastest peer has the target"


def test_a_model_in_8_bits_is_a_copy_and_leaves_the_exact_one_unchanged() -> None:
    model = seeded(replace(SMALL, batch_size=1))
    tokens = model.work.sample(SMALL.sequence_length, CPU)
    with torch.no_grad():
        before = model.logits(tokens)
        rough = decode_speed.quantized(model).logits(tokens)
        assert torch.equal(model.logits(tokens), before)
    assert 0 < (rough - before).norm() < 0.1 * before.norm()


def test_incorrect_decoding_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(model, prompt, new, write=None):
        return torch.cat([prompt, torch.zeros(1, new, dtype=torch.int64)], dim=1)

    monkeypatch.setattr(decode_speed, "decode_ours", lazy)
    monkeypatch.setattr(decode_speed, "race", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(Incorrect):
        list(decode_speed.measure(ONCE, replace(SMALL, batch_size=1), compiled=False))


MASKS = [BlockMask(), BlockMask(8), BlockMask(8, 1), BlockMask(8, 2), BlockMask(24)]


@pytest.mark.parametrize("block_mask", MASKS, ids=str)
def test_sdpa_attends_as_the_definition_rotated_or_not(block_mask: BlockMask) -> None:
    q, k, v = torch.randn(3, 2, 3, 24, 16)
    cosine, sine = torch.randn(2, 32, 8)
    for angle, first in ((None, None), ((cosine, sine), (cosine[:24], sine[:24]))):
        exact = reference.attention(q, k, v, block_mask, first)
        seen = attention_peers.BestSdpa(block_mask, angle)(q, k, v)
        assert torch.allclose(seen, exact, atol=1e-5)


def test_our_solver_finds_the_optimum_of_a_plane() -> None:
    found = plan_speed.our_toy_plan(plan_speed.CEM)
    plan_speed.check_solvers(found, found)


@needs_stable_worldmodel
def test_their_solver_finds_the_same_optimum() -> None:
    ours, theirs = (
        plan_speed.our_toy_plan(plan_speed.CEM),
        plan_speed.their_toy_plan(plan_speed.CEM),
    )
    plan_speed.check_solvers(ours, theirs)
    assert ours.shape == theirs.shape == (1, 25, 2)
    early = plan_speed.their_toy_plan(replace(plan_speed.CEM, iterations=1))
    with pytest.raises(Incorrect, match="their plan"):
        plan_speed.check_solvers(ours, early)


@needs_stable_worldmodel
def test_both_planners_have_models_of_one_size() -> None:
    world = plan_speed.our_world()
    theirs = peer.le_world_model(10)
    sizes = plan_speed.params_millions(world.dynamics), plan_speed.params_millions(theirs)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    now, goal = torch.randn(2, 1, 192)
    given = {
        k: v[:, None].expand(-1, 6, *v.shape[1:]) for k, v in peer.encoded(now, goal[0]).items()
    }
    with torch.no_grad():
        end = theirs.rollout(given, torch.randn(1, 6, 5, 10))["predicted_emb"][0, :, -1]
        state = plan_speed.start_state(world, now).repeat(6)
        assert world.rollout(state, torch.zeros(6, 25, 2)).latents[:, 0].shape == end.shape


@needs_stable_worldmodel
def test_planning_has_a_row_exact_and_in_8_bits_with_both_sizes_in_its_note() -> None:
    few = replace(plan_speed.CEM, num_samples=8, iterations=1, num_elites=4)
    *found, mppi = plan_speed.measure(ONCE, few, compiled=False)
    assert mppi.ratio is None and mppi.ours is not None and "MPPI" in mppi.name
    raced = [row for row in found if row.ratio is not None]
    ceilings = [row for row in found if row.name.endswith("share of the ceiling")]
    assert len(found) == len(raced) + len(ceilings) and len(ceilings) == 2
    assert all(row.ours and row.target == 90 for row in ceilings)
    for row, weights in zip(raced, (EXACT, INT8), strict=True):
        # the bar is theirs at our number of operations
        assert row.target and 2 < row.target < 3 and row.stretch == 2 * row.target
        assert "parameters" in row.note and "TFLOP" in row.note
        assert "1 (of 30)" in row.name and weights in row.name


@needs_stable_worldmodel
def test_a_plan_of_another_cost_when_rolled_out_alone_stops_the_race() -> None:
    torch.manual_seed(0)
    world, plane = plan_speed.our_world(), torch.randn(2, 1, 192)
    config = replace(plan_speed.CEM, num_samples=4, iterations=1, num_elites=2)
    state = plan_speed.start_state(world, plane[0])
    plan = plan_speed.Planner(config, world).plan(state, plane[1:], None, None)
    plan_speed.check_plan(plan, world, state, plane[1, 0], slack=1e-3)
    with pytest.raises(Incorrect, match="rolled out alone"):
        plan_speed.check_plan(replace(plan, cost=2 * plan.cost), world, state, plane[1, 0], 1e-3)


@needs_stable_worldmodel
def test_a_setting_of_theirs_that_fails_is_named_and_the_others_are_raced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    iterate, compiled = plan_speed.Theirs.iterate, replace(plan_speed.Setting("fp32", True))

    def breaks(self: plan_speed.Theirs) -> torch.Tensor:
        if self.setting == compiled:
            raise RuntimeError("no such compiler")
        return iterate(self)

    monkeypatch.setattr(plan_speed.Theirs, "iterate", breaks)
    monkeypatch.setattr(plan_speed, "pick_compile_fn", lambda _: lambda module, function: function)
    few = replace(plan_speed.CEM, num_samples=8, iterations=1, num_elites=4)
    broken, *others = plan_speed.measure(ONCE, few)
    assert broken.note == "failed: RuntimeError: no such compiler"
    assert broken.baseline == f"{plan_speed.PEER}, fp32 + compile"
    # each with its ceiling, and MPPI
    assert [row.ratio is not None for row in others] == [True, False, True, False, False]


def test_a_world_that_ignores_actions_is_not_timed() -> None:
    world = play_speed.load_world(play_speed.DEFAULT_RUN, CPU)
    frames, actions = play_speed.start_clip(play_speed.DEFAULT_RUN, world)
    play_speed.check_rollout(CudaGraphedWorld(world), world, frames, actions)
    still = play_speed.load_world(play_speed.DEFAULT_RUN, CPU)
    still.dynamics.step = lambda state, action: state  # type: ignore[method-assign]
    with pytest.raises(Incorrect, match="of 255 off the plain world's"):
        play_speed.check_rollout(still, world, frames, actions)


def test_a_decision_is_that_of_a_world_reset_at_the_same_frame() -> None:
    world = play_speed.load_world(play_speed.DEFAULT_RUN, CPU)
    frames, actions = play_speed.start_clip(play_speed.DEFAULT_RUN, world)
    loop = controller_speed.DecisionLoop(
        world, load_controller(play_speed.DEFAULT_RUN, world), frames, actions
    )
    loop.check(frames, actions)
    loop.frame = frames[None, 0]
    with pytest.raises(Incorrect, match="after observing"):
        loop.check(frames, actions)


@pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None,
    reason="not installed: pip install --no-deps -r requirements-bench.txt",
)
def test_liger_kernel_patches_one_llama_alone() -> None:
    model = seeded(SMALL)
    tokens = SMALL.sample(SMALL.sequence_length, CPU)
    before = {name: getattr(modeling_llama, name) for name in LIGER_REPLACES}
    peer = their_llama(model)
    call = hugging_face.with_liger(peer)
    assert "Liger" in str(peer.model.norm) and "Liger" in str(peer.model.layers[0].mlp)
    with contextlib.suppress(Exception):  # its kernels ask for a GPU
        call(tokens, labels=tokens)
    assert {name: getattr(modeling_llama, name) for name in LIGER_REPLACES} == before
    with torch.no_grad():
        assert torch.allclose(model.logits(tokens), their_llama(model)(tokens).logits, atol=1e-4)


def test_a_missing_peer_is_one_row_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in [name for name in sys.modules if name.startswith("stable_worldmodel")]:
        monkeypatch.delitem(sys.modules, name)
    (row,) = plan_speed.measure(ONCE, plan_speed.CEM)
    assert row.ratio is None
    assert row.note == "not measured: pip install --no-deps -r requirements-bench.txt"
