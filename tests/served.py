"""A service whose model is in this process, small and untrained, and images to ask it about."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.layers.vit import VitConfig
from models.tokenizers.iwm import Iwm, IwmConfig
from pipeline.listen import ListenConfig, open_socket
from pipeline.serve.jobs import Told, Work
from pipeline.serve.latent_model import ImageModel, LatentModel, image_spec
from pipeline.serve.latent_report import Measured
from pipeline.serve.model_worker import ModelWorker
from pipeline.serve.run_server import make_server
from pipeline.serve.service import Service
from pipeline.serve.service_config import ServiceConfig
from pipeline.serve.worker_process import Ready, WorkerEnded

HEADERS = {"host": "127.0.0.1"}
SMALL = VitConfig(dim=24, num_layers=1, num_heads=2)
PATIENCE = 120.0  # seconds until something that has to come is missed


def tiny_image_model(seed: int = 0) -> ImageModel:
    """IWM with 16 patches of 24 numbers, of 32 pixels."""
    torch.manual_seed(seed)
    config = IwmConfig((32, 32), 8, SMALL, SMALL, channels=16, num_res_blocks=1)
    model = Iwm(config).eval().requires_grad_(False)
    spec = image_spec(Path("tiny"), model, {"fingerprint": f"tiny{seed}"}, torch.device("cpu"))
    return ImageModel(model, spec)


def tiny_measured(model: LatentModel) -> Measured:
    quantiles = {"1": list(range(101)), "2": list(range(101))}
    return Measured(model.spec.model_id, 8, 0.5, 0.25, quantiles, quantiles, noise_std=0.1)


class OwnWorker:
    """Answers in this process: `gate` holds its answers, `may_start` its start, and `end` ends it
    as a kill would."""

    def __init__(self, model: LatentModel, measured: Measured | None = None) -> None:
        self.worker, self.model, self.measured = ModelWorker(model, measured), model, measured
        self.batches: list[list[Work]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.may_start = threading.Event()
        self.may_start.set()
        self._ended: asyncio.Event | None = None

    async def start(self) -> Ready:
        while not self.may_start.is_set():
            await asyncio.sleep(0.002)
        self._ended, self._loop = asyncio.Event(), asyncio.get_running_loop()
        return self.model.spec, self.measured, "measured by nobody"

    async def answer(self, batch: list[Work], told: Told) -> None:
        assert self._ended is not None
        self.batches.append(batch)
        while not self.gate.is_set():
            await asyncio.sleep(0.002)
            if self._ended.is_set():
                raise WorkerEnded
        for part in self.worker.answers(batch):
            told(part)

    def end(self) -> None:
        assert self._ended is not None
        self._loop.call_soon_threadsafe(self._ended.set)

    async def ended(self) -> None:
        assert self._ended is not None
        await self._ended.wait()

    async def stop(self) -> None:
        pass


@contextmanager
def listening_service(service: Service) -> Iterator[str]:
    """Serve at a free port, in a thread; give the URL."""
    with open_socket(ListenConfig(port=0)) as listening:
        server = make_server(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: service.is_ready)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


def tiny_service(config: ServiceConfig | None = None, measured: bool = False) -> Service:
    model = tiny_image_model()
    worker = OwnWorker(model, tiny_measured(model) if measured else None)
    return Service(worker, config or ServiceConfig(port=0))


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def picture(seed: int = 0, height: int = 40, width: int = 32) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file_of(pixels: np.ndarray, format: str = "PNG", **settings: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format, **settings)
    return content.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()
