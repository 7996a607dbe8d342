"""Kill a training stage at random moments, many times, and see that it always goes on.

Not part of the suite, as each try starts a process. From the root of the project:

    python tests/kill_stages.py --tries 20

Each try starts `train_tokenizer.py` on the toy world, which saves at every step, kills it with
SIGKILL, SIGTERM or SIGINT after a random time, loads `last.pt` and sees that no step was lost.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        write_toy_shards(run / "shards")
        last = run / "tokenizer" / "last.pt"
        command = [
            sys.executable, "train_tokenizer.py", "--run", folder, "--preset", "debug",
            "--model.image-size", "32", "32", "--train.steps", "1000000",
            "--train.save-every", "1", "--train.evaluate-every", "7",
        ]  # fmt: skip
        step, ended = 0, Counter()
        for attempt in range(asked.tries):
            before = last.stat().st_mtime if last.exists() else 0.0
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while not (last.exists() and last.stat().st_mtime > before):  # its first own save
                if process.poll() is not None:
                    raise SystemExit(f"try {attempt}: the stage ended by itself")
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 1.0))
            number = draw.choice(SIGNALS)
            process.send_signal(number)
            process.wait()
            after = ckpt.load(last, "tokenizer")["step"]
            if after <= step:
                raise SystemExit(f"try {attempt}: step {step} was reached, {after} is there")
            ended[number.name] += 1
            print(f"try {attempt}: {number.name} at step {after}, last.pt is whole", flush=True)
            step = after
    print(f"{asked.tries} of {asked.tries} whole: {dict(ended)}")


if __name__ == "__main__":
    main()
