"""What can go wrong with a Hub: each fault is one line that says what to do, and leaves nothing."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_hub import READ_TOKEN, TOKEN, FakeHub, Repository, fake_hub
from hub_client import REPO, copy_run, go_offline, toy_run, turn_client

import play
from data.io import hub_client as client
from data.io.files import LOCK_FILE
from data.io.hub_address import HubAddress, parse_address
from pipeline import publish, pull
from pipeline.cli import run_cli
from pipeline.hub.pull_run import pull as pull_run

ADDRESS = f"hf://{REPO}"
PUBLISH = ["run", REPO, "--license", "mit", "--data-license", "mit", "--no-figures"]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("own") / "run")


@pytest.fixture(scope="module")
def published(
    own_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Repository, dict[str, bytes]]:
    """A private run as the Hub holds it once it was published, and its large files."""
    with fake_hub() as hub, pytest.MonkeyPatch.context() as patch:
        turn_client(patch, tmp_path_factory.mktemp("home"), hub, TOKEN)
        publish.main(
            publish.Config(own_run, REPO, license="mit", data_license="mit", figures=False)
        )
        return hub.repositories[REPO], hub.lfs


@pytest.fixture
def hub(
    hub: FakeHub, tmp_path: Path, own_run: Path, published: tuple[Repository, dict[str, bytes]]
) -> FakeHub:
    """A Hub with one private run, and a working folder of the user who published it."""
    copy_run(own_run, tmp_path / "run")
    repository, hub.lfs = copy.deepcopy(published)
    hub.repositories[REPO] = repository
    return hub


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that has to end in one line; give that line."""

    def run(module: object, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["command.py", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_cli(module.main, module.Config, "play" if module is play else None)  # type: ignore[attr-defined]
        printed = capsys.readouterr()
        lines = printed.err.splitlines()
        assert ended.value.code == 1 and len(lines) == 1, printed.err
        assert lines[0].startswith("error: ") and len(lines[0]) < 600
        for token in (TOKEN, READ_TOKEN):
            assert token not in printed.err + printed.out
        return lines[0]

    return run


def nothing_was_made() -> bool:
    return not any(path.is_file() and path.name != LOCK_FILE for path in Path("runs").rglob("*"))


def log_in(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)


# -- reading ----------------------------------------------------------------------------------


def test_a_repository_that_is_not_shown_is_one_of_three(
    hub: FakeHub, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    for token, address in ((TOKEN, "hf://user/other"), ("", ADDRESS)):
        log_in(monkeypatch, token)
        line = refused(pull, address)
        for reason in ("its name is wrong", "it is private", "you are not logged in"):
            assert reason in line
        assert "hf auth login" in line and nothing_was_made()
    assert "its name is wrong" in refused(play, "--run", "hf://user/other", "--headless")


def test_a_gated_repository_says_where_its_license_is_accepted(
    hub: FakeHub, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    hub.repositories[REPO].gated = True
    hub.repositories[REPO].private = False
    for token in ("", READ_TOKEN):
        log_in(monkeypatch, token)
        assert f"is gated; accept its license on {hub.address}/{REPO}" in refused(pull, ADDRESS)
    assert nothing_was_made()


def test_a_revision_that_is_not_there_is_named(hub: FakeHub, refused: Refused):
    for revision in ("v9", "0" * 40):
        line = refused(pull, f"{ADDRESS}@{revision}")
        assert f"there is no branch, tag or commit {revision} in {REPO}" in line
    assert nothing_was_made()


def test_a_token_that_the_hub_does_not_know(
    hub: FakeHub, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    log_in(monkeypatch, "hf_" + "Zz9" * 11)
    line = refused(pull, ADDRESS)
    assert "does not know the token" in line and "Zz9" not in line


def test_a_hub_that_is_not_reached_and_one_with_a_fault(
    hub: FakeHub, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    hub.status = 503
    assert f"{hub.address} has a fault of its own (status 503)" in refused(pull, ADDRESS)
    hub.status = 429
    assert "takes no more requests of yours for now" in refused(pull, ADDRESS)
    hub.status = 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    line = refused(play, "--run", ADDRESS, "--headless")
    assert "http://127.0.0.1:9 cannot be reached (" in line and "is not here" in line
    line = refused(publish, *PUBLISH)
    assert "http://127.0.0.1:9 cannot be reached (" in line and "is not here" not in line
    assert nothing_was_made()


def test_offline_says_what_is_set(hub: FakeHub, refused: Refused, monkeypatch: pytest.MonkeyPatch):
    go_offline(monkeypatch)
    assert "HF_HUB_OFFLINE forbids to ask the Hub; unset it" in refused(pull, ADDRESS)
    assert "HF_HUB_OFFLINE forbids" in refused(play, "--run", ADDRESS, "--headless")
    assert nothing_was_made()
    assert "cannot be written while HF_HUB_OFFLINE is set" in refused(publish, *PUBLISH)


def test_a_download_that_breaks_off_resumes(hub: FakeHub, refused: Refused):
    hub.cut = 10**6
    line = refused(pull, ADDRESS)
    assert "run the same command again" in line
    assert not list(Path("runs/hub").glob("user--world@*"))  # no run that is half there
    hub.cut = 0
    before = len(hub.requests)
    there = pull_run(HubAddress(REPO))
    assert (there / "dynamics" / "best.pt").exists()
    again = [r for r in hub.requests[before:] if r.startswith("GET") and "/resolve/" in r]
    assert not any(r.endswith("README.md") for r in again)  # it came whole the first time
    assert [path.name for path in there.parent.iterdir()] == [there.name]


def test_a_download_that_the_client_gives_up_is_not_used(
    hub: FakeHub, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    """It gives back the folder as it is, where it loses the Hub between two questions."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "snapshot_download", lambda *args, **names: "")
    line = refused(pull, ADDRESS)
    assert "did not come; run the same command again to resume" in line
    assert not list(Path("runs/hub").glob("user--world@*"))


def test_a_file_outside_of_the_run_is_not_pulled(hub: FakeHub):
    files = hub.files(REPO) | {"tokenizer/../../../evil.model.safetensors": b"1"}
    hub.repositories[REPO].commit(files)
    there = pull_run(HubAddress(REPO))
    assert (there / "dynamics" / "best.pt").exists()
    assert not any("evil" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("tokenizer/model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "its fingerprint"),
        ("tokenizer/model.safetensors", lambda b: b[:50], "model.safetensors is damaged"),
        ("dynamics/checkpoint.json", lambda b: b"{", "dynamics: checkpoint.json is damaged"),
        ("dynamics/checkpoint.json", lambda b: b.replace(b": 1.5", b": 2.5"), "its digest"),
        ("run.json", lambda b: b'{"presets": ["no such"]}', "unknown preset 'no such'"),
    ],
)
def test_what_is_damaged_on_the_hub_is_not_used(
    hub: FakeHub, refused: Refused, name: str, change: Callable[[bytes], bytes], problem: str
):
    files = dict(hub.files(REPO))
    files[name] = change(files[name])
    commit = hub.repositories[REPO].commit(files)
    line = refused(pull, ADDRESS)
    assert f"{ADDRESS}@main (commit {commit}) cannot be used: " in line and problem in line
    assert not list(Path("runs/hub").glob("user--world@*"))


def test_a_repository_of_something_else_is_no_run(hub: FakeHub, refused: Refused):
    hub.repositories[REPO].commit({"README.md": b"# a cat", "pytorch_model.bin": b"pickle"})
    assert "it holds no world model of this project" in refused(pull, ADDRESS)
    assert not any("pytorch_model" in request for request in hub.requests)


def test_a_file_that_runs_code_is_not_pulled(hub: FakeHub):
    files = hub.files(REPO) | {"tokenizer/best.pt": b"pickle", "tokenizer/evil.py": b"1/0"}
    hub.repositories[REPO].commit(files)
    there = pull_run(HubAddress(REPO))
    assert (there / "tokenizer" / "best.pt").read_bytes() != b"pickle"
    assert not (there / "tokenizer" / "evil.py").exists()
    assert not any(name in request for request in hub.requests for name in ("evil", "best.pt"))


def test_a_damaged_record_of_a_pull_is_named(hub: FakeHub, refused: Refused):
    there = pull_run(HubAddress(REPO))
    (there / "pulled.json").write_text(json.dumps({"repo": REPO}))
    assert f"{there}/pulled.json is damaged" in refused(play, "--run", ADDRESS, "--headless")


@pytest.mark.parametrize(
    "address",
    ["hf://user", "hf://user/world@", "hf://user/world@a b", "hf://user/../world", "user/world",
     "hf://a/b/c", "hf:///world", "hf://user/world@-x"],
)  # fmt: skip
def test_what_is_no_address_is_refused(hub: FakeHub, refused: Refused, address: str):
    before = len(hub.requests)
    line = refused(pull, address)
    assert "is no address of a published run; write hf://USER/NAME" in line
    if address.startswith("hf://"):
        assert line.startswith("error: --run ") or "--run" in refused(play, "--run", address)
    assert len(hub.requests) == before
    with pytest.raises(ValueError, match="--train.init-from"):
        parse_address(address, "--train.init-from")


# -- writing ----------------------------------------------------------------------------------


def test_who_may_not_write_is_told_so(
    hub: FakeHub, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    commits = dict(hub.repositories[REPO].commits)
    log_in(monkeypatch, READ_TOKEN)
    line = refused(publish, *PUBLISH)
    assert "may not write to it" in line and f"{hub.address}/settings/tokens" in line
    log_in(monkeypatch, "")
    line = refused(publish, *PUBLISH)
    assert "hf auth login" in line
    assert hub.repositories[REPO].commits == commits
    assert not (Path("run") / ".publish").exists()


def test_a_card_that_the_hub_refuses(hub: FakeHub, refused: Refused):
    hub.bad_card = '"license" must be one of [mit, apache-2.0]'
    line = refused(publish, *PUBLISH)
    assert "the Hub refuses the card" in line and '"license" must be one of' in line


def test_a_run_that_cannot_be_published_is_named(hub: FakeHub, refused: Refused):
    before = len(hub.requests)
    line = refused(publish, "nowhere", *PUBLISH[1:])
    assert "nowhere is no folder of a run" in line and not Path("nowhere").exists()
    Path("empty").mkdir()
    assert "empty holds no best.pt" in refused(publish, "empty", *PUBLISH[1:])
    assert not list(Path("empty").iterdir())
    (Path("run") / "dynamics" / "best.pt").unlink()
    assert "dynamics/best.pt is not there" in refused(publish, *PUBLISH)
    assert "is no name of a repository" in refused(publish, "run", "world", *PUBLISH[2:])
    assert len(hub.requests) == before


def test_without_the_library_one_line_says_how_to_install_it(
    hub: FakeHub, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    for missing in ("huggingface_hub", "safetensors"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, missing, None)
            line = refused(pull, ADDRESS)
            assert f"the Hugging Face Hub needs {missing}" in line
            assert "pip install -r requirements-hub.txt" in line
    assert client.endpoint() == hub.address
