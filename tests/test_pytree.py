from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.pytree import flatten, unflatten


@dataclass
class Pair:
    first: Tensor
    rest: Any


def round_trip(value: Any) -> Any:
    """Flatten, and rebuild with other tensors: each plus 1."""
    tensors: list[Tensor] = []
    spec = flatten(value, tensors)
    return unflatten(spec, iter([t + 1 for t in tensors]))


def test_unflatten_undoes_flatten():
    value = Pair(torch.zeros(2), [None, "x", (torch.ones(1), 7), {"b": torch.zeros(1), "a": None}])
    again = round_trip(value)
    assert isinstance(again, Pair) and again.first.tolist() == [1, 1]
    none, text, pair, table = again.rest
    assert (none, text) == (None, "x") and pair[0].tolist() == [2] and pair[1] == 7
    assert table["b"].tolist() == [1] and table["a"] is None


def test_the_order_of_a_dict_does_not_matter():
    one, two = {"x": torch.zeros(1), "y": torch.ones(1)}, {"y": torch.ones(1), "x": torch.zeros(1)}
    lists: list[list[Tensor]] = [[], []]
    assert flatten(one, lists[0]) == flatten(two, lists[1])
    assert [t.tolist() for t in lists[0]] == [t.tolist() for t in lists[1]] == [[0], [1]]
    assert list(round_trip(two)) == ["x", "y"]


def test_other_keys_are_another_structure():
    assert flatten({"x": torch.zeros(1)}, []) != flatten({"y": torch.zeros(1)}, [])
    assert flatten({"x": 1}, []) != flatten({"x": 2}, [])
