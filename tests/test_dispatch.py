"""Which operations run as Triton kernels, and that models compute the same with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_checks import PLACES, triton_kernels
from test_llama import BOTH, dynamics, episode

import kernels
from data.batch import Batch
from kernels import dispatch

ROOT = Path(__file__).parent.parent
MEASURED = {
    "nearest_code": {"forward": 5.0},
    "rms_norm": {"forward": 0.9, "both": 0.8},
    "swiglu": {"forward": 0.9, "both": 1.4},
}


@pytest.fixture(autouse=True)
def default_backend():
    yield
    kernels.set_backend("auto")
    dispatch.tuned_speedups.cache_clear()


@pytest.mark.parametrize("decoding", BOTH)
def test_a_model_of_triton_kernels_trains_and_predicts_as_one_of_pytorch(decoding):
    device = PLACES[0][0]
    latents, actions = (x.to(device) for x in episode(clips=2))
    rewards, continues = torch.rand(2, 6, device=device), torch.ones(2, 6, device=device)

    def run() -> tuple[list[torch.Tensor], torch.Tensor]:
        model = dynamics(decoding).to(device)
        torch.manual_seed(1)
        losses = model.train().loss(Batch(None, latents, actions, rewards, continues))
        total = losses["cross_entropy"] + losses["reward"] + losses["continue"]
        total.backward()
        with torch.no_grad():
            state = model.eval().start(latents[:, :3], actions[:, :2])
            for t in range(2, 4):
                state = model.step(state, actions[:, t])
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return [total.detach(), *(found[name] for name in sorted(found))], state.latents

    usual, codes = run()
    with triton_kernels():
        assert dispatch.use_triton("attention", latents.float())
        mine, same = run()
    assert torch.equal(codes, same) and len(usual) == len(mine) > 20
    for one, other in zip(usual, mine, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * float(one.abs().max().clamp(min=1)))


def test_triton_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="--kernels triton needs a CUDA GPU"):
        kernels.set_backend("triton")


def test_without_triton_auto_is_pytorch_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # what cannot be imported
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    dispatch.has_triton.cache_clear()
    try:
        kernels.set_backend("auto")
        assert "Triton cannot be imported" in kernels.describe(torch.device("cuda"))
        assert not dispatch._is_faster("nearest_code", "forward")
        with pytest.raises(ValueError, match="--kernels triton needs Triton, which cannot be"):
            kernels.set_backend("triton")
    finally:
        dispatch.has_triton.cache_clear()


def test_on_a_cpu_auto_is_pytorch():
    x = torch.zeros(3)
    for backend in ("auto", "torch"):
        kernels.set_backend(backend)
        assert not dispatch.use_triton("rms_norm", x)
        assert "torch kernels" in kernels.describe(x.device)


def test_float64_tensors_are_left_to_pytorch():
    x = torch.zeros(3, device=PLACES[0][0])
    with triton_kernels():
        assert dispatch.use_triton("gru_step", x, x.half())
        assert not dispatch.use_triton("gru_step", x, x.double())
        assert not dispatch.use_triton("gru_step", x.double(), x)


def test_auto_takes_what_was_measured_faster_on_this_gpu_architecture(monkeypatch, tmp_path):
    class OnGpu:
        is_cuda, dtype = True, torch.float32
        device = torch.device("cuda")

    monkeypatch.setattr(dispatch, "TUNED_FILE", tmp_path / "tuned.json")
    monkeypatch.setattr(dispatch, "_arch", lambda device: "sm_90")
    x: torch.Tensor = OnGpu()  # type: ignore[assignment]
    kernels.set_backend("auto")
    dispatch.tuned_speedups.cache_clear()
    assert not dispatch.use_triton("nearest_code", x)  # nothing is measured yet
    assert "bench kernels --tune" in kernels.describe(OnGpu.device)
    (tmp_path / "tuned.json").write_text(
        json.dumps({"sm_90": MEASURED, "sm_80": {"apply_rope": {"forward": 2.0, "both": 2.0}}})
    )
    dispatch.tuned_speedups.cache_clear()
    known = ("apply_rope", "nearest_code", "rms_norm", "swiglu")
    assert [name for name in known if dispatch.use_triton(name, x)] == ["nearest_code", "swiglu"]
    with torch.no_grad():  # only the forward pass counts
        assert [name for name in known if dispatch.use_triton(name, x)] == ["nearest_code"]
    assert "auto: nearest_code, swiglu" in kernels.describe(OnGpu.device)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert dispatch.use_triton("nearest_code", x, fuses=True)  # its gradients count
    with torch.no_grad():
        assert dispatch.use_triton("nearest_code", x)
        assert not dispatch.use_triton("nearest_code", x, fuses=True)
        kernels.set_backend("triton" if torch.cuda.is_available() else "auto")
        assert dispatch.use_triton("nearest_code", x, fuses=True) == torch.cuda.is_available()
    kernels.set_backend("torch")
    assert not dispatch.use_triton("nearest_code", x)


def test_a_choice_is_constant_for_the_compiler_which_is_not_imported_for_it():
    assert vars(dispatch._is_faster) == vars(torch.compiler.assume_constant_result(lambda: None))
    scripts = "import play, preprocess, evaluate, train_controller, sys"
    check = f"{scripts}; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
