"""Reference pages that are written by hand name all that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import http_page
from data.shards.episodes import Episode
from evaluation.report.metrics_schema import empty_metrics
from pipeline import checkpoint
from pipeline.export import checkpoints
from pipeline.training import resume

REFERENCE = Path(__file__).parents[1] / "docs/reference"


def named(page: str) -> set[str]:
    """Words in backquotes on a page."""
    quoted = re.findall(r"`([^`]+)`", (REFERENCE / page).read_text())
    return set(re.findall(r"\w+", " ".join(quoted)))


def keys(metrics: dict[str, Any]) -> Iterator[str]:
    for key, value in metrics.items():
        yield key
        if isinstance(value, dict):
            yield from keys(value)


def test_every_key_of_the_metrics_is_explained():
    """Ends of an interval, and the baseline of a copy, go by the key that they belong to."""
    known = named("evaluate.md")
    told = {re.sub(r"_(low|high)$", "", key) for key in keys(empty_metrics())}
    missing = {key for key in told if not {key, key.removeprefix("copy_last_")} & known}
    assert sorted(missing) == []


def test_every_field_of_a_checkpoint_is_explained():
    held = {*checkpoint.REQUIRED_KEYS, *checkpoint.TYPES, *checkpoints.KEPT_KEYS, *resume.BENEATH}
    assert sorted(held - named("checkpoints.md")) == []


def test_every_array_of_a_shard_is_explained():
    arrays = {field.name for field in fields(Episode)} - {"split", "source", "notes"}
    episodes = {"episode_split", "episode_source", "episode_notes", "episode_ends"}
    assert sorted((arrays | episodes) - named("shards.md")) == []


def test_every_route_and_field_of_the_service_is_described():
    pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
    described = http_page.openapi()
    assert http_page.undescribed(described) == []
    page = http_page.http_page()["reference/http.md"]
    assert all(f"`{field}`" in page for field in ("return_patches", "total_rollouts", "z_cls_seq"))
    described["paths"]["/encode"]["post"]["description"] = ""
    schema = described["components"]["schemas"]["PlanAnswer"]["properties"]["actions"]
    del schema["description"]
    assert http_page.undescribed(described) == ["POST /encode", "PlanAnswer.actions"]
