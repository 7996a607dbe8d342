import json
import os
import resource
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from data.vpt.index import download_recordings, load_index

VIDEO = b"\0\0\0\x10ftypisom\0\0\0\0" + (50_016).to_bytes(4, "big") + b"mdat" + bytes(50_008)
LOG = b'{"tick": 0}\n' * 2000


class Server(BaseHTTPRequestHandler):
    """Serves `files`; the first answers for a path have the faults listed in `faults`."""

    files: ClassVar[dict[str, bytes]] = {}
    faults: ClassVar[dict[str, list[str]]] = {}
    requested: ClassVar[list[tuple[str, str | None]]] = []
    stalled: ClassVar[threading.Semaphore] = threading.Semaphore(0)
    finished: ClassVar[threading.Event] = threading.Event()

    def do_GET(self):
        place = self.headers.get("Range")
        self.requested.append((self.path, place))
        faults = self.faults.get(self.path, [])
        fault = faults.pop(0) if faults else ""
        if fault.isdigit() or self.path not in self.files:
            return self.send_error(int(fault or 404))
        content = self.files[self.path]
        first = int(place.removeprefix("bytes=").removesuffix("-")) if place else 0
        rest = content[first:]
        lie = {"promises more": 999, "promises less": -999}.get(fault, 0)
        self.send_response(206 if place else 200)
        if place:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(rest) + lie))
        self.end_headers()
        broken = fault in ("breaks off", "stalls")
        self.wfile.write(rest[: len(rest) // 2] if broken else rest)
        self.wfile.flush()
        if fault == "stalls":
            self.stalled.release()
            self.finished.wait(60)

    def log_message(self, format: str, *args: Any):
        pass


@pytest.fixture
def url():
    Server.files, Server.faults, Server.requested = {}, {}, []
    Server.stalled, Server.finished = threading.Semaphore(0), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    Server.finished.set()
    server.shutdown()
    server.server_close()


def serve(url, *homes):
    for home in homes:
        Server.files |= {f"/data/{home}.mp4": VIDEO, f"/data/{home}.jsonl": LOG}
    return [f"{url}/data/{home}" for home in homes]


def get(stems, folder, skip_invalid=False, workers=3, timeout=0.5):
    return download_recordings(
        stems, folder, workers, skip_invalid, retry_delay=0.01, timeout=timeout
    )


def downloads():
    return [thread for thread in threading.enumerate() if thread.name == "download"]


def index(**keys):
    return json.dumps(keys).encode()


def test_pairs_keep_their_order_and_are_downloaded_once(url, tmp_path):
    stems = serve(url, "10.0/b", "10.0/a", "10.0/c")
    pairs, skipped = get(stems, tmp_path)
    assert [pair.name for pair in pairs] == ["10.0/b", "10.0/a", "10.0/c"] and skipped == []
    assert all(pair.video.read() == VIDEO and pair.log.read() == LOG for pair in pairs)
    assert Path(pairs[0].video.path).match("10.0/b.mp4")
    assert len(Server.requested) == 6
    assert get(stems, tmp_path)[0] == pairs and len(Server.requested) == 6


def test_one_name_in_two_versions_is_two_recordings(url, tmp_path):
    stems = serve(url, "9.0/a", "10.0/a")
    Server.files["/data/10.0/a.jsonl"] = LOG * 2
    pairs, _ = get(stems, tmp_path)
    assert [len(pair.log.read()) for pair in pairs] == [len(LOG), 2 * len(LOG)]


def test_recordings_of_one_name_from_two_servers_are_kept_apart(url, tmp_path):
    (first,) = serve(url, "10.0/a")
    Server.files |= {"/other/10.0/a.mp4": VIDEO, "/other/10.0/a.jsonl": LOG * 2}
    ((mine,), _), ((other,), _) = get([first], tmp_path), get([f"{url}/other/10.0/a"], tmp_path)
    assert mine.name == other.name
    assert (len(mine.log.read()), len(other.log.read())) == (len(LOG), 2 * len(LOG))


def test_downloads_of_an_earlier_version_are_moved(url, tmp_path):
    stems = serve(url, "10.0/a")
    (tmp_path / "10.0").mkdir()
    (tmp_path / "10.0" / "a.mp4").write_bytes(VIDEO)
    ((pair,), _) = download_recordings(stems, tmp_path, 1, False, earlier=True)
    assert pair.video.read() == VIDEO and pair.log.read() == LOG
    assert [path for path, _ in Server.requested] == ["/data/10.0/a.jsonl"]


def test_an_unknown_server_ends_all_downloads_at_once(tmp_path, monkeypatch):
    asked = []

    def unknown(host, *_, **__):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ValueError, match="not known; check the index"):
        get([f"http://none/10.0/{n}" for n in range(20)], tmp_path, skip_invalid=True, workers=1)
    assert len(asked) <= 20  # none twice


def test_two_recordings_of_one_file_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"would both be named 10\.0/a"):
        get(["http://s/x/10.0/a", "http://s/y/10.0/a"], tmp_path)


@pytest.mark.parametrize("fault", ["breaks off", "stalls", "promises more", "503"])
@pytest.mark.parametrize("suffix", [".mp4", ".jsonl"])
def test_a_pair_arrives_whole_after_faults(url, tmp_path, fault, suffix):
    stems = serve(url, "10.0/a", "10.0/b")
    path = f"/data/10.0/a{suffix}"
    Server.faults = {path: [fault, fault]}
    pairs, _ = get(stems, tmp_path)
    assert pairs[0].video.read() == VIDEO and pairs[0].log.read() == LOG
    if fault in ("breaks off", "stalls"):  # received bytes are not requested again
        whole = len(Server.files[path])
        places = [place for requested, place in Server.requested if requested == path]
        assert places == [None, f"bytes={whole // 2}-", f"bytes={whole // 2 + whole // 4}-"]


@pytest.mark.parametrize("suffix", [".mp4", ".jsonl"])
def test_a_missing_file_is_named_and_can_be_skipped(url, tmp_path, suffix):
    stems = serve(url, "10.0/a", "10.0/b", "10.0/c")
    del Server.files[f"/data/10.0/b{suffix}"]
    with pytest.raises(ValueError, match=rf"10\.0/b\{suffix} .*404.*--skip-invalid") as problem:
        get(stems, tmp_path)
    assert "\n" not in str(problem.value)
    pairs, skipped = get(stems, tmp_path, skip_invalid=True)
    assert [pair.name for pair in pairs] == ["10.0/a", "10.0/c"]
    assert len(skipped) == 1 and f"10.0/b{suffix} cannot be downloaded" in skipped[0]


def test_a_video_without_a_log_is_not_downloaded(url, tmp_path):
    stems = serve(url, "10.0/a", "10.0/b")
    del Server.files["/data/10.0/b.jsonl"]
    get(stems, tmp_path, skip_invalid=True)
    assert "/data/10.0/b.mp4" not in [path for path, _ in Server.requested]


def test_a_server_that_always_fails_is_given_up(url, tmp_path):
    stems = serve(url, "10.0/a", "10.0/b")
    Server.faults = {"/data/10.0/b.mp4": ["503"] * 99}
    pairs, skipped = get(stems, tmp_path, skip_invalid=True)
    assert [pair.name for pair in pairs] == ["10.0/a"]
    assert len(skipped) == 1 and "in 5 attempts" in skipped[0] and "503" in skipped[0]


@pytest.mark.parametrize("skip_invalid", [False, True])
def test_no_recording_at_all_is_an_error(url, tmp_path, skip_invalid):
    with pytest.raises(ValueError, match=r"404 Not Found"):
        get([f"{url}/data/10.0/a", f"{url}/data/10.0/b"], tmp_path, skip_invalid)


@pytest.mark.parametrize("suffix", [".mp4", ".jsonl"])
def test_an_error_page_is_not_taken_for_a_recording(url, tmp_path, suffix):
    stems = serve(url, "10.0/a", "10.0/b")
    Server.files[f"/data/10.0/b{suffix}"] = b"<html>We are sorry</html>"
    with pytest.raises(ValueError, match=rf"b\{suffix} gave no .*<html>We are.*--skip-invalid"):
        get(stems, tmp_path)
    assert not list(tmp_path.rglob(f"b{suffix}*"))
    assert [pair.name for pair in get(stems, tmp_path, skip_invalid=True)[0]] == ["10.0/a"]


@pytest.mark.parametrize("suffix", [".mp4", ".jsonl"])
def test_a_file_longer_than_the_server_reports_is_not_kept(url, tmp_path, suffix):
    stems = serve(url, "10.0/a", "10.0/b")
    Server.faults = {f"/data/10.0/a{suffix}": ["promises less"]}
    with pytest.raises(ValueError, match=rf"a\{suffix} gave .*it was deleted"):
        get(stems, tmp_path)
    assert get(stems, tmp_path)[0][0].video.read() == VIDEO  # the next call downloads it


def test_an_error_stops_the_other_downloads_and_keeps_received_bytes(url, tmp_path):
    stems = serve(url, *(f"10.0/{n}" for n in range(60)))
    Server.faults = {"/data/10.0/0.jsonl": ["stalls"], "/data/10.0/5.jsonl": ["404"]}
    with pytest.raises(ValueError, match="404"):
        get(stems, tmp_path, workers=2)
    for thread in downloads():
        thread.join(5)  # on a busy machine the stalled one may take longer
    assert not downloads()
    assert next(tmp_path.rglob("0.jsonl.partial")).stat().st_size == len(LOG) // 2
    requested = len(Server.requested)
    assert requested < 40  # not all of the 120 files
    time.sleep(0.1)
    assert len(Server.requested) == requested
    assert len(get(stems[:10], tmp_path)[0]) == 10


@pytest.fixture
def interruptible():
    """Enable SIGINT, which shells ignore for background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_stalled_downloads_at_once_and_keeps_received_bytes(url, tmp_path):
    stems = serve(url, "10.0/a", "10.0/b", "10.0/c")
    Server.faults = {f"/data/10.0/{name}.mp4": ["stalls"] for name in "abc"}
    started, working = [], []

    def partial_sizes():
        return [path.stat().st_size for path in tmp_path.rglob("*.mp4.partial")]

    def interrupt():
        for _ in stems:
            Server.stalled.acquire(timeout=20)
        until = time.monotonic() + 60
        while partial_sizes() != [len(VIDEO) // 2] * 3 and time.monotonic() < until:
            time.sleep(0.01)
        started.append(time.monotonic())
        working.extend(downloads())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        get(stems, tmp_path, timeout=300)
    assert time.monotonic() - started[0] < 100  # the downloads would wait for 300
    assert partial_sizes() == [len(VIDEO) // 2] * 3
    Server.finished.set()
    for thread in working:
        thread.join(5)
    assert len(working) == 3 and all(thread.daemon for thread in working)
    assert not downloads() and len(Server.requested) == 6  # none retries
    assert all(pair.video.read() == VIDEO for pair in get(stems, tmp_path)[0])


def test_a_full_disk_is_not_an_invalid_recording(url, tmp_path):
    stems = serve(url, "10.0/a", "10.0/b")
    Server.files["/data/10.0/b.mp4"] = VIDEO[:16]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"partial cannot be written .*run again to resume"):
            get(stems, tmp_path, skip_invalid=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert get(stems, tmp_path)[0][0].video.read() == VIDEO


def test_one_bar_counts_files_and_bytes(url, tmp_path, capsys):
    get(serve(url, "10.0/a", "10.0/b"), tmp_path)
    printed = capsys.readouterr().err
    assert "4/4" in printed and f"{2 * (len(VIDEO) + len(LOG)) / 1e6:.1f} MB" in printed
    assert ".mp4" not in printed and ".jsonl" not in printed


def test_an_index_is_read_from_a_file_or_a_url(url, tmp_path):
    content = index(basedir=url, relpaths=["data/10.0/a.mp4"])
    (tmp_path / "i.json").write_bytes(content)
    Server.files["/i.json"] = content
    stems = [f"{url}/data/10.0/a"]
    assert load_index(str(tmp_path / "i.json"), tmp_path / "kept") == stems
    assert not Server.requested and not (tmp_path / "kept").exists()
    for _ in range(2):  # the second time from disk
        assert load_index(f"{url}/i.json", tmp_path / "kept") == stems
    assert Server.requested == [("/i.json", None)]


def test_indexes_of_one_name_from_two_urls_are_kept_apart(url, tmp_path):
    for place in "xy":
        Server.files[f"/{place}/i.json"] = index(basedir=url, relpaths=[f"data/{place}"])
    loaded = [load_index(f"{url}/{place}/i.json", tmp_path) for place in "xy"]
    assert loaded == [[f"{url}/data/x"], [f"{url}/data/y"]]


def test_an_error_page_is_not_an_index_and_is_not_kept(url, tmp_path):
    Server.files["/i.json"] = b"<html>"
    with pytest.raises(ValueError, match=r"i\.json starts with b'<html>', not JSON"):
        load_index(f"{url}/i.json", tmp_path)
    Server.files["/i.json"] = index(basedir=url, relpaths=["data/a"])
    assert load_index(f"{url}/i.json", tmp_path) == [f"{url}/data/a"]


def test_a_missing_index_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json does not exist; --index takes"):
        load_index(str(tmp_path / "none.json"), tmp_path)
