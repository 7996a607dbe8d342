"""A training step of an image world model beside one with the layers of transformers."""

import pytest
import torch

from bench.areas.iwm_speed import LARGE, PLAIN, SMALL, TOLERANCE, Workload, check, measure
from bench.peers.transformers_vit import TransformersIwm
from bench.races.pairs import Incorrect, Options
from data.batch import Batch
from models.layers.vit import VitConfig
from models.tokenizers.iwm import Iwm, IwmConfig

NARROW = VitConfig(16, 2, 2)
TINY = Workload("tiny", IwmConfig((16, 16), 4, NARROW, NARROW, channels=8, num_res_blocks=1), 4)


@pytest.mark.parametrize("part", ["encoder", "target_encoder", "predictor"])
def test_layers_of_transformers_give_the_same_losses_and_other_weights_are_noticed(part):
    torch.manual_seed(0)
    batch = Batch(frames=torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    ours = Iwm(TINY.config)
    theirs = TransformersIwm(ours)
    check({"ours": ours, PLAIN: theirs}, batch, "fp32", TOLERANCE)
    with torch.no_grad():
        getattr(theirs, part).layers.layers[1].mlp.fc2.weight.mul_(1.5)
    with pytest.raises(Incorrect, match="but of ours"):
        check({"ours": ours, PLAIN: theirs}, batch, "fp32", TOLERANCE)


@pytest.mark.parametrize(("work", "names"), [(SMALL, ["core", "cpu"]), (LARGE, ["base", "core"])])
def test_the_sizes_of_the_bench_are_the_recipes(work, names):
    from pipeline import presets
    from train_tokenizer import Config

    stage = presets.apply(Config(), "tokenizer", ["iwm", *names])
    fields = ("image_size", "patch_size", "encoder", "predictor", "whiten")
    assert all(getattr(stage.model, name) == getattr(work.config, name) for name in fields)
    assert stage.train.batch_size == work.images


def test_steps_are_raced_and_move_the_target_encoder_too():
    found = list(measure(Options(rounds=2), TINY, compiled=False))
    assert [row.baseline for row in found] == [PLAIN]
    assert found[0].ratio and found[0].unit == "images/s" and found[0].rounds == 2
