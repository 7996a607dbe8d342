from dataclasses import replace

import pytest
import torch

import evaluate
import play
import train_controller
import train_dynamics
import train_tokenizer
from pipeline import device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def restore_precision_and_device():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
    device.set_device("auto")


def test_a_prepared_cpu_multiplies_float32_exactly():
    rng_state = torch.get_rng_state()
    device._prepare_cpu()
    assert device._matmul_error() < 1e-5
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_fast_products_are_not_used_where_they_lose_digits(monkeypatch):
    for error, wanted in ((1e-6, "medium"), (2e-3, "highest")):
        monkeypatch.setattr(device, "_matmul_error", lambda error=error: error)
        device._prepare_cpu()
        assert torch.get_float32_matmul_precision() == wanted


@pytest.mark.parametrize(
    "flags, wanted",
    [({}, "fp32"), ({"avx2": True}, "fp32"), ({"avx512_bf16": True}, "bf16")],
)
def test_a_cpu_uses_bf16_where_it_multiplies_it(monkeypatch, flags, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert device.pick_precision(CPU, "auto") == wanted


@pytest.mark.parametrize(
    "bf16, capability, wanted",
    [(True, (9, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "fp32")],
)
def test_a_gpu_without_bf16_uses_fp16_where_it_has_tensor_cores(
    monkeypatch, bf16, capability, wanted
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.pick_precision(CUDA, "auto") == wanted


def test_a_requested_precision_is_used():
    assert device.pick_precision(CPU, "bf16") == "bf16"


def found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let PyTorch find this device and no better one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: name == "mps")


@pytest.mark.parametrize("here", ["cpu", "mps", "cuda"])
def test_the_best_device_is_taken_unless_one_is_asked_for(monkeypatch, here):
    found(monkeypatch, here)
    assert device.pick_device().type == here
    for asked in (here, "cpu"):
        device.set_device(asked)
        assert device.pick_device().type == asked
    device.set_device("auto")
    assert device.pick_device().type == here


@pytest.mark.parametrize("here, asked", [("cpu", "cuda"), ("cpu", "mps"), ("cuda", "mps")])
def test_a_device_that_is_not_here_is_refused_in_one_line(monkeypatch, here, asked):
    found(monkeypatch, here)
    message = rf"--device {asked}: .* finds no such device here; give --device {here}"
    with pytest.raises(ValueError, match=message) as problem:
        device.set_device(asked)
    assert "\n" not in str(problem.value) and device.pick_device().type == here


def test_kernels_of_a_gpu_are_refused_where_the_cpu_is_asked_for(monkeypatch):
    found(monkeypatch, "cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="--kernels triton needs a CUDA GPU"):
        device.set_device("cpu", "triton")


@pytest.mark.parametrize("stage", [train_tokenizer, train_dynamics, train_controller, evaluate,
                                   play])  # fmt: skip
def test_every_stage_takes_the_device_before_it_reads_anything(monkeypatch, tmp_path, stage):
    found(monkeypatch, "cpu")
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="--device cuda"):
        stage.main(replace(stage.Config(), run=run, device="cuda"))
    assert not run.exists()
