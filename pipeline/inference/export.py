"""Copy what a run has learnt, small enough to be given away: no optimizer, half the bits.

Reads   RUN/tokenizer, RUN/dynamics, RUN/controller: every best.pt.
Writes  OUT, which can be played and evaluated as any run, once it has recordings to start from
        (python -m data.preprocess pusht --run OUT).
Try     python -m pipeline.export --run runs/pusht --out checkpoints/mine
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline import checkpoint as ckpt
from pipeline.cli import run

KEPT = ("format", "stage", "config", "latents", "actions", "parent", "step", "best", "seconds",
        "train", "versions")  # fmt: skip


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the run to copy."""
    out: Path = Path("checkpoints/pusht")
    """Folder of the copy; what is there under the same names is replaced."""


def main(config: Config) -> None:
    if config.out.resolve() == config.run.resolve():
        raise ValueError(
            f"--out {config.out} is --run {config.run} itself, whose weights would be halved in "
            f"place; choose another --out"
        )
    # parents first: children name them
    stages = ("tokenizer", "dynamics", "controller")
    paths = [p for stage in stages for p in sorted((config.run / stage).glob("**/best.pt"))]
    if not paths:
        raise ValueError(f"{config.run} holds no best.pt; the stages write them (README.md)")
    renamed: dict[str, str] = {}
    total, replaced = 0, 0
    for path in paths:
        place = path.relative_to(config.run)
        whole = ckpt.load(path, place.parts[0])
        ckpt.check_weights(whole, path)
        # float16 rather than bfloat16: weights need 3 bits more precision, and no range
        small = {k: v.half() if v.is_floating_point() else v for k, v in whole["model"].items()}
        copy = {key: whole[key] for key in KEPT if key in whole} | {"model": small}
        copy["fingerprint"] = ckpt.fingerprint(small, whole["config"])
        renamed[whole["fingerprint"]] = copy["fingerprint"]
        parent = whole["parent"]
        known = renamed.get(parent["fingerprint"], parent["fingerprint"])
        copy["parent"] = {"path": Path(parent["path"]).name, "fingerprint": known}
        target = config.out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        replaced += target.exists()
        ckpt.save(target, copy)
        total += target.stat().st_size
    older = f", {replaced} of them in place of older ones" if replaced else ""
    print(f"export: {len(paths)} checkpoints, {total / 2**20:.1f} MiB, in {config.out}{older}")


if __name__ == "__main__":
    run(main, Config, {})
