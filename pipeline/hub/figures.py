"""The figures of a run's report, as rows of a card: each with its n and its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.io.files import parse_json, read_text
from data.io.messages import command

FILE = "report/metrics.json"
# Figures of a policy in metrics.json, and the keys of their intervals.
TASK = {"success": ("success_low", "success_high"), "score": ("low", "high")}
GOAL = {"success": ("low", "high")}
RETURN = {"return": ("low", "high")}
IMITATION = {"log_likelihood": ("log_likelihood_low", "log_likelihood_high")}
IMAGES = (
    "psnr", "copy_last_psnr", "delta_psnr", "ssim", "block_px", "copy_last_block_px",
    "block_degrees", "copy_last_block_degrees",
)  # fmt: skip
REWARDS = ("correlation", "copy_last_correlation")


@dataclass(frozen=True)
class Figure:
    key: str
    """Its place in metrics.json, such as task.bc.success."""
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    """Ends of the 95% interval; None where it is not known."""


def read_report(run: Path) -> dict[str, Any]:
    """Read RUN/report/metrics.json; ValueError says what writes it."""
    path = run / FILE
    way_out = f"{command('evaluate.py', '--run', run)} measures it, --no-figures leaves it out"
    metrics = read_metrics(path, way_out)
    if "flags" not in metrics["provenance"]:
        raise ValueError(f"{path} is of an older version, which did not keep its flags; {way_out}")
    return metrics


def read_metrics(path: Path, way_out: str) -> dict[str, Any]:
    """Read a metrics.json whose figures can be given; ValueError names the way out."""
    if not path.exists():
        raise ValueError(f"{path} is not there; {way_out}")
    try:
        metrics = parse_json(read_text(path))
        if not isinstance(metrics["provenance"]["fingerprints"], dict):
            raise ValueError("it names no checkpoints")
        _check_figures(metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"{path} is damaged ({problem!r:.100}); {way_out}") from None
    return metrics


def _check_figures(metrics: dict[str, Any]) -> None:
    """Raise ValueError or TypeError where a figure is no number, or what it was measured with no
    settings."""
    for figure in figures_of(metrics):
        ends = [end for end in (figure.low, figure.high) if end is not None]
        if not all(_is_number(x) for x in (figure.value, figure.n, *ends)) or figure.n < 1:
            raise ValueError(f"{figure.key} is {figure.value!r} of {figure.n!r}")
    provenance = metrics["provenance"]
    if not isinstance(provenance.get("settings") or {}, dict):
        raise ValueError(f"its settings are {provenance['settings']!r:.40}")
    flags = provenance.get("flags") or []
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise ValueError(f"its flags are {flags!r:.40}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_measured(metrics: dict[str, Any], fingerprints: Mapping[str, str], run: Path) -> None:
    """Raise ValueError where a report is of other checkpoints than those of the run, given by their
    folders."""
    measured = metrics["provenance"]["fingerprints"]
    for folder, fingerprint in fingerprints.items():
        name = folder.removeprefix("controller/")
        if name in measured and measured[name] != fingerprint:
            raise ValueError(
                f"{run / FILE} is of {folder} with fingerprint {measured[name]}, and now it is "
                f"{fingerprint}; {command('evaluate.py', '--run', run)} measures it again, "
                f"--no-figures leaves it out"
            )


def figures_of(metrics: dict[str, Any]) -> list[Figure]:
    """Give every figure that a card or a comparison shows, in the order of the report."""
    found = [*_of_images(metrics)]
    groups: dict[str, tuple[dict[str, Any], dict[str, tuple[str, str]]]] = {
        "imitation": (metrics["imitation"], IMITATION),
        "task": (metrics["task"], TASK),
        "returns": (metrics.get("returns", {}), RETURN),  # an older report has none
    }
    groups |= {f"goal.{name}": (policies, GOAL) for name, policies in metrics["goal"].items()}
    for group, (policies, wanted) in groups.items():
        for policy, values in policies.items():
            for name, (low, high) in wanted.items():
                if values.get(name) is not None:
                    key = f"{group}.{policy}.{name}"
                    found.append(Figure(key, values[name], values["n"], values[low], values[high]))
    return found


def _of_images(metrics: dict[str, Any]) -> Iterator[Figure]:
    """Figures of decoded frames, and of states that are read from them; of one source no interval
    is known."""
    tokenizer = metrics["tokenizer"]
    for name in IMAGES:
        value, low, high = (tokenizer.get(key) for key in (name, f"{name}_low", f"{name}_high"))
        if value is not None:
            yield Figure(f"tokenizer.{name}", value, tokenizer["n"], low, high)
        yield from _by_horizon("open_loop", name, metrics["open_loop"])
    for name in REWARDS:
        yield from _by_horizon("rewards", name, metrics.get("rewards") or {})


def _by_horizon(group: str, name: str, values: dict[str, Any]) -> Iterator[Figure]:
    horizons = values.get("horizons") or ()
    keys = (name, f"{name}_low", f"{name}_high")
    columns = [values.get(key) or [None] * len(horizons) for key in keys]
    for horizon, value, low, high in zip(horizons, *columns, strict=True):
        if value is not None:
            yield Figure(f"{group}.{name} at {horizon} steps", value, values["n"], low, high)
