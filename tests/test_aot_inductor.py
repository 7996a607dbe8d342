import shutil
from dataclasses import dataclass

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
    """What was compiled; packages are kept in a folder of the test's own."""
    monkeypatch.setattr(aot_inductor, "cache_dir", lambda: str(tmp_path))
    monkeypatch.setitem(
        aot_inductor.INDUCTOR_CONFIG, "max_autotune", False
    )  # which takes two seconds a product
    done = []
    compile_it = torch._inductor.aoti_compile_and_package

    def counted(*given, **named):
        done.append(named["package_path"])
        return compile_it(*given, **named)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", counted)
    return done


@needs_compiler
def test_it_is_the_function_whatever_holds_its_tensors(compilations):
    model = Adder()
    swift = AotCompiled(model, model.add)
    x, written = torch.randn(2, 3), torch.zeros(2)
    with torch.inference_mode():
        first, seven = swift(x, None, written)
        assert seven == 7 and torch.equal(written, torch.ones(2))
        assert torch.allclose(first.sums, model.linear(x)) and isinstance(first, Both)
        assert torch.allclose(first.rest[0], x.mean(0))
        second, _ = swift(x, first, written)
        assert torch.allclose(second.sums, 2 * model.linear(x), atol=1e-6)
        row = torch.randn(1, 3)
        repeated, _ = swift(row.expand(2, 3), None, written)  # rows that lie in one place
        assert torch.allclose(repeated.sums, model.linear(row).expand(2, 5), atol=1e-6)
        assert len(compilations) == 2
        more = torch.randn(7, 3)
        assert torch.allclose(swift(more, None, torch.zeros(7))[0].sums, model.linear(more))
        assert len(compilations) == 2  # for any number of rows
        with torch.autocast("cpu", torch.bfloat16):
            assert swift(x, None, written)[0].sums.dtype == torch.bfloat16
    leaf = torch.randn(2, 3, requires_grad=True)
    swift(leaf, None, written)[0].sums.sum().backward()
    assert leaf.grad is not None and len(compilations) == 3


@needs_compiler
def test_what_a_number_of_rows_decides_is_compiled_for_each_way(compilations):
    model = nn.Linear(3, 3)
    swift = AotCompiled(model, lambda x: model(x) if x.shape[0] < 5 else x)
    with torch.inference_mode():
        for count, compiled in ((2, 1), (4, 1), (5, 2), (3, 2), (9, 2), (1, 3)):
            x = torch.randn(count, 3)
            assert torch.allclose(swift(x), model(x) if count < 5 else x, atol=1e-6)
            assert len(compilations) == compiled


@needs_compiler
def test_it_is_compiled_once_on_a_machine_for_the_same_weights(compilations):
    x, written = torch.randn(2, 3), torch.zeros(2)
    for _ in range(2):
        again = Adder()
        result = AotCompiled(again, again.add)(x, None, written)[0].sums
    assert len(compilations) == 1
    other = Adder()
    nn.init.ones_(other.linear.weight)
    changed = AotCompiled(other, other.add)(x, None, written)[0].sums
    assert len(compilations) == 2
    assert torch.allclose(changed, other.linear(x), atol=1e-6)
    assert not torch.allclose(changed, result)


@needs_compiler
def test_the_same_steps_on_other_lines_are_not_compiled_again(compilations):
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    AotCompiled(model, lambda x: model(x))(x)
    AotCompiled(model, lambda x: model(x))(x)
    assert len(compilations) == 1


@needs_compiler
def test_packages_that_were_used_longest_ago_make_room(compilations, monkeypatch, tmp_path):
    compile_it, first = torch._inductor.aoti_compile_and_package, tmp_path / "first.pt2"

    def copied(*given, **named):  # of these the compiler makes the same but for the weights
        if not first.exists():
            shutil.copy(compile_it(*given, **named), first)
        else:
            compilations.append(named["package_path"])
        return shutil.copy(first, named["package_path"])

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", copied)
    models = [nn.Linear(3, 3) for _ in range(3)]
    expected = ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4))  # the second one had to go
    for number, compiled in expected:
        AotCompiled(models[number], models[number].forward)(torch.randn(2, 3))
        assert len(compilations) == compiled
        sizes = [path.stat().st_size for path in (tmp_path / "dreamstage").glob("*.pt2")]
        monkeypatch.setattr(aot_inductor, "MAX_CACHE_BYTES", 2.5 * sizes[0])


@needs_compiler
def test_weights_in_8_bits_are_laid_out_when_it_is_compiled(compilations):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        rough = Int8Linear(nn.Linear(192, 48))
        swift = AotCompiled(rough, rough.forward)
        with torch.inference_mode():
            for rows in (9, 30):
                x = torch.randn(rows, 192, dtype=dtype)
                # the compiler does not round to bfloat16 in between
                slack = 1e-5 if dtype == torch.float32 else 2e-2
                assert (swift(x) - rough(x)).norm() < slack * rough(x).norm()
    assert len(compilations) == 2


@needs_compiler
def test_a_compilation_that_is_broken_off_leaves_nothing(monkeypatch, tmp_path):
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


@needs_compiler
def test_a_transformer_writes_and_reads_the_same(compilations):
    torch.manual_seed(0)
    places = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    config = TransformerConfig(dim=16, num_layers=1, num_heads=2, mlp_dim=24, context_frames=3)
    plain, swift = (Transformer(config, places, causal_within_frame=True).eval() for _ in range(2))
    swift.load_state_dict(plain.state_dict())
    swift.compile_steps(AotCompiled)
    blocks, tokens = torch.randn(2, 8, 16), torch.randn(4, 2, 1, 16)
    found = []
    with torch.inference_mode():
        for model in (plain, swift):
            out, cache = model(blocks)
            draft = model.make_static_cache(cache)
            found.append([out, *(model.decode_token(x, draft, i) for i, x in enumerate(tokens))])
            found[-1] += model.append_block(draft).keys
    assert len(compilations) == 2  # whole blocks, and a token at whatever place
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_without_a_compiler_it_is_said(monkeypatch):
    monkeypatch.setattr(aot_inductor, "cpp_compiler", lambda: None)
    with pytest.raises(ValueError, match=r"compiled steps need a C\+\+ compiler"):
        pick_compile_fn(torch.device("cpu"))
