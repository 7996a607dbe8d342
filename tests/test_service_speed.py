"""Requests in one batch beside the same requests one by one."""

from dataclasses import replace

import numpy as np
import pytest

from bench.areas.play_speed import DEFAULT_RUN
from bench.areas.service_speed import PEER, REQUESTS, check, one_by_one, requests, rows
from bench.races.pairs import Incorrect, Options
from pipeline.serve.latent_model import load_latent_model
from pipeline.serve.model_worker import ModelWorker


def test_answers_of_a_batch_are_those_alone_and_a_wrong_one_is_noticed():
    worker = ModelWorker(load_latent_model(DEFAULT_RUN), None)
    asked = requests(worker)
    assert {kind: len(batch) for kind, batch in asked.items()} == {
        "encode": REQUESTS, "predict 1": REQUESTS, "predict 5": REQUESTS,
    }  # fmt: skip
    batch = asked["predict 1"]
    together, alone = worker.answer(batch), one_by_one(worker, batch)
    check(together, alone)
    wrong = [*alone[:3], replace(alone[3], pooled=alone[3].pooled + 0.1), *alone[4:]]
    with pytest.raises(Incorrect, match="answer 3"):
        check(together, wrong)
    with pytest.raises(Incorrect, match="same answer"):
        check([alone[0]] * 2, [alone[0]] * 2)


def test_each_kind_is_raced():
    found = list(rows(Options(rounds=1)))
    assert len(found) == 3 and {row.baseline for row in found} == {PEER}
    assert all(row.ratio and np.isfinite(row.ratio) and row.unit == "requests/s" for row in found)
