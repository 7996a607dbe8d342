import pytest
import torch

from data.batch import Batch
from models.tokenizers.vqvae import VqVae, VqVaeConfig

SMALL = {
    "image_size": (32, 32), "channels": 32, "num_res_blocks": 1, "vq_start_step": 2,
    "num_codebooks": 2, "codebook_size": 16, "latent_dim": 8,
}  # fmt: skip


def noise(count: int = 6, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


@pytest.mark.parametrize("block_type", ["resnet", "convnext"])
@pytest.mark.parametrize("downsample, patch_size", [(8, 4), (8, 8), (4, 1), (16, 4)])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_frames_of_any_grid_are_encoded_and_decoded(block_type, downsample, patch_size, size):
    sizes = {"image_size": size, "downsample": downsample, "patch_size": patch_size}
    config = VqVaeConfig(**SMALL | sizes, block_type=block_type)
    model = VqVae(config).eval()
    codes = model.encode(noise(size=size))
    assert codes.shape == (6, 2 * (size[0] // downsample) * (size[1] // downsample))
    assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < 16
    drawn = model.decode(codes)
    assert drawn.shape == (6, 3, *size) and drawn.dtype == torch.uint8


def test_an_indivisible_image_size_is_refused():
    with pytest.raises(ValueError, match="not divisible by --downsample 8"):
        VqVaeConfig(image_size=(30, 32))
    with pytest.raises(ValueError, match="power of two"):
        VqVaeConfig(downsample=8, patch_size=3)


@pytest.mark.parametrize("block_type", ["resnet", "convnext"])
def test_a_code_depends_on_its_own_patch_only(block_type):
    model = VqVae(VqVaeConfig(**SMALL, block_type=block_type)).eval()
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
        losses = model.loss(Batch(frames=frames))
        total = losses["reconstruction"] + losses["commitment"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step()
        history.append(float(losses["reconstruction"].detach()))
    assert history[-1] < history[3] / 4
    assert losses["perplexity"] > 4  # of eight colors
    assert losses["commitment"] > 0


def test_each_codebook_has_its_own_part_of_a_patchs_vector():
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
    for index, book in enumerate(model.codebooks):
        part = encoded[..., 4 * index : 4 * index + 4]
        nearest = torch.cdist(part, book.expand(2, -1, -1)).argmin(-1)
        assert torch.equal(model.encode(frames)[:, index::2], nearest)


def test_a_latent_dim_not_divisible_by_the_codebooks_is_refused():
    with pytest.raises(ValueError, match="--latent-dim 10 is not divisible by --num-codebooks 4"):
        VqVaeConfig(latent_dim=10)
