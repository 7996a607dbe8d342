"""Export a run: what it says by name, each with settings of its own.

Reads   RUN: its checkpoints, and its shards for the page.
Writes  OUT.
Try     python -m pipeline.export web --run checkpoints/pusht-goals --out site
        python -m pipeline.export checkpoints --run runs/pusht --out checkpoints/mine
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

from pipeline.cli import Command, run_commands
from pipeline.export import checkpoints, web

COMMANDS = {
    "checkpoints": Command(
        checkpoints.main, checkpoints.Config, "the trained models, without optimizer, half the bits"
    ),
    "web": Command(
        web.main, web.Config, "a page that plays the world in a browser, without a server"
    ),
}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__ or "")
