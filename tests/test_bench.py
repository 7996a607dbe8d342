"""`python -m bench` as it is run: a table, bench.json with the keys of docs/reference/bench.md."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import __main__ as command
from bench.__main__ import AREAS, Config, main
from bench.areas import hook_overhead, kernel_speed, language_model_speed, load_speed, train_speed
from bench.operations.cases import OPERATIONS, cases
from bench.races.correctness import floating
from bench.races.pairs import Incorrect, Options, Row, drop_broken
from kernels import dispatch, reference
from models.layers.transformer import TransformerConfig
from pipeline.cli import run_cli

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "reference" / "bench.md").read_text()


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)


def keys_in_docs(section: str) -> set[str]:
    """Read the names in the first column of the table under a heading."""
    part = DOCS.split(section)[1].split("\n## ")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", part, re.M) for name in _names(row)}


def _names(cell: str) -> list[str]:
    return re.findall(r"`([a-z_]+)`", cell)


@pytest.mark.slow
def test_roofline_and_loading_are_measured_and_written_as_documented(tmp_path):
    ended = bench("roofline", "loading", "--quick", "--rounds", "2", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert set(found) == keys_in_docs("### bench.json")
    rows = found["rows"]
    assert all(set(row) == keys_in_docs("### A row") for row in rows)
    assert {row["area"] for row in rows} == {"roofline", "loading"}
    assert not [row["note"] for row in rows if "incorrect" in row["note"] or "Error" in row["note"]]
    paired = [row for row in rows if row["ratio"] is not None]
    assert paired and all(row["low"] <= row["ratio"] <= row["high"] for row in paired)
    assert all(row["rounds"] == 2 for row in paired)
    assert {"cpu", "gpu", "threads", "versions"} <= set(found["machine"])
    assert found["load"].keys() == {"before", "after"}
    assert (tmp_path / "bench.png").stat().st_size > 1000
    assert not list(tmp_path.glob("*.partial"))
    ceilings = [row for row in rows if row["name"].endswith("share of the ceiling")]
    assert len(ceilings) == 4 and all(row["ours"] > 0 for row in ceilings)
    for row in rows:
        assert row["name"] in ended.stdout


def test_quick_has_ten_rounds_at_least_and_finished_areas_are_plotted(
    tmp_path, monkeypatch, capsys
):
    def measured(area, options):
        assert options.quick and options.rounds >= 10
        if area == "decode":
            assert (tmp_path / "bench.png").stat().st_size > 1000
        yield Row(area, "work", "peer", "ms", 1.0, 2.0, 2.0, rounds=options.rounds)

    monkeypatch.setattr(command, "safe_rows", measured)
    main(Config(("training", "decode"), quick=True, out=tmp_path))
    assert json.loads((tmp_path / "bench.json").read_text())["options"]["rounds"] >= 10
    assert re.search(r"after; 0 s: training 0, decode 0$", capsys.readouterr().out, re.M)


def test_auto_is_decided_by_the_worst_shape_of_each_pass():
    rows = list(kernel_speed.verdicts("swiglu", {"forward": 0.997, "both": 1.38}))
    assert [row.note for row in rows] == ["auto: left to torch.compile", "auto: used"]
    assert [row.ratio for row in rows] == [0.997, 1.38]
    assert rows[1].name == "swiglu, forward and backward, at its worst shape"


def test_attention_is_raced_with_angles_but_once_and_at_lengths_of_space_and_time():
    raced = [case for case in cases(CPU, torch.float32) if case.name.startswith("attention, ")]
    plain, rotated = raced[:2]
    assert [case.name for case in raced if "no angles" in case.name] == [plain.name]
    one, other = (floating(case.definition(*rotated.inputs))[0] for case in (plain, rotated))
    assert not torch.allclose(one, other, atol=0.1)
    lengths = {"over space": [16, 256], "through time": [4, 16, 64]}
    for name, tokens in lengths.items():
        assert [case.inputs[0].shape[2] for case in raced if name in case.name] == tokens


def test_an_unknown_area_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "laoding"])
    with pytest.raises(SystemExit) as ended:
        run_cli(main, Config)
    said = capsys.readouterr()
    assert ended.value.code == 1 and said.out == ""
    assert said.err.count("\n") == 1
    assert "did you mean loading?" in said.err and "roofline" in said.err


def test_only_named_operations_are_measured(monkeypatch):
    with pytest.raises(ValueError, match="did you mean rms_norm?"):
        main(Config(("kernels",), only=("rmsnorm",)))
    every = list(cases(torch.device("cpu"), torch.float32))
    assert {case.operation for case in every} | {"nearest_code"} == set(OPERATIONS)
    raced = []
    monkeypatch.setattr(
        kernel_speed, "_race_case", lambda case, _: iter(raced.append(case.operation) or ())
    )
    list(kernel_speed.rows(Options(rounds=1, only=("gru_step", "apply_rope"))))
    assert raced == ["apply_rope", "gru_step"]


def test_a_runner_that_fails_is_named_and_the_others_are_raced():
    def breaks():
        raise RuntimeError("no such\nbackend")

    runners = {"one": lambda: torch.zeros(()), "two": breaks}
    assert drop_broken(runners) == {"two": "RuntimeError: no such backend"}
    assert list(runners) == ["one"]


def test_a_large_model_is_compiled_layer_by_layer_on_both_sides(monkeypatch):
    small = train_speed.Workload(
        train_speed.llama_config(32, 3, 2, 64, context_frames=2), 16, (2, 2), batch_size=2
    )
    compiled = []
    monkeypatch.setattr(train_speed, "LARGE", small)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self)))
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled as a whole"))
    rows = list(train_speed.measure(Options(rounds=1), small))
    names = [kind.__name__ for kind in compiled]
    assert names.count("Layer") == 3  # ours
    assert names.count("LlamaDecoderLayer") == len(names) - 3 > 0
    raced = [row.baseline for row in rows if row.ratio is not None]
    assert any("compile by layers" in name for name in raced)
    if not torch.cuda.is_available():
        (ceiling,) = (row for row in rows if row.name.endswith("share of the ceiling"))
        assert ceiling.ours and ceiling.target == 90 and ceiling.unit == "%"
    assert not any("failed" in row.note for row in rows)


def test_every_area_is_a_documented_module_with_rows():
    for area, module in AREAS.items():
        assert f"`{area}`" in DOCS
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert "def rows(options: Options) -> Iterator[Row]:" in source


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_tuning_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="no CUDA GPU"):
        main(Config(("roofline",), tune=True))
    with pytest.raises(ValueError, match="--rounds -1"):
        main(Config(("roofline",), rounds=-1))


def test_flags_without_an_effect_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "safe_rows", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match="--only belongs to the area kernels, .* are loading"):
        main(Config(("loading",), only=("rms_norm",), out=tmp_path))
    taken = tmp_path / "file"
    taken.touch()
    with pytest.raises(ValueError, match="file is a file, not a folder; .* another --out"):
        main(Config(("loading",), out=taken))
    with pytest.raises(ValueError, match="file/below cannot be written to .* another --out"):
        main(Config(("loading",), out=taken / "below"))


def test_an_area_that_fails_is_a_row_and_an_exit_with_1(tmp_path, monkeypatch):
    def rows(options):
        yield Row("loading", "clips", "peer", "ms", 1.0, 2.0, 2.0, rounds=1)
        yield Row("loading", "clips", "a peer that is not installed", "", note="not measured")
        raise RuntimeError("no such disk")

    monkeypatch.setattr(load_speed, "rows", rows)
    with pytest.raises(ValueError, match=r"not measured.*: loading, failed$"):
        main(Config(("loading", "roofline"), quick=True, rounds=1, out=tmp_path))
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {row["area"] for row in found["rows"]} == {"loading", "roofline"}
    assert found["options"]["run"] is None and found["options"]["only"] == []


ROPE = {"forward": 1.5, "both": 1.2}


def test_saved_speedups_are_merged_and_read_by_dispatch(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"sm_80": {"swiglu": {"both": 2.0}}, "sm_90": {"apply_rope": ROPE}}))
    monkeypatch.setattr(dispatch, "TUNED_FILE", path)
    dispatch.tuned_speedups.cache_clear()
    try:
        kernel_speed.save_tuned({"swiglu": {"forward": 0.9}}, "sm_90")
        assert dispatch.tuned_speedups("sm_90") == {"apply_rope": ROPE, "swiglu": {"forward": 0.9}}
        assert dispatch.tuned_speedups("sm_80") == {"swiglu": {"both": 2.0}}
    finally:
        dispatch.tuned_speedups.cache_clear()


def test_an_incorrect_kernel_is_not_timed(monkeypatch):
    case = next(cases(torch.device("cpu"), torch.float32))
    monkeypatch.setattr(kernel_speed, "race", lambda *a, **k: pytest.fail("timed"))
    broken = replace(case, ours=lambda x, weight: 1.01 * reference.rms_norm(x, weight))
    options = Options(rounds=1, quick=True)
    (row,) = kernel_speed._safely(case.name, lambda: kernel_speed._race_case(broken, options), {})
    assert row.ratio is None and row.ours is None and row.note.startswith("incorrect: ")


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_language_model_and_its_peer_are_the_same_function(tuning):
    pytest.importorskip("peft")
    config = TransformerConfig(dim=32, num_layers=2, num_heads=2, mlp_dim=64, context_frames=2)
    ours, theirs = language_model_speed.build(
        language_model_speed.Workload("small", config, clips=2, blocks=4), tuning
    )
    language_model_speed.check(ours, theirs)
    with torch.no_grad():
        next(p for p in theirs.backbone.parameters() if p.ndim == 2).mul_(1.5)
    with pytest.raises(Incorrect, match="outputs differ by"):
        language_model_speed.check(ours, theirs)


def test_a_language_model_steps_beside_its_peer(monkeypatch):
    pytest.importorskip("peft")
    config = TransformerConfig(dim=32, num_layers=2, num_heads=2, mlp_dim=64, context_frames=2)
    small = language_model_speed.Workload("small", config, clips=2, blocks=4)
    monkeypatch.setattr(language_model_speed, "SMALL", small)
    found = list(language_model_speed.rows(Options(rounds=2)))
    assert [row.name.split(", ")[-2] for row in found] == ["full", "lora"]
    assert [row.baseline for row in found] == ["transformers", "transformers + PEFT"]
    assert all(row.ratio and row.rounds == 2 and row.unit == "tokens/s" for row in found)


def test_a_collector_is_raced_on_one_and_on_all_layers(monkeypatch):
    monkeypatch.setattr(hook_overhead, "ROUNDS", 2)
    found = list(hook_overhead.rows(Options(rounds=1)))
    assert [row.name.split(", ")[-1][:6] for row in found] == ["1 of 4", "4 of 4"]
    assert all(row.ratio and row.rounds == 2 for row in found)
