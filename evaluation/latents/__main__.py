"""Measure what a run's predictions of latents are worth: MRR, surprise, and its percentiles.

Reads   RUN/shards (or --shards), RUN/tokenizer, RUN/dynamics where there is one.
Writes  RUN/report/latents.json, which serve.py reads.
Try     python -m evaluation.latents --run runs/images
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from data.io.files import atomic_write
from data.ranges import MAX_SEED, CheckedConfig, NonEmpty, Range
from data.shards.build_info import shards_folder
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from evaluation.latents.distances import measure_distances
from evaluation.latents.state_probe import measure_state_probe
from evaluation.latents.streams import MIN_SOURCES, measure_streams
from evaluation.latents.transitions import choose_frames, transitions_of
from evaluation.latents.view_ranks import measure_mrr
from pipeline.cli import run_cli
from pipeline.device import DeviceOption, pick_device, set_device
from pipeline.serve.latent_model import ImageModel, Transforms, WorldModel, load_latent_model
from pipeline.serve.latent_report import FILE, FORMAT

MOST_VIEWS = 5  # of an image, one after the other


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("checkpoints/pusht-goals")
    """Folder of the run."""
    shards: Path | None = None
    """Other shards to measure on."""
    split: Split = "test"
    """Split to measure on; choices are made on validation, which writes no file."""
    num_images: Annotated[int, Range(1, 10**5)] = 64
    """Images whose views are ranked."""
    num_transitions: Annotated[int, Range(8, 10**6)] = 512
    """Transitions whose distances are measured."""
    horizons: Annotated[tuple[int, ...], Range(1, 1000), NonEmpty()] = (1, 2, 3, 4, 5, 8, 16)
    """Steps ahead; of images at most 5."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    device: DeviceOption = "auto"


@torch.no_grad()
def main(config: Config) -> None:
    set_device(config.device, "auto")
    started = time.perf_counter()
    # ranks are of the tokenizer itself, and its views differ little
    model = load_latent_model(config.run, pick_device(), image_precision="fp32")
    shards = config.run / "shards" if config.shards is None else shards_folder(config.shards)
    dataset = EpisodeDataset(shards)
    if "predict" in model.spec.cannot:
        raise ValueError(model.spec.cannot["predict"])
    if not dataset.episodes(config.split):
        raise ValueError(f"{shards} has no {config.split} episode to measure on")
    horizons = [] if model.spec.kind == "discrete" else reached(model, dataset, config)
    found: dict[str, Any] = {
        "format": FORMAT, "model_id": model.spec.model_id, "split": config.split, "n": 0,
        "mrr": None, "mrr_pooled": None, "surprise": {}, "uncertainty": {}, "noise_std": 0.0,
    }  # fmt: skip
    if isinstance(model, ImageModel) and isinstance(model.tokenizer, Transforms):
        frames, sources = choose_frames(dataset, config.split, config.num_images, config.seed)
        ranks = measure_mrr(model.tokenizer, frames.to(pick_device()), sources, config.seed)  # type: ignore[arg-type]
        found["mrr"], found["mrr_pooled"] = ranks["all"]["mrr"], ranks["all"]["mrr_pooled"]
        found["ranks"] = ranks | {"n": len(frames), "sources": len(np.unique(sources))}
        if len(np.unique(sources)) >= MIN_SOURCES:
            found["streams"] = measure_streams(model.tokenizer, frames, sources, seed=config.seed)  # type: ignore[arg-type]
    if model.spec.kind == "discrete":
        print("latents: they are codes, between which no distance is measured")
    else:
        found |= distances(model, dataset, config, horizons)
    found["seconds"] = round(time.perf_counter() - started, 1)
    for line in describe(found):
        print(line)
    if config.split == "test":
        path = config.run / FILE
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, json.dumps(found, indent=1).encode())
        print(f"latents: {path}")


def reached(model: Any, dataset: EpisodeDataset, config: Config) -> list[int]:
    """The horizons that can be measured; ValueError where none of them can."""
    if isinstance(model, WorldModel):
        lengths = [dataset.length(episode) for episode in dataset.episodes(config.split)]
        most = max(lengths) - 1
        why = f"the longest {config.split} episode has {max(lengths)} frames"
    else:
        most, why = MOST_VIEWS, f"of images at most {MOST_VIEWS} views follow each other"
    asked = " ".join(map(str, config.horizons))
    found = [k for k in config.horizons if k <= most]
    if not found:
        raise ValueError(f"--horizons {asked}: {why}, so {most} is the most; lower --horizons")
    if len(found) < len(config.horizons):
        print(f"latents: of --horizons {asked}, {' '.join(map(str, found))} are measured; {why}")
    return found


def distances(
    model: ImageModel | WorldModel | Any,
    dataset: EpisodeDataset,
    config: Config,
    horizons: list[int],
) -> dict[str, Any]:
    transitions = transitions_of(
        model, dataset, config.split, config.num_transitions, max(horizons), config.seed
    )
    sources = len(np.unique(transitions.sources))
    found: dict[str, Any] = {"n": len(transitions.start), "transition_sources": sources}
    if isinstance(model, WorldModel):
        found["probe"] = measure_state_probe(model, dataset, transitions, horizons, config.seed)
    return measure_distances(model, transitions, horizons) | found


def describe(found: dict[str, Any]) -> list[str]:
    lines = []
    ranks = dict(found.get("ranks", {}))
    if ranks:
        n, sources = ranks.pop("n"), ranks.pop("sources")
        lines.append(f"MRR among 256, {n} {found['split']} images of {sources} sources:")
        lines.append(f"  {'':<10} {'L2':>6} {'interval':>16} {'cosine':>7} {'from z_cls':>10}")
        lines += [
            f"  {name:<10} {r['mrr']:6.3f} [{r['low']:.3f}, {r['high']:.3f}] "
            f"{r['mrr_cosine']:7.3f} {r['mrr_pooled']:10.3f}"
            for name, r in ranks.items()
        ]
    for name, r in found.get("streams", {}).items():
        lines.append(
            f"{name} latents, {r['images']} images of {r['sources']} sources, linear: which image "
            f"{r['accuracy']:.3f} {_interval(*r['accuracy_interval'])}, how transformed (R2, other "
            f"sources) {r['r2']:.3f} {_interval(*r['r2_interval'])}"
        )
    for k in found["surprise"]:
        medians = {name: values[k] for name, values in found["medians"].items()}
        auc = {name: values[k] for name, values in found["auc"].items()}
        areas = ", ".join(
            f"{name} {a['auc']:.3f} {_interval(a['low'], a['high'])}" for name, a in auc.items()
        )
        correlation = found["uncertainty_rank_correlation"][k]
        lines.append(
            f"{k} steps, n {found['n']}: median distance {medians['surprise']:.3f}, no change "
            f"{medians['no_change']:.3f}; AUC {areas}; uncertainty and error, rank correlation "
            f"{'unknown' if correlation is None else format(correlation, '.2f')}"
        )
    for k, r in found.get("probe", {}).items():
        read = ", ".join(
            f"{name} {value:.3f} {_interval(*r['interval'].get(name, (None, None)))} "
            f"({r['true'][name]:.3f}; {r['no_change'][name]:.3f})"
            for name, value in r["predicted"].items()
        )
        lines.append(f"{k} steps, r of a linear probe (of true latents; of the start): {read}")
    return lines


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    run_cli(main, Config)
