import pytest
import torch

from pipeline import device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def restore_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


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
