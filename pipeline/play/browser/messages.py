"""What the page and the server say to each other.

The page sends JSON, an object with its kind in `t`.  The server sends JSON, and frames: a header of
16 bytes and a JPEG.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

VERSION = 1
MAX_BYTES = 2048  # of a message from the page
HEADER = struct.Struct("<BBHId")
"""Version, kind (1: a JPEG), tenths of a millisecond that the model took, number of the frame, and
the page's own time of the last input that it shows, in milliseconds."""
JPEG = 1

Time = Annotated[float, Field(ge=0, le=1e13)]
Fraction = Annotated[float, Field(ge=-1e6, le=1e6)]
KeyName = Annotated[str, Field(min_length=1, max_length=8, pattern=r"^([a-z0-9+=,.-]|[a-z]+)$")]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Hello(Message):
    """The first message of a connection."""

    t: Literal["hello"]
    v: Literal[1]
    key: Annotated[str, Field(max_length=256)] = ""
    session: Annotated[str, Field(max_length=64)] = ""
    """Of a connection that was lost."""


class Key(Message):
    t: Literal["key"]
    key: KeyName
    """By its place, named as a QWERTY keyboard names it."""
    down: bool
    repeated: bool = False
    label: Annotated[str, Field(max_length=4)] = ""
    at: Time


class Pointer(Message):
    t: Literal["pointer"]
    x: Fraction
    """From the left edge of a panel; beyond 0 and 1 with a locked pointer."""
    y: Fraction
    at: Time


class Button(Message):
    t: Literal["button"]
    down: bool
    at: Time


class Blur(Message):
    """The page has lost the focus: nothing is held any more."""

    t: Literal["blur"]


class Ack(Message):
    """A frame was drawn."""

    t: Literal["ack"]
    n: Annotated[int, Field(ge=0, lt=2**32)]


Input = Key | Pointer | Button | Blur
_ANY: TypeAdapter[Hello | Input | Ack] = TypeAdapter(
    Annotated[Hello | Key | Pointer | Button | Blur | Ack, Field(discriminator="t")]
)


def parse(text: str) -> Hello | Input | Ack:
    """Read a message of the page; ValueError for anything else."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"a message of {len(text)} characters; at most {MAX_BYTES} are read")
    try:
        return _ANY.validate_json(text)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"not a message of this page: {where} {first['msg']}"[:100]) from None


def frame_message(number: int, at: float, model_ms: float, jpeg: bytes) -> bytes:
    tenths = min(round(10 * model_ms), 2**16 - 1)
    return HEADER.pack(VERSION, JPEG, tenths, number % 2**32, at) + jpeg
