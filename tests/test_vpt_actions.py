"""Encoding of Minecraft's inputs as codes."""

import json
import math

import numpy as np
import pytest
import torch
from vpt_clips import line

from data.actions import ActionSpec
from data.vpt.vpt_actions import (
    INPUT_COLUMN,
    INPUT_NAMES,
    CameraQuantizer,
    action_spec,
    decode,
    encode,
)
from data.vpt.vpt_log import from_minerl, read_log

VPT = CameraQuantizer()
ALL = np.arange(4356)


def encoded(**held: float) -> int:
    inputs = np.zeros((1, len(INPUT_NAMES)), np.float32)
    for name, value in held.items():
        inputs[0, INPUT_COLUMN[name]] = value
    return int(encode(inputs, VPT)[0])


@pytest.mark.parametrize(
    "quantizer", [VPT, CameraQuantizer(mu=0.0), CameraQuantizer(maxval=20.0, mu=5.0)]
)
def test_encode_inverts_decode(quantizer):
    assert (encode(decode(ALL, quantizer), quantizer) == ALL).all()
    assert action_spec(quantizer).size == 4356


def test_codes_follow_the_formula():
    assert encoded() == 60
    assert encoded(attack=1) == 60 + 121 and encoded(jump=1) == 60 + 242
    moves = [{"forward": 1}, {"left": 1}, {"back": 1}, {"right": 1}]
    assert [encoded(**m) for m in moves] == [60 + 484 * m for m in (1, 2, 3, 4)]
    pairs = [("forward", "left"), ("forward", "right"), ("back", "left"), ("back", "right")]
    assert [encoded(**{a: 1, b: 1}) for a, b in pairs] == [60 + 484 * m for m in (5, 6, 7, 8)]
    assert encoded(yaw_degrees=10) == 65 and encoded(pitch_degrees=-10) == 5


def test_opposite_keys_cancel_and_others_stay():
    assert encoded(forward=1, back=1) == encoded(left=1, right=1) == 60
    assert encoded(forward=1, back=1, left=1) == encoded(left=1)


def test_camera_bins_are_those_of_vpt_and_symmetric():
    edges = np.array([0.271, 1.053, 2.317, 4.358, 7.655])  # its mu-law, in degrees
    assert (VPT.discretize(edges - 0.002) == [5, 6, 7, 8, 9]).all()
    assert (VPT.discretize(edges + 0.002) == [6, 7, 8, 9, 10]).all()
    degrees = np.random.default_rng(0).uniform(-30, 30, 1000)
    assert (VPT.discretize(-degrees) == 10 - VPT.discretize(degrees)).all()
    assert np.allclose(VPT.bin_centers[6:], [0.62, 1.61, 3.22, 5.81, 10], atol=0.005)


def test_raw_lines_and_minerl_dictionaries_encode_to_the_same_integer():
    raw = line(20, -6, keys=["w", "a", "space", "left.shift"], buttons=[0, 1])
    log = read_log(json.dumps(raw).encode(), "a log")
    minerl = {"camera": [-0.9, 3.0], "forward": 1, "left": np.array(1), "jump": 1, "sneak": 1,
              "attack": 1, "use": 1, "back": 0}  # fmt: skip
    assert (encode(log.inputs, VPT) == encode(from_minerl([minerl]), VPT)).all()
    assert np.allclose(log.inputs, from_minerl([minerl]))
    with pytest.raises(ValueError, match=r"action 0 has fly = 1.*forward"):
        from_minerl([{"fly": 1}])


def test_invalid_codes_and_quantizers_are_refused():
    with pytest.raises(ValueError, match="4356"):
        decode(np.array([4356]), VPT)
    for limit, choices, mu in (
        (10.0, 10, 10.0),
        (0.0, 11, 10.0),
        (10.0, 11, -1.0),
        (10.0, 11, math.inf),
        (math.nan, 11, 10.0),
        (1e-4, 11, 10.0),
    ):
        with pytest.raises(ValueError, match=r"--(num-bins|maxval|mu|camera-maxval)"):
            CameraQuantizer(limit, choices, mu)


def test_a_spec_of_factors_round_trips_and_another_quantizer_is_refused():
    spec = action_spec(VPT)
    assert ActionSpec.from_dict(spec.as_dict()) == spec
    other = action_spec(CameraQuantizer(mu=5.0))
    with pytest.raises(ValueError, match=r"a and b have different action spaces: factors.*yaw"):
        spec.check_same(other, "a", "b")


def test_unravel_and_ravel_agree_in_numpy_and_torch():
    spec = action_spec(VPT)
    choices = spec.unravel(ALL)
    assert choices.shape == (4356, 5) and (spec.ravel(choices) == ALL).all()
    assert (choices.max(0) == [10, 10, 1, 1, 8]).all()
    codes = torch.from_numpy(ALL)
    assert torch.equal(spec.unravel(codes), torch.from_numpy(choices))
    assert torch.equal(spec.ravel(spec.unravel(codes)), codes)


def test_a_code_is_described_in_words():
    spec = action_spec(VPT)
    assert spec.describe(60) == "nothing"
    assert spec.describe(encoded(forward=1, jump=1, yaw_degrees=3.2)) == "yaw +3.2  jump  forward"
