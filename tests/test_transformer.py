from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from models.layers.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(dim=32, num_layers=3, num_heads=2, mlp_dim=48, context_frames=3)
POSITIONS = torch.cartesian_prod(torch.arange(2), torch.arange(2)).float()


def blocks(count: int) -> torch.Tensor:
    return torch.randn(2, count * 4, 32, generator=torch.Generator().manual_seed(count))


def test_the_future_does_not_reach_the_past():
    model = Transformer(CONFIG, POSITIONS, causal_within_frame=False)
    x = blocks(5)
    changed = x.clone()
    changed[:, 12:] += 1  # the fourth block and on
    before, after = model(x)[0], model(changed)[0]
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_tokens_of_a_block_attend_to_each_other_unless_causal():
    x = blocks(1)
    changed = x.clone()
    changed[:, -1] += 1
    for causal in (False, True):
        model = Transformer(CONFIG, POSITIONS, causal)
        same = torch.equal(model(x)[0][:, 0], model(changed)[0][:, 0])
        assert same == causal


def test_one_layer_attends_to_exactly_its_context():
    config = TransformerConfig(dim=32, num_layers=1, num_heads=2, mlp_dim=48, context_frames=3)
    model = Transformer(config, POSITIONS, causal_within_frame=False)
    x = blocks(6)
    for touched, reaches in ((1, False), (3, True)):
        changed = x.clone()
        changed[:, touched * 4 : touched * 4 + 4] += 1
        same = torch.allclose(model(x)[0][:, -4:], model(changed)[0][:, -4:])
        assert same != reaches


def test_block_by_block_with_a_cache_equals_all_at_once():
    model = Transformer(CONFIG, POSITIONS, causal_within_frame=False)
    x = blocks(7)
    whole, cache, parts = model(x)[0], None, []
    for part in x.split(4, dim=1):
        out, cache = model(part, cache)
        parts.append(out)
    assert torch.allclose(whole, torch.cat(parts, dim=1), atol=1e-5)


def test_token_by_token_with_a_cache_equals_all_at_once():
    model = Transformer(CONFIG, POSITIONS, causal_within_frame=True)
    x = blocks(6)
    whole, cache, parts = model(x)[0], model.empty_cache(x), []
    for block in x.split(4, dim=1):
        static_cache = model.make_static_cache(cache)
        for position in range(4):
            parts.append(
                model.decode_token(block[:, position : position + 1], static_cache, position)
            )
        cache = model.append_block(static_cache)
    assert torch.allclose(whole, torch.cat(parts, dim=1), atol=1e-5)


def test_static_caches_share_a_cache_without_changing_it():
    model = Transformer(CONFIG, POSITIONS, causal_within_frame=True)
    cache = model(blocks(3))[1]
    before = [k.clone() for k in cache.keys + cache.values]
    first, second = (
        model.decode_token(blocks(1)[:, :1], model.make_static_cache(cache), 0) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(before, cache.keys + cache.values, strict=True))


def test_a_context_that_slid_for_long_is_as_exact_as_a_new_one():
    """One layer attends to its context only, so a cache with a long past must not differ."""
    model = Transformer(replace(CONFIG, num_layers=1), POSITIONS, causal_within_frame=False)
    last, cache = blocks(3), None
    for number in range(200):
        cache = model(blocks(3) * (1 + number), cache)[1]
    cache = model(last[:, :8], cache)[1]
    assert torch.allclose(model(last)[0][:, 8:], model(last[:, 8:], cache)[0], atol=1e-6)


def trained(config: TransformerConfig) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Output, gradients, and the number of values saved for the backward pass."""
    torch.manual_seed(0)
    model = Transformer(config, POSITIONS, causal_within_frame=False).train()
    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        out = model(blocks(5))[0]
        loss = out.square().mean()
    loss.backward()
    return out, [p.grad for p in model.parameters() if p.grad is not None], sum(saved)


def test_activation_checkpointing_changes_no_gradient_and_saves_memory():
    config = replace(CONFIG, dropout=0.3)
    out, gradients, kept = trained(config)
    again, same, fewer = trained(replace(config, activation_checkpointing=True))
    assert torch.equal(out, again) and len(gradients) == len(same) > 20
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert fewer < kept / 5
    # dropout is active: another seed gives another output
    torch.manual_seed(1)
    assert not torch.equal(Transformer(config, POSITIONS, False).train()(blocks(5))[0], out)


def test_nothing_is_recomputed_without_training(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("recomputes")

    monkeypatch.setattr("models.layers.transformer.checkpoint", refuse)
    model = Transformer(
        replace(CONFIG, activation_checkpointing=True), POSITIONS, causal_within_frame=False
    )
    model.eval()(blocks(2))
    with torch.no_grad():
        model.train()(blocks(2))
    with pytest.raises(AssertionError, match="recomputes"):
        model(blocks(2))
