import pytest
import torch

from models.tokenizers.vqvae import VqVae, VqVaeConfig

SMALL = {
    "image_size": (32, 32), "channels": 32, "depth": 1, "continuous_steps": 2,
    "codebooks": 2, "codes": 16, "code_width": 8,
}  # fmt: skip


def noise(count: int = 6, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


@pytest.mark.parametrize("blocks", ["resnet", "convnext"])
@pytest.mark.parametrize("downsample, stem", [(8, 4), (8, 8), (4, 1), (16, 4)])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_any_whole_grid_goes_there_and_back(blocks, downsample, stem, size):
    config = VqVaeConfig(
        **SMALL | {"image_size": size}, block_type=blocks, downsample=downsample, patch_size=stem
    )
    model = VqVae(config).eval()
    codes = model.encode(noise(size=size))
    assert codes.shape == (6, 2 * (size[0] // downsample) * (size[1] // downsample))
    assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < 16
    drawn = model.decode(codes)
    assert drawn.shape == (6, 3, *size) and drawn.dtype == torch.uint8


def test_a_grid_with_a_rest_is_refused():
    with pytest.raises(ValueError, match="do not divide into patches of 8"):
        VqVaeConfig(image_size=(30, 32))
    with pytest.raises(ValueError, match="power of two"):
        VqVaeConfig(downsample=8, patch_size=3)


@pytest.mark.parametrize("blocks", ["resnet", "convnext"])
def test_a_code_depends_on_its_own_patch_alone(blocks):
    model = VqVae(VqVaeConfig(**SMALL, block_type=blocks)).eval()
    frames = noise()
    changed = frames.clone()
    changed[:, :, :8, :8] = 255 - changed[:, :, :8, :8]
    before = model.encoder(frames.float() / 127.5 - 1)
    after = model.encoder(changed.float() / 127.5 - 1)
    differs = (before != after).any(1).any(0)
    assert differs[0, 0] and differs.sum() == 1


def test_training_lowers_the_loss_and_uses_the_codebook():
    torch.manual_seed(0)
    model = VqVae(VqVaeConfig(**SMALL)).train()
    palette = torch.randint(0, 256, (8, 3, 1, 1), dtype=torch.uint8)
    frames = palette.expand(8, 3, 8, 8).repeat(1, 1, 4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(60):
        losses = model.loss(frames)
        total = losses["reconstruction"] + losses["commitment"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(losses["reconstruction"].detach()))
    assert history[-1] < history[3] / 4
    assert losses["perplexity"] > 4  # eight colours, and they are told apart
    assert losses["commitment"] > 0


def test_each_codebook_draws_its_own_share_of_a_patch():
    torch.manual_seed(0)
    model = VqVae(VqVaeConfig(**SMALL)).eval()
    for quantizer in model.quantizers:
        torch.nn.init.normal_(quantizer.codebook)  # type: ignore[arg-type]
    codes = model.encode(noise())
    vectors = model._lookup(codes)
    assert vectors.shape == (6, 16, 8) and model.codebooks.shape == (2, 16, 4)
    other = codes.clone()
    other[:, 1::2] = (other[:, 1::2] + 1) % 16  # the second code of every patch
    changed = (model._lookup(other) != vectors).any(0).any(0)
    assert changed.tolist() == [False] * 4 + [True] * 4
    assert not torch.equal(model.decode(other), model.decode(codes))


def test_a_code_is_the_nearest_of_its_codebook():
    torch.manual_seed(0)
    model = VqVae(VqVaeConfig(**SMALL)).eval()
    for quantizer in model.quantizers:
        torch.nn.init.normal_(quantizer.codebook)  # type: ignore[arg-type]
    frames = noise(2)
    encoded = model.encoder(frames.float() / 127.5 - 1).flatten(2).transpose(1, 2)
    for number, book in enumerate(model.codebooks):
        share = encoded[..., 4 * number : 4 * number + 4]
        nearest = torch.cdist(share, book.expand(2, -1, -1)).argmin(-1)
        assert torch.equal(model.encode(frames)[:, number::2], nearest)


def test_a_width_that_does_not_part_among_the_codebooks_is_refused():
    with pytest.raises(ValueError, match="code width of 10 does not part among 4"):
        VqVaeConfig(latent_dim=10)
