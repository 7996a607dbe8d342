"""Tests run on one thread: their tensors are tiny, and threads wait for each other."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
# a shell's job in the background ignores Ctrl-C, and what it starts would, too
in_main_thread = threading.current_thread() is threading.main_thread()
if in_main_thread and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="of each file the first test that is not marked slow"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes seconds, and is left out by --fast")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: a sixth of the time a test waits for a browser or a server."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --fast keep one test of each file, so that every module is entered once."""
    if not config.getoption("--fast"):
        return
    first: dict[str, pytest.Item] = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            first.setdefault(item.nodeid.partition("::")[0], item)
    kept = set(map(id, first.values()))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = first.values()


@pytest.fixture(autouse=True)
def where_kernels_run(request: pytest.FixtureRequest) -> Iterator[None]:
    """In files that hold kernels to their definitions (`each_place`), what a test makes lies on the
    GPU where there is one, for that is where a kernel reads it."""
    if torch.cuda.is_available() and hasattr(request.module, "each_place"):
        with torch.device("cuda"):
            yield
    else:
        yield


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for a file's tests, which are skipped where there is none."""
    from chromium import launched

    with launched() as browser:
        yield browser


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens addresses, each in a context of its own."""
    from chromium import visits

    with visits(chromium) as make:
        yield make


@pytest.fixture(scope="module")
def house_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data.toy import write_toy_shards

    return write_toy_shards(tmp_path_factory.mktemp("run") / "shards", episodes=12)


@pytest.fixture
def make_house(house_shards: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes servers of the page to play in, without a process."""
    from browser_house import houses

    with houses(house_shards, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A store of S3's kind for a file's tests, which are skipped where there is none."""
    from local_store import served

    with served() as found:
        yield found


@pytest.fixture
def address(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: Any, tmp_path: Path) -> str:
    """A place in it of the test's own; the test runs in its own folder."""
    from local_store import place

    monkeypatch.chdir(tmp_path)
    return place(endpoint, request.node.name, monkeypatch)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that can be published, with its report; to be copied, not changed."""
    from hub_client import measured_run

    return measured_run(tmp_path_factory.mktemp("measured") / "run")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hub on this machine, and a working folder of its user, who may write."""
    from fake_hub import TOKEN, fake_hub
    from hub_client import turn_client

    with fake_hub() as server:
        turn_client(monkeypatch, tmp_path / "home", server, TOKEN)
        monkeypatch.chdir(tmp_path)
        yield server
