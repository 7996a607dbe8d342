"""Copy the trained models of a run, small enough to share: no optimizer, half the bits.

Reads   RUN/run.json and every best.pt of RUN/tokenizer, RUN/dynamics, RUN/controller.
Writes  OUT, which can be played and evaluated as any run, once it has episodes to start from
        (python preprocess.py pusht --run OUT).
Try     python -m pipeline.inference.export --run runs/pusht --out checkpoints/mine
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.files import atomic_write
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.cli import run_cli

KEPT_KEYS = (*ckpt.REQUIRED_KEYS, "format", "step", "best", "seconds", "train", "versions")


@dataclass(frozen=True)
class Config:
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
    # parents first: children hold their fingerprints
    stages = ("tokenizer", "dynamics", "controller")
    paths = [p for stage in stages for p in sorted((config.run / stage).glob("**/best.pt"))]
    if not paths:
        raise ValueError(f"{config.run} holds no best.pt; the stages write them (README.md)")
    new_fingerprints: dict[str, str] = {}
    total, replaced = 0, 0
    for path in paths:
        relative_path = path.relative_to(config.run)
        checkpoint = ckpt.load(path, relative_path.parts[0])
        ckpt.check_weights(checkpoint, path)
        # float16 rather than bfloat16: weights need 3 bits more precision, and no range
        weights = {
            k: v.half() if v.is_floating_point() else v for k, v in checkpoint["model"].items()
        }
        exported = {key: checkpoint[key] for key in KEPT_KEYS if key in checkpoint} | {
            "model": weights
        }
        exported["fingerprint"] = ckpt.fingerprint(weights, checkpoint["config"])
        new_fingerprints[checkpoint["fingerprint"]] = exported["fingerprint"]
        parent = checkpoint["parent"]
        parent_fingerprint = new_fingerprints.get(parent["fingerprint"], parent["fingerprint"])
        exported["parent"] = {"path": Path(parent["path"]).name, "fingerprint": parent_fingerprint}
        target = config.out / relative_path
        target.parent.mkdir(parents=True, exist_ok=True)
        replaced += target.exists()
        ckpt.save(target, exported)
        total += target.stat().st_size
    if (config.run / presets.FILE).exists():
        atomic_write(config.out / presets.FILE, (config.run / presets.FILE).read_bytes())
    replaced_note = f", {replaced} of them replaced" if replaced else ""
    print(
        f"export: {len(paths)} checkpoints, {total / 2**20:.1f} MiB, in {config.out}{replaced_note}"
    )


if __name__ == "__main__":
    run_cli(main, Config)
