"""serve.py as it is run: a run folder, the model in a process of its own, signals, and a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="requirements-serve.txt is not installed")
from served import picture, until
from untrained_run import write_run

from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from pipeline.client.calls import Retries
from pipeline.client.errors import Busy, ServiceError, Unreachable
from pipeline.client.sync_client import LatentClient

ROOT = Path(__file__).parents[1]
LONG = 120.0  # seconds for a process that imports torch on a busy machine


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("served") / "run"
    write_toy_shards(run / "shards", episodes=6, size=32)
    return write_run(run, EpisodeDataset(run / "shards"), method="keypoints")


@contextmanager
def serving(run: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "serve.py", "--run", str(run), "--server.port", "0", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, process.stdout.read()
        yield process, found[0].rstrip("/")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def worker_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [c for c in children if b"model_worker" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert len(found) == 1
    return int(found[0])


def until_ready(client: LatentClient) -> None:
    end = time.monotonic() + LONG
    while True:
        try:
            if client.health().model_loaded:
                return
        except ServiceError:
            pass
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_a_run_is_served_survives_the_kill_of_its_model_and_ends_gracefully(run):
    once = Retries(attempts=1)
    with serving(run) as (process, url), LatentClient(url, retries=once, timeout=60) as client:
        until_ready(client)
        spec = client.spec().spec
        assert spec["run"] == "run" and spec["actions"]["names"] == ["target_x", "target_y"]
        now = client.encode(picture())
        assert len(now.z_cls) == spec["latent_dim"] == spec["num_patches"] * spec["dim"]
        ahead = client.rollout(now, [[256.0, 100.0]] * 3)
        assert np.allclose(ahead.z_cls[0], client.predict(now, [256.0, 100.0]).z_cls, atol=1e-4)
        assert client.decode(now).shape == (32, 32, 3)
        plan = client.plan(picture(), picture(1), steps=7, budget=32)
        assert plan.actions.shape == (7, 2) and (plan.actions >= 0).all()

        killed = worker_of(process)
        os.kill(killed, signal.SIGKILL)
        end, told = time.monotonic() + LONG, 0
        while True:  # clients are told, and then it answers again
            try:
                again = client.encode(picture())
                if told:
                    break
            except (Busy, Unreachable):
                told += 1
            assert time.monotonic() < end
            time.sleep(0.05)
        assert np.array_equal(again.z_cls, now.z_cls)
        own = worker_of(process)
        assert own != killed

        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 0
        until(lambda: not Path(f"/proc/{own}").exists())
        assert process.stdout is not None and "Traceback" not in process.stdout.read()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_the_model_ends_with_a_service_that_is_killed(run):
    with serving(run) as (process, url), LatentClient(url) as client:
        until_ready(client)
        own = worker_of(process)
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        until(lambda: not Path(f"/proc/{own}").exists())


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_it_with_one_line(run, tmp_path):
    (tmp_path / "dynamics").mkdir()
    (tmp_path / "dynamics" / "best.pt").write_bytes(b"not a checkpoint")
    done = subprocess.run(
        [sys.executable, "serve.py", "--run", str(tmp_path), "--server.port", "0"],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG,
    )  # fmt: skip
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "cannot be read as a checkpoint" in done.stderr.strip().splitlines()[-1]


def test_the_service_leaves_torch_to_its_model():
    program = "import sys, serve, pipeline.serve.service_app; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
