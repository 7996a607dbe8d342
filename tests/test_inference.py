import torch
from untrained_run import write_run

from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.layers.inference import cast_weights, use_column_major
from models.layers.transformer import Transformer, TransformerConfig
from pipeline import checkpoint as ckpt
from pipeline.inference.load_world import load_world

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


def test_a_world_that_was_trained_in_float32_acts_in_float32(tmp_path, monkeypatch):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards", episodes=6))
    run = write_run(tmp_path, dataset, controllers=False, method="keypoints")
    monkeypatch.setattr(
        "pipeline.inference.load_world.pick_precision",
        lambda device, requested: "bf16" if requested == "auto" else requested,
    )
    path = run / "dynamics" / "best.pt"
    for asked, precision in (("fp32", "fp32"), ("auto", "bf16"), ("bf16", "bf16")):
        ckpt.save(path, ckpt.load(path, "dynamics") | {"train": {"precision": asked}})
        world = load_world(run, "cpu")
        narrow = any(p.dtype == torch.bfloat16 for p in world.dynamics.parameters())
        assert world.precision == precision and narrow == (precision == "bf16")
