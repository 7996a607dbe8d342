"""Every kernel compiles for Hopper without a GPU, and as many programs fit as are required."""

import json
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

import kernels
from kernels.compile_check import THEMES, covering, main, programs_per_multiprocessor

pytest.importorskip("triton")


@pytest.mark.slow
def test_kernels_compile_for_sm_90_within_their_limits(tmp_path):
    surroundings = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "kernels.compile_check", "--json", "--quick"],
        capture_output=True, text=True, env=surroundings | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout, done.stderr
    taken = json.loads(done.stdout)
    assert [t["name"] for t in taken] == [case.name for case in quick_cases()]
    assert not [t for t in taken if t["exceeded"]]


def test_of_each_theme_few_cases_have_every_kernel_with_its_types_and_every_flag():
    assert len({case.name for case in cases()}) == len(cases()) > len(quick_cases())
    for theme in THEMES:
        found = import_module(f"kernels.{theme}").COMPILE_CASES
        every, quick = (set().union(*map(traits, some)) for some in (found, covering(found)))
        assert every == quick
    names = [case.name for case in quick_cases()]
    backward = [name for name in names if name.startswith("rms_norm backward")]
    assert backward == ["rms_norm backward 768"]  # the largest
    token = [name for name in names if name.startswith("flash, token by token,")]
    assert token == ["flash, token by token, 64 wide"]  # the one of most programs


def test_an_unknown_theme_is_one_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["kernels.compile_check", "nonsense"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = str(ended.value.code)  # a text goes to stderr, and the exit is 1
    assert said.startswith("error: unknown theme 'nonsense'; there are: norm, rope")
    assert "\n" not in said


def test_every_kernel_that_is_launched_is_compiled():
    from triton.runtime.jit import KernelInterface

    modules = [import_module(f"kernels.{x.name}") for x in pkgutil.iter_modules(kernels.__path__)]
    found: list[Any] = [
        x for m in modules for x in vars(m).values() if isinstance(x, KernelInterface)
    ]
    # those that another one calls are not launched
    called = {name_of(x.fn.__globals__.get(y)) for x in found for y in x.fn.__code__.co_names}
    assert {name_of(x) for x in found} - called == {name_of(case.kernel) for case in cases()}


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "programs"),
    [
        (168, 0, 4, 3),
        (169, 0, 4, 2),
        (255, 0, 8, 1),
        (32, 0, 4, 16),
        (32, 0, 1, 32),
        (32, 227 << 10, 4, 1),
        (32, 113 << 10, 4, 2),
        (32, (113 << 10) + 1, 4, 1),
    ],
)
def test_programs_of_a_multiprocessor_are_counted_as_cuda_does(registers, shared, warps, programs):
    assert programs_per_multiprocessor(registers, shared, warps) == programs


def quick_cases():
    of_themes = (import_module(f"kernels.{theme}").COMPILE_CASES for theme in THEMES)
    return [case for found in of_themes for case in covering(found)]


def cases():
    return [case for theme in THEMES for case in import_module(f"kernels.{theme}").COMPILE_CASES]


def traits(case):
    flags = {(name, x) for name, x in case.values.items() if isinstance(x, bool)}
    absent = {(name, x) for name, x in case.values.items() if x is None}
    return flags | {(name_of(case.kernel), *pair) for pair in absent | set(case.types.items())}


def name_of(kernel):
    return f"{kernel.fn.__module__}.{kernel.fn.__name__}" if hasattr(kernel, "fn") else None
