"""The folder of an exported page: what a second export keeps, and how it reaches a browser."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from chromium import CHROMIUM, launched, until, visits
from static_host import Host

from pipeline.export import web


def page_files(*names: str, content: bytes = b"") -> dict[str, bytes]:
    listed = json.dumps({"files": dict.fromkeys(names, 1)}).encode()
    return dict.fromkeys(names, content) | {"world.json": listed}


def test_what_else_is_in_the_folder_of_a_page_stays(tmp_path: Path):
    out = tmp_path / "site"
    (out / ".git").mkdir(parents=True)
    (out / ".git" / "HEAD").write_text("ref: refs/heads/gh-pages")
    web.check_out(out)  # a branch without a page yet
    web.write(out, page_files("old.bin", "page.js", content=b"1"))
    (out / "CNAME").write_text("example.org")
    web.check_out(out)
    web.write(out, page_files("page.js", content=b"2"))
    assert sorted(p.name for p in out.iterdir()) == [".git", "CNAME", "page.js", "world.json"]
    assert (out / "page.js").read_bytes() == b"2"
    assert (out / ".git" / "HEAD").read_text() == "ref: refs/heads/gh-pages"
    assert (out / "CNAME").read_text() == "example.org"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_file_that_is_not_of_the_page_is_not_replaced(tmp_path: Path):
    out = tmp_path / "site"
    web.write(out, page_files("page.js"))
    (out / "index.html").write_text("my own")
    with pytest.raises(ValueError, match=r"index.html is not of the page.*move it away, or choose"):
        web.check_out(out)
    (out / "index.html").unlink()
    (tmp_path / "mine").write_text("x")
    web.write(out, page_files("page.js") | {"world.json": b'{"files": {"../mine": 1}}'})
    web.write(out, page_files("page.js"))
    assert (tmp_path / "mine").exists()  # whatever a list names
    for damaged in (b"[]", b"{}", b"{", b'{"files": 1}'):
        (out / "world.json").write_bytes(damaged)
        with pytest.raises(ValueError, match="is no exported page; choose another --out"):
            web.check_out(out)


def test_a_new_page_is_the_one_that_opens_without_a_network(tmp_path: Path):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    opening = b"<script>navigator.serviceWorker.register('service_worker.js')</script>"
    kept = "fetch('about.txt').then((answer) => answer.text())"

    def export(text: bytes, at: int) -> None:
        files = {"index.html": opening, "about.txt": text}
        files["service_worker.js"] = web.service_worker(files)
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            os.utime(tmp_path / name, (at, at))  # a host tells its browsers

    export(b"old", 10**9)
    host = Host(tmp_path)
    with launched() as browser, visits(browser) as make:
        page = make(host.url)
        assert page.evaluate(kept) == "old"  # the browser holds it, too
        until(page, lambda: page.evaluate("navigator.serviceWorker.controller !== null"))
        export(b"new", 10**9 + 60)
        update = "navigator.serviceWorker.getRegistration().then((one) => one.update())"
        # a browser that is busy may put off a single call
        until(page, lambda: page.evaluate(f"{update}.then(() => {kept})") == "new")
        host.stop()
        assert page.evaluate(kept) == "new"
