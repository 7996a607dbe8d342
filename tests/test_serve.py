"""The service's routes: what they answer, what a run cannot do, and who may ask."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("prometheus_client", reason="requirements-serve.txt is not installed")
from served import OwnWorker, base64_of, file_of, picture, tiny_service, until
from starlette.testclient import TestClient

import serve
from pipeline.serve import run_server
from pipeline.serve.service import Service
from pipeline.serve.service_app import make_service_app
from pipeline.serve.service_config import ServiceConfig

LOCAL = "http://127.0.0.1:8001"
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def service() -> Service:
    return tiny_service(measured=True)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_service_app(service), base_url=LOCAL) as client:
        until(lambda: service.is_ready)
        yield client


@pytest.fixture
def encoded(client: TestClient) -> dict[str, Any]:
    asked = {"image_b64": base64_of(file_of(picture())), "return_patches": True}
    return client.post("/encode", json=asked).json()


def test_an_image_is_encoded_as_the_model_does(client, service, encoded):
    assert set(encoded) == {"z_cls", "z_patches", "timestamp", "latent_dim", "model_variant"}
    middle = torch.from_numpy(picture()[4:36]).permute(2, 0, 1)
    model = service.worker.model
    with torch.no_grad():
        expected = model.encode(middle[None])[0]
    assert np.allclose(encoded["z_patches"], expected, atol=1e-5)
    assert np.allclose(encoded["z_cls"], expected.mean(0), atol=1e-5)
    assert encoded["latent_dim"] == 24 == len(encoded["z_cls"])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_three_formats_are_read_and_patches_only_where_wanted(client, format):
    answer = client.post("/encode", json={"image_b64": base64_of(file_of(picture(), format))})
    assert answer.status_code == 200 and answer.json()["z_patches"] is None


def test_a_prediction_is_the_models_and_its_figures_are_the_measured_ones(client, service, encoded):
    asked = {"z_cls": encoded["z_cls"], "aug_params": [0.3, 0, 0.1]}
    answer = client.post("/predict", json=asked | {"z_patches": encoded["z_patches"]}).json()
    assert set(answer) == {"z_cls_pred", "z_patches_pred", "mrr", "uncertainty", "timestamp"}
    action = torch.zeros(1, 16)
    action[0, 0], action[0, 2] = 0.3, 0.1
    with torch.no_grad():
        start = torch.tensor(encoded["z_patches"])[None]
        expected = service.worker.model.tokenizer.predict(start, action)[0]
    assert np.allclose(answer["z_patches_pred"], expected, atol=1e-4)
    assert answer["mrr"] == 0.5 and 0 <= answer["uncertainty"] <= 100
    pooled = client.post("/predict", json=asked).json()
    assert pooled["mrr"] == 0.25 and pooled["z_patches_pred"] is None  # measured by itself
    assert pooled["uncertainty"] is None


def test_a_rollout_begins_with_the_prediction(client, encoded):
    start = {name: encoded[name] for name in ("z_cls", "z_patches")}
    one = client.post("/predict", json=start | {"aug_params": [0.2]}).json()
    asked = start | {"aug_seq": [[0.2], [], [0, 0.1]]}
    answer = client.post("/rollout", json=asked).json()
    assert set(answer) == {
        "z_cls_seq", "z_patches_seq", "mrr_seq", "uncertainty_seq", "timestamp",
    }  # fmt: skip
    assert np.allclose(answer["z_cls_seq"][0], one["z_cls_pred"], atol=1e-5)
    assert len(answer["z_cls_seq"]) == len(answer["z_patches_seq"]) == 3
    assert answer["mrr_seq"] == [0.5, None, None]
    assert answer["uncertainty_seq"][1] is not None and answer["uncertainty_seq"][2] is None


def vector(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_base64_has_the_numbers_of_the_lists_exactly(client, encoded):
    asked = {"image_b64": base64_of(file_of(picture())), "return_patches": True}
    form = {"encoding_format": "base64"}
    now = client.post("/encode", json=asked | form).json()
    assert np.allclose(vector(now["z_cls"]), encoded["z_cls"], atol=1e-6, rtol=0)
    patches = np.stack([vector(row) for row in now["z_patches"]])
    assert np.allclose(patches, encoded["z_patches"], atol=1e-6, rtol=0)
    start = {name: now[name] for name in ("z_cls", "z_patches")}
    lists = {name: encoded[name] for name in ("z_cls", "z_patches")}
    steps = {"aug_seq": [[0.2], [0.1]]}
    found = client.post("/rollout", json=start | steps | form).json()
    expected = client.post("/rollout", json=lists | steps).json()
    assert np.allclose([vector(z) for z in found["z_cls_seq"]], expected["z_cls_seq"], atol=1e-5)
    seq = [[vector(row) for row in rows] for rows in found["z_patches_seq"]]
    assert np.allclose(seq, expected["z_patches_seq"], atol=1e-5)
    one = client.post("/predict", json=start | {"aug_params": [0.2]} | form).json()
    assert np.allclose(vector(one["z_cls_pred"]), vector(found["z_cls_seq"][0]), atol=1e-6)
    assert client.post("/decode", json=start).status_code == 200


def test_who_comes_to_a_full_queue_is_told_before_anything_is_read():
    service = tiny_service(ServiceConfig(port=0, max_queue=1))
    asked = {"image_b64": base64_of(file_of(picture()))}
    bad = {"content": b"no JSON", "headers": {"content-type": "application/json"}}
    with (
        TestClient(make_service_app(service), base_url=LOCAL) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        until(lambda: service.is_ready)
        worker = service.worker
        assert isinstance(worker, OwnWorker)
        worker.gate.clear()
        first = pool.submit(client.post, "/encode", json=asked)
        until(lambda: bool(worker.batches))
        second = pool.submit(client.post, "/encode", json=asked)
        until(lambda: service.batches.depth == 1)
        refused = client.post("/encode", **bad)
        worker.gate.set()
        assert first.result().status_code == second.result().status_code == 200
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert client.post("/encode", **bad).status_code == 400


def test_what_was_not_measured_is_null():
    service = tiny_service()
    with TestClient(make_service_app(service), base_url=LOCAL) as client:
        until(lambda: service.is_ready)
        answer = client.post("/predict", json={"z_cls": [0.0] * 24, "aug_params": []}).json()
    assert answer["mrr"] is None and answer["uncertainty"] is None


def test_latents_are_drawn_as_an_image_of_the_runs_size(client, encoded):
    answer = client.post("/decode", json={"z_patches": encoded["z_patches"]}).json()
    image = Image.open(io.BytesIO(base64.b64decode(answer["image_b64"])))
    assert image.size == (32, 32) and image.format == "PNG"
    refused = client.post("/decode", json={"z_cls": encoded["z_cls"]})
    assert refused.status_code == 422 and "z_patches is needed" in refused.json()["detail"]


def test_what_a_run_cannot_do_is_said(client):
    image = base64_of(file_of(picture()))
    answer = client.post("/plan", json={"image_b64": image, "goal_image_b64": image})
    assert answer.status_code == 404 and "no actions" in answer.json()["detail"]


def test_a_plan_is_limited_by_its_steps_times_its_budget(monkeypatch, client, service):
    monkeypatch.setattr(service, "spec", replace(service.spec, cannot={}))
    image = base64_of(file_of(picture()))
    asked = {"image_b64": image, "goal_image_b64": image, "steps": 1000, "budget": 20_000}
    answer = client.post("/plan", json=asked)
    assert answer.status_code == 422
    assert "1000 x 20000 = 20000000, and at most 500000" in answer.json()["detail"]


def test_a_rollout_with_patches_is_limited_by_its_numbers(encoded):
    service = tiny_service(ServiceConfig(port=0, max_answer_numbers=2 * (24 + 16 * 24)))
    start = {name: encoded[name] for name in ("z_cls", "z_patches")}
    with TestClient(make_service_app(service), base_url=LOCAL) as client:
        until(lambda: service.is_ready)
        assert client.post("/rollout", json=start | {"aug_seq": [[]] * 2}).status_code == 200
        answer = client.post("/rollout", json=start | {"aug_seq": [[]] * 3})
        assert answer.status_code == 422
        assert (
            "3 steps of 408 numbers are 1224, and an answer has at most 816"
            in answer.json()["detail"]
        )
        alone = {"z_cls": encoded["z_cls"], "aug_seq": [[]] * 3}
        assert client.post("/rollout", json=alone).status_code == 200


@pytest.mark.parametrize(
    ("step", "said"),
    [([1.6], "1.6 in slot 0"), ([0] * 5 + [-2], "-2 in slot 5"), ([0] * 15 + [1], "1 in slot 15")],
)
def test_numbers_of_a_transformation_have_limits(client, encoded, step, said):
    answer = client.post("/predict", json={"z_cls": encoded["z_cls"], "aug_params": step})
    assert answer.status_code == 422
    assert said in answer.json()["detail"] and "goes from" in answer.json()["detail"]


def test_each_start_of_the_model_has_its_number():
    service = tiny_service()
    with TestClient(make_service_app(service), base_url=LOCAL):
        until(lambda: service.is_ready)
        assert service.batches.start == 1
        service.worker.end()  # type: ignore[attr-defined]
        until(lambda: service.batches.start == 2 and service.is_ready)


def test_a_missing_package_is_named_with_the_file_that_lists_it(monkeypatch):
    root = Path(__file__).parents[1]
    for file, names in run_server.PACKAGES.items():
        listed = (root / file).read_text().replace("-", "_")
        assert all(f"{name}==" in listed for name in names)
    monkeypatch.setattr(run_server, "find_spec", lambda name: None if name == "msgspec" else 1)
    with pytest.raises(ValueError, match=r"needs msgspec; .*-r requirements\.txt"):
        run_server.check_installed()


def test_latents_of_another_run_are_refused(client, encoded):
    asked = {"z_cls": encoded["z_cls"], "aug_params": []}
    own = client.get("/spec").json()["spec"]["latent_spec"]
    assert client.post("/predict", json=asked, headers={"X-Latent-Spec": own}).status_code == 200
    other = client.post("/predict", json=asked, headers={"X-Latent-Spec": "0" * 16})
    shorter = client.post("/predict", json=asked | {"z_cls": [1.0]})
    assert other.status_code == shorter.status_code == 409
    assert "has 1 numbers, and this run's 24" in shorter.json()["detail"]


def test_health_counts_and_needs_no_model(client, encoded):
    found = client.get("/health").json()
    assert set(found) == {
        "status", "model_loaded", "model_variant", "device", "uptime_seconds", "total_encodes",
        "total_predicts", "total_rollouts",
    }  # fmt: skip
    assert found["status"] == "ok" and found["total_encodes"] >= 1
    service = tiny_service()
    client = TestClient(make_service_app(service), base_url=LOCAL)  # its lifespan has not begun
    found = client.get("/health").json()
    assert found["status"] == "model_not_loaded" and found["model_variant"] is None
    answer = client.get("/ready")
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    assert client.post("/predict", json={"z_cls": [0.0], "aug_params": []}).status_code == 503


def test_metrics_count_by_route_and_status(client, encoded):
    client.get("/no/such/route")
    text = client.get("/metrics").text
    assert 'dreamstage_requests_total{route="/encode",status="200"}' in text
    assert 'dreamstage_requests_total{route="other",status="404"}' in text
    assert "/no/such" not in text
    assert "dreamstage_ready 1.0" in text and 'run="tiny"' in text


def test_a_key_is_asked_for_everywhere_but_for_health():
    service = tiny_service(ServiceConfig(host="0.0.0.0", port=0, key=KEY))
    with TestClient(make_service_app(service), base_url="http://example.org") as client:
        until(lambda: service.is_ready)
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        for header in ("", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer ", f"Bearer {KEY[:-1]}"):
            answer = client.get("/spec", headers={"Authorization": header})
            assert answer.status_code == 401, header
        good = client.get("/spec", headers={"Authorization": f"Bearer {KEY}"})
        assert good.status_code == 200


def test_another_address_needs_a_key():
    with pytest.raises(ValueError, match="--key is needed"):
        ServiceConfig(host="0.0.0.0")
    with pytest.raises(ValueError, match="16 is the least"):
        ServiceConfig(host="0.0.0.0", key="short")


def test_no_page_of_another_site_is_let_in(client):
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    answer = client.options("/encode", headers=headers)
    assert "access-control-allow-origin" not in answer.headers and answer.status_code == 405
    answer = client.get("/health", headers={"Host": "example.org"})
    assert answer.status_code == 421


def test_the_schema_describes_each_route_with_examples(client):
    schema = client.get("/openapi.json").json()
    assert {"/encode", "/predict", "/rollout", "/decode", "/plan", "/health"} <= set(
        schema["paths"]
    )
    assert {"422", "503", "504", "409", "413"} <= set(
        schema["paths"]["/encode"]["post"]["responses"]
    )
    encode = schema["components"]["schemas"]["EncodeRequest"]["properties"]["image_b64"]
    answer = client.post("/encode", json={"image_b64": encode["examples"][0]})
    assert answer.status_code == 200, answer.text


def test_a_run_without_a_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="neither a tokenizer nor dynamics; train_tokenizer.py"):
        serve.main(serve.Config(tmp_path))
