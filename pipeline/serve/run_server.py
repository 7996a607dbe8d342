"""Serve until it is interrupted."""

from __future__ import annotations

import logging
import socket
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.listen import address
from pipeline.serve.service_config import ServiceConfig

if TYPE_CHECKING:
    import uvicorn

    from pipeline.serve.service import Service

PACKAGES = {
    "requirements-serve.txt": ("fastapi", "uvicorn", "prometheus_client"),
    "requirements.txt": ("msgspec",),
}
KEPT_SECONDS = 5  # that a connection is kept open between two requests


def check_installed() -> None:
    """Raise ValueError where a package is missing, with the file that lists it."""
    for file, names in PACKAGES.items():
        missing = [name for name in names if find_spec(name) is None]
        if missing:
            raise ValueError(
                f"serve.py needs {', '.join(missing)}; python -m pip install -r {file}"
            )


def run_server(
    run: Path, device: str, config: ServiceConfig, listening: socket.socket, log_requests: bool
) -> None:
    """Load the run in a process of its own, and serve it; ValueError where it cannot be loaded."""
    from pipeline.serve.service import Service
    from pipeline.serve.worker_process import WorkerProcess

    _write_log(log_requests)
    failed: list[str] = []

    def stop(line: str) -> None:
        failed.append(line)
        server.should_exit = True

    longest = 10 + max(config.deadline_seconds, config.plan_seconds)
    server = make_server(Service(WorkerProcess(run, device, longest), config, stop))
    print(f"serve: {address(config, listening)} (Ctrl-C ends it)", flush=True)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if failed:
        raise ValueError(failed[0])
    print("serve: ended")


def make_server(service: Service) -> uvicorn.Server:
    import uvicorn

    from pipeline.serve.service_app import make_service_app
    from pipeline.serve.timed_protocol import timed_protocol

    config = service.config
    settings = uvicorn.Config(
        make_service_app(service),
        log_level="warning",
        access_log=False,
        http=timed_protocol(config.body_seconds),
        ws="none",
        limit_concurrency=config.max_connections,
        timeout_keep_alive=KEPT_SECONDS,
        timeout_graceful_shutdown=round(config.deadline_seconds) + 1,
        server_header=False,
    )
    return uvicorn.Server(settings)


def _write_log(requests: bool) -> None:
    log = logging.getLogger("dreamstage.serve")
    log.setLevel(logging.DEBUG if requests else logging.INFO)
    log.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s serve: %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
