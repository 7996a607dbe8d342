"""The image world model: what it predicts from, what moves with it, and what its MRR says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from data.actions import ActionSpec
from data.batch import Batch
from models import registry
from models.config import from_plain, to_plain
from models.layers import views
from models.layers.mrr import chance
from models.layers.vit import VitConfig
from models.tokenizers import iwm
from models.tokenizers.iwm import Iwm, IwmConfig

SMALL = VitConfig(dim=24, num_layers=1, num_heads=2)
CONFIG = IwmConfig((32, 32), 8, SMALL, SMALL, channels=16, num_res_blocks=1)


@pytest.fixture
def model() -> Iwm:
    torch.manual_seed(0)
    return Iwm(CONFIG)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (6, 1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Batch(frames=frames)


def test_a_frame_is_a_vector_per_patch_and_back(model, batch):
    frames = batch.frames[:, 0]
    latents = model.encode(frames)
    assert latents.shape == (6, 16, 24) and model.latents.grid == (4, 4)
    assert latents.mean(-1).abs().max() < 1e-5
    assert (
        model.decode(latents).shape == frames.shape and model.decode(latents).dtype == torch.uint8
    )


def test_targets_have_no_gradient_and_the_decoder_does_not_reach_the_encoder(model, batch):
    losses = model.loss(batch)
    losses["reconstruction"].backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    model.loss(batch)["prediction"].backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.target_encoder.parameters())


def test_the_target_encoder_follows_by_moving_average(model):
    with torch.no_grad():
        for p in model.encoder.parameters():
            p += 1.0
    before = [p.clone() for p in model.target_encoder.parameters()]
    model.after_step()
    moved = [
        (after - old) for after, old in zip(model.target_encoder.parameters(), before, strict=True)
    ]
    assert all(torch.allclose(m, torch.full_like(m, 0.004), atol=1e-5) for m in moved)
    model.num_steps.fill_(CONFIG.ema_steps)
    before = [p.clone() for p in model.target_encoder.parameters()]
    model.after_step()  # the decay has risen to 1
    assert all(
        torch.equal(a, b) for a, b in zip(model.target_encoder.parameters(), before, strict=True)
    )


@pytest.mark.parametrize("conditioning", ["feature", "sequence"])
def test_the_action_changes_the_prediction(conditioning, batch):
    torch.manual_seed(0)
    model = Iwm(IwmConfig((32, 32), 8, SMALL, SMALL, conditioning))
    latents = model.encode(batch.frames[:, 0])
    action = torch.zeros(6, 16)
    still = model.predict(latents, action)
    action[3, views.BRIGHTNESS] = 0.4
    moved = model.predict(latents, action)
    assert torch.equal(still[:3], moved[:3])
    assert not torch.allclose(still[3], moved[3])


def test_each_number_of_an_action_reaches_the_predictor_at_like_size(model, batch):
    seen = []
    model.predictor.register_forward_pre_hook(lambda module, given: seen.append(given[3]))
    latents = model.encode(batch.frames[:1, 0])
    largest = torch.zeros(1, 16)
    largest[0, : len(views.LARGEST)] = torch.tensor(views.LARGEST)
    model.predict(latents, largest)
    assert seen[0][0].tolist() == pytest.approx([1] * 11 + [0] * 5)


def test_a_whitened_encoder_hears_more_of_a_hue(batch):
    heard = []
    for whitened in (False, True):
        torch.manual_seed(0)
        model = Iwm(replace(CONFIG, whiten=whitened))
        images = batch.frames[:, 0].float() / 255
        view = torch.zeros(6, views.SLOTS)
        view[:, views.HUE] = 0.1
        plain, turned = (
            model._latents(model.encoder, views.apply(images, v)) for v in (0 * view, view)
        )
        heard.append(float((turned - plain).square().mean()))
    assert heard[1] > 1.1 * heard[0]


def test_without_conditioning_the_action_changes_only_where_patches_are(batch):
    model = Iwm(IwmConfig((32, 32), 8, SMALL, SMALL, "none"))
    latents = model.encode(batch.frames[:, 0])
    action = torch.zeros(6, 16)
    still = model.predict(latents, action)
    action[:, views.PHOTOMETRIC] = 1.0
    assert torch.equal(still, model.predict(latents, action))
    action[:, views.LOG_SIDE] = -0.5
    assert not torch.allclose(still, model.predict(latents, action))


def test_views_differ_by_what_they_say(model):
    torch.manual_seed(0)
    source, target = model.draw_views(2000, torch.device("cpu"))
    destroyed = views.BLUR, views.GRAY, views.SOLARIZE
    both = (source[:, destroyed] > 0).any(1) & (target[:, destroyed] > 0).any(1)
    assert not both.any()
    cropped = (source[:, views.GEOMETRIC] != target[:, views.GEOMETRIC]).any(1)
    assert cropped.float().mean() == pytest.approx(CONFIG.crop_prob, abs=0.04)
    assert (source[cropped][:, views.GEOMETRIC] == 0).all()  # the target lies within the source


def test_a_model_that_applies_transformations_has_an_mrr_of_one(model, batch, monkeypatch):
    frames = batch.frames[:2, 0]

    def oracle(latents: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        first = model.encode(frames[:1])[0].mean(0)  # which a pooled start has, too
        which = 0 if torch.allclose(latents[0].mean(0), first) else 1
        image = (frames[which].float() / 255).expand(len(action), -1, -1, -1)
        return model._latents(model.target_encoder, views.apply(image, action))

    monkeypatch.setattr(model, "predict", oracle)
    found = model.mrr(frames, views.draw_photometric, queries=32, num_candidates=64)
    assert all(values.tolist() == [1, 1] for values in found.values())


def test_a_model_that_ignores_the_action_has_an_mrr_near_chance(batch):
    torch.manual_seed(0)
    model = Iwm(IwmConfig((32, 32), 8, SMALL, SMALL, "none"))
    found = model.mrr(batch.frames[:4, 0], views.draw_photometric, 64, 64)
    assert float(found["mrr"].mean()) == pytest.approx(chance(64), abs=0.01)


def test_where_nothing_is_masked_all_patches_are_seen_and_predicted(batch, monkeypatch):
    torch.manual_seed(0)
    model = Iwm(replace(CONFIG, visible=1.0, predicted=1.0))
    asked: list[tuple[int, int]] = []
    predict = model.predictor.forward

    def spy(latents, seen, wanted, action):
        asked.append((latents.shape[1], wanted.shape[1]))
        return predict(latents, seen, wanted, action)

    monkeypatch.setattr(model.predictor, "forward", spy)
    losses = model.loss(batch)
    assert asked == [(model.latents.num_patches,) * 2] and losses["prediction"].isfinite()


def test_the_error_of_the_mean_counts_what_patches_have_in_common(batch, monkeypatch):
    """A shift of all patches is as many times as much there, and what cancels is nothing."""
    model = Iwm(replace(CONFIG, pooled_weight=2.0))
    predicted = int(CONFIG.predicted * model.latents.num_patches)
    taken: list[torch.Tensor] = []
    take = iwm.take

    def spy(tokens, index):
        taken.append(take(tokens, index))
        return taken[-1]

    monkeypatch.setattr(iwm, "take", spy)  # targets are taken first
    alternating = torch.tensor([0.5, -0.5]).repeat(predicted)[:predicted, None]
    for shift, pooled in (0.0, 0.0), (0.5, 0.25), (alternating - alternating.mean(), 0.0):
        taken.clear()
        monkeypatch.setattr(model, "_predict", lambda *given, shift=shift: taken[0] + shift)
        losses = model.loss(batch)
        error = float(torch.as_tensor(shift).square().mean())
        assert float(losses["prediction"]) == pytest.approx(error, abs=1e-6)
        expected = 2 * predicted * pooled
        assert float(losses["pooled_prediction"]) == pytest.approx(expected, abs=1e-5)


def test_what_makes_views_alike_teaches_the_encoder_alone(batch):
    torch.manual_seed(0)
    model = Iwm(replace(CONFIG, vicreg_weight=2.0))
    assert "vicreg" not in Iwm(CONFIG).loss(batch)
    torch.manual_seed(1)
    once = model.loss(batch)["vicreg"]
    once.backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    for other in (model.target_encoder, model.predictor, model.decoder):
        assert all(p.grad is None for p in other.parameters())
    twice = Iwm(replace(CONFIG, vicreg_weight=4.0))
    twice.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    assert float(twice.loss(batch)["vicreg"]) == pytest.approx(2 * float(once), rel=1e-5)


def test_views_are_alike_whatever_patches_are_seen(batch, monkeypatch):
    """Means of the same few patches would differ between images by where these are."""
    model = Iwm(replace(CONFIG, vicreg_weight=2.0))
    seen, encode = [], model.encoder.forward

    def spy(frames, keep=None):
        seen.append(None if keep is None else keep.shape[1])
        return encode(frames, keep)

    monkeypatch.setattr(model.encoder, "forward", spy)
    model.loss(batch)
    assert seen == [int(CONFIG.visible * model.latents.num_patches), None]


def test_an_anchored_prediction_of_no_action_is_no_change(model, batch):
    latents = model.encode(batch.frames[:, 0])
    still = torch.zeros(6, views.SLOTS)
    assert not torch.allclose(model.predict(latents, still), latents, atol=1e-2)
    anchored = Iwm(replace(CONFIG, anchored=True))
    anchored.load_state_dict(model.state_dict())
    assert torch.allclose(anchored.predict(latents, still), latents, atol=1e-5)
    gray = still.clone()
    gray[:, views.GRAY] = 1
    moved = model.predict(latents, gray) - model.predict(latents, still)
    assert torch.allclose(anchored.predict(latents, gray), latents + moved, atol=1e-5)


def test_an_anchored_prediction_takes_latents_from_where_its_patches_lie(batch, monkeypatch):
    model = Iwm(replace(CONFIG, anchored=True))
    monkeypatch.setattr(model, "_predict", lambda latents, *given: torch.ones_like(latents))
    latents = model.encode(batch.frames[:, 0])
    action = torch.zeros(6, views.SLOTS)
    action[:, views.FLIP] = 1
    mirrored = latents.unflatten(1, (4, 4)).flip(2).flatten(1, 2)
    assert torch.allclose(model.predict(latents, action), mirrored, atol=1e-5)
    action[:, views.FLIP], action[:, views.LOG_SIDE] = 0, torch.tensor(0.5).log()
    places = model.encoder.positions.expand(6, -1, -1)
    ramp = places.repeat(1, 1, 12)  # what is linear in x and y is itself between patches
    assert torch.allclose(model.predict(ramp, action)[..., :2], 0.5 * places, atol=1e-5)


def test_a_training_from_other_weights_begins_with_the_target_encoder_and_its_first_decay(model):
    model.after_step()
    given, lines = model.convert_weights(model.state_dict(), {})
    assert "num_steps" not in given and len(lines) == 1
    for name, value in model.target_encoder.state_dict().items():
        assert torch.equal(given[f"encoder.{name}"], value)
        assert torch.equal(given[f"target_encoder.{name}"], value)
    assert torch.equal(given["predictor.out.weight"], model.predictor.out.weight)


def test_validation_does_not_depend_on_what_was_drawn_before(model, batch):
    first = model.validate(batch)
    state = torch.get_rng_state()
    torch.rand(7)
    assert model.validate(batch) == first
    torch.set_rng_state(state)
    assert {"mrr", "mrr_cosine", "prediction"} <= first.keys()


def test_ranks_of_a_validation_are_those_of_float32(model, batch):
    """Views of an image differ by less than bfloat16 rounds; best.pt is chosen by their ranks."""
    exact = model.validate(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.validate(batch)
    for name in ("mrr", "mrr_cosine", "mrr_pooled"):
        assert rounded[name] == exact[name]
    assert rounded["prediction"] != exact["prediction"]  # the loss is as in training


def test_training_lowers_the_error_and_keeps_latents_apart(batch):
    torch.manual_seed(0)
    model = Iwm(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    errors = []
    for _ in range(60):
        losses = model.loss(batch)
        losses["prediction"].backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        errors.append(float(losses["prediction"].detach()))
    assert sum(errors[-10:]) < 0.9 * sum(errors[:10])
    assert model.encode(batch.frames[:, 0]).mean(1).std(0).mean() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 7}, "not divisible by --patch-size 7"),
        ({"visible": 0.7, "predicted": 0.5}, "more than all patches"),
        ({"visible": 0.0}, "visible"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        IwmConfig(**({"image_size": (32, 32)} | change))


# -- two streams ------------------------------------------------------------------------------


def two_streams() -> Iwm:
    torch.manual_seed(0)
    return Iwm(replace(CONFIG, invariant_share=1 / 3, invariant_predictor=SMALL))


def test_the_invariant_stream_is_predicted_without_the_action(batch):
    model = two_streams()
    latents = model.encode(batch.frames[:, 0])
    assert latents[..., :8].mean(-1).abs().max() < 1e-5
    assert latents[..., 8:].mean(-1).abs().max() < 1e-5
    still = torch.zeros(6, views.SLOTS)
    gray = still.clone()
    gray[:, views.GRAY] = 1
    one, two = model.predict(latents, still), model.predict(latents, gray)
    assert torch.equal(one[..., :8], two[..., :8])
    assert (one[..., 8:] - two[..., 8:]).abs().amax() > 1e-4


def test_both_streams_are_learned_and_reported(batch):
    model = two_streams()
    losses = model.loss(batch)
    assert {"invariant_error", "equivariant_error"} < set(losses) and "relative_error" not in losses
    losses["prediction"].backward()
    for predictor in (model.predictor, model.invariant_predictor):
        assert all(p.grad is not None for p in predictor.layers.parameters())


@pytest.mark.parametrize(("share", "dims"), [(0.0, 0), (0.01, 1), (0.5, 12), (0.99, 23)])
def test_both_streams_have_numbers_where_there_are_two(share, dims):
    model = Iwm(replace(CONFIG, invariant_share=share))
    assert model.invariant_dims == dims and len(model.streams) == 1 + (dims > 0)


def test_a_checkpoint_from_before_the_streams_is_read():
    values = registry.describe(CONFIG)
    for name in ("invariant_share", "invariant_predictor", "anchored", "vicreg_weight"):
        del values[name]
    built = registry.build_tokenizer(values, registry.DataSpec((32, 32), ActionSpec("none", ())))
    assert built.config == CONFIG


def test_weights_from_when_factors_were_subtracted_are_refused():
    values = {k: v for k, v in to_plain(CONFIG).items() if k != "pooled_weight"}
    with pytest.raises(ValueError, match="no pooled_weight was written by another version"):
        from_plain(IwmConfig, values)
