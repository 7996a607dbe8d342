from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.layers.int8 import Int8Linear
from models.layers.transformer import Transformer, TransformerConfig
from pipeline.inference import aot_inductor
from pipeline.inference.aot_inductor import AotCompiled, pick_compile_fn
from pipeline.training import auto_compile

needs_compiler = pytest.mark.skipif(not auto_compile.cpp_compiler(), reason="needs a C++ compiler")


@dataclass
class Both:
    sums: Tensor
    rest: list[Tensor]


class Adder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 5)

    def add(self, x: Tensor, kept: Both | None, written: Tensor) -> tuple[Both, int]:
        written.add_(1)
        sums = self.linear(x) if kept is None else self.linear(x) + kept.sums
        return Both(sums, [x.float().mean(0)]), 7


@pytest.fixture
def compilations(monkeypatch, tmp_path) -> list[str]:
    """Paths of what was compiled; packages are cached in a folder of the test's own."""
    monkeypatch.setattr(aot_inductor, "cache_dir", lambda: str(tmp_path))
    # autotuning takes seconds a product
    monkeypatch.setitem(aot_inductor.INDUCTOR_CONFIG, "max_autotune", False)
    compiled = []
    compile_it = torch._inductor.aoti_compile_and_package

    def counted(*args, **kwargs):
        compiled.append(kwargs["package_path"])
        return compile_it(*args, **kwargs)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", counted)
    return compiled


@pytest.fixture
def exports(monkeypatch, compilations) -> list[str]:
    """As `compilations`, but a package names the exported program, and PyTorch runs it.  It is for
    what does not depend on generated code, which takes seconds to compile."""

    programs = []

    def save(program, package_path: str, **_) -> str:
        Path(package_path).write_text(str(len(programs)))
        programs.append(program.module())
        compilations.append(package_path)
        return package_path

    def load(path: str) -> Any:
        run = programs[int(Path(path).read_text())]
        return SimpleNamespace(loader=SimpleNamespace(run=lambda tensors: list(run(*tensors))))

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", save)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    return compilations


@pytest.mark.slow
@needs_compiler
def test_generated_code_is_the_function_for_any_number_of_rows_and_weights_in_8_bits(compilations):
    model = Adder()
    int8_linear = Int8Linear(nn.Linear(192, 48))
    transformer = small_transformer()

    def function(x: Tensor, kept: Both, written: Tensor, wide: Tensor) -> tuple[Both, Tensor]:
        result, _ = model.add(x, kept, written)
        result.rest += [int8_linear(wide), int8_linear(wide.bfloat16())]
        result.rest += [transformer(wide.unflatten(1, (12, 16)))[0]]
        return result, written.sum()

    module = nn.ModuleList([model, int8_linear, transformer])
    compiled = AotCompiled(module, function)
    with torch.inference_mode():
        for rows in (9, 30):
            wide = torch.randn(rows, 192)
            # rows with a stride of 0, too
            for x in (torch.randn(rows, 3), torch.randn(1, 3).expand(rows, 3)):
                kept, written = Both(torch.randn(rows, 5), []), torch.zeros(rows)
                found, total = compiled(x, kept, written, wide)
                assert isinstance(found, Both) and torch.equal(written, torch.ones(rows))
                expected, _ = function(x, kept, torch.zeros(rows), wide)
                assert total == rows
                assert torch.allclose(found.sums, expected.sums, atol=1e-6)
                assert torch.allclose(found.rest[0], expected.rest[0], atol=1e-6)
                assert torch.allclose(found.rest[3], expected.rest[3], atol=1e-5)
                # the compiler does not round to bfloat16 in between
                for place, dtype, slack in ((1, torch.float32, 1e-5), (2, torch.bfloat16, 2e-2)):
                    one, other = found.rest[place], expected.rest[place]
                    assert one.dtype == dtype and (one - other).norm() < slack * other.norm()
    assert len(compilations) == 1


def test_each_structure_and_dtype_is_compiled_once_and_gradients_by_pytorch(exports):
    model = Adder()
    compiled = AotCompiled(model, model.add)
    x, written = torch.randn(2, 3), torch.zeros(2)
    with torch.inference_mode():
        first, seven = compiled(x, None, written)
        assert seven == 7 and torch.equal(written, torch.ones(2))
        assert torch.allclose(first.sums, model.linear(x)) and isinstance(first, Both)
        assert torch.allclose(first.rest[0], x.mean(0))
        second, _ = compiled(x, first, written)
        assert torch.allclose(second.sums, 2 * model.linear(x), atol=1e-6)
        assert len(exports) == 2
        more = torch.randn(7, 3)
        assert torch.allclose(compiled(more, None, torch.zeros(7))[0].sums, model.linear(more))
        assert len(exports) == 2  # for any number of rows
        with torch.autocast("cpu", torch.bfloat16):
            assert compiled(x, None, written)[0].sums.dtype == torch.bfloat16
    leaf = torch.randn(2, 3, requires_grad=True)
    compiled(leaf, None, written)[0].sums.sum().backward()
    assert leaf.grad is not None and len(exports) == 3


def test_a_branch_on_the_number_of_rows_is_compiled_both_ways(exports):
    model = nn.Linear(3, 3)
    compiled = AotCompiled(model, lambda x: model(x) if x.shape[0] < 5 else x)
    with torch.inference_mode():
        for count, expected in ((2, 1), (4, 1), (5, 2), (3, 2), (9, 2), (1, 3)):
            x = torch.randn(count, 3)
            assert torch.allclose(compiled(x), model(x) if count < 5 else x, atol=1e-6)
            assert len(exports) == expected


def test_it_is_compiled_once_per_machine_and_weights(exports):
    x, written = torch.randn(2, 3), torch.zeros(2)
    for _ in range(2):
        again = Adder()
        result = AotCompiled(again, again.add)(x, None, written)[0].sums
    assert len(exports) == 1
    other = Adder()
    nn.init.ones_(other.linear.weight)
    changed = AotCompiled(other, other.add)(x, None, written)[0].sums
    assert len(exports) == 2
    assert torch.allclose(changed, other.linear(x), atol=1e-6)
    assert not torch.allclose(changed, result)


def test_the_same_steps_on_other_lines_are_not_compiled_again(exports):
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    AotCompiled(model, lambda x: model(x))(x)
    AotCompiled(model, lambda x: model(x))(x)
    assert len(exports) == 1


def test_the_least_recently_used_packages_are_evicted(exports, monkeypatch, tmp_path):
    models = [nn.Linear(3, 3) for _ in range(3)]
    expected = ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4))  # the second one was evicted
    for number, count in expected:
        AotCompiled(models[number], models[number].forward)(torch.randn(2, 3))
        assert len(exports) == count
        sizes = [path.stat().st_size for path in (tmp_path / "dreamstage").glob("*.pt2")]
        monkeypatch.setattr(aot_inductor, "MAX_CACHE_BYTES", 2.5 * sizes[0])


def test_an_interrupted_compilation_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(aot_inductor, "cache_dir", lambda: str(tmp_path))

    def stopped(program, package_path: str, **_) -> str:
        with open(package_path, "w") as file:
            file.write("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", stopped)
    model = Adder()
    with pytest.raises(KeyboardInterrupt):
        AotCompiled(model, model.add)(torch.randn(2, 3), None, torch.zeros(2))
    assert not list((tmp_path / "dreamstage").iterdir())


def small_transformer() -> Transformer:
    positions = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    config = TransformerConfig(dim=16, num_layers=1, num_heads=2, mlp_dim=24, context_frames=3)
    return Transformer(config, positions, causal_within_frame=True).eval()


def test_a_compiled_transformer_returns_the_same(exports):
    torch.manual_seed(0)
    plain, compiled = small_transformer(), small_transformer()
    compiled.load_state_dict(plain.state_dict())
    compiled.compile_steps(AotCompiled)
    blocks, tokens = torch.randn(2, 8, 16), torch.randn(4, 2, 1, 16)
    found = []
    with torch.inference_mode():
        for model in (plain, compiled):
            out, cache = model(blocks)
            draft = model.make_static_cache(cache)
            found.append([out, *(model.decode_token(x, draft, i) for i, x in enumerate(tokens))])
            found[-1] += model.append_block(draft).keys
    assert len(exports) == 2  # whole blocks, and a token at any position
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_missing_compiler_is_reported(monkeypatch):
    monkeypatch.setattr(auto_compile, "cpp_compiler", lambda: None)
    with pytest.raises(ValueError, match=r"--compile cannot compile here: there is no g\+\+"):
        pick_compile_fn(torch.device("cpu"))
