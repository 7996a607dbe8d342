"""Which image a stream tells, and how the image was transformed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evaluation.latents.streams import measure_streams


class Known:
    """Streams that are known by construction: which image, what its colors are, and noise."""

    streams = {  # noqa: RUF012
        "invariant": slice(0, 8), "equivariant": slice(8, 17), "noise": slice(17, 25)
    }  # fmt: skip

    def encode(self, frames: Tensor) -> Tensor:
        x = frames.double() / 255
        # a mark that no transformation of colors changes: where the image is darkest
        luma = x.mean(1).flatten(1)
        place = luma.argmin(1) % 8
        image = torch.nn.functional.one_hot(place, 8).double()
        quarters = x.unflatten(-1, (2, -1))
        colors = torch.cat([x.mean((-1, -2)), x.std((-1, -2)), quarters.mean((-1, -3))[:, 0]], 1)
        noise = torch.randn(len(x), 8, generator=torch.Generator().manual_seed(len(x)))
        return torch.cat([image, colors[:, :9], noise.double()], 1)[:, None]


def images(count: int = 8) -> list[Tensor]:
    """Bright noise with one dark corner of a row, another one in each image."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        image = torch.randint(150, 240, (3, 8, 8), dtype=torch.uint8, generator=generator)
        image[:, 3, number] = 20
        made.append(image)
    return made


def test_a_stream_of_the_image_tells_it_and_not_the_transformation():
    found = measure_streams(Known(), images(), range(8), num_views=24)
    assert found["noise"]["accuracy"] < 0.5 and found["noise"]["r2"] < 0.1
    assert found["invariant"]["accuracy"] > 0.6  # solarizing and blurring move the darkest place
    assert found["invariant"]["r2"] < found["equivariant"]["r2"] - 0.2
    low, high = found["invariant"]["accuracy_interval"]
    assert low <= found["invariant"]["accuracy"] <= high
    assert found["invariant"]["images"] == found["invariant"]["sources"] == 8


def test_it_is_the_same_each_time_and_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert measure_streams(Known(), images(4), range(4), 8) == measure_streams(
        Known(), images(4), range(4), 8
    )
    assert torch.equal(state, torch.get_rng_state())


def test_crops_of_one_source_are_on_one_side():
    """With two crops of each of four sources, two sources are learned from and two tested on."""
    found = measure_streams(Known(), images(), [0, 0, 1, 1, 2, 2, 3, 3], num_views=24)
    assert found["equivariant"]["images"] == 8 and found["equivariant"]["sources"] == 4
    low, high = found["equivariant"]["r2_interval"]
    assert low <= found["equivariant"]["r2"] <= high


def test_too_few_sources_are_refused():
    with pytest.raises(ValueError, match="at least 4 sources, and there are 3"):
        measure_streams(Known(), images(4), [0, 1, 2, 2])
