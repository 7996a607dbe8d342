"""What test_fsdp.py trains on two processes, as torchrun starts them, in one start: ROOT TUNING ...

Runs in ROOT are stopped, copied and resumed; see `runs` there.  At its very end every process
leaves in ROOT/left-<number> whether it had left the process group.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
from pathlib import Path

import sharded_language_model
import sharded_rssm
import torch
import torch.distributed as dist
from sharded_run import TRAIN, Sharding, train

STOP = 3
STOPPED: dict[str, Sharding] = {"two": "fsdp", "ddp": "none"}
RESUMED = ("two_two", "one_two", "ddp_two")


def main(root: Path, tunings: list[str]) -> None:
    for name, sharding in STOPPED.items():
        train(root / name, STOP, sharding)
    dist.barrier()  # the first process has saved both
    if dist.get_rank() == 0:
        for name in STOPPED:
            shutil.copytree(root / name, root / f"{name}_two")
    dist.barrier()
    for name in RESUMED:
        train(root / name, TRAIN.steps, "fsdp")
    for sharding in STOPPED.values():
        sharded_rssm.train(root / f"rssm_{sharding}", sharding)
    for tuning in tunings:
        sharded_language_model.train(root / f"language_model_{tuning}", "fsdp", tuning)


if __name__ == "__main__":
    torch.set_num_threads(1)
    left = Path(sys.argv[1]) / f"left-{os.environ['RANK']}"
    atexit.register(lambda: left.write_text(str(not dist.is_initialized())))
    main(Path(sys.argv[1]), sys.argv[2:])
