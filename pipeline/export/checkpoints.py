"""Copy the trained models of a run, small enough to share: no optimizer, half the bits.

Reads   RUN/run.json and every best.pt of RUN/tokenizer, RUN/dynamics, RUN/controller.
Writes  OUT, which can be played and evaluated as any run, once it has episodes to start from
        (python preprocess.py pusht --run OUT).
Try     python -m pipeline.export checkpoints --run runs/pusht --out checkpoints/mine
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.io.files import atomic_write, writable_folder
from data.ranges import CheckedConfig
from models.registry import reads_latents
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.lineage import check_parent

KEPT_KEYS = (
    *ckpt.REQUIRED_KEYS, "recordings", "step", "best", "seconds", "parameters", "train", "versions",
)  # fmt: skip

STAGES = ("tokenizer", "dynamics", "controller")


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("runs/pusht")
    """Folder of the run to copy."""
    out: Path = Path("checkpoints/pusht")
    """Folder of the copy; files of the same names there are replaced."""


def main(config: Config) -> None:
    if config.out.resolve() == config.run.resolve():
        raise ValueError(
            f"--out {config.out} is --run {config.run} itself, whose weights would be halved in "
            f"place; choose another --out"
        )
    checkpoints = load_all(config.run)
    check_16_bits(checkpoints)
    check_leftovers(config.out, {path.relative_to(config.run) for path in checkpoints})
    writable_folder(config.out, "--out")
    new_fingerprints: dict[str, str] = {}
    total, replaced = 0, 0
    for path, checkpoint in checkpoints.items():
        # float16 rather than bfloat16: weights need 3 bits more precision, and no range
        weights = {
            k: v.half() if v.is_floating_point() else v for k, v in checkpoint["model"].items()
        }
        exported = {key: checkpoint[key] for key in KEPT_KEYS if key in checkpoint}
        exported |= {"format": ckpt.FORMAT, "model": weights}
        exported["fingerprint"] = ckpt.fingerprint(weights, checkpoint["config"])
        new_fingerprints[checkpoint["fingerprint"]] = exported["fingerprint"]
        parent = checkpoint["parent"]
        parent_fingerprint = new_fingerprints.get(parent["fingerprint"], parent["fingerprint"])
        exported["parent"] = {"path": Path(parent["path"]).name, "fingerprint": parent_fingerprint}
        target = config.out / path.relative_to(config.run)
        target.parent.mkdir(parents=True, exist_ok=True)
        replaced += target.exists()
        ckpt.save(target, exported)
        total += target.stat().st_size
    if (config.run / presets.FILE).exists():
        atomic_write(config.out / presets.FILE, (config.run / presets.FILE).read_bytes())
    replaced_note = f", {replaced} of them replaced" if replaced else ""
    print(
        f"export: {len(checkpoints)} checkpoints, {total / 2**20:.1f} MiB, in {config.out}"
        f"{replaced_note}"
    )


def check_leftovers(out: Path, names: set[Path]) -> None:
    """Raise ValueError where `out` holds checkpoints that stay, of a run that this one is not."""
    for stage in STAGES:
        for path in (out / stage).glob("**/best.pt"):
            if path.relative_to(out) not in names:
                raise ValueError(
                    f"{path} would stay next to the models of another run; delete {out}, or choose "
                    f"another --out"
                )


def load_all(run: Path) -> dict[Path, ckpt.Checkpoint]:
    """Read every best.pt of a run, parents first: children hold their fingerprints.

    ValueError where there is none, or where one was trained on another parent than the run's.
    """
    found: dict[Path, ckpt.Checkpoint] = {}
    for stage in STAGES:
        for path in sorted((run / stage).glob("**/best.pt")):
            found[path] = ckpt.load(path, stage)
    if not found:
        raise ValueError(f"{run} holds no best.pt; the stages write them (README.md)")
    for path, checkpoint in found.items():
        stage = checkpoint["stage"]
        if stage == "controller" or (stage == "dynamics" and reads_latents(checkpoint["config"])):
            below = "dynamics" if stage == "controller" else "tokenizer"
            parent_path = run / below / "best.pt"
            parent = found.get(parent_path) or ckpt.load(parent_path, below)
            check_parent(checkpoint, path, parent, parent_path)
    return found


def check_16_bits(checkpoints: dict[Path, ckpt.Checkpoint]) -> None:
    """Raise ValueError for a weight that is not finite in half the bits."""
    for path, checkpoint in checkpoints.items():
        for name, weight in checkpoint["model"].items():
            if weight.is_floating_point() and not weight.half().isfinite().all():
                raise ValueError(
                    f"{path}: the weight {name} is beyond the range of 16 bits, or not finite; "
                    f"{ckpt.train_command(checkpoint['stage'], path)} --restart trains another"
                )
