"""Export a world as a page that plays it in a browser, without a server.

Reads   RUN/shards, RUN/tokenizer, RUN/dynamics, and RUN/controller/goal_policy if there is one.
Writes  OUT: a page, the world as ONNX, and ONNX Runtime; any static host serves it.
Try     python -m pipeline.export web --run checkpoints/pusht-goals --out site
Next    python -m http.server --directory site, and open http://127.0.0.1:8000
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from data.io.files import parse_json, writable_folder
from data.ranges import MAX_SEED, CheckedConfig, Range
from data.shards.episode_dataset import EpisodeDataset
from models.controllers.goal_policy import GoalPolicy
from models.dynamics.dynamics import Dynamics
from models.dynamics.llama import LlamaDynamics
from models.world import World
from pipeline.export.graphs import to_onnx, world_graphs
from pipeline.export.page_starts import PageStart, page_starts
from pipeline.export.parity import Differences, compare
from pipeline.export.runtime_files import (
    PAGE,
    PAGE_FILES,
    SCRIPT,
    VERSION,
    check_installed,
    read_runtime,
)
from pipeline.inference.load_controllers import load_goal_policy
from pipeline.inference.load_world import load_world

DESCRIPTION, WORKER = "world.json", "service_worker.js"
PACKED = ("step", "decode", "encode", "policy", "runtime", "starts")
NAMES = {DESCRIPTION, WORKER, SCRIPT, *PAGE_FILES, *(f"{name}.bin" for name in PACKED)}
MOST_BUTTONS = 9  # actions that a digit gives
DTYPES = {torch.float32: "float32", torch.int64: "int64"}


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("runs/pusht")
    """Folder of the run."""
    out: Path = Path("site")
    """Folder of the page; the files of an earlier page there are replaced, and all else is kept."""
    num_starts: Annotated[int, Range(1, 1000)] = 8
    """Starts to choose from, of the test split."""
    goal_offset: Annotated[int, Range(1, 10**4)] = 50
    """Frames from a start to its goal."""
    fps: Annotated[float, Range(1, 120)] = 10.0
    """Steps a second at which the page begins."""
    dtype: Literal["fp16", "fp32"] = "fp16"
    """Bits in which weights are stored; the page computes in float32."""
    webgpu: bool = False
    """Carry WebGPU, too, which a device takes where it has it and is faster with it: 3 MB more."""
    runtime: Path = Path("node_modules/onnxruntime-web")
    """Folder of the npm package onnxruntime-web."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    """Of the starts."""


def main(config: Config) -> None:
    check_out(config.out)
    # in the float32 of the page, whatever this machine multiplies fastest
    world = load_world(config.run, "cpu", precision="fp32")
    check_world(world, config.run)  # before anything is to be installed for it
    script, binary = read_runtime(config.runtime, config.webgpu)
    check_installed()
    dataset = EpisodeDataset(config.run / "shards")
    world.data_actions.check_same(dataset.actions, "the world", str(dataset.folder))
    starts = page_starts(world, dataset, config.num_starts, config.goal_offset, config.seed)
    policy = find_policy(world, config.run)
    graphs = {
        graph.name: to_onnx(graph, config.dtype == "fp16")
        for graph in tqdm(world_graphs(world, policy, starts[0].packed), "graphs", leave=False)
    }
    differences = compare(world, policy, graphs, starts[:3])
    files = {f"{name}.bin": gzip.compress(content, mtime=0) for name, content in graphs.items()}
    files["runtime.bin"] = gzip.compress(binary, mtime=0)
    files["starts.bin"] = gzip.compress(b"".join(s.as_bytes() for s in starts), mtime=0)
    files[SCRIPT] = script
    files |= {name: path.read_bytes() for name, path in PAGE_FILES.items()}
    description = describe(config, world, policy, starts) | {"parity": asdict(differences)}
    description["files"] = {name: len(content) for name, content in files.items()}
    files[DESCRIPTION] = json.dumps(description).encode()
    files[WORKER] = service_worker(files)
    write(config.out, files)
    size = sum(map(len, files.values()))
    print(
        f"export: {config.out}, {len(files)} files, {size / 1e6:.1f} MB, "
        f"{'with' if policy else 'without'} a goal policy; at most "
        f"{describe_parity(world, differences)} off PyTorch, {differences.frame_levels:g} of 255 "
        f"in a pixel"
    )
    print(f"export: python -m http.server --bind 127.0.0.1 --directory {config.out} serves it")


def describe_parity(world: World, differences: Differences) -> str:
    if world.latents.kind == "discrete":
        return f"{differences.latents:.2%} of the codes of a step"
    return f"{differences.latents:.1e} in latents"


def check_out(out: Path) -> None:
    """Raise ValueError for a folder in which there is no earlier page, or in which a file of the
    page would replace another.  Hidden files, such as .git, may be there."""
    writable_folder(out.resolve().parent, "--out")
    if not out.exists():
        return
    own = own_files(out) if out.is_dir() else set()
    if not own and (not out.is_dir() or any(p.name[0] != "." for p in out.iterdir())):
        raise ValueError(f"{out} is there, and is no exported page; choose another --out")
    for name in sorted(NAMES - own):
        if os.path.lexists(out / name):
            raise ValueError(
                f"{out / name} is not of the page that was exported there, and would be replaced; "
                f"move it away, or choose another --out"
            )
    writable_folder(out, "--out")


def own_files(out: Path) -> set[str]:
    """Names of the files of the page in a folder; none where there is no page."""
    try:
        listed = {*parse_json((out / DESCRIPTION).read_bytes())["files"], DESCRIPTION, WORKER}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    # the names are read from a file: none may lead elsewhere
    return {name for name in listed if Path(name).name == name and (out / name).is_file()}


def check_world(world: World, run: Path) -> None:
    """Raise ValueError for a world that the page could not play."""
    spec, problem = world.actions, ""
    if not world.has_decoder:
        problem = "has no decoder, so there is nothing to see"
    elif world.infers_actions:
        problem = "has latent actions, which the page has no buttons for"
    elif spec.kind == "continuous" and not (spec.pointer and spec.size == 2):
        problem = f"takes {spec.size} numbers an action, and the page gives a point in the image"
    elif spec.kind == "discrete" and (spec.factors or spec.size > MOST_BUTTONS):
        problem = f"has {spec.size} actions, and the page has {MOST_BUTTONS} buttons"
    elif world.temporal_context > 1:
        problem = "encodes frames with their past, which the page does not keep"
    elif world.state_spec != world.latents:
        problem = "has states that no single frame gives, and the page begins a game with a frame"
    elif type(world.dynamics).step_packed is Dynamics.step_packed:
        kind = type(world.dynamics).__name__
        problem = f"has the dynamics {kind}, whose steps the page cannot run (--preset keypoints)"
    elif isinstance(world.dynamics, LlamaDynamics) and world.dynamics.config.decoding != "parallel":
        problem = "predicts its codes one by one, and the page steps whole frames (--preset pusht)"
    if problem:
        raise ValueError(f"{run} {problem}; play.py --browser plays it from a server")


def find_policy(world: World, run: Path) -> GoalPolicy | None:
    """The goal policy that the page's planner starts from; none where latents are codes, towards
    which no planner of the page acts."""
    if world.latents.kind == "discrete":
        return None
    policy = load_goal_policy(run, world)
    return policy.float() if isinstance(policy, GoalPolicy) else None


def describe(
    config: Config, world: World, policy: GoalPolicy | None, starts: list[PageStart]
) -> dict[str, Any]:
    """What the page has to know of its files."""
    spec, latents = world.actions, world.latents
    return {
        "format": 1,
        "run": config.run.name,
        "size": list(world.image_size),
        "fps": config.fps,
        "runtime": VERSION,
        "webgpu": config.webgpu,
        "codes": latents.kind == "discrete",
        "latents": list(starts[0].state.latents.shape[1:]),
        "vectors": [latents.num_patches, latents.dim],
        "keypoints": latents.is_xy,
        "rewards": world.has_rewards,
        "actions": {"kind": spec.kind, "names": list(spec.names), "size": max(1, len(spec.low))},
        "state": [_tensor(name, tensor) for name, tensor in starts[0].packed.items()],
        "action_block": policy.action_block if policy else world_block(starts[0]),
        "world_block": world_block(starts[0]),
        "policy": policy is not None,
        "num_starts": len(starts),
        "goal_offset": config.goal_offset,
    }


def world_block(start: PageStart) -> int:
    """Actions that one step of the model reads, where it reads several."""
    pending = start.packed.get("pending")
    return 1 if pending is None else pending.shape[1]


def _tensor(name: str, tensor: Tensor) -> dict[str, Any]:
    return {"name": name, "shape": list(tensor.shape[1:]), "dtype": DTYPES[tensor.dtype]}


def service_worker(files: dict[str, bytes]) -> bytes:
    """The script that keeps the files for a page without a network; it names what they hold."""
    digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()[:16]
    text = (PAGE / "service_worker.js").read_text()
    text = text.replace('"VERSION"', json.dumps(digest))
    return text.replace('["FILES"]', json.dumps(["./", *sorted(files)])).encode()


def write(out: Path, files: dict[str, bytes]) -> None:
    """Write all files, or none; what an earlier page there has besides goes, and all else stays."""
    out = out.resolve()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        made = Path(folder) / "page"
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        if not out.exists():
            made.rename(out)
            return
        before = own_files(out)
        # the list of its files first: where this is ended halfway, the next export finds them all
        for name in sorted(files, key=lambda name: name != DESCRIPTION):
            (made / name).replace(out / name)
        for name in before - {*files}:
            (out / name).unlink()
