"""Watching a video: what is drawn, what is kept of it, and runs that cannot watch one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="requirements-serve.txt is not installed")
from served import listening_service, tiny_service
from test_formats_folders import video

from data.formats.video_files import every_frame
from pipeline.client import watch_video
from pipeline.client.watch_video import Config
from pipeline.serve.run_spec import ActionsSpec

SERVICE = tiny_service()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening_service(SERVICE) as url:
        yield url


def test_every_few_frames_are_read_one_at_a_time(tmp_path):
    path = video(tmp_path / "film.mp4")
    count, frames = every_frame(path, 2)
    reds = [frame[..., 0].mean() for frame in frames]
    assert count == 3 and np.allclose(reds, [0, 120, 240], atol=6)


def test_the_highest_moments_are_drawn(url, tmp_path, capsys):
    path = video(tmp_path / "film.mp4", (0, 0, 0, 255, 255))
    watch_video.main(Config(path, url, marks=1, out=tmp_path / "surprise.png"))
    assert "5 frames, the most surprising are" in capsys.readouterr().out
    assert (tmp_path / "surprise.png").exists()


def test_a_run_without_transformations_is_refused(url, tmp_path, monkeypatch):
    path = video(tmp_path / "film.mp4")
    spec = SERVICE.spec
    assert spec is not None
    config = Config(path, url, out=tmp_path / "surprise.png")
    monkeypatch.setattr(SERVICE, "spec", replace(spec, actions=ActionsSpec("continuous", 2)))
    with pytest.raises(ValueError, match="tiny has continuous actions, which a video has not"):
        watch_video.main(config)
    monkeypatch.setattr(SERVICE, "spec", replace(spec, cannot={"predict": "it has no dynamics"}))
    with pytest.raises(ValueError, match="it has no dynamics"):
        watch_video.main(config)
    assert not config.out.exists()


def test_what_cannot_be_written_or_has_no_surprise_is_refused_before_anyone_is_asked(tmp_path):
    path = video(tmp_path / "film.mp4")
    with pytest.raises(ValueError, match="there is no folder"):
        watch_video.main(Config(path, out=tmp_path / "none" / "surprise.png"))
    with pytest.raises(ValueError, match="--every 5 leaves 1 frame"):
        watch_video.main(Config(path, every=5, out=tmp_path / "surprise.png"))
