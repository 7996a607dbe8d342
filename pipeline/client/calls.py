"""Each question to the service: what is sent, and how its answer is read.  Both clients use these,
and only differ in how they wait."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from PIL import Image

from pipeline.client.answers import (
    Encoded,
    Health,
    Planned,
    Predicted,
    RolledOut,
    Spec,
    array,
    array_or_none,
)
from pipeline.client.errors import BadAnswer, Busy, ServiceError, Unreachable, error_of

T = TypeVar("T")
Picture = np.ndarray | bytes | Path
"""(H, W, 3) uint8, or a PNG, JPEG or WebP file: what it holds, or where it is."""
Start = Encoded | Predicted
Answer = Mapping[str, Any]
RETRIED = (Busy, Unreachable)
BASE64 = {"encoding_format": "base64"}  # shorter, faster and exact


@dataclass(frozen=True)
class Call(Generic[T]):
    path: str
    read: Callable[[Answer, str], T]
    """An answer, and the latent spec in its head, to what a caller gets."""
    body: Mapping[str, Any] | None = None
    """None asks with GET."""
    latent_spec: str = ""
    """Of the latents that are sent."""
    again: bool = True
    """Whether it may be asked again: it changes nothing, and takes no long time."""

    @property
    def content(self) -> bytes | None:
        """The body as JSON; several times as fast as the standard library's for many numbers."""
        return None if self.body is None else msgspec.json.encode(self.body)

    def headers(self, key: str) -> dict[str, str]:
        found = {"Authorization": f"Bearer {key}"} if key else {}
        found |= {} if self.body is None else {"Content-Type": "application/json"}
        return found | ({"X-Latent-Spec": self.latent_spec} if self.latent_spec else {})

    def result(self, status: int, headers: Mapping[str, str], content: bytes) -> T:
        """Read an answer; ServiceError."""
        try:
            found = msgspec.json.decode(content)
        except ValueError:
            found = None
        if status != 200:
            detail = found.get("detail", "") if isinstance(found, dict) else ""
            seconds = headers.get("retry-after", "")
            wait = float(seconds) if seconds.isdecimal() else 0.0
            raise error_of(status, str(detail or f"{self.path} answered {status}"), wait)
        if not isinstance(found, dict):
            raise BadAnswer(f"{self.path} answered no JSON", status)
        try:
            return self.read(found, headers.get("x-latent-spec", ""))
        except (KeyError, TypeError) as problem:
            raise BadAnswer(f"the answer of {self.path} has no {problem}") from None


@dataclass(frozen=True)
class Retries:
    """Exponential, with full jitter (Brooker 2015), and no earlier than the service says."""

    attempts: int = 4
    """Times that a question is asked; 1 asks once."""
    first_seconds: float = 0.1
    longest_seconds: float = 5.0

    def wait(self, problem: ServiceError, attempt: int, again: bool) -> float | None:
        """Seconds until it is asked again; None where that does not help.  attempt: from 1."""
        if not again or not isinstance(problem, RETRIED) or attempt >= self.attempts:
            return None
        if problem.retry_after > self.longest_seconds:
            return None
        most = min(self.longest_seconds, self.first_seconds * 2 ** (attempt - 1))
        return problem.retry_after + random.uniform(0, most)


def health() -> Call[Health]:
    names = [field.name for field in fields(Health)]
    return Call("/health", lambda answer, spec: Health(**{name: answer[name] for name in names}))


def spec() -> Call[Spec]:
    return Call("/spec", lambda answer, spec: Spec(answer["spec"], answer["measured"]))


def encode(image: Picture, patches: bool) -> Call[Encoded]:
    def read(answer: Answer, latent_spec: str) -> Encoded:
        return Encoded(
            array(answer["z_cls"], "z_cls", 1),
            array_or_none(answer["z_patches"], "z_patches", 2),
            answer["timestamp"],
            answer["model_variant"],
            latent_spec,
        )

    asked = {"image_b64": base64_of(image), "return_patches": patches}
    return Call("/encode", read, asked | BASE64)


def predict(start: Start, action: Sequence[float] | np.ndarray) -> Call[Predicted]:
    def read(answer: Answer, latent_spec: str) -> Predicted:
        return Predicted(
            array(answer["z_cls_pred"], "z_cls_pred", 1),
            array_or_none(answer["z_patches_pred"], "z_patches_pred", 2),
            answer["mrr"],
            answer["uncertainty"],
            answer["timestamp"],
            latent_spec,
        )

    body = _latents(start) | {"aug_params": np.asarray(action, float).tolist()}
    return Call("/predict", read, body | BASE64, start.latent_spec)


def rollout(start: Start, actions: Sequence[Sequence[float]] | np.ndarray) -> Call[RolledOut]:
    def read(answer: Answer, latent_spec: str) -> RolledOut:
        return RolledOut(
            array(answer["z_cls_seq"], "z_cls_seq", 2),
            array_or_none(answer["z_patches_seq"], "z_patches_seq", 3),
            answer["mrr_seq"],
            answer["uncertainty_seq"],
            answer["timestamp"],
            latent_spec,
        )

    steps = [np.asarray(step, float).tolist() for step in actions]
    body = _latents(start) | {"aug_seq": steps}
    return Call("/rollout", read, body | BASE64, start.latent_spec)


def decode(start: Start) -> Call[np.ndarray]:
    def read(answer: Answer, latent_spec: str) -> np.ndarray:
        text = answer["image_b64"]
        try:
            content = base64.b64decode(text, validate=True)
            return np.asarray(Image.open(io.BytesIO(content), formats=["PNG"]).convert("RGB"))
        except Exception:  # a damaged file may raise anything
            raise BadAnswer("image_b64 of the answer is no PNG that can be decoded") from None

    return Call("/decode", read, _latents(start), start.latent_spec)


def plan(image: Picture, goal: Picture, steps: int, budget: int, seed: int) -> Call[Planned]:
    def read(answer: Answer, latent_spec: str) -> Planned:
        actions = array(answer["actions"], "actions", 2)
        return Planned(actions, answer["cost"], answer["start_cost"], answer["timestamp"])

    images = {"image_b64": base64_of(image), "goal_image_b64": base64_of(goal)}
    settings = {"steps": steps, "budget": budget, "seed": seed}
    return Call("/plan", read, images | settings, again=False)


def base64_of(image: Picture) -> str:
    if isinstance(image, Path):
        image = image.read_bytes()
    if isinstance(image, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=1)
        image = file.getvalue()
    return base64.b64encode(image).decode("ascii")


def _latents(start: Start) -> dict[str, Any]:
    """Each vector as bytes, which msgspec writes as base64."""
    patches = start.z_patches
    rows = None if patches is None else [row.astype("<f4").tobytes() for row in patches]
    return {"z_cls": start.z_cls.astype("<f4").tobytes(), "z_patches": rows}
