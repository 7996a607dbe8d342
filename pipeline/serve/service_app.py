"""The routes: what is asked becomes work for the model, and its answer JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from json import JSONDecodeError
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from pipeline.serve import service_messages as messages
from pipeline.serve.checked_input import actions_of, check_spec, latents_of
from pipeline.serve.guard import CLIENT_LEFT, Guard
from pipeline.serve.image_input import frame_of, png_of
from pipeline.serve.jobs import Done, Work
from pipeline.serve.refused import Refused
from pipeline.serve.run_spec import Ability, RunSpec
from pipeline.serve.service import Service

DESCRIPTION = """Images become latents; predictions of latents after actions, or transformations.
Latents are those of one run: GET /spec describes them, and a client that sends `X-Latent-Spec`
gets 409 where they are another's."""
SAID = {
    400: "The body is no JSON.",
    401: "A key is needed.",
    404: "This run cannot do that.",
    408: "The body came too slowly.",
    409: "Latents of another run.",
    413: "Too large.",
    415: "The body is no JSON.",
    421: "The Host header names another machine.",
    422: "A field is missing, or has a value that is refused.",
    503: "The model is being loaded, or too many ask.",
    504: "No answer before the deadline.",
}
INLINE = {"float": 5000, "base64": 100_000}
"""Numbers that are written faster than a thread is asked."""
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": messages.Problem, "description": text} for status, text in SAID.items()
}
READ_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: PROBLEMS[status] for status in (401, 421, 503)
}


class JsonRequest(Request):
    """Reads many numbers several times as fast as the standard library does."""

    async def json(self) -> Any:
        try:
            return msgspec.json.decode(await self.body())
        except ValueError as problem:  # as FastAPI expects it
            raise JSONDecodeError(str(problem), "", 0) from None
        except RecursionError:
            raise HTTPException(400, "the body is nested too deeply") from None


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


def make_service_app(service: Service) -> ASGIApp:
    """The app with its guard; its lifespan is the service's."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(service.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    app = FastAPI(
        title="dreamstage: latents of a run",
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = JsonRoute
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_questions(app, service)
    _add_state(app, service)
    return Guard(app, service.config, service.metrics, service.batches.check_place)


def _add_questions(app: FastAPI, service: Service) -> None:
    async def frame(text: str, name: str, spec: RunSpec) -> np.ndarray:
        return await asyncio.to_thread(frame_of, text, name, spec.image_size, service.config)

    def begin(request: Request, ability: Ability) -> RunSpec:
        spec = service.require(ability)
        check_spec(spec, request.headers.get("x-latent-spec"))
        return spec

    @app.post("/encode", response_model=messages.EncodeAnswer, responses=PROBLEMS)
    async def encode(request: Request, asked: messages.EncodeRequest) -> Response:
        """Encode an image."""
        spec = begin(request, "encode")
        pixels = await frame(asked.image_b64, "image_b64", spec)
        work = Work("encode", pixels, patches=asked.return_patches)
        done = await service.ask(work, request.receive)
        service.answered["encode"] += 1
        return await _answer(
            spec,
            asked.encoding_format,
            z_cls=done.pooled,
            z_patches=done.patches,
            latent_dim=spec.latent_dim,
            model_variant=spec.model_variant,
        )

    @app.post("/predict", response_model=messages.PredictAnswer, responses=PROBLEMS)
    async def predict(request: Request, asked: messages.PredictRequest) -> Response:
        """Predict the latent after one step."""
        spec = begin(request, "predict")
        actions = actions_of(spec, [asked.aug_params], "aug_params")
        done = await rollout_of(request, spec, asked, actions)
        service.answered["predict"] += 1
        return await _answer(
            spec,
            asked.encoding_format,
            z_cls_pred=done.pooled[0],
            z_patches_pred=None if done.patches is None else done.patches[0],
            mrr=service.mrr(asked.z_patches is not None),
            uncertainty=service.uncertainty(done)[0],
        )

    @app.post("/rollout", response_model=messages.RolloutAnswer, responses=PROBLEMS)
    async def rollout(request: Request, asked: messages.RolloutRequest) -> Response:
        """Predict the latents after each of several steps."""
        spec, config = begin(request, "predict"), service.config
        longest = config.max_steps
        if len(asked.aug_seq) > longest:
            raise Refused(422, f"aug_seq has {len(asked.aug_seq)} steps, and at most {longest}")
        patches = 0 if asked.z_patches is None else spec.num_patches * spec.dim
        size, most = len(asked.aug_seq) * (spec.latent_dim + patches), config.max_answer_numbers
        if size > most:
            raise Refused(
                422,
                f"{len(asked.aug_seq)} steps of {spec.latent_dim + patches} numbers are {size}, "
                f"and an answer has at most {most}; ask for fewer steps",
            )
        actions = actions_of(spec, asked.aug_seq, "aug_seq")
        done = await rollout_of(request, spec, asked, actions)
        service.answered["rollout"] += 1
        mrr = service.mrr(asked.z_patches is not None)
        return await _answer(
            spec,
            asked.encoding_format,
            z_cls_seq=done.pooled,
            z_patches_seq=done.patches,
            mrr_seq=[mrr, *[None] * (len(actions) - 1)],
            uncertainty_seq=service.uncertainty(done),
        )

    async def rollout_of(
        request: Request, spec: RunSpec, asked: messages.LatentsRequest, actions: np.ndarray
    ) -> Done:
        latents = latents_of(spec, asked.z_cls, asked.z_patches)
        work = Work("predict", latents, actions, patches=asked.z_patches is not None)
        return await service.ask(work, request.receive)

    @app.post("/decode", response_model=messages.DecodeAnswer, responses=PROBLEMS)
    async def decode(request: Request, asked: messages.DecodeRequest) -> Response:
        """Draw latents."""
        spec = begin(request, "decode")
        if asked.z_patches is None and spec.pooling == "mean":
            raise Refused(422, "z_patches is needed: a mean over patches cannot be drawn")
        latents = latents_of(spec, asked.z_cls, asked.z_patches)
        done = await service.ask(Work("decode", latents), request.receive)
        image = await asyncio.to_thread(png_of, done.pooled)
        return await _answer(spec, "float", image_b64=image)

    @app.post("/plan", response_model=messages.PlanAnswer, responses=PROBLEMS)
    async def plan(request: Request, asked: messages.PlanRequest) -> Response:
        """Search for the actions that lead from one image to another.

        Other requests wait meanwhile."""
        spec, most = begin(request, "plan"), service.config.max_rollouts
        if asked.budget > most:
            raise Refused(422, f"budget is {asked.budget}, and at most {most}")
        asked_steps, most_steps = asked.steps * asked.budget, service.config.max_plan_steps
        if asked_steps > most_steps:
            raise Refused(
                422,
                f"steps x budget is {asked.steps} x {asked.budget} = {asked_steps}, and at most "
                f"{most_steps}; lower one of them",
            )
        frames = [
            await frame(text, name, spec)
            for text, name in (
                (asked.image_b64, "image_b64"),
                (asked.goal_image_b64, "goal_image_b64"),
            )
        ]
        work = Work(
            "plan", np.stack(frames), steps=asked.steps, rollouts=asked.budget, seed=asked.seed
        )
        done = await service.ask(work, request.receive)
        return await _answer(
            spec, "float", actions=done.pooled, cost=done.cost, start_cost=done.start_cost
        )


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_model=messages.HealthAnswer)
    async def health() -> dict[str, Any]:
        """Whether the service lives; always cheap, without a key."""
        spec, counts = service.spec, service.answered
        return {
            "status": "ok" if service.is_ready else "model_not_loaded",
            "model_loaded": service.is_ready,
            "model_variant": None if spec is None else spec.model_variant,
            "device": None if spec is None else spec.device,
            "uptime_seconds": round(service.uptime_seconds, 3),
            "total_encodes": counts["encode"],
            "total_predicts": counts["predict"],
            "total_rollouts": counts["rollout"],
        }

    @app.get("/ready", response_model=messages.ReadyAnswer, responses=READ_PROBLEMS)
    async def ready() -> dict[str, Any]:
        """200 once the model is loaded and warm, 503 before."""
        return {"ready": True, "latent_spec": service.require("encode").latent_spec}

    @app.get("/spec", response_model=messages.SpecAnswer, responses=READ_PROBLEMS)
    async def spec() -> dict[str, Any]:
        """What the run has, and what was measured of it."""
        measured = service.measured
        return {
            "spec": service.require("encode").as_dict(),
            "measured": None if measured is None else measured.as_dict(),
        }

    @app.get("/metrics", response_class=Response, responses=READ_PROBLEMS)
    async def metrics() -> Response:
        """Counters, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)


async def _answer(spec: RunSpec, form: messages.EncodingFormat, **fields: Any) -> Response:
    """Many numbers are written in a thread, so that others are answered meanwhile."""
    fields |= {"timestamp": round(time.time(), 3)}
    size = sum(value.size for value in fields.values() if isinstance(value, np.ndarray))
    is_fast = size < INLINE[form]
    content = _json(form, fields) if is_fast else await asyncio.to_thread(_json, form, fields)
    marks = {"X-Latent-Spec": spec.latent_spec, "X-Model-Id": spec.model_id}
    return Response(content, media_type="application/json", headers=marks)


def _json(form: messages.EncodingFormat, fields: dict[str, Any]) -> bytes:
    written = _base64 if form == "base64" else _numbers
    return msgspec.json.encode(
        {name: written(v) if isinstance(v, np.ndarray) else v for name, v in fields.items()}
    )


def _base64(values: np.ndarray) -> Any:
    """Each vector as bytes, which msgspec writes as base64."""
    if values.ndim > 1:
        return [_base64(row) for row in values]
    return values.astype("<f4").tobytes()


def _numbers(values: np.ndarray) -> msgspec.Raw:
    """As lists; six decimals, which is more than float32 has of a number above 16.

    Many numbers row by row: one call of NumPy's or msgspec's lets no other thread run.
    """
    if values.ndim > 1 and values.size > INLINE["float"]:
        return msgspec.Raw(b"[" + b",".join(bytes(_numbers(row)) for row in values) + b"]")
    return msgspec.Raw(msgspec.json.encode(np.round(values.astype(np.float64), 6).tolist()))


def _problem(status: int, detail: str, retry_after: int = 0) -> Response:
    headers = {"Retry-After": str(retry_after)} if retry_after else None
    content = msgspec.json.encode({"detail": detail})
    return Response(content, status, headers, media_type="application/json")


async def _refused(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Refused)
    if problem.status == CLIENT_LEFT:
        return Response(status_code=CLIENT_LEFT)
    return _problem(problem.status, problem.detail, problem.retry_after)


async def _not_found(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    known = {404: "there is no such route; GET /openapi.json lists all", 405: "another method"}
    detail = known.get(problem.status_code, str(problem.detail))
    answer = _problem(problem.status_code, detail)
    answer.headers.update(problem.headers or {})
    return answer


async def _invalid(request: Request, problem: Exception) -> Response:
    """The first thing that is wrong, without the value, which may be large."""
    assert isinstance(problem, RequestValidationError)
    first = problem.errors()[0]
    if first["type"] == "json_invalid":
        return _problem(400, "the body is no JSON")
    place = [str(part) for part in first["loc"][1:] if part not in messages.FORMS]
    where = ".".join(place[:4]) or "the body"
    return _problem(422, f"{where[:80]}: {first['msg'][:160]}")
