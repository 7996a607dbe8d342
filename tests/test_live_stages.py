"""The page of --live at stages that do not train: shards as they are made, parts as measured."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, launched, until, visits
from hub_client import copy_run
from PIL import Image
from test_live import serving
from untrained_run import write_run

import evaluate
from data.io.files import lock
from data.shards.build_info import shard_name
from data.shards.build_shards import build
from data.shards.draw_frames import draw_frames
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.toy import ToyEpisodes, write_toy_shards
from evaluation.live.run_log import RunLog
from pipeline import presets
from pipeline.flags import repeatable
from pipeline.live_page import ROOT
from pipeline.play.browser.server_config import ServerConfig

PATIENCE = 400.0  # seconds, on a machine with much to do


@contextmanager
def started(*words: str) -> Iterator[tuple[str, int, subprocess.Popen[str]]]:
    """A stage with --live at a free port: its page's host and port, and its process."""
    with subprocess.Popen(
        [sys.executable, *words, "--live", free_port()], cwd=ROOT, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            if found := re.match(r"live: http://([\d.]+):(\d+)/", line):
                break
        assert found, "there was no page"
        try:
            yield found[1], int(found[2]), process
        finally:
            process.kill()


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def asked(host: str, port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(host, port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def followed(host: str, port: int, process: Any, stage: str) -> list[dict[str, Any]]:
    """What the page told of a stage until it ended; it must be seen to go on."""
    told, end = [], time.monotonic() + PATIENCE
    while process.poll() is None:
        assert time.monotonic() < end
        try:
            now = json.loads(asked(host, port, f"/now?stage={stage}"))
        except (OSError, http.client.HTTPException):
            break  # the stage has just ended, and its page with it, perhaps amid an answer
        if now["stage"] == stage:
            told.append(now)
        time.sleep(0.3)
    assert process.wait(PATIENCE) == 0
    return told


@pytest.mark.slow
def test_preprocess_is_followed_and_its_frames_are_seen(tmp_path: Path):
    words = ("pusht", "--episodes", "11", "--num-workers", "1", "--run", str(tmp_path / "new"))
    with started("preprocess.py", *words) as (host, port, process):
        told = followed(host, port, process, "shards")
    assert told and {now["total"] for now in told} <= {0, len(shards_in(tmp_path))}
    assert any(now["running"] and now["unit"] == "shard" for now in told)
    made = [now["step"] for now in told]
    assert made == sorted(made)
    images = sorted((tmp_path / "new" / "shards" / "images").iterdir())
    assert len(images) == len(shards_in(tmp_path))
    command = json.loads((tmp_path / "new" / "shards" / "build.json").read_text())["command"]
    assert "--live" not in command  # which would ask for the same port in a year


def shards_in(folder: Path) -> list[Path]:
    return sorted((folder / "new" / "shards").glob("shard-*.h5"))


def test_shards_tell_how_fast_they_come_and_how_long_it_takes(tmp_path: Path):
    shards = tmp_path / "shards"
    source = ToyEpisodes(8, episodes_per_shard=2)
    build(source, shards, "python preprocess.py toy", with_images=True)
    held = lock(shards)
    now = time.time()
    os.utime(shards / ".lock", (now - 40, now - 40))
    total = source.num_shards
    assert total >= 4
    for number in range(total):  # one was made by an earlier call, the others ten seconds apart
        at = now - 1000 if number == 0 else now - 40 + 10 * number
        os.utime(shards / shard_name(number), (at, at))
    (shards / shard_name(total - 1)).unlink()
    stage = RunLog(tmp_path, {}).stages()["shards"]
    stage.update()
    assert (stage.step, stage.total) == (total - 1, total)
    assert stage.steps_per_second() == pytest.approx(0.1, rel=0.01)
    assert stage.seconds_left() == pytest.approx(10, rel=0.01)
    assert stage.holder == str(os.getpid())
    assert stage.images() == {"frames": list(range(total - 1))}  # none of a shard that is gone
    path = stage.image("frames", 0)
    assert path is not None and Image.open(path).size[0] > 8
    held.close()


def test_a_row_is_an_episode_and_still_images_share_rows(tmp_path: Path):
    def episode(length: int, color: int) -> Episode:
        return Episode(np.full((length, 4, 4, 3), color, np.uint8), None)

    draw_frames(tmp_path / "films.png", [episode(20, 10), episode(3, 200), episode(9, 90)])
    films = np.asarray(Image.open(tmp_path / "films.png"))
    assert films.shape == (2 * 6, 8 * 6, 3) and films[0, 0, 0] == 10 and films[6, 0, 0] == 200
    assert (films[6, 3 * 6 :] == 255).all()  # three frames are three columns
    draw_frames(tmp_path / "stills.png", [episode(1, 10 * n) for n in range(9)])
    stills = np.asarray(Image.open(tmp_path / "stills.png"))
    assert [stills[0, 6 * n, 0] for n in range(8)] == [10 * n for n in range(8)]
    assert stills[6, 0, 0] == 80


def test_what_makes_the_shards_again_is_kept_without_its_page():
    words = ["pusht", "--live", "8766", "--run", "x", "--restart", "--live=1", "--episodes", "3"]
    assert repeatable(words) == ["pusht", "--run", "x", "--episodes", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    write_toy_shards(run / "shards", episodes=12)
    return write_run(run, EpisodeDataset(run / "shards"), controllers=False)


def test_an_evaluation_is_followed_part_by_part(run: Path, tmp_path: Path):
    words = ("--run", str(run), "--preset", "pusht", "debug", "--out", str(tmp_path / "mine"))
    with started("evaluate.py", *words, "--parts", "tokenizer", "play") as (host, port, process):
        told = followed(host, port, process, "report")
    assert told and {now["total"] for now in told} == {2}
    assert told[0]["step"] < 2 and told[0]["running"]
    # an answer before the first part is finished names none
    assert all(now["latest"] in ("tokenizer", "play") for now in told if now["step"])
    stage = RunLog(run, {}, tmp_path / "mine").stages()["report"]
    stage.update()
    assert (stage.step, stage.latest_done) == (2, "play")


def measure(run: Path, *parts: str) -> None:
    config = presets.apply(evaluate.Config(), "evaluate", ("pusht", "debug"))
    evaluate.main(replace(config, run=run, num_workers=1, parts=parts))


@pytest.fixture(scope="module")
def measured(run: Path) -> Path:
    measure(run, "tokenizer", "open_loop")
    return run


def test_figures_and_films_of_finished_parts_are_told(measured: Path, tmp_path: Path):
    run = copy_run(measured, tmp_path / "run")
    stage = RunLog(run, {}).stages()["report"]
    stage.update()
    assert (stage.step, stage.total, stage.latest_done) == (2, 2, "open_loop")
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert stage.figures()["tokenizer.psnr"] == metrics["tokenizer"]["psnr"]
    assert stage.seconds_left() is None and not stage.curves
    films = stage.films()
    assert set(films) >= {"film-0"} and "video-0" in stage.images()
    film = stage.image("film-0", 0)
    assert film is not None and Image.open(film).size[1] % films["film-0"] == 0
    assert stage.image("../metrics", 0) is None and stage.image("film-0", 1) is None
    measure(run, "tokenizer")
    stage.update()
    assert (stage.step, stage.total) == (1, 1)  # an evaluation starts its log again


def test_the_page_shows_a_film_of_the_report(measured: Path):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with (
        serving(measured, ServerConfig(port=0)) as port,
        launched() as browser,
        visits(browser) as visit,
    ):
        page = visit(f"http://127.0.0.1:{port}/")
        until(page, lambda: "Evaluating report" in page.inner_text("#title"))
        assert "2 of 2" in page.inner_text("#facts")
        film = page.locator("figure[data-name='film-0']")
        until(page, lambda: "0 steps ahead" in film.inner_text())
        before = film.locator("canvas").evaluate("canvas => canvas.toDataURL()")
        film.locator("button").click()
        until(page, lambda: film.locator("canvas").evaluate("c => c.toDataURL()") != before)
        assert film.locator("button").inner_text() == "Pause film-0"
        page.select_option("#stage", "shards")
        until(page, lambda: "Preparing shards" in page.inner_text("#title"))
        assert film.count() == 0
