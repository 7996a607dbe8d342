"""Hooks on layers: what they give is read by path, and changed by name."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from test_predictor import GRID, episode, predictor
from torch import Tensor, nn

from data.batch import Batch
from models.hooks.layer_collector import LayerCollector
from models.hooks.layer_manipulator import AblateHeads, AddDirection, LayerManipulator
from models.hooks.layer_paths import find_layers, read_output, with_output

LAST = "transformer.layers.1"
Pair = namedtuple("Pair", "flag, hidden")


def twice(x: Tensor) -> Tensor:
    return 2 * x


# -- paths -------------------------------------------------------------------------------------


def test_layers_are_found_by_path_and_by_pattern_in_the_order_of_the_model():
    model = predictor()
    assert list(find_layers(model, ["delta_head", "transformer.layers.?"])) == [
        "transformer.layers.0", "transformer.layers.1", "delta_head",
    ]  # fmt: skip
    assert find_layers(model, ["delta_head"])["delta_head"] is model.delta_head


@pytest.mark.parametrize(
    ("path", "hint"),
    [("transformer.layer.1", r"did you mean .*transformer\.layers\.1"),
     ("delta_haed", "did you mean delta_head"), ("zzz", "it has input_proj, action_emb")],
)  # fmt: skip
def test_near_names_are_offered_for_a_wrong_path(path: str, hint: str):
    with pytest.raises(ValueError, match=f"Predictor has no layer {path!r}; {hint}"):
        LayerCollector(predictor(), [path])


def test_a_compiled_model_is_refused_in_one_line():
    model = predictor()
    LayerCollector(model, [LAST])
    model.transformer.compile(backend="eager")
    with pytest.raises(
        ValueError, match="transformer is compiled, and compiled code ignores hooks"
    ):
        LayerCollector(model, [LAST])
    stepped = predictor()
    stepped.compile_steps(lambda module, function: torch.compile(function, backend="eager"))
    with pytest.raises(ValueError, match=r"Predictor\.predict_next is compiled") as refused:
        LayerManipulator(stepped, {"more": (LAST, twice)})
    assert "\n" not in str(refused.value)


# -- outputs -----------------------------------------------------------------------------------


@dataclass
class Output:
    note: str
    last_hidden_state: Tensor


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, 1), lambda x: [None, x], lambda x: Pair(True, x),
     lambda x: Output("seen", x)],
)  # fmt: skip
def test_tensors_tuples_and_classes_of_outputs_are_read_and_replaced(wrap: Any):
    module, x = nn.Identity(), torch.arange(3.0)
    output = wrap(x)
    assert read_output(module, output) is x
    changed = with_output(module, output, x + 1)
    assert type(changed) is type(output) and torch.equal(read_output(module, changed), x + 1)
    assert torch.equal(read_output(module, output), x)  # the one that was given stays


def test_an_output_without_a_tensor_is_named():
    with pytest.raises(ValueError, match="Identity gives a str without a tensor"):
        read_output(nn.Identity(), "nothing")


def test_a_layer_of_the_transformer_gives_the_whole_residual_stream():
    model = predictor()
    seen, acts = episode()
    state = model.start(seen[:, :1], acts[:, :0])
    with LayerCollector(model, [LAST, "delta_head"]) as layers:
        model.step(state, acts[:, 0])
    normed = nn.functional.rms_norm(layers[LAST], (24,), model.transformer.norm.weight, 1e-6)
    assert torch.allclose(model.delta_head(normed), layers["delta_head"], atol=1e-5)


# -- the collector -----------------------------------------------------------------------------


def test_a_collector_changes_nothing_and_leaves_nothing_behind():
    model = predictor().train()
    seen, acts = episode()

    def losses() -> dict[str, Tensor]:
        torch.manual_seed(3)
        model.zero_grad()
        found = model.loss(Batch(None, seen, acts))
        sum(found.values(), torch.zeros(())).backward()
        gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
        return {k: v.detach() for k, v in found.items()} | gradients

    before = losses()
    with LayerCollector(model, ["transformer.layers.*"]) as layers:
        during = losses()
        assert set(layers.take()) == {"transformer.layers.0", LAST}
    assert before.keys() == during.keys()
    assert all(torch.equal(before[k], during[k]) for k in before)
    assert not any(m._forward_hooks for m in model.modules())


def test_what_is_collected_without_gradients_is_what_is_collected_with_them():
    model = predictor().eval()
    seen, acts = episode()
    found = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode(), LayerCollector(model, ["transformer.layers.*", "delta_head"]) as layers:
            model.start(seen[:, :4], acts[:, :3])
            model.step(model.start(seen[:, :4], acts[:, :3]), acts[:, 3])
            first = layers[LAST]
            assert layers[LAST] is first and not first.requires_grad
            found.append(layers.take())
    assert all(set(one) == set(found[0]) for one in found)
    assert all(torch.allclose(one[k], found[0][k], atol=1e-6) for one in found[1:] for k in one)


def test_one_output_is_held_however_long_a_model_runs():
    model = predictor()
    seen, acts = episode()
    held = []
    with torch.no_grad(), LayerCollector(model, [LAST]) as layers:
        state = model.start(seen[:, :1], acts[:, :0])
        for t in range(8):
            state = model.step(state, acts[:, t])
            held.append(weakref.ref(layers[LAST]))
        gc.collect()
        assert [ref() is not None for ref in held] == [False] * 7 + [True]
        taken = layers.take()
        assert list(taken) == [LAST]
        with pytest.raises(ValueError, match=f"{LAST} has given nothing"):
            layers[LAST]
    with pytest.raises(ValueError, match="'delta_head' is not collected; there are transformer"):
        layers["delta_head"]


def test_the_first_output_is_of_real_frames_and_the_graph_is_kept_on_request():
    model = predictor().train()
    seen, acts = episode()
    with LayerCollector(model, [LAST], detach=False, keep="first") as layers:
        torch.manual_seed(0)
        model.loss(Batch(None, seen, acts))
        layers[LAST].square().mean().backward()
    assert model.input_proj.weight.grad is not None and model.delta_head.weight.grad is None
    with LayerCollector(model, [LAST], keep="last") as last:
        torch.manual_seed(0)
        model.loss(Batch(None, seen, acts))
    assert not last[LAST].requires_grad and not torch.equal(last[LAST], layers[LAST])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("detach", [True, False])
def test_an_output_that_is_changed_in_place_is_not_read(mode: Any, detach: bool):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    with mode(), LayerCollector(model, ["0", "1"], detach) as layers:
        model(torch.randn(4, 3))
        with pytest.raises(ValueError, match="0's output was changed in place by a later") as told:
            layers["0"]
        assert "\n" not in str(told.value)
        assert (layers["1"] >= 0).all() and layers["1"].requires_grad == (
            not detach and mode is torch.enable_grad
        )


def test_an_inference_tensor_is_copied_before_it_is_changed():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), torch.randn(4, 3)
    with torch.inference_mode(), LayerCollector(model, ["0"]) as layers:
        model(x)
        assert torch.equal(layers["0"], model[0](x)) and (layers["0"] < 0).any()


def test_the_first_call_with_a_graph_is_not_hidden_by_one_without():
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(4, 3)
    with LayerCollector(model, ["0"], detach=False, keep="first") as layers:
        with torch.no_grad():
            model(2 * x)
        assert not layers["0"].requires_grad
        first = model(x)
        model(3 * x)
        assert layers["0"] is first and first.requires_grad
    with torch.no_grad(), LayerCollector(model, ["0"], keep="first") as layers:
        model(2 * x)
        with torch.enable_grad():
            model(x)
    assert torch.equal(layers["0"], model[0](2 * x).detach())
    with pytest.raises(ValueError, match="keep is 'all'; a collector keeps the 'first' call or"):
        LayerCollector(model, ["0"], keep="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_an_output_without_a_tensor_keeps_no_other_from_being_read(mode: Any):
    class Text(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x}

    model = nn.Sequential(nn.Linear(3, 3), Text())
    with mode(), LayerCollector(model, ["0", "1"]) as layers:
        model(torch.randn(4, 3))
        with pytest.raises(ValueError, match="1 cannot be read: Text gives a dict without a"):
            layers.take()
        assert layers["0"].shape == (4, 3)


def test_a_layer_that_is_never_called_is_named():
    model = predictor()
    seen, acts = episode()
    with LayerCollector(model, ["transformer.norm"]) as layers:
        model.start(seen[:, :4], acts[:, :3])
        with pytest.raises(ValueError, match="transformer.norm has given nothing: its forward was"):
            layers["transformer.norm"]


@pytest.mark.parametrize("attach", [
    lambda model: LayerCollector(model, [LAST]),
    lambda model: LayerManipulator(model, {"more": (LAST, twice)}),
])  # fmt: skip
def test_what_is_attached_is_not_attached_again(attach: Any, capsys: pytest.CaptureFixture[str]):
    model = predictor()
    hooks = attach(model)
    with hooks:
        with pytest.raises(ValueError, match="is attached already; leave its `with` block"), hooks:
            pass
        assert len(model.get_submodule(LAST)._forward_hooks) == 1
    assert not any(m._forward_hooks for m in model.modules())


def test_hooks_are_gone_after_an_error():
    model = predictor()
    with pytest.raises(RuntimeError), LayerCollector(model, [LAST]):
        raise RuntimeError("of the model")
    assert not any(m._forward_hooks for m in model.modules())


# -- the manipulator ---------------------------------------------------------------------------


@pytest.mark.parametrize("dose", [0.0, 0.3])
def test_a_direction_is_added_exactly_in_a_step_and_in_training(dose: float):
    model = predictor(GRID)
    seen, acts = episode(GRID)
    state = model.start(seen[:, :1], acts[:, :0])
    direction = torch.randn(24, generator=torch.Generator().manual_seed(2))
    plain, steer = {}, LayerManipulator(model, {"d": (LAST, AddDirection(direction, dose))})
    for name in ("plain", "steered"):
        seen_after = LayerCollector(model, [LAST])  # registered after: it sees the change
        with steer, steer.only(*["d"] * (name == "steered")), seen_after as layers:
            plain[name] = model.step(state, acts[:, 0]).latents, layers[LAST]
    assert torch.allclose(plain["steered"][1], plain["plain"][1] + dose * direction, atol=1e-6)
    assert torch.allclose(plain["steered"][0], plain["plain"][0], atol=1e-6) == (dose == 0)
    with steer:
        model.train().loss(Batch(None, seen, acts))["prediction"].backward()
    assert model.input_proj.weight.grad is not None


def test_doses_may_differ_by_row():
    x, direction = torch.zeros(3, 2, 4), torch.ones(4)
    changed = AddDirection(direction, torch.tensor([0.0, 1.0, 2.0]))(x)
    assert torch.equal(changed[:, 0, 0], torch.tensor([0.0, 1.0, 2.0]))


def test_processors_are_named_and_may_be_put_to_rest():
    model = predictor()
    seen, acts = episode()
    both = LayerManipulator(
        model, {"more": (LAST, twice), "less": ("transformer.layers.0", lambda x: x / 2)}
    )
    state = model.start(seen[:, :1], acts[:, :0])
    plain = model.step(state, acts[:, 0]).latents
    with both:
        changed = model.step(state, acts[:, 0]).latents
        with both.only():
            assert torch.equal(model.step(state, acts[:, 0]).latents, plain)
        with pytest.raises(ValueError, match="no processor 'mroe'; there are more, less"):
            both.only("mroe").__enter__()
        assert torch.equal(model.step(state, acts[:, 0]).latents, changed)
    assert not torch.equal(changed, plain)
    assert torch.equal(model.step(state, acts[:, 0]).latents, plain)


def test_another_shape_is_refused_and_a_layer_that_was_not_called_is_said(
    capsys: pytest.CaptureFixture[str],
):
    model = predictor()
    seen, acts = episode()
    cut = LayerManipulator(model, {"cut": (LAST, lambda x: x[..., :3])})
    with cut, pytest.raises(ValueError, match=r"'cut' makes \(3, 1, 3\) of the \(3, 1, 24\) that"):
        model.step(model.start(seen[:, :1], acts[:, :0]), acts[:, 0])
    nothing = LayerManipulator(model, {"none": (LAST, lambda x: None)})  # type: ignore[dict-item]
    with nothing, pytest.raises(ValueError, match=rf"'none' makes a NoneType of .* {LAST} gives"):
        model.step(model.start(seen[:, :1], acts[:, :0]), acts[:, 0])
    capsys.readouterr()
    with LayerManipulator(model, {"idle": ("transformer.norm", twice), "more": (LAST, twice)}):
        model.step(model.start(seen[:, :1], acts[:, :0]), acts[:, 0])
    said = capsys.readouterr().out
    assert said == "processor 'idle' changed nothing: transformer.norm was not called\n"


def test_a_copy_of_a_hooked_model_stands_alone():
    model = predictor()
    with LayerManipulator(model, {"more": (LAST, twice)}):
        copied = copy.deepcopy(model)
    assert not any(m._forward_hooks for m in model.modules())
    for module in copied.modules():
        module._forward_hooks.clear()
    assert copied.state_dict().keys() == model.state_dict().keys()


def test_an_ablated_head_gives_nothing_and_the_others_what_they_did():
    x = torch.randn(2, 5, 3 * 12)
    changed = AblateHeads(num_heads=3, heads=(1,))(x)
    values = changed[..., 24:].unflatten(-1, (3, 4))
    assert not values[..., 1, :].any()
    assert torch.equal(changed[..., :24], x[..., :24])
    assert torch.equal(values[..., [0, 2], :], x[..., 24:].unflatten(-1, (3, 4))[..., [0, 2], :])


def test_layers_of_a_language_model_of_transformers_are_read_and_changed():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    whole = nn.ModuleDict({"backbone": transformers.AutoModel.from_config(config).eval()})
    x = torch.randn(2, 5, 16)
    run = whole["backbone"]
    paths = ["backbone", "backbone.layers.0", "backbone.layers.0.self_attn"]
    with torch.no_grad(), LayerCollector(whole, paths) as layers:
        out = run(inputs_embeds=x, output_hidden_states=True)
    assert torch.equal(layers["backbone"], out.last_hidden_state)
    assert torch.equal(layers["backbone.layers.0"], out.hidden_states[1])
    assert layers["backbone.layers.0.self_attn"].shape == (2, 5, 16)  # of a tuple
    shifted = LayerManipulator(
        whole,
        {
            "all": ("backbone", lambda h: h + 1),
            "attention": ("backbone.layers.*.self_attn", torch.zeros_like),
        },
    )
    with torch.no_grad(), shifted:
        with shifted.only("all"):
            moved = run(inputs_embeds=x).last_hidden_state
        with shifted.only("attention"):  # then no token sees another one
            together = run(inputs_embeds=x).last_hidden_state
            alone = run(inputs_embeds=x[:, 2:3]).last_hidden_state
    assert torch.allclose(moved, out.last_hidden_state + 1)
    assert torch.allclose(together[:, 2:3], alone, atol=1e-5)
    assert not torch.allclose(together, out.last_hidden_state, atol=1e-2)
