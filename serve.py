"""Serve a run over HTTP: images to latents, latents and actions to the latents that follow, plans.

Reads   RUN/tokenizer, RUN/dynamics where there is one, and RUN/report/latents.json, which
        python -m evaluation.latents writes: MRR and percentiles.
Writes  nothing.
Try     python serve.py --run checkpoints/pusht-goals
        curl http://127.0.0.1:8001/health

Routes: /encode /predict /rollout /decode /plan, /spec of what the run has, /health /ready /metrics,
and /openapi.json with examples (docs/tutorial/serve.md).  This machine alone is answered; another
--server.host needs a --server.key, and a server with TLS before it where the network is not yours.
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

from dataclasses import dataclass, field
from pathlib import Path

from data.ranges import CheckedConfig, DeviceOption
from pipeline.cli import run_cli
from pipeline.listen import open_socket
from pipeline.serve.run_server import check_installed, run_server
from pipeline.serve.service_config import ServiceConfig


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("checkpoints/pusht-goals")
    """Folder of the run, or a published one (hf://USER/NAME@REVISION)."""
    device: DeviceOption = "auto"
    """Where the model runs; auto takes a GPU where there is one."""
    log_requests: bool = False
    """Print a line for each request: its id, route, status and time, and nothing of what it
    holds."""
    server: ServiceConfig = field(default_factory=ServiceConfig)


def main(config: Config) -> None:
    check_installed()
    if not any((config.run / stage / "best.pt").exists() for stage in ("tokenizer", "dynamics")):
        raise ValueError(
            f"{config.run} has neither a tokenizer nor dynamics; train_tokenizer.py --run "
            f"{config.run} trains one"
        )
    with open_socket(config.server) as listening:
        run_server(config.run, config.device, config.server, listening, config.log_requests)


if __name__ == "__main__":
    run_cli(main, Config)
