"""Draw how parts of the project work together: stages, settings, processes, files, services.

Sizes, shapes and settings are read from the code and from the committed world.

Reads   checkpoints/pusht-goals, and the recipes.
Writes  docs/images/: stages, settings, processes, idle, world-parts, published, service, sources,
        metric, action-code, autoencoder (.svg).
Try     python docs/make/process_figures.py
        python docs/make/process_figures.py stages settings
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from drawing import BLUE, GREEN, INK, MARGIN, ORANGE, ROOT, SOFT, WIDTH, Drawing, Flow, Node, Via

sys.path[:0] = [str(ROOT)]

import train_tokenizer  # noqa: E402
from data.shards.episode_dataset import EpisodeDataset  # noqa: E402
from data.vpt.vpt_actions import BUTTONS, CameraQuantizer, action_spec  # noqa: E402
from pipeline.inference.load_world import load_world  # noqa: E402
from shape_figures import frames, settings, trace  # noqa: E402

RUN = ROOT / "checkpoints/pusht-goals"
DOCS = ROOT / "docs"


def megabytes(path: Path) -> str:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    size = sum(file.stat().st_size for file in files)
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e6:.1f} MB" if size >= 5e5 else f"{size / 1e3:.0f} KB"


def stages() -> None:
    """Four stages, what each writes, and how large that is in the committed world."""
    world, episodes = load_world(RUN), EpisodeDataset(RUN / "shards")
    latents = f"({world.latents.num_patches}, {world.latents.dim}) a frame"
    rows = (
        ("recordings", "frames, actions, rewards", "", GREEN),
        ("1  preprocess.py", f"{len(episodes)} episodes, {sum(episodes.lengths):,} frames",
         "shards", BLUE),
        ("2  train_tokenizer.py", f"frames to latents, {latents}", "tokenizer/best.pt", BLUE),
        ("3  train_dynamics.py", "latents, actions to next latents", "dynamics/best.pt", BLUE),
        ("4  train_controller.py", "imagined futures to a policy", "controller", BLUE),
        ("play.py, evaluate.py, serve.py", "the world, and what acts in it", "", ORANGE),
    )  # fmt: skip
    d = Drawing(30 + 62 * len(rows), "Four stages: what each reads and writes")
    for number, (name, does, writes, color) in enumerate(rows):
        y = 10 + 62 * number
        d.box(MARGIN, y, WIDTH - 2 * MARGIN, 44, "", color)
        d.words(MARGIN + 10, y + 18, name, color, 13, 'font-weight="600"')
        d.words(MARGIN + 10, y + 35, does, INK, 12)
        if writes:
            d.words(WIDTH - MARGIN - 10, y + 18, f"RUN/{writes}", INK, 11, 'text-anchor="end"')
            d.words(WIDTH - MARGIN - 10, y + 35, megabytes(RUN / writes), SOFT, 11,
                    'text-anchor="end"')  # fmt: skip
        if number:
            d.arrow((WIDTH / 2, y - 18), (WIDTH / 2, y - 1))
    d.words(
        MARGIN, 22 + 62 * len(rows), "Sizes: the committed world, checkpoints/pusht-goals", SOFT
    )
    d.save("stages.svg")


def setting() -> None:
    """How one setting comes to its value."""
    given, flag = "keypoints cpu30", 128
    default = train_tokenizer.Config().train
    recipe = settings("tokenizer", "keypoints").train
    size = settings("tokenizer", given).train
    rows = [
        ("default of the stage", "train_tokenizer.py", default.steps, default.batch_size),
        ("recipe", "--preset keypoints", recipe.steps, recipe.batch_size),
        ("its size", "--preset keypoints cpu30", size.steps, size.batch_size),
        ("flag", f"--train.batch-size {flag}", size.steps, flag),
    ]
    d = Drawing(26 + 54 * len(rows) + 4, "A setting: default, then recipe, then size, then flag")
    d.words(316, 18, "steps", SOFT, 12, 'text-anchor="end"')
    d.words(WIDTH - MARGIN - 10, 18, "batch", SOFT, 12, 'text-anchor="end"')
    for number, (name, where, steps, batch) in enumerate(rows):
        y = 26 + 54 * number
        color = ORANGE if number == len(rows) - 1 else BLUE
        d.box(MARGIN, y, WIDTH - 2 * MARGIN, 38, "", color)
        d.words(MARGIN + 10, y + 16, name, color, 13, 'font-weight="600"')
        d.words(MARGIN + 10, y + 31, where, INK, 11)
        before = rows[number - 1] if number else None
        for x, value, old in ((316, steps, before and before[2]),
                              (WIDTH - MARGIN - 10, batch, before and before[3])):  # fmt: skip
            weight = ' font-weight="600"' if value != old else ""
            d.words(x, y + 24, f"{value:,}", INK if weight else SOFT, 13,
                    f'text-anchor="end"{weight}')  # fmt: skip
        if number:
            d.arrow((60, y - 16), (60, y - 1))
    d.save("settings.svg")


def processes() -> None:
    """A batch on two GPUs, with whole models and with shares of one."""
    batch = settings("dynamics", "keypoints").train.batch_size
    world = load_world(RUN)
    count = world.num_parameters / 1e6
    d = Drawing(256, "A batch on two processes: whole models, or a share of one in each")
    d.box(
        MARGIN, 10, WIDTH - 2 * MARGIN, 28, f"batch of step s: {batch} clips, from (seed, s)", GREEN
    )
    for number, x in enumerate((MARGIN, 206)):
        d.arrow((x + 89, 38), (x + 89, 55))
        d.box(x, 56, 178, 42, f"process {number}\n{batch // 2} clips", INK)
        d.arrow((x + 89, 98), (x + 89, 115))
    d.box(MARGIN, 116, 178, 42, f"whole model\n{count:.2f} M weights", BLUE)
    d.box(206, 116, 178, 42, f"whole model\n{count:.2f} M weights", BLUE)
    d.arrow((194, 131), (205, 131))
    d.arrow((206, 143), (195, 143))
    d.words(WIDTH / 2, 176, "gradients are averaged: both step alike", SOFT, 12,
            'text-anchor="middle"')  # fmt: skip
    d.words(MARGIN, 204, "--train.sharding fsdp", INK, 12, 'font-weight="600"')
    for x in (MARGIN, 206):
        d.box(x, 212, 178, 38, f"a half: {count / 2:.2f} M\nweights and their state", ORANGE, 12)
    d.save("processes.svg")


def idle() -> None:
    """What to try, by the share of idle time that a progress line ends with."""
    columns = (
        (MARGIN, "idle=40%\nbatches come late", GREEN,
         ("--train.num-workers 4", "more memory: frames that fit", "are loaded once")),
        (206, "idle=0%\nthe model takes the time", ORANGE,
         ("--train.compile auto", "of ten minutes or more", "--train.cuda-graph",
          "a small model, on a GPU", "a smaller size of the recipe")),
    )  # fmt: skip
    d = Drawing(206, "Where idle is high batches are late; where it is low the model is slow")
    d.box(MARGIN, 10, WIDTH - 2 * MARGIN, 28, "tokenizer: 30% ... loss=0.06, idle=?", BLUE)
    for x, words, color, tries in columns:
        d.arrow((x + 89, 38), (x + 89, 55))
        d.box(x, 56, 178, 42, words, color)
        for number, line in enumerate(tries):
            is_flag = line.startswith("--")
            weight = 'font-weight="600"' if is_flag else ""
            d.words(x + 4, 120 + 19 * number, line, INK if is_flag else SOFT, 12, weight)
    d.save("idle.svg")


def world_parts() -> None:
    """Parts of a world by name, their weights, and what a swap makes stale."""
    world = load_world(RUN)
    found = {name: world.get_module(name) for name in ("encoder", "dynamics", "decoder")}
    stale = {
        "encoder": "dynamics, decoder, controllers", "dynamics": "controllers",
        "decoder": "figures and videos",
    }  # fmt: skip
    d = Drawing(228, "Parts of a world: their weights, and what a swap of each makes stale")
    for number, (name, module) in enumerate(found.items()):
        y = 26 + 68 * number
        weights = sum(p.numel() for p in module.parameters()) / 1e6
        d.box(MARGIN, y, 150, 42, f"{name}\n{weights:.2f} M weights", BLUE)
        d.words(180, y + 18, "swapped, these are stale:", SOFT, 11)
        d.words(180, y + 34, stale[name], INK, 12)
        if number:
            d.arrow((91, y - 26), (91, y - 1))
    d.arrow((91, 8), (91, 25))
    d.words(100, 16, "frames", INK, 11)
    d.words(100, 86, f"latents (B, {world.latents.num_patches}, {world.latents.dim})", INK, 11)
    d.words(100, 154, "state", INK, 11)
    d.save("world-parts.svg")


def published() -> None:
    """The files of a publication, and their real sizes."""
    from pipeline.publish import Config, main

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        main(Config(RUN, "USER/NAME", license="mit", data_license="mit", figures=False,
                    out=out))  # fmt: skip
        files = sorted(p for p in out.rglob("*") if p.is_file())
        rows = [(str(p.relative_to(out)), megabytes(p)) for p in files]
    shown = [row for row in rows if not row[0].startswith(".")]
    d = Drawing(84 + 20 * len(shown), "Files of a published run, and their sizes")
    d.words(MARGIN, 20, "hf://USER/NAME, one commit", INK, 13, 'font-weight="600"')
    for number, (name, size) in enumerate(shown):
        y = 42 + 20 * number
        color = BLUE if name.endswith("safetensors") else INK
        d.words(MARGIN + 6, y, name, color, 12)
        d.words(WIDTH - MARGIN, y, size, SOFT, 12, 'text-anchor="end"')
    d.words(MARGIN, 56 + 20 * len(shown), "No file of these runs code when it is loaded.", SOFT, 12)
    d.words(MARGIN, 73 + 20 * len(shown), "Recordings come along with --with-shards.", SOFT, 12)
    d.save("published.svg")


def service() -> None:
    """What the service of the committed world takes and gives."""
    world = load_world(RUN)
    width = world.latents.num_patches * world.latents.dim
    z = f"{width} numbers"
    Flow(
        "The service: an image becomes numbers, actions lead on, numbers become an image",
        [Node("an image", "PNG, JPEG, WebP", GREEN), Node("z_cls", z, ORANGE),
         Node("z_cls_pred", z, ORANGE), Node("an image", "(64, 64, 3) PNG", GREEN)],
        [Via("POST /encode"), Via("POST /predict", f"{world.actions.size} numbers of an action"),
         Via("POST /decode")],
        again=(2, 1, "Dashed: POST /rollout takes many actions at once."),
        notes=["Shapes of the committed world; /spec has those of any run."],
    ).draw("service.svg")  # fmt: skip


def sources() -> None:
    """All sources become the same arrays."""
    episodes = EpisodeDataset(RUN / "shards")
    rows = []
    for name in ("frames", "actions", "rewards", "states"):
        array = episodes.read(0, name, 0, 2)
        shape = "".join(f", {n}" for n in array.shape[1:])
        rows.append((name, f"(N{shape if shape else ','}) {array.dtype}"))
    d = Drawing(250, "Sources of episodes, and the arrays that each shard holds")
    names = ("pusht", "arrays", "gym", "video", "images", "vpt")
    for number, name in enumerate(names):
        x, y = MARGIN + 126 * (number % 3), 10 + 36 * (number // 3)
        d.box(x, y, 116, 26, name, GREEN)
    d.arrow((WIDTH / 2, 72), (WIDTH / 2, 95))
    d.words(WIDTH / 2 + 8, 88, "preprocess.py SOURCE", INK, 12)
    d.box(MARGIN, 96, WIDTH - 2 * MARGIN, 116, "", BLUE)
    d.words(MARGIN + 10, 115, "shard-00000.h5, ...", BLUE, 13, 'font-weight="600"')
    for number, (name, shape) in enumerate(rows):
        d.words(MARGIN + 10, 137 + 19 * number, name, INK, 12)
        d.words(WIDTH - MARGIN - 10, 137 + 19 * number, shape, INK, 12, 'text-anchor="end"')
    d.words(MARGIN, 231, "Shapes of Push-T. Splits are by source, not by frame.", SOFT, 12)
    d.save("sources.svg")


def metric() -> None:
    """The way of a figure into a report."""
    rows = (
        ("measure(world, clips)", "evaluation/measures/NAME.py", BLUE),
        ("Job: part, name, cache key", "evaluation/jobs.py", BLUE),
        ("key, null until measured", "evaluation/report/metrics_schema.py", BLUE),
        ("metrics.json, index.html", "RUN/report", ORANGE),
    )
    d = Drawing(16 + 60 * len(rows), "The way of a metric: measure, job, key, report")
    for number, (what, where, color) in enumerate(rows):
        y = 10 + 60 * number
        d.box(MARGIN, y, WIDTH - 2 * MARGIN, 42, f"{what}\n{where}", color)
        if number:
            d.arrow((WIDTH / 2, y - 18), (WIDTH / 2, y - 1))
    d.words(WIDTH / 2 + 8, 126, "cached, so that it resumes", SOFT, 11)
    d.save("metric.svg")


def action_code() -> None:
    """Keys and mouse of a tick, and the factors of the code that they become."""
    spec = action_spec(CameraQuantizer())
    total = 1
    for factor in spec.factors:
        total *= len(factor.labels)
    d = Drawing(
        88 + 24 * len(spec.factors) + 44, "A tick of a log becomes one code of five factors"
    )
    d.box(
        MARGIN,
        10,
        WIDTH - 2 * MARGIN,
        42,
        f"a tick of the log: 1/20 s\n{len(BUTTONS)} keys and buttons, turns in degrees",
        GREEN,
    )
    d.arrow((WIDTH / 2, 52), (WIDTH / 2, 72))
    for number, factor in enumerate(spec.factors):
        y = 74 + 24 * number
        labels = list(factor.labels)
        shown = labels if len(labels) < 4 else [*labels[:2], "...", labels[-1]]
        d.box(MARGIN, y, 110, 20, factor.name, BLUE, 12)
        d.words(136, y + 14, f"{len(labels)}:", INK, 12)
        d.words(164, y + 14, ", ".join(shown), SOFT, 12)
    y = 74 + 24 * len(spec.factors)
    d.arrow((71, y), (71, y + 16))
    d.box(MARGIN, y + 17, WIDTH - 2 * MARGIN, 28, f"a code from 0 to {total - 1:,}", ORANGE)
    d.height += 8
    d.save("action-code.svg")


def autoencoder() -> None:
    """The tokenizer of docs/how-to/add-a-method.md, built from the page."""
    page = (DOCS / "how-to/add-a-method.md").read_text()
    block = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    module = ModuleType("autoencoder")
    sys.modules["autoencoder"] = module  # dataclasses look for the module that they are in
    exec(block, vars(module))
    model = module.Autoencoder(module.AutoencoderConfig())
    t, latents = trace(model, ["encoder.0"], lambda: model.encode(frames()))
    Flow(
        "The tokenizer of this page: a frame becomes one vector and is drawn from it",
        [Node("frame", "(B, 3, 64, 64) uint8", GREEN), Node("features", t.shape("encoder.0")),
         Node("latents", t.shape(latents), ORANGE),
         Node("frame, drawn", "(B, 3, 64, 64) uint8", ORANGE)],
        [Via(f"convolution, {t.weights('encoder.0')}"), Via(f"linear, {t.weights('encoder.3')}"),
         Via(f"decoder, {t.weights('decoder')}")],
        notes=["encode() is the first two arrows, decode() the last."],
    ).draw("autoencoder.svg")  # fmt: skip


FIGURES: dict[str, Callable[[], None]] = {
    "stages": stages, "settings": setting, "processes": processes, "idle": idle,
    "world-parts": world_parts,
    "published": published, "service": service, "sources": sources, "metric": metric,
    "action-code": action_code, "autoencoder": autoencoder,
}  # fmt: skip


def main(chosen: list[str]) -> None:
    torch.manual_seed(0)
    for name in chosen or FIGURES:
        FIGURES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
