"""Reproduce the four faults of docs/how-to/debug-a-training.md, and draw the curves that show them.

Reads   RUNS, a folder where the small runs are made, unless they are there; some 15 minutes of one
        CPU core.
Writes  RUNS/..., and docs/images/debug-*.png with the figures of docs/how-to/debug-a-training.md.
Try     python docs/make/debug_training.py runs/debugging
        python docs/make/debug_training.py runs/debugging --only rate
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from data.shards.episode_dataset import EpisodeDataset  # noqa: E402

IMAGES = ROOT / "docs/images"
SHIFT = 15  # steps by which the actions of the faulty recordings are late
COLORS = {"sound": ("#1b6ca8", "-"), "faulty": ("#c1440e", "--")}
FAULTS = ("rate", "collapse", "copies", "exploits")


def stage(script: str, run: Path, *flags: str) -> None:
    """Run a stage; it resumes, or says that it is finished."""
    words = [sys.executable, script, *flags[:0], "--run", str(run), *flags]
    print("$", *words[1:], flush=True)
    subprocess.run(words, cwd=ROOT, check=True)


def recordings(run: Path, preset: str) -> None:
    if not (run / "shards/build.json").exists():
        words = [sys.executable, "preprocess.py", "pusht", "--run", str(run)]
        words += ["--preset", *preset.split(), "--episodes", "150", "--num-workers", "1"]
        subprocess.run(words, cwd=ROOT, check=True)


def share_recordings(source: Path, run: Path) -> None:
    if not run.exists():
        shutil.copytree(source / "shards", run / "shards")
        shutil.copy(source / "run.json", run / "run.json")


SHORT = ("--train.steps", "240", "--train.eval-every", "40", "--train.warmup-steps", "20")


def rate(runs: Path) -> None:
    """A learning rate a hundred times too high."""
    recordings(runs / "sound", "keypoints cpu")
    share_recordings(runs / "sound", runs / "rate")
    stage("train_tokenizer.py", runs / "sound", *SHORT)
    stage("train_tokenizer.py", runs / "rate", *SHORT, "--train.learning-rate", "0.25")


def collapse(runs: Path) -> None:
    """A joint embedding without what keeps its latents apart."""
    steps = ("--train.steps", "120", "--train.eval-every", "20", "--train.warmup-steps", "20")
    for name, weight in (("joint", "0.1"), ("collapse", "0")):
        recordings(runs / name, "lewm cpu")
        stage("train_tokenizer.py", runs / name, *steps, "--model.sigreg-weight", weight)


def copies(runs: Path) -> None:
    """Actions that come some steps too late: nothing can be learned from them."""
    late = runs / "late-recordings"
    if not late.exists():
        late.mkdir()
        dataset = EpisodeDataset(runs / "sound/shards")
        for episode in range(len(dataset)):
            actions = np.roll(dataset.read(episode, "actions"), SHIFT, 0)
            frames = dataset.read(episode, "frames")
            np.savez(late / f"{episode:03}.npz", frames=frames, actions=actions)
    faulty = runs / "copies"
    if not (faulty / "shards/build.json").exists():
        words = ["preprocess.py", "arrays", str(late), "--run", str(faulty), "--preset"]
        words += ["keypoints", "cpu", "--low", "0", "0", "--high", "512", "512"]
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    tokenizer = runs / "sound/tokenizer/best.pt"
    begin = ("--train.init-from", str(tokenizer), "--train.steps", "40", "--train.eval-every", "40")
    stage("train_tokenizer.py", faulty, *begin, "--train.warmup-steps", "5")
    steps = ("--train.steps", "400", "--train.eval-every", "80", "--train.warmup-steps", "20")
    for run in (runs / "sound", faulty):
        stage("train_dynamics.py", run, *steps, "--train.batch-size", "64")


def exploits(runs: Path) -> None:
    """An actor-critic with no cloning in its loss, in a world that has seen little."""
    clone = ("--bc.steps", "400", "--bc.eval-every", "100", "--min-reward", "0.5")
    updates = ("--train.steps", "160", "--train.eval-every", "20", "--train.warmup-steps", "10")
    methods = ("--methods", "bc", "actor_critic")
    for name, weight in (("sound", "0.1"), ("exploits", "0")):
        run = runs / name
        if not run.exists():
            shutil.copytree(
                runs / "sound", run, ignore=shutil.ignore_patterns("controller", "report")
            )
        stage("train_controller.py", run, *methods, *clone, *updates,
              "--model.bc-weight", weight)  # fmt: skip
        if not (run / "report/metrics.json").exists():
            stage("evaluate.py", run, "--protocol", "task", "--policies", "actor_critic", "bc",
                  "--task-episodes", "40", "--task-seed", "200000")  # fmt: skip


# -- curves ---------------------------------------------------------------------------------------


def curve(folder: Path, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a key of log.jsonl."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [value for _, value in found]


def draw(name: str, panels: list[tuple[str, dict[str, tuple[Path, str]]]], title: str) -> None:
    """Panels one above the other, for a phone: an axis title, and of each line its folder, key."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(panels), 1, figsize=(4.2, 2.7 * len(panels)), squeeze=False)
    for axis, (label, lines) in zip(axes[:, 0], panels, strict=True):
        for words, (folder, key) in lines.items():
            color, dash = COLORS["faulty" if "fault" in words else "sound"]
            axis.plot(*curve(folder, key), dash, color=color, marker="o", markersize=3, label=words)
            if key == "train/loss":
                axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.strip()  # fmt: skip
    figure.suptitle(f"{title} (commit {commit})", fontsize=10, y=0.99)
    figure.tight_layout()
    figure.savefig(IMAGES / f"debug-{name}.png", dpi=90)
    plt.close(figure)


def drawn(name: str, runs: Path) -> None:
    sound, faulty = runs / "sound", runs / name
    if name == "rate":
        pair = {"sound": (sound / "tokenizer", ""), "fault: rate x 100": (faulty / "tokenizer", "")}
        panels = [("train/loss", "train/loss"), ("PSNR of held-out frames, dB", "validation/psnr")]
    elif name == "collapse":
        joint = runs / "joint"
        pair = {"sound": (joint / "tokenizer", ""),
                "fault: no SIGReg": (faulty / "tokenizer", "")}  # fmt: skip
        panels = [("train/prediction: it falls in both", "train/prediction"),
                  ("effective rank", "train/effective_rank")]  # fmt: skip
    elif name == "copies":
        pair = {"sound": (sound / "dynamics", ""),
                "fault: late actions": (faulty / "dynamics", "")}  # fmt: skip
        panels = [("delta-PSNR(4), dB", "validation/delta_psnr_4"),
                  ("PSNR over horizons, dB", "validation/psnr")]  # fmt: skip
    else:
        pair = {"sound": (sound / "controller", ""),
                "fault: no cloning": (faulty / "controller", "")}  # fmt: skip
        panels = [("imagined reward at the end", "validation/final_reward"),
                  ("entropy of the policy", "train/entropy")]  # fmt: skip
    titles = {"rate": "A loss that does not fall", "collapse": "Latents that collapse",
              "copies": "Imagination that copies",
              "exploits": "A controller that exploits the model"}  # fmt: skip
    draw(name, [(label, {words: (folder, key) for words, (folder, _) in pair.items()})
                for label, key in panels], titles[name])  # fmt: skip


def main(runs: Path, only: list[str]) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    for name in only or FAULTS:
        {"rate": rate, "collapse": collapse, "copies": copies, "exploits": exploits}[name](runs)
        drawn(name, runs)
        print(f"debug: {IMAGES / f'debug-{name}.png'}")


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    main(Path(folder).resolve(), [word for word in rest if word != "--only"])
