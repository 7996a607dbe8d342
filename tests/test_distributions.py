"""Distributions over actions."""

import torch

from data.toy import KEYS
from models.layers.distributions import MultiCategorical

ALL = torch.arange(KEYS.size)


def random_logits(rows: int = 1) -> MultiCategorical:
    torch.manual_seed(0)
    return MultiCategorical(torch.randn(rows, sum(KEYS.factor_sizes)), KEYS)


def test_probabilities_of_all_codes_sum_to_one():
    logs = torch.stack([random_logits().log_prob(ALL[i : i + 1]) for i in range(len(ALL))])
    assert torch.allclose(logs.exp().sum(), torch.tensor(1.0))


def test_the_mode_is_the_likeliest_of_all_codes():
    many = random_logits(16)
    logs = torch.stack([many.log_prob(ALL[i].expand(16)) for i in range(len(ALL))], -1)
    assert torch.equal(many.mode, logs.argmax(-1))
    entropy = -(logs.exp() * logs).sum(-1)
    assert torch.allclose(many.entropy(), entropy, atol=1e-5)


def test_codes_are_sampled_by_their_probability():
    rows = 20_000
    logits = random_logits().dists[0].logits, random_logits().dists[1].logits
    many = MultiCategorical(torch.cat(logits, -1).expand(rows, -1), KEYS)
    share = torch.bincount(many.sample(), minlength=KEYS.size) / rows
    expected = torch.stack([many.log_prob(code.expand(rows))[0] for code in ALL]).exp()
    assert (share - expected).abs().max() < 4 * (0.25 / rows) ** 0.5
