"""README.md and the docs: their commands run, their links lead somewhere, their Python works."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from in_process import call_script
from test_guides import made_smaller
from untrained_run import write_run

import bench.__main__
import evaluate
import play
import preprocess
import serve
import train_controller
import train_dynamics
import train_tokenizer
from bench import browser_load, long_play, page_load, serve_load
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.compare import __main__ as compare
from evaluation.latents import __main__ as latents
from evaluation.live import __main__ as live
from evaluation.measures import probe
from pipeline import presets, publish, pull, runs
from pipeline.cli import parse
from pipeline.client import watch_video
from pipeline.export import __main__ as export
from pipeline.hub import arguments
from pipeline.store import arguments as store_arguments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
HISTORY = [ROOT / "CHANGELOG.md", *ROOT.glob("docs/log/*.md")]  # commands of their own day
GUIDES = [
    *(page for page in ROOT.glob("*.md") if page not in HISTORY),
    *(page for page in sorted(ROOT.glob("docs/**/*.md")) if page not in HISTORY),
    *ROOT.glob("recipes/*.md"),
    *ROOT.glob("checkpoints/*/README.md"),
]
TEMPLATE = "add-a-method.md"  # its commands name a recipe that it adds: test_template.py
STAGES = {
    "train_tokenizer.py": (train_tokenizer.Config, "tokenizer"),
    "train_dynamics.py": (train_dynamics.Config, "dynamics"),
    "train_controller.py": (train_controller.Config, "controller"),
    "play.py": (play.Config, "play"),
    "evaluate.py": (evaluate.Config, "evaluate"),
}
MODULES = {
    "bench": bench.__main__.Config,
    "bench.browser_load": browser_load.Config,
    "bench.serve_load": serve_load.Config,
    "evaluation.compare": compare.Config,
    "evaluation.latents": latents.Config,
    "pipeline.client.watch_video": watch_video.Config,
    "bench.long_play": long_play.Config,
    "bench.page_load": page_load.Config,
    "evaluation.live": live.Config,
    "pipeline.publish": publish.Config,
    "pipeline.pull": pull.Config,
    "pipeline.runs": runs.Config,
}
WRITTEN = ("shards/", "tokenizer/", "latents/", "dynamics/", "controller/", "play/", "report/")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# -- the debug run ----------------------------------------------------------------------------


def debug_run() -> list[list[str]]:
    """The lines of the README's bash block, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_the_commands_of_the_debug_run_work_in_their_order(monkeypatch: Any, tmp_path: Path):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(evaluate, "available_cpus", lambda: 1)  # simulators without processes
    monkeypatch.setattr(probe, "_mlp", partial(probe._mlp, steps=20))
    assert len(debug_run()) == 6
    for line in debug_run():
        program, *words = made_smaller(line)
        assert program == "python"
        words = [word.replace("runs/", f"{tmp_path}/") for word in words]
        alone = words[0] == "train_controller.py"  # which no other test starts in a process
        command = [sys.executable, *words]
        kept = {"cwd": ROOT, "capture_output": True, "text": True}
        ended = subprocess.run(command, **kept) if alone else call_script(*words)
        assert ended.returncode == 0, f"{shlex.join(words)}\n{ended.stdout}\n{ended.stderr}"
    run = tmp_path / "debug"
    for made in (
        *("run.json", "shards/shard-00000.h5"),
        *(f"{stage}/best.pt" for stage in ("tokenizer", "dynamics", "controller")),
        *(f"play/{name}" for name in ("rollout.gif", "rollout.mp4", "frames/00000.png")),
        *(f"report/{name}" for name in ("metrics.json", "index.html")),
    ):
        assert (run / made).exists(), made


# -- commands ---------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[str]:
    """The commands of a page, in blocks and within lines, without their comments."""
    text = page.read_text().replace("\\\n", " ")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(.*)$", text, re.MULTILINE)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line.strip() for block in fenced for line in block.splitlines()]
    for line in [*lines, *indented, *(" ".join(words.split()) for words in inline)]:
        if re.match(r"(python|make) \S", line) and "..." not in line:
            yield line.partition(" #")[0]


def check_python(words: list[str]) -> None:
    """Parse the arguments of a script as the script would."""
    script, *arguments = words
    if script == "-m":
        module, *arguments = arguments
        # to look for pip would keep setuptools from its own distutils, in this whole process
        assert module == "pip" or importlib.util.find_spec(module), module
        if module == "pipeline.export" and arguments:
            parse(export.COMMANDS[arguments[0]].config, None, arguments[1:])
        if module in MODULES:
            config = parse(MODULES[module], None, arguments).config
            if isinstance(config, bench.__main__.Config):
                bench.__main__.check_known("area", config.areas, bench.__main__.AREAS)
        return
    assert (ROOT / script).exists(), script
    if script == "preprocess.py":
        command = preprocess.COMMANDS[arguments[0]]
        parse(command.config, command.stage, arguments[1:], default_presets=command.default_presets)
    elif script == "serve.py":
        parse(serve.Config, None, arguments)
    elif script in STAGES:
        config, stage = STAGES[script]
        parse(config, stage, arguments)


def check_make(words: list[str]) -> None:
    for word in words:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \?=" if is_variable else rf"^{name}:"
        assert re.search(pattern, MAKEFILE, re.MULTILINE), f"the Makefile has no {name}"


@pytest.mark.parametrize("page", [p for p in GUIDES if p.name != TEMPLATE], ids=page_name)
def test_commands_name_scripts_flags_and_presets_that_exist(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)  # no run remembers its presets here
    monkeypatch.setattr(arguments, "local_run", lambda text, flag: tmp_path)  # nor is one pulled
    monkeypatch.setattr(arguments, "pinned", lambda text, flag: text)
    monkeypatch.setattr(store_arguments, "Mirror", lambda *_: Mock())  # nor fetched
    for command in commands(page):
        program, *words = shlex.split(command)
        try:
            check_make(words) if program == "make" else check_python(words)
        except SystemExit:
            pytest.fail(f"{page_name(page)}: {command}")


def test_commands_are_found_where_pages_show_them(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "Run `python -m bench\n--quick`, not `make` or `python -m bench ...`.\n\n"
        "    python play.py --run a \\\n        --headless    # a video\n\n"
        "```\nmake test    # all\n```\n"
    )
    found = [shlex.split(command) for command in commands(page)]
    assert found == [
        ["make", "test"],
        ["python", "play.py", "--run", "a", "--headless"],
        ["python", "-m", "bench", "--quick"],
    ]
    assert sum(len([*commands(page)]) for page in GUIDES) > 40


def test_the_comments_of_the_makefile_are_commands_that_it_knows():
    shown = re.findall(r"^# (make .*?)(?: {4}.*)?$", MAKEFILE, re.MULTILINE)
    assert len(shown) == 10
    for command in shown:
        check_make(shlex.split(command)[1:])


@pytest.mark.parametrize("preset", ["", "keypoints cpu30"])
def test_the_stages_of_make_demo_parse(
    preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Without running them: make prints what it would do."""
    variables = [f"RUN={tmp_path}/demo", "DEMOS=demos.zip", *([f"PRESET={preset}"] * bool(preset))]
    printed = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/installed", "demo", *variables],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.replace("\\\n", " ")  # fmt: skip
    lines = [shlex.split(line) for line in printed.splitlines() if line.startswith(".venv/bin/py")]
    scripts = {words[1]: words[2:] for words in lines if f"{tmp_path}/demo" in words}
    assert list(scripts) == ["preprocess.py", *STAGES]
    monkeypatch.chdir(tmp_path)
    for _, *words in lines:
        check_python(words)
    assert scripts["preprocess.py"][-4:] == ["--demos", "demos.zip", "--perturb", "3"]
    first = presets.check((preset or "keypoints cpu").split())
    assert parse(preprocess.PushTConfig, "preprocess_pusht", scripts["preprocess.py"][1:]).presets \
        == first  # fmt: skip
    for script in STAGES:  # the run remembers, so a preset is passed only if it was given
        assert ("--preset" in scripts[script]) == bool(preset), script


@pytest.mark.parametrize(
    ("preset", "trained"),
    [("pusht debug", "train_tokenizer train_dynamics train_controller"),
     ("dreamer", " train_dynamics train_controller")],
)  # fmt: skip
def test_the_stages_of_the_loop_parse(
    preset: str, trained: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A recipe that is trained jointly has no tokenizer."""
    variables = [f"RUN={tmp_path}/loop", "ENV=ALE/Pong-v5", "ROUNDS=7", f"PRESET={preset}"]
    printed = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/installed", "dreamer", *variables],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.replace("\\\n", " ")  # fmt: skip
    assert f"for stage in {trained}; do" in printed and "seq $first 7" in printed
    monkeypatch.chdir(tmp_path)
    calls = re.findall(r"\.venv/bin/python (preprocess\.py[^|\n]*)", printed)
    assert len(calls) == 2
    known = preset if preset != "dreamer" else "pusht"  # whether that recipe is there or not
    for call, rounds in zip(calls, ("0", "$round"), strict=True):
        words = shlex.split(call.replace(f"--preset {preset}", f"--preset {known}"))
        assert words[-2:] == ["--round", rounds] or rounds in call
        parsed = parse(
            preprocess.GymConfig, "preprocess_gym",
            [*words[2 : words.index("--round")], "--round", "1"],
        )  # fmt: skip
        assert parsed.config.steps == 2000


@pytest.mark.parametrize("preset", ["", "keypoints debug"])
def test_the_stages_of_make_task_parse(
    preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Each policy of the table is trained before it, or needs no training."""
    variables = [f"RUN={tmp_path}/task", "EPISODES=7", *([f"PRESET={preset}"] * bool(preset))]
    printed = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/installed", "task", "DEMOS=demos.zip", *variables],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.replace("\\\n", " ")  # fmt: skip
    lines = [shlex.split(line) for line in printed.splitlines() if line.startswith(".venv/bin/py")]
    scripts = {words[1]: words[2:] for words in lines}
    stages = ("train_tokenizer.py", "train_dynamics.py", "train_controller.py", "evaluate.py")
    assert tuple(scripts) == ("preprocess.py", *stages)
    monkeypatch.chdir(tmp_path)
    for _, *words in lines:
        check_python(words)
    first = parse(preprocess.PushTConfig, "preprocess_pusht", scripts["preprocess.py"][1:])
    assert first.presets == presets.check((preset or "keypoints cpu30").split())
    assert first.config.perturb == 12
    asked, measured = (
        parse(STAGES[script][0], STAGES[script][1], scripts[script]).config
        for script in ("train_controller.py", "evaluate.py")
    )
    assert asked.distilled_policy.imitator in asked.methods
    assert set(measured.policies) - {"best_of_n", "random"} < set(asked.methods)
    assert measured.task_episodes == 7


def test_make_task_asks_for_demonstrations():
    command = ["make", "--old-file=.venv/installed", "task"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode and answer.stderr.startswith("error: make task needs human")


# -- links and names --------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings; a heading that comes again gets a number."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.*)$", text, re.MULTILINE):
        heading = re.sub(r"\]\([^)]*\)", "", heading)  # of a link its words
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def check_links(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page} links to {link}"
            if anchor:
                assert anchor in anchors(target), f"{page} links to {link}"


@pytest.mark.parametrize("page", [*GUIDES, *HISTORY], ids=page_name)
def test_links_lead_somewhere(page: Path):
    check_links(page)


@pytest.mark.parametrize("link", ["nowhere.md", "#no-such-heading", "page.md#other"])
def test_a_dead_link_is_found(tmp_path: Path, link: str):
    page = tmp_path / "page.md"
    page.write_text(f"# A heading\n\n[one](#a-heading) and [another]({link})\n")
    with pytest.raises(AssertionError, match="links to"):
        check_links(page)


def test_there_are_pages_of_every_kind():
    names = {page_name(page) for page in [*GUIDES, *HISTORY]}
    assert {"README.md", "docs/reference/play.md", "recipes/README.md"} <= names
    for folder in ("docs/log/", "docs/how-to/", "docs/tutorial/", "checkpoints/pusht-goals/"):
        assert any(name.startswith(folder) for name in names), folder


def test_every_script_and_folder_that_is_named_is_there():
    named = re.findall(r"`([\w/-]+\.py|[\w/-]+/)`", README)
    assert len(named) > 20
    for name in named:
        assert name in WRITTEN or name.startswith("runs/") or (ROOT / name).exists(), name


def test_every_preset_is_in_the_readme():
    for name in [*presets.recipe_names(), *presets.size_names()]:
        assert f"`{name}`" in README, name


def test_the_make_commands_of_the_readme_are_in_the_makefile():
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    check_make(targets)


# -- Python -----------------------------------------------------------------------------------


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_python_of_the_readme_works(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    (block,) = python_blocks(ROOT / "README.md")
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["frame"].shape == (1, 3, 64, 64) and names["frame"].dtype == torch.uint8
    assert names["clip"].frames.shape == (1, 11, 3, 64, 64)
    assert names["clip"].actions[:, :-1].shape == (1, 10, 2)


def test_the_python_of_the_play_page_works(tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=6)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"))
    blocks = python_blocks(ROOT / "docs/reference/play.md")
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    exec("".join(blocks).replace("runs/demo", str(tmp_path)), names)
    assert len(names["candidates"]) == 100 and names["frame"].shape == (1, 3, 32, 32)
    observations, _ = names["envs"].reset(seed=0)
    assert observations.shape == (64, 32, 32, 3)


def test_the_python_of_the_serve_page_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("prometheus_client", reason="requirements-serve.txt is not installed")
    from served import file_of, listening_service, picture, tiny_service

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(file_of(picture()))
    asked, watched = python_blocks(ROOT / "docs/tutorial/serve.md")
    names: dict[str, Any] = {}
    with listening_service(tiny_service(measured=True)) as url:
        exec(asked.replace("http://127.0.0.1:8001", url), names)
        exec(watched, names)
        perception, state = asyncio.run(names["watch"](url, [picture(), picture(1)]))
    assert names["image"].shape == (32, 32, 3) and names["later"].z_cls.shape == (2, 24)
    assert state.vision_prediction_surprise is not None and perception.total_errors == 0
