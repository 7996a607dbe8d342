"""Publish a run on the Hugging Face Hub: weights as safetensors, the rest as JSON, and a card.

Reads   RUN/run.json, every best.pt of RUN, RUN/report/metrics.json; RUN/shards with --with-shards.
Writes  one commit of USER/NAME, private unless --public; files of earlier ones are removed.
Try     python -m pipeline.publish runs/pusht USER/NAME --license mit --data-license mit
Next    python play.py --run hf://USER/NAME
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.io.files import lock
from data.io.hub_address import HubAddress, check_repo
from data.io.hub_client import holds_token, hub_api, page_of, plain_errors
from data.io.messages import command
from data.ranges import CheckedConfig
from pipeline.hub.collect import collect

PARTS = ".publish"  # folder in the run in which what is published is put together


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path
    """Folder of the run to publish."""
    repo: str
    """USER/NAME of the repository; it is made where it is not there."""
    license: str = ""
    """License of the weights, as the Hub names it: mit, apache-2.0, cc-by-4.0, other ..."""
    data_license: str = ""
    """License of the recordings that it was trained on."""
    description: str = ""
    """A sentence or two for the card."""
    public: bool = False
    """Let everybody read it; otherwise it is private."""
    with_shards: bool = False
    """Publish the shards, too, so that who pulls the run can play and evaluate at once; the license
    of the data has to allow it."""
    figures: bool = True
    """Put the figures of RUN/report into the card."""
    out: Path | None = None
    """Write the files into this folder, and publish nothing; `python -m pipeline.pull FOLDER --out
    RUN` makes a run of them."""


def main(config: Config) -> None:
    address = HubAddress(check_repo(config.repo, "the repository"))
    if not config.license or not config.data_license:
        missing = "--license" if not config.license else "--data-license"
        raise ValueError(
            f"{missing} is not given; name the license of the weights (--license mit) and that of "
            f"the recordings (--data-license), which the card says"
        )
    with _folder(config) as folder:
        collect(
            config.run,
            address,
            folder,
            config.license,
            config.data_license,
            description=config.description,
            with_shards=config.with_shards,
            with_figures=config.figures,
        )
        check_no_token(folder)
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        size = sum(path.stat().st_size for path in files) / 2**20
        if config.out is not None:
            play = command("-m pipeline.pull", folder, "--out", "RUN")
            print(
                f"publish: {len(files)} files, {size:.1f} MiB, in {folder}; nothing is published; "
                f"{play} makes a run of them"
            )
            return
        who = "public" if config.public else "private"
        print(f"publish: {len(files)} files, {size:.1f} MiB, to {page_of(address.repo)} ({who})")
        commit = upload(folder, address, config.public)
    print(f"publish: {address.at(commit)}")


def upload(folder: Path, address: HubAddress, public: bool) -> str:
    """Make the repository where it is not there, and replace all its files; return the commit.

    ValueError where it is there and public, and `public` does not say so, or the other way round.
    """
    api = hub_api()
    with plain_errors(address, writing=True):
        api.create_repo(address.repo, private=not public, exist_ok=True)
        is_private = bool(api.model_info(address.repo).private)
    if is_private == public:
        there, flag = ("private", "leave --public out") if public else ("public", "give --public")
        raise ValueError(
            f"{address.repo} is there and {there}; {flag}, change that on "
            f"{page_of(address.repo)}/settings, or choose another name"
        )
    with plain_errors(address, writing=True):
        commit = api.upload_folder(
            repo_id=address.repo,
            folder_path=folder,
            ignore_patterns=[".lock"],
            delete_patterns=["*"],  # of files that are not in the folder
            commit_message="Publish a world model",
        )
    return commit.oid


def check_no_token(folder: Path) -> None:
    """Raise ValueError where a text that is to be published holds a token of the Hub."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".md") and holds_token(path.read_text()):
            raise ValueError(
                f"{path.relative_to(folder)} would hold a token of the Hub; take it out of the "
                f"run's presets, flags or paths"
            )


@contextmanager
def _folder(config: Config) -> Iterator[Path]:
    """Give an empty folder; it stays only where --out names it."""
    if config.out is not None:
        if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
            raise ValueError(f"--out {config.out} holds something; choose a folder that is empty")
        config.out.mkdir(parents=True, exist_ok=True)
        yield config.out
        return
    if not config.run.is_dir():
        raise ValueError(f"{config.run} is no folder of a run")
    folder = config.run / PARTS
    with lock(folder, flag="RUN"):
        for path in folder.iterdir():  # of a publication that was killed
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config)
