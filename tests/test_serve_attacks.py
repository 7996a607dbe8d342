"""Sixty ways to ask badly: each gets a 4xx and one plain line, and the service answers on.

Bombs, damaged files, paths and addresses in the place of images, hosts, sizes, numbers that are
none, nesting, and sockets that say nothing.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("prometheus_client", reason="requirements-serve.txt is not installed")
from served import PATIENCE, base64_of, file_of, listening_service, picture, tiny_service, until
from starlette.testclient import TestClient

from pipeline.serve.service_app import make_service_app
from pipeline.serve.service_config import ServiceConfig

CONFIG = ServiceConfig(
    port=0, body_seconds=0.5, max_body_mb=0.2, max_image_mb=0.1, max_megapixels=0.1, max_steps=8,
    max_rollouts=100, max_connections=8,
)  # fmt: skip
GOOD = [0.0] * 24
JSON = {"content-type": "application/json"}


def png_head(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    data = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
        for c in (chunk, data, b"IEND")
    )


def text_bomb() -> bytes:
    """A PNG with a compressed text of 100 MB."""
    chunk = b"zTXt" + b"a\x00\x00" + zlib.compress(b"\0" * 10**8)
    packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    file = file_of(picture())
    return file[:33] + packed + file[33:]


def image(content: bytes) -> tuple[str, dict[str, Any]]:
    return "/encode", {"image_b64": base64_of(content)}


def text(value: Any) -> tuple[str, dict[str, Any]]:
    return "/encode", {"image_b64": value}


def predict(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/predict", {"z_cls": GOOD, "aug_params": []} | fields


def rollout(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/rollout", {"z_cls": GOOD, "aug_seq": [[]]} | fields


def gif() -> bytes:
    return file_of(picture(), "GIF")


def tiff() -> bytes:
    return file_of(picture(), "TIFF")


def sixteen_bits() -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(content, "PNG")
    return content.getvalue()


def cut(format: str) -> bytes:
    return file_of(picture(), format)[:-400]


WITH_BODY: dict[str, Callable[[], tuple[str, Any]]] = {
    "a path": lambda: text("/etc/passwd"),
    "a file address": lambda: text("file:///etc/passwd"),
    "a web address": lambda: text("http://169.254.169.254/latest/meta-data"),
    "a data address": lambda: text("data:image/png;base64," + base64_of(file_of(picture()))),
    "a path in base64": lambda: image(b"/etc/passwd"),
    "no base64": lambda: text("****"),
    "half of a surrogate": lambda: text("\ud800"),
    "letters beyond ASCII": lambda: text("ä" * 40),
    "white space in base64": lambda: text(base64_of(file_of(picture())) + "\n "),
    "an empty image": lambda: text(""),
    "base64 of nothing": lambda: text("===="),
    "a number as the image": lambda: text(3),
    "a list as the image": lambda: text(["iVBOR"]),
    "null as the image": lambda: text(None),
    "random bytes": lambda: image(np.random.default_rng(0).bytes(300)),
    "an SVG": lambda: image(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "a GIF": lambda: image(gif()),
    "a TIFF": lambda: image(tiff()),
    "a ZIP": lambda: image(b"PK\x03\x04" + b"\0" * 60),
    "a pickle": lambda: image(b"\x80\x04cos\nsystem\n"),
    "a PDF": lambda: image(b"%PDF-1.7\n" + b"\0" * 60),
    "a cut PNG": lambda: image(cut("PNG")),
    "a cut JPEG": lambda: image(cut("JPEG")),
    "a cut WebP": lambda: image(cut("WEBP")),
    "a bomb of pixels": lambda: image(png_head(60_000, 60_000)),
    "a bomb below Pillow's limit": lambda: image(png_head(9_000, 9_000)),
    "a bomb in one row": lambda: image(png_head(2**31 - 1, 1)),
    "no pixels": lambda: image(png_head(0, 0)),
    "a bomb of text": lambda: image(text_bomb()),
    "16 bits a color": lambda: image(sixteen_bits()),
    "too large a file": lambda: text("A" * 150_000),
    "an unknown field": lambda: ("/encode", {"image_b64": "AAAA", "path": "/etc/passwd"}),
    "a word for a truth": lambda: ("/encode", {"image_b64": "AAAA", "return_patches": "yes"}),
    "no fields": lambda: ("/encode", {}),
    "a list for an object": lambda: ("/encode", []),
    "a string for an object": lambda: ("/encode", "image_b64"),
    "words for numbers": lambda: predict(z_cls=["0"] * 24),
    "truths for numbers": lambda: predict(z_cls=[True] * 24),
    "one number too few": lambda: predict(z_cls=[0.0] * 23),
    "no numbers": lambda: predict(z_cls=[]),
    "huge numbers": lambda: predict(z_cls=[1e30] * 24),
    "a number of 400 digits": lambda: predict(z_cls=[10**400] * 24),
    "too long a step": lambda: predict(aug_params=[0.0] * 17),
    "a step within a step": lambda: predict(aug_params=[[0.0]]),
    "words for base64 of numbers": lambda: predict(z_cls="****"),
    "half a number in base64": lambda: predict(z_cls=base64_of(b"\0" * 95)),
    "base64 of another length": lambda: predict(z_cls=base64_of(b"\0" * 92)),
    "NaN in base64": lambda: predict(z_cls=base64_of(np.full(24, np.nan, "<f4").tobytes())),
    "huge numbers in base64": lambda: predict(z_cls=base64_of(np.full(24, 2e6, "<f4").tobytes())),
    "an unknown encoding": lambda: predict(encoding_format="float16"),
    "patches of another shape": lambda: predict(z_patches=[[0.0] * 24] * 15),
    "patches of several lengths": lambda: predict(z_patches=[[0.0] * 24] * 15 + [[0.0]]),
    "empty patches": lambda: predict(z_patches=[[]]),
    "too long a rollout": lambda: rollout(aug_seq=[[]] * 9),
    "an empty rollout": lambda: rollout(aug_seq=[]),
    "latents of nothing": lambda: ("/decode", {}),
    "a plan of no budget": lambda: (
        "/plan", {"image_b64": "AAAA", "goal_image_b64": "AAAA", "budget": 0}
    ),
}  # fmt: skip
RAW: dict[str, tuple[bytes, dict[str, str]]] = {
    "NaN": (b'{"z_cls": [NaN], "aug_params": []}', JSON),
    "infinity": (b'{"z_cls": [1e999], "aug_params": [-Infinity]}', JSON),
    "no JSON": (b"{", JSON),
    "no UTF-8": (b'{"z_cls": "\xff\xfe"}', JSON),
    "deep nesting": (b'{"z_cls": ' + b"[" * 90_000, JSON),
    "a form": (b"z_cls=1", {"content-type": "application/x-www-form-urlencoded"}),
    "plain text": (b'{"z_cls": [1.0], "aug_params": []}', {"content-type": "text/plain"}),
    "no kind of content": (b"{}", {"content-type": ""}),
    "a large body": (b" " * 300_000, JSON),
    "a length that is none": (b"{}", JSON | {"content-length": "-1"}),
    "a foreign host": (b"{}", JSON | {"host": "evil.example"}),
    "half of an address": (b"{}", JSON | {"host": "[::1"}),
}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    service = tiny_service(CONFIG)
    app = make_service_app(service)
    with TestClient(app, "http://127.0.0.1", raise_server_exceptions=False) as client:
        until(lambda: service.is_ready)
        yield client


def refused(answer: Any) -> None:
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:200])
    detail = answer.json()["detail"]
    assert isinstance(detail, str) and 5 < len(detail) < 250 and "\n" not in detail
    assert "Traceback" not in detail and "/usr" not in detail and "root:" not in detail


@pytest.mark.parametrize("name", WITH_BODY)
def test_a_bad_request_is_refused_in_one_line(client, name):
    path, body = WITH_BODY[name]()
    content = json.dumps(body)
    refused(client.post(path, content=content, headers=JSON))
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("name", RAW)
def test_a_body_that_is_none_is_refused_in_one_line(client, name):
    content, headers = RAW[name]
    refused(client.post("/predict", content=content, headers=headers))
    assert client.get("/ready").status_code == 200


def test_json_that_is_nested_too_deeply_is_told_so(client):
    deep = b'{"z_cls": ' + b"[" * 9_000 + b"]" * 9_000 + b"}"
    answer = client.post("/predict", content=deep, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["detail"] == "the body is nested too deeply"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/encode", 405),
        ("DELETE", "/predict", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/health/", 404),
        ("GET", "/docs", 404),
        ("POST", "/health", 405),
        ("GET", "/" + "a" * 5000, 404),
    ],
)
def test_other_routes_and_methods_are_refused(client, method, path, status):
    answer = client.request(method, path, json=None if method == "GET" else {})
    assert answer.status_code == status and isinstance(answer.json()["detail"], str)


def test_an_animation_is_its_first_image(client):
    frames = [Image.fromarray(picture(seed)) for seed in range(3)]
    files = []
    for shown in (frames, frames[:1]):
        content = io.BytesIO()
        shown[0].save(content, "PNG", save_all=True, append_images=shown[1:])
        files.append(content.getvalue())
    moving, still = (client.post("/encode", json=image(f)[1]).json()["z_cls"] for f in files)
    assert moving == still


def test_what_exif_turns_is_turned(client):
    pixels = picture(height=32, width=32)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    content = io.BytesIO()
    Image.fromarray(np.rot90(pixels).copy()).save(content, "PNG", exif=exif)
    plain = client.post("/encode", json=image(file_of(pixels))[1]).json()["z_cls"]
    turned = client.post("/encode", json=image(content.getvalue())[1]).json()["z_cls"]
    assert turned == plain


def test_nothing_of_a_request_is_logged(client, caplog):
    secret = base64.b64encode(b"a secret of somebody").decode()
    with caplog.at_level("DEBUG"):
        client.post("/encode", json={"image_b64": secret, secret: 1})
    assert secret not in caplog.text


# -- sockets --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening_service(tiny_service(CONFIG)) as url:
        yield int(url.rpartition(":")[2])


def said(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send parts, and read until the service closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:  # it was closed in between
                break
            time.sleep(pause)
        found = b""
        try:
            while more := connection.recv(65536):
                found += more
        except ConnectionResetError:
            pass
        return found


HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_connection_that_says_nothing_is_closed(port):
    assert said(port) == b""


def test_half_of_a_head_is_not_waited_for(port):
    assert b"200" not in said(port, b"GET /health HTTP/1.1\r\nHost: 127.0", pause=0.1)


def test_a_head_of_one_byte_at_a_time_is_not_waited_for(port):
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as dripping,
        pytest.raises(OSError),  # once it is closed
    ):
        for _ in range(10**3):
            dripping.sendall(b"G")
            time.sleep(0.05)


def test_a_body_that_does_not_come_is_answered_408(port):
    answer = said(port, HEAD + b"Content-Length: 100\r\n\r\n{", pause=0.1)
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_body_of_slow_chunks_is_answered_408(port):
    chunks = [b"1\r\n{\r\n"] * 20
    answer = said(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, pause=0.06)
    assert answer.startswith(b"HTTP/1.1 408")


def test_chunks_beyond_the_limit_are_answered_413(port):
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    answer = said(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 12)
    assert answer.startswith(b"HTTP/1.1 413") or answer == b""  # reset while it was sending


def test_two_lengths_are_refused(port):
    lengths = b"Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}"
    assert said(port, HEAD + lengths).startswith(b"HTTP/1.1 400")


def test_no_http_is_refused(port):
    assert said(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").startswith(
        b"HTTP/1.1 400"
    )


def test_a_websocket_is_refused(port):
    upgrade = (
        b"GET /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert b" 101 " not in said(port, upgrade)


def test_silent_connections_do_not_keep_others_out_for_long(port):
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
    try:
        until(
            lambda: said(port, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")[9:12] == b"200"
        )
    finally:
        for each in silent:
            each.close()


def test_the_list_has_sixty(request):
    assert len(WITH_BODY) + len(RAW) >= 60
