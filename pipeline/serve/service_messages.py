"""What clients send and get: the fields of the latent service, with their limits and examples.

Numbers of an answer are rounded to six decimals; in base64 they are exact.

Letters: k steps, P patches, D width, E numbers of z_cls, A action numbers, T actions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

MAX_VECTOR = 2**18  # numbers; the size of a request is limited, too
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Numbers = Annotated[list[Number], Field(min_length=1, max_length=MAX_VECTOR)]
Float32 = Annotated[
    str,
    Field(
        min_length=1,
        max_length=6 * MAX_VECTOR,
        description="The same as base64 of its float32 numbers, little-endian.",
    ),
]
FORMS = ("float", "base64")  # of numbers: as a list, and as a string


def _form(value: object) -> str:
    return FORMS[isinstance(value, str)]


Vector = Annotated[
    Annotated[Numbers, Tag("float")] | Annotated[Float32, Tag("base64")], Discriminator(_form)
]
Patches = Annotated[list[Vector], Field(min_length=1, max_length=2**14)]
EncodingFormat = Annotated[
    Literal["float", "base64"],
    Field(
        description="How latents are answered: as lists of numbers, or each vector as base64 of "
        "its float32 numbers, little-endian, which is shorter, faster and exact."
    ),
]
Step = Annotated[list[Number], Field(max_length=1024)]
Base64 = Annotated[
    str,
    Field(
        min_length=1,
        description="A PNG, JPEG or WebP file in base64; of an animation, its first image.",
        examples=[PIXEL],
    ),
]
Time = Annotated[float, Field(description="Seconds since 1970.")]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EncodeRequest(Asked):
    image_b64: Base64
    return_patches: bool = Field(False, description="Answer z_patches, too.")
    encoding_format: EncodingFormat = "float"


class LatentsRequest(Asked):
    z_cls: Vector = Field(description="As /encode gives it.", examples=[[0.1, -0.2]])
    z_patches: Patches | None = Field(
        None,
        description="The same by patches. Where z_cls is a mean, a prediction without them starts "
        "from that mean at every patch, and is worse (mrr says by how much).",
    )
    encoding_format: EncodingFormat = "float"


class PredictRequest(LatentsRequest):
    aug_params: Step = Field(
        description="The step: the numbers of an action in the environment's units, the code of a "
        "discrete one, or the numbers of a transformation, at most 16; those left out are 0.",
        examples=[[0.2, 0.0, 0.0, 0.0]],
    )


class RolloutRequest(LatentsRequest):
    aug_seq: Annotated[list[Step], Field(min_length=1, max_length=10**4)] = Field(
        description="Steps, one after the other.", examples=[[[0.2], [0.0]]]
    )


class DecodeRequest(Asked):
    z_cls: Vector | None = Field(
        None, description="As /encode gives it; enough where it holds all.", examples=[[0.1, -0.2]]
    )
    z_patches: Patches | None = Field(
        None, description="Needed where z_cls is a mean over patches."
    )


class PlanRequest(Asked):
    image_b64: Base64
    goal_image_b64: Base64
    steps: Annotated[int, Field(ge=1, le=1000)] = Field(25, description="Actions of the plan.")
    budget: Annotated[int, Field(ge=16, le=10**7)] = Field(
        3000, description="Candidate sequences that may be tried."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Of the candidates: the same seed gives the same plan."
    )


Answered = list[float] | str
"""A vector, as `encoding_format` asked for it."""


class EncodeAnswer(BaseModel):
    z_cls: Answered = Field(description="The image as one vector.")
    z_patches: list[Answered] | None = Field(
        description="The same by patches; null unless return_patches asked for it."
    )
    timestamp: Time
    latent_dim: int = Field(description="Numbers of z_cls.")
    model_variant: str = Field(description="The kind of its dynamics, or the variant of an IWM.")


UNCERTAINTY = (
    "Percentile, from 0 to 100, among held-out predictions as far ahead: how far the prediction "
    "moves when its start is moved by as much as the model errs in one step. Null where that was "
    "not measured, and of predictions from a z_cls that is a mean, without z_patches."
)
MRR = (
    "Mean reciprocal rank of this run's predictions among 256, on held-out images, from what was "
    "given (patches, or z_cls alone). Null where it was not measured."
)


class PredictAnswer(BaseModel):
    z_cls_pred: Answered = Field(description="z_cls after the step.")
    z_patches_pred: list[Answered] | None = Field(description="Null where none were given.")
    mrr: float | None = Field(description=MRR)
    uncertainty: float | None = Field(description=UNCERTAINTY)
    timestamp: Time


class RolloutAnswer(BaseModel):
    z_cls_seq: list[Answered] = Field(description="z_cls after each step.")
    z_patches_seq: list[list[Answered]] | None = Field(description="Null where none were given.")
    mrr_seq: list[float | None] = Field(description=f"Of single steps; null from the second. {MRR}")
    uncertainty_seq: list[float | None] = Field(description=UNCERTAINTY)
    timestamp: Time


class DecodeAnswer(BaseModel):
    image_b64: str = Field(description="A PNG file in base64.")
    timestamp: Time


class PlanAnswer(BaseModel):
    actions: list[list[float]] = Field(description="One a step, in the environment's units.")
    cost: float = Field(description="Predicted squared distance from the goal at the end.")
    start_cost: float | None = Field(description="The same before the first action.")
    timestamp: Time


class HealthAnswer(BaseModel):
    status: Literal["ok", "model_not_loaded"] = Field(description="ok once the model is loaded.")
    model_loaded: bool = Field(description="The same as true or false.")
    model_variant: str | None = Field(description="As /encode says; null before.")
    device: str | None = Field(description="Where the model computes, such as cpu; null before.")
    uptime_seconds: float = Field(description="Since the service began.")
    total_encodes: int = Field(description="Images that were encoded since then.")
    total_predicts: int = Field(description="Steps that were predicted by /predict.")
    total_rollouts: int = Field(description="Calls of /rollout that were answered.")


class ReadyAnswer(BaseModel):
    ready: Literal[True] = Field(description="Else the answer is 503.")
    latent_spec: str = Field(
        description="16 hex digits: where they are equal, two runs' latents mean the same."
    )


class SpecAnswer(BaseModel):
    spec: dict[str, Any] = Field(description="Sizes, actions, and what the run cannot do.")
    measured: dict[str, Any] | None = Field(
        description="MRR, and quantiles (0 to 100%) of distances by the number of steps."
    )


class Problem(BaseModel):
    detail: str = Field(description="One line that says what is wrong.")
