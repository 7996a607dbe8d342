"""Still images as a source of shards."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import preprocess
from data.images.image_source import ImageSource, _random_box, find_images
from data.shards.episode_dataset import EpisodeDataset

RANDOM = np.random.default_rng(0)


def write_images(folder: Path, count: int = 4, size: tuple[int, int] = (40, 60)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8)
        suffix = ("png", "jpg", "webp")[number % 3]
        Image.fromarray(pixels).save(folder / f"photo {number}.{suffix}")
    return folder


def build(folder: Path, run: Path, **changes) -> EpisodeDataset:
    config = preprocess.ImagesConfig((folder,), run, resolution=16, num_workers=1, **changes)
    preprocess.images(config)
    return EpisodeDataset(run / "shards")


def test_an_image_is_an_episode_of_one_frame(tmp_path):
    write_images(tmp_path / "photos" / "nested" / "deeper", 3)
    write_images(tmp_path / "photos", 3)
    dataset = build(tmp_path / "photos", tmp_path / "run")
    assert dataset.lengths.tolist() == [1] * 6
    assert dataset.actions.kind == "none" and dataset.image_size == (16, 16)
    assert {split: len(dataset.episodes(split)) for split in ("train", "validation", "test")} == {
        "train": 4, "validation": 1, "test": 1,
    }  # fmt: skip


def test_one_frame_is_the_middle_of_the_image_averaged(tmp_path):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = np.repeat(np.arange(32, dtype=np.uint8)[:, None, None] * 8, 3, 2)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    dataset = build(tmp_path / "photos", tmp_path / "run")
    expected = (np.arange(16) * 16 + 4).astype(np.uint8)
    assert (dataset.read(0, "frames")[0] == expected[:, None, None]).all()


def test_crops_of_an_image_share_a_split_and_differ(tmp_path):
    dataset = build(write_images(tmp_path / "photos", 5), tmp_path / "run", crops=7)
    assert len(dataset) == 35
    by_source: dict[int, set[int]] = {}
    for episode in range(35):
        by_source.setdefault(int(dataset.sources[episode]), set()).add(int(dataset.splits[episode]))
    assert len(by_source) == 5 and all(len(splits) == 1 for splits in by_source.values())
    frames = np.concatenate([dataset.read(e, "frames") for e in range(7)])
    assert len(np.unique(frames.reshape(7, -1), axis=0)) == 7


def test_the_same_images_and_seed_give_the_same_crops(tmp_path):
    folder = write_images(tmp_path / "photos")
    files, root, _ = find_images([folder], 1)
    first, again, other = (ImageSource(files, root, 16, 3, seed=seed) for seed in (0, 0, 1))
    frames = [np.concatenate([e.frames for e in s.make_shard(0)]) for s in (first, again, other)]
    assert np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[0], frames[2])


def test_what_cannot_be_decoded_is_named_and_left_out(tmp_path, capsys):
    folder = write_images(tmp_path / "photos", 4)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    whole = (folder / "photo 0.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (4, 4)).save(folder / "dot.png")
    dataset = build(folder, tmp_path / "run")
    assert len(dataset) == 4
    said = capsys.readouterr().out
    for name in ("empty.png is empty", "text.jpg", "half.png", "dot.png has 4 x 4 pixels"):
        assert len(re.findall(rf"left out: .*{name}", said)) == 1, said
    assert "4 of 8 can be decoded" in said


def test_a_crop_covers_the_least_area_that_was_asked_for(tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    rng = np.random.default_rng(0)
    for min_area in (0.2, 0.9, 1.0):
        boxes = [_random_box(image, min_area, rng) for _ in range(300)]
        shares = [height * width / 40**2 for _, _, height, width in boxes]
        assert min(shares) >= min_area - 0.03  # whole pixels
        assert all(t + h <= 40 and left + w <= 60 for t, left, h, w in boxes)


def test_two_files_of_one_content_are_one_image(tmp_path, capsys):
    folder = write_images(tmp_path / "photos", 4)
    (folder / "copy.png").write_bytes((folder / "photo 0.png").read_bytes())
    dataset = build(folder, tmp_path / "run")
    assert len(dataset) == 4
    said = capsys.readouterr().out
    assert "has the content of" in said and "warning" not in said


def test_a_second_call_writes_nothing_and_other_images_are_refused(tmp_path, capsys):
    folder = write_images(tmp_path / "photos")
    build(folder, tmp_path / "run")
    build(folder, tmp_path / "run")
    assert "all shards exist" in capsys.readouterr().out
    write_images(folder / "more", 2)
    with pytest.raises(ValueError, match="photos now has 6 recordings, .* are of 4"):
        build(folder, tmp_path / "run")


def test_a_folder_without_images_is_refused_in_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match="no png, jpg, jpeg, webp files in"):
        find_images([tmp_path], 1)
    with pytest.raises(ValueError, match="nowhere is not there"):
        find_images([tmp_path / "nowhere"], 1)
    (tmp_path / "only.png").touch()
    with pytest.raises(ValueError, match="none of 1 images can be decoded: .*only.png is empty"):
        find_images([tmp_path], 1)


def test_a_tokenizer_trains_on_still_images(tmp_path):
    import train_tokenizer
    from pipeline import presets

    folder = write_images(tmp_path / "photos", 6, (64, 64))
    config = preprocess.ImagesConfig((folder,), tmp_path / "run", crops=4, num_workers=1)
    preprocess.images(config)
    for names in (["iwm", "debug"], ["pusht", "debug"]):
        config = presets.apply(train_tokenizer.Config(), "tokenizer", names)
        changed = presets.changed(config, {"train.steps": 2, "train.eval_every": 2}, "a test")
        run = presets.changed(changed, {"run": tmp_path / "run", "restart": True}, "a test")
        train_tokenizer.main(run)
        assert (tmp_path / "run" / "tokenizer" / "best.pt").exists()
        assert list((tmp_path / "run" / "tokenizer" / "images").iterdir())


def test_no_path_is_told_with_the_command():
    with pytest.raises(ValueError, match="no PATH is given; .* preprocess.py images PATH"):
        preprocess.ImagesConfig(())
