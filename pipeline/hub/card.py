"""The model card of a published run: README.md, with what a reader needs to use and to check it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.actions import ActionSpec
from data.gym.env_spec import EnvSpec, env_spec_of
from data.io.hub_address import HubAddress
from data.io.hub_client import client
from data.io.messages import command, first_few
from pipeline.checkpoint import Checkpoint
from pipeline.hub.figures import Figure

LIBRARY = "dreamstage"
TAGS = ("world-model", "reinforcement-learning")


@dataclass(frozen=True)
class Card:
    """What a card says."""

    address: HubAddress
    license: str
    data_license: str
    description: str
    checkpoints: dict[str, Checkpoint]
    """By their folders in the run: the tokenizer (if there is one), the dynamics, controllers."""
    data: dict[str, Any]
    """What the shards say of themselves (build.json's description); empty where it is not known."""
    has_shards: bool
    figures: Sequence[Figure]
    provenance: dict[str, Any]
    """Of the report that the figures are from."""
    base_models: Sequence[str] = ()
    """Repositories that it was trained from, or whose weights it reads."""
    finetuned: bool = False
    """Its weights began with those of a base model."""

    def text(self) -> str:
        sections = [
            f"# {self.address.repo.partition('/')[2]}: a world model",
            *([self.description] if self.description else []),
            self._usage(),
            self._inputs(),
            "## Parts",
            self._parts(),
            "## Figures",
            self._figures(),
            "## Data and licenses",
            self._licenses(),
        ]
        return f"---\n{self._metadata()}\n---\n\n" + "\n\n".join(sections) + "\n"

    def _metadata(self) -> str:
        kinds = {_kind(checkpoint) for checkpoint in self.checkpoints.values()}
        relation = {"base_model_relation": "finetune"} if self.finetuned else {}
        data = client().ModelCardData(
            license=self.license,
            library_name=LIBRARY,
            pipeline_tag="reinforcement-learning",
            tags=[*TAGS, *sorted(kinds)],
            base_model=list(self.base_models) or None,
            **relation,
        )
        return data.to_yaml().strip()

    def _usage(self) -> str:
        run = ("--run", f"hf://{self.address.repo}")
        lines = [command("play.py", *run, "--headless"), self.evaluate_command()]
        need = (
            ""
            if self.has_shards
            else " Both start from recorded episodes, which are not in here: see Data and licenses."
        )
        return (
            "## Use\n\nA published run is pulled once, and is a folder from there on."
            f"{need} Add `@COMMIT` to the address to have the same files for ever.\n\n    "
            + "\n    ".join(lines)
        )

    def evaluate_command(self) -> str:
        """What measures the card's figures again."""
        flags = self.provenance.get("flags", [])
        return command("evaluate.py", "--run", f"hf://{self.address.repo}", *flags)

    def _inputs(self) -> str:
        dynamics = self.checkpoints["dynamics"]
        height, width = dynamics["image_size"]
        return "\n".join(
            [
                "## Inputs",
                "",
                "| | |",
                "|---|---|",
                f"| Image size | {height} x {width} pixels (height, width), RGB |",
                "| Normalization | give and get uint8 from 0 to 255, (B, T, 3, H, W); the model "
                "scales them inside |",
                f"| Actions | {_cell(_actions(dynamics['data_actions']))} |",
                "| Convention | `actions[t]` leads from `frames[t]` to `frames[t + 1]` |",
            ]
        )

    def _parts(self) -> str:
        rows = ["| Folder | Method | Parameters | Steps | Fingerprint |", "|---|---|---|---|---|"]
        for folder, checkpoint in self.checkpoints.items():
            held = sum(weight.numel() for weight in checkpoint["model"].values())
            count = checkpoint.get("parameters", held)  # as the training counted those that learn
            rows.append(
                f"| `{folder}` | {_method(checkpoint)} | {count / 1e6:.2f} M | "
                f"{checkpoint.get('step', '-')} | `{checkpoint['fingerprint']}` |"
            )
        return "\n".join(rows)

    def _figures(self) -> str:
        if not self.figures:
            return "None was measured."
        rows = ["| Figure | Value | 95% interval | n |", "|---|---|---|---|"]
        for figure in self.figures:
            known = figure.low is not None and figure.high is not None
            interval = f"[{figure.low:.6g}, {figure.high:.6g}]" if known else "-"
            rows.append(f"| `{figure.key}` | {figure.value:.6g} | {interval} | {figure.n} |")
        where = ", ".join(
            str(self.provenance[key]) for key in ("device", "finished") if self.provenance.get(key)
        )
        held_out = self.provenance.get("held_out_episodes", "-")
        seen = self.provenance.get("held_out_episodes_trained_on")
        seen_note = "an unknown number" if seen is None else str(seen)
        return (
            f"By `{self.evaluate_command()}`, with the names of its `metrics.json` ({where}). "
            f"Success is a fraction, PSNR is in dB, and `px` are pixels of the simulator. Held "
            f"out: {held_out} episodes, of which {seen_note} were trained on. `random`, `noop`, "
            f"`most_frequent` and `copy_last` are baselines without a model.\n\n" + "\n".join(rows)
        )

    def _licenses(self) -> str:
        source = self.data.get("source") or "not known"
        environment = env_spec_of(self.data)
        rows = [
            ("License of the weights", self.license),
            ("License of the data", self.data_license),
            ("Data", _recordings(source, self.data.get("recordings"))),
            *([] if environment is None else [("Environment", _environment(environment))]),
            ("Shards", "in here" if self.has_shards else "not in here; put them into RUN/shards"),
        ]
        if self.base_models:
            rows.append(("Begins with the weights of", ", ".join(self.base_models)))
        return "\n".join(["| | |", "|---|---|", *(f"| {k} | {_cell(v)} |" for k, v in rows)])


def _kind(checkpoint: Checkpoint) -> str:
    return str(checkpoint["config"]["kind"])


def _method(checkpoint: Checkpoint) -> str:
    """The method, and the encoder whose weights it reads, or that they are random."""
    pretrained = checkpoint["config"].get("pretrained")
    return f"{_kind(checkpoint)} of {_cell(pretrained)}" if pretrained else _kind(checkpoint)


def _actions(plain: dict[str, Any]) -> str:
    spec = ActionSpec.from_dict(plain)
    if spec.kind == "none":
        return "none"
    if spec.kind == "continuous":
        pairs = zip(spec.names, spec.low, spec.high, strict=True)
        ranges = first_few((f"{n} from {low:g} to {high:g}" for n, low, high in pairs), 16)
        unit = f", in {spec.unit}" if spec.unit else ""
        return f"{spec.size} numbers, float32: {ranges}{unit}"
    names = spec.names or tuple(
        f"{factor.name} ({' / '.join(factor.labels)})" for factor in spec.factors
    )
    what = "one choice of each factor, the first varying fastest" if spec.factors else "a choice"
    return f"a code from 0 to {spec.size - 1}, int64, {what}: {first_few(names, 32)}"


def _recordings(source: str, recordings: dict[str, Any] | None) -> str:
    if not recordings:
        return source
    facts = (f"{key} {recordings[key]}" for key in ("bytes", "sha256") if key in recordings)
    return f"{source} ({', '.join(facts)})"


def _environment(env: EnvSpec) -> str:
    """Its id, and how it is seen where that is not as gymnasium gives it."""
    plain = EnvSpec(env.id).as_dict()
    changed = {k: v for k, v in env.as_dict().items() if v != plain[k] and k != "image_size"}
    return "; ".join([f"gymnasium's {env.id}", *(f"{k} {v}" for k, v in changed.items())])


def _cell(text: str) -> str:
    """A text that stays within its cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
