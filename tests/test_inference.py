import torch

from models.layers.inference import cast_weights, use_column_major
from models.layers.transformer import Transformer, TransformerConfig

PLACES = torch.cartesian_prod(torch.arange(2), torch.arange(2)).float()


def transformer(causal: bool) -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(16, 1, 2, 24, context_frames=2), PLACES, causal).eval()


def test_autoregressive_weights_become_column_major_without_changing():
    model = transformer(causal=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 8, 16)
    exact = model(x)[0]
    use_column_major(model)
    assert model.state_dict()["layers.0.qkv.weight"].stride() == (1, 48)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.allclose(model(x)[0], exact, atol=1e-6)


def test_a_model_of_whole_frames_stays_row_major():
    model = transformer(causal=False)
    use_column_major(model)
    assert model.state_dict()["layers.0.qkv.weight"].is_contiguous()


def test_cast_weights_give_the_same_output():
    model = transformer(causal=False)
    x = torch.randn(2, 8, 16)
    cast_weights(model, "fp32")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wide = model(x)[0]
        cast_weights(model, "bf16")
        assert torch.equal(model(x)[0], wide)
    dtypes = {p.dtype for p in model.parameters()}
    assert dtypes == {torch.float32, torch.bfloat16}  # norms stay float32
