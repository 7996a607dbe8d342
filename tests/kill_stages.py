"""Kill training stages at random moments, many times, and check that they always resume.

Not part of the suite, because each try starts a process. From the root of the project:

    python tests/kill_stages.py --tries 21
    python tests/kill_stages.py --preset dreamer       # a world without stage 2

Each try starts one of the three training stages on the toy world, saving at every step, kills it
with SIGKILL, SIGTERM or SIGINT after a random time, loads its `last.pt` and checks that no step was
lost. The stages run in their order, each on the checkpoint of the one before.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.toy import write_toy_shards  # noqa: E402
from pipeline import checkpoint as ckpt  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# stage, prefix of its training flags, folder of its checkpoints, other flags
STAGES = (
    ("tokenizer", "train", "tokenizer", ["--model.image-size", "32", "32"]),
    ("dynamics", "train", "dynamics", []),
    ("controller", "bc", "controller/bc", ["--methods", "bc", "--min-reward", "0.01"]),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--tries", type=int, default=21)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="pusht")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        write_toy_shards(Path(folder) / "shards")
        ended: Counter[str] = Counter()
        stages = STAGES[1:] if options.preset == "dreamer" else STAGES
        per_stage = -(-options.tries // len(stages))
        for stage in stages:
            step = 0
            for attempt in range(per_stage):
                step, name = kill(*stage, options.preset, Path(folder), step, rng)
                ended[f"{stage[0]} {name}"] += 1
                print(f"{stage[0]}, try {attempt}: {name} at step {step}, whole", flush=True)
    print(f"{sum(ended.values())} of {per_stage * len(stages)} whole: {dict(ended)}")


def kill(
    stage: str,
    train: str,
    folder: str,
    flags: list[str],
    preset: str,
    run: Path,
    step: int,
    rng: random.Random,
) -> tuple[int, str]:
    """Kill a stage once; return the step in last.pt, which is after `step`, and the signal."""
    last = run / folder / "last.pt"
    command = [
        sys.executable, f"train_{stage}.py", "--run", str(run), "--preset", preset, "debug",
        f"--{train}.steps", "1000000", f"--{train}.save-every", "1",
        f"--{train}.eval-every", "3", *flags,
    ]  # fmt: skip
    before = last.stat().st_mtime if last.exists() else 0.0
    output = run / "output.txt"  # a full pipe that nobody reads would stop the stage
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    # its first save, and a best.pt for the next stage
    while not (last.exists() and last.stat().st_mtime > before and has_best(last)):
        if process.poll() is not None:
            raise SystemExit(f"{stage} ended by itself: {output.read_text()[-2000:]}")
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.0))
    number = rng.choice(SIGNALS)
    process.send_signal(number)
    process.wait()
    after = ckpt.load(last, stage)["step"]
    if after <= step:
        raise SystemExit(f"{stage}: step {step} was reached, but last.pt is of step {after}")
    return after, number.name


def has_best(last: Path) -> bool:
    return last.with_name("best.pt").exists()


if __name__ == "__main__":
    main()
