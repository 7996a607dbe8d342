"""The report's page: its first screen, films with a slider, tables that sort."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chromium import until, visits
from PIL import Image

from evaluation.report.drawing import _framed, write_film
from evaluation.report.metrics_schema import empty_metrics
from evaluation.report.page import write_report
from evaluation.report.page_parts import films
from evaluation.report.summary import summary


def measured() -> dict[str, Any]:
    metrics = empty_metrics()
    goal = metrics["goal"]["first_hit"]
    goal["policy_prior"] |= {"success": 0.983, "low": 0.976, "high": 0.989, "n": 1500}
    goal["planner"] |= {"success": 0.969, "low": 0.959, "high": 0.976, "n": 1500}
    goal["noop"] |= {"success": 0.328, "low": 0.3, "high": 0.35, "n": 1500}
    metrics["open_loop"] |= {
        "n": 8, "sources": 4, "context_frames": 2, "horizons": [1, 2, 4],
        "psnr": [30.0, 27.0, 20.0], "psnr_low": [29.0, 26.0, 19.0], "psnr_high": [31.0, 28.0, 21.0],
        "copy_last_psnr": [25.0, 20.0, 15.0],
    }  # fmt: skip
    return metrics


def clip(color: int, frames: int = 6) -> torch.Tensor:
    """(T, 3, 8, 8): step t is `color` + t."""
    steps = torch.arange(frames, dtype=torch.uint8)[:, None, None, None]
    return (color + 20 * steps).expand(-1, 3, 8, 8).contiguous()


def write(folder: Path, metrics: dict[str, Any]) -> Path:
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for number in range(2):
        write_film(folder / "plots", number, clip(0), clip(100))
    return write_report(folder, "A run", metrics)


def test_the_first_screen_tells_the_best_and_its_baseline_in_words():
    page = "".join(summary(measured()))
    assert "policy_prior reaches 98.3% of goals 25 steps away (protocol first_hit), " in page
    assert "and noop 32.8%." in page and "[97.6, 98.9]%, 1500 goals" in page
    assert "4 steps ahead the predicted frames have 20.00 dB, and a copy" in page
    assert "Not measured: reconstruction, rewards, the task, returns in the environment" in page
    assert page.count("<li>") == 2


def test_a_world_that_does_not_hear_its_actions_is_told(tmp_path: Path):
    """By the interval at the last horizon; and one source is not called sources."""
    metrics = measured()
    curve = {"horizons": [1, 16], "sources": 1, "n": 4, "delta_psnr": [2.0, 0.4]}
    for low, told in ((-0.2, True), (0.1, False)):
        metrics["open_loop"] |= curve | {"delta_psnr_low": [1.0, low], "delta_psnr_high": [3.0, 1]}
        page = write(tmp_path / str(low), metrics).read_text()
        assert ("does not hear its actions" in page) is told
        assert "Clips from 1 source;" in page


def test_five_numbers_are_the_most_and_none_is_no_error():
    metrics = measured()
    metrics["task"]["best_of_n"] |= {
        "success": 0.9, "success_low": 0.8, "success_high": 0.95, "n": 50
    }  # fmt: skip
    metrics["returns"]["bc"] |= {"return": -3.25, "n": 4}
    metrics["tokenizer"] |= {"n": 9, "psnr": 5.974, "psnr_low": 5.957, "psnr_high": 5.991}
    metrics["play"] |= {"n": 50, "frames_per_second": 300.2}
    page = "".join(summary(metrics))
    assert page.count("<li>") == 5 and "-3.2" in page and "300" not in page
    assert "5.97 dB." in page and "[5.96, 5.99] dB, 9 frames" in page, "as many digits as the value"
    nothing = "".join(summary(empty_metrics()))
    assert "Not measured" in nothing and "<li>" not in nothing


def test_a_film_holds_every_step_of_truth_and_rollout(tmp_path: Path):
    write_film(tmp_path, 0, clip(0), clip(100))
    with Image.open(tmp_path / "film-0-6.webp") as image:
        assert image.size == (8 + 4 + 8, 6 * 8)
        for step in range(6):
            left, right = (np.asarray(image)[8 * step + 4, x] for x in (3, 16))
            assert abs(int(left[0]) - 20 * step) < 12
            assert abs(int(right[0]) - 100 - 20 * step) < 12
    assert not films(tmp_path / "nowhere")


def test_success_is_seen_without_color():
    frame = torch.zeros(3, 8, 8, dtype=torch.uint8)
    plain, reached = (_framed(frame, r).float().mean(0) for r in (False, True))
    assert plain[0].std() == 0 and reached[0].std() > 20


def test_every_table_says_how_many_cases_it_is_of_and_goals_and_task_come_first(tmp_path: Path):
    metrics = measured()
    metrics["task"]["bc"] |= {"success": 0.5, "success_low": 0.3, "success_high": 0.7, "n": 20}
    metrics["tokenizer"] |= {"n": 9, "psnr": 30.0, "psnr_low": 29.0, "psnr_high": 31.0}
    metrics["play"] |= {"n": 50, "frames_per_second": 300.2}
    page = write(tmp_path, metrics).read_text().partition("<h2>Provenance")[0]
    heads = re.findall(r"<table><tr>(.*?)</tr>", page)
    assert len(heads) >= 5 and [head for head in heads if "<th>n (" not in head] == []
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles[:2] == ["Goal reaching", "Task: push the block onto the goal"], titles


def test_the_page_needs_no_other_file(tmp_path: Path):
    page = write(tmp_path, measured()).read_text()
    assert "src=http" not in page and "http://" not in page and "https://" not in page
    assert page.count("data:image/webp;base64,") == 2


# -- in a Chromium ----------------------------------------------------------------------------


def test_tables_sort_and_the_slider_moves_films_and_tables(chromium: Any, tmp_path: Path):
    path = write(tmp_path, measured())
    shutil.rmtree(tmp_path / "plots")
    with visits(chromium) as visit:
        page = visit(path.as_uri())
        table = page.locator("table", has=page.get_by_role("button", name="first_hit"))
        names = lambda: [r.strip() for r in table.locator("td:first-child").all_inner_texts()]  # noqa: E731
        before = names()
        head = table.get_by_role("button", name="success")
        head.click()
        assert names()[:3] == ["policy_prior", "planner", "noop"]  # dashes stay below
        head.focus()
        page.keyboard.press("Enter")
        assert names()[:3] == ["noop", "planner", "policy_prior"]
        assert table.locator("th[aria-sort=ascending]").inner_text().startswith("success")
        assert sorted(names()) == sorted(before)

        page.locator("#horizon").focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert page.inner_text("#ahead") == "3 steps ahead"
        assert set(page.locator("th.now").all_inner_texts()) == {"2"}
        place = "getComputedStyle(document.querySelector('.film')).backgroundPosition"
        assert page.evaluate(place) == "0px 60%"
        page.click("#play")
        until(page, lambda: page.evaluate(place) != "0px 60%")
        page.click("#play")
        assert page.inner_text("#play") == "Play"


def test_strips_of_attempts_say_their_offset_and_protocol(tmp_path):
    metrics = measured()
    metrics["goal"]["offset50"]["planner"] |= {"success": 0.9, "low": 0.8, "high": 1.0, "n": 20}
    (tmp_path / "plots").mkdir()
    for offset in (25, 50):
        Image.new("RGB", (8, 8)).save(tmp_path / f"plots/goal-{offset}-videos.png")
    page = write(tmp_path, metrics).read_text()
    for offset, protocol in ((25, "first_hit"), (50, "offset50")):
        assert f"goals {offset} steps away: failures first. Reached and failed are by the " \
               f"protocol {protocol}." in page  # fmt: skip
    assert "<th>offset50</th>" in page and "<th>offset100</th>" not in page  # nothing is measured


def test_shorter_episodes_are_in_the_heading_and_bold_rows_are_explained(tmp_path):
    metrics = measured()
    metrics["task"]["best_of_n"] |= {"score": 0.2, "success": 0.1, "n": 4}
    page = write(tmp_path, metrics).read_text()
    assert "<h2>Task: push the block onto the goal</h2>" in page
    assert "Bold rows and hatched bars are the world model's: what it predicts" in page
    assert "<tr class=own><td>planner</td>" in page and "<tr><td>noop</td>" in page
    metrics["provenance"]["task_max_steps"] = 12
    page = write(tmp_path, metrics).read_text()
    assert "<h2>Task: push the block onto the goal, in at most 12 steps</h2>" in page
