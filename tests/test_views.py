"""Views: the numbers say what was applied."""

from __future__ import annotations

import pytest
import torch

from models.layers import views


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def only(slot: int, value: float, count: int = 4) -> torch.Tensor:
    view = torch.zeros(count, views.SLOTS)
    view[:, slot] = value
    return view


def test_a_view_of_zeros_is_the_image(images):
    assert torch.allclose(views.apply(images, torch.zeros(4, 16)), images, atol=1e-4)


def test_each_drawn_view_is_within_its_limits():
    view = torch.zeros(5000, 16)
    views.draw_crop(views.draw_destructive(views.draw_jitter(view)), 0.5)
    assert (view[:, :4].abs().amax(0) <= torch.tensor(views.JITTER)).all()
    assert view[:, 4].max() <= views.MAX_BLUR
    for slot, prob in (views.BLUR, 0.2), (views.GRAY, 0.2), (views.SOLARIZE, 0.2):
        assert (view[:, slot] > 0).float().mean() == pytest.approx(prob, abs=0.03)
    side = view[:, views.LOG_SIDE].exp()
    assert side.min() >= views.MIN_CROP_SIDE - 1e-6
    reach = view[:, views.X : views.Y + 1].abs() + side[:, None]
    assert reach.max() <= 1 + 1e-5  # inside the image
    assert (view[:, 11:] == 0).all()


def test_a_gray_image_has_equal_colors_and_the_same_luma(images):
    gray = views.apply(images, only(views.GRAY, 1))
    assert torch.allclose(gray[:, 0], gray[:, 1], atol=1e-3)
    assert torch.allclose(gray[:, 0], gray[:, 2], atol=1e-3)
    luma = torch.tensor([0.299, 0.587, 0.114])
    before, after = (torch.einsum("bchw,c->bhw", x, luma) for x in (images, gray))
    assert torch.allclose(before, after, atol=2e-3)


def test_a_full_turn_of_hue_is_none_and_a_part_of_one_leaves_gray_alone(images):
    inside = 0.4 + 0.2 * images  # nothing is clamped
    assert torch.allclose(views.apply(inside, only(views.HUE, 1)), inside, atol=1e-3)
    turned = views.apply(inside, only(views.HUE, 0.1))
    assert (turned - inside).abs().max() > 0.01
    gray = inside.mean(1, keepdim=True).expand_as(inside)
    assert torch.allclose(views.apply(gray, only(views.HUE, 0.1)), gray, atol=1e-3)


def test_brightness_is_a_factor(images):
    dark = views.apply(images, only(views.BRIGHTNESS, -0.4))
    assert torch.allclose(dark, 0.6 * images, atol=1e-4)


def test_solarizing_inverts_what_is_bright(images):
    solarized = views.apply(images, only(views.SOLARIZE, 1))
    assert torch.allclose(solarized, torch.where(images >= 0.5, 1 - images, images), atol=1e-3)


def test_blur_keeps_the_mean_and_takes_the_detail(images):
    blurred = views.apply(images, only(views.BLUR, 2.0))
    assert blurred.mean() == pytest.approx(float(images.mean()), abs=0.01)
    assert blurred.var() < images.var()
    assert torch.allclose(blurred[0], views.apply(images[:1], only(views.BLUR, 2.0, 1))[0])


def test_a_mirrored_view_is_the_mirrored_image(images):
    mirrored = views.apply(images, only(views.FLIP, 1))
    assert torch.allclose(mirrored, images.flip(3), atol=1e-4)


@pytest.mark.parametrize("mirrored", [0.0, 1.0])
def test_a_point_of_the_target_shows_what_the_source_shows_there(mirrored):
    """On an image whose colors are x and y, a crop's colors are the positions."""
    line = (torch.arange(64) + 0.5) / 32 - 1
    image = torch.stack([line.expand(64, 64), line[:, None].expand(64, 64), torch.zeros(64, 64)])
    source, target = torch.zeros(1, 16), torch.zeros(1, 16)
    source[0, views.X], source[0, views.LOG_SIDE] = 0.1, -0.3
    source[0, views.FLIP] = mirrored
    target[0, views.X], target[0, views.Y], target[0, views.LOG_SIDE] = 0.2, -0.1, -0.6
    target[0, views.FLIP] = 1.0
    seen = [views.crop(image[None], view)[0] for view in (source, target)]
    action = views.relative(source, target)
    points = torch.tensor([[-0.5, 0.25], [0.0, 0.0], [0.4, -0.6]])
    inside = views.positions_in_source(points, action)
    of_target, of_source = (
        torch.nn.functional.grid_sample(view[None], at[None, None], align_corners=False)[0, :2, 0]
        for view, at in ((seen[1], points), (seen[0], inside[0]))
    )
    assert torch.allclose(of_target, of_source, atol=0.01)


def test_what_leads_from_one_view_to_another_makes_the_one_of_the_other(images):
    """A difference of factors does not: from 0.8 to 1.2 it is 0.4, and the factor 1.5."""
    torch.manual_seed(0)
    inside = 0.45 + 0.1 * images  # nothing is clamped
    source, target = (views.draw_jitter(torch.zeros(4, 16), prob=1.0) for _ in range(2))
    action = views.relative(source, target)
    assert torch.allclose(views.relative(torch.zeros(4, 16), target), target)
    seen, wanted = views.apply(inside, source), views.apply(inside, target)
    assert torch.allclose(views.apply(seen, action), wanted, atol=1e-4)
    assert not torch.allclose(views.apply(seen, target - source), wanted, atol=1e-2)


@pytest.mark.parametrize("kind", views.TRANSFORMATIONS)
def test_a_kind_of_transformation_is_in_every_row(kind):
    drawn = views.draw(torch.zeros(50, 16), kind)
    slot = {"jitter": 0, "blur": 4, "grayscale": 5, "solarize": 6, "crop": 9}[kind]
    assert (drawn[:, slot] != 0).all()
    assert (drawn[:, views.GEOMETRIC] != 0).any() == (kind == "crop")


def test_an_action_from_a_black_view_stays_small():
    action = views.relative(only(views.BRIGHTNESS, -1), only(views.BRIGHTNESS, 1))
    assert action.isfinite().all() and action.abs().max() <= 2 / views.LEAST_FACTOR
