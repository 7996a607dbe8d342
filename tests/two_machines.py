"""Two network namespaces with a cable between them: two machines with one shared folder.

Needs Linux, root and `ip` (iproute2).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
ADDRESSES = ("10.213.77.1", "10.213.77.2")
CABLE = "cable"  # what the end of the cable is called on each machine


class CannotConnect(Exception):
    """This system gives no network namespaces, and says why."""


class TwoMachines:
    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names

    def torchrun(self, machine: int, *arguments: str) -> subprocess.Popen[str]:
        """Start one machine's part of a job of one process each."""
        command = [
            "ip", "netns", "exec", self.names[machine],
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
            f"--node_rank={machine}", f"--master_addr={ADDRESSES[0]}", "--master_port=29500",
            "--", *arguments,
        ]  # fmt: skip
        environment = {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            # gloo would take the address of the machine's own name, often 127.0.0.1
            "GLOO_SOCKET_IFNAME": CABLE,
        }
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def kill(self, machine: int) -> None:
        """SIGKILL to every process of a machine: its power is gone."""
        pids = subprocess.run(
            ["ip", "netns", "pids", self.names[machine]], capture_output=True, text=True
        )
        for pid in pids.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def two_machines() -> Iterator[TwoMachines]:
    """CannotConnect where the system refuses."""
    if not shutil.which("ip"):
        raise CannotConnect("no `ip` here (iproute2)")
    names = (f"one-{os.getpid()}", f"two-{os.getpid()}")
    ends = (f"c1-{os.getpid()}", f"c2-{os.getpid()}")
    machines = TwoMachines(names)
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "link", "set", end, "name", CABLE)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            _ip("-n", name, "link", "set", CABLE, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield machines
    finally:
        for machine, name in enumerate(names):
            machines.kill(machine)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise CannotConnect(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
