import hashlib
import resource
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from data.download import fetch

CONTENT = bytes(range(256)) * 4000


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT; the first answers have the faults listed in `faults`."""

    faults: ClassVar[list[str]] = []
    ranges: ClassVar[list[str | None]] = []
    finished: ClassVar[threading.Event] = threading.Event()

    def do_GET(self):
        requested = self.headers.get("Range")
        self.ranges.append(requested)
        fault = self.faults.pop(0) if self.faults else ""
        if fault.isdigit():
            return self.send_error(int(fault))
        first = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
        if fault == "ignores ranges":
            first = 0
        if first >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        back = 500 if fault == "begins earlier" else 0
        rest = b"" if fault == "empty" else CONTENT[first - back :]
        length = "many" if fault == "nonsense" else len(rest) + (999 if fault == "lies" else 0)
        self.send_response(206 if first else 200)
        if first:
            last = len(CONTENT) - 1
            self.send_header("Content-Range", f"bytes {first - back}-{last}/{len(CONTENT)}")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        part = rest[: len(rest) // 2] if fault in ("breaks off", "stalls") else rest
        self.wfile.write(part)
        self.wfile.flush()
        if fault == "stalls":
            self.finished.wait(5)

    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def url():
    Server.faults, Server.ranges, Server.finished = [], [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/pusht.zip"
    Server.finished.set()
    server.shutdown()
    server.server_close()


def get(url, folder, sha256=None):
    return fetch(url, folder, sha256, retry_delay=0.01)


def test_a_file_is_downloaded_whole_and_only_once(url, tmp_path):
    path = get(url, tmp_path, hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT and path.name == "pusht.zip"
    assert list(tmp_path.iterdir()) == [path]
    get(url, tmp_path)
    assert len(Server.ranges) == 1


@pytest.mark.parametrize("fault", ["breaks off", "lies", "503", "500", "429", "empty", "nonsense"])
def test_a_download_resumes_after_a_fault(url, tmp_path, fault):
    Server.faults = [fault, fault]
    assert get(url, tmp_path).read_bytes() == CONTENT
    if fault == "breaks off":
        assert Server.ranges == [None, f"bytes={len(CONTENT) // 2}-", "bytes=768000-"]


def test_the_next_call_resumes_a_partial_file(url, tmp_path):
    (tmp_path / "pusht.zip.partial").write_bytes(CONTENT[:1000])
    assert get(url, tmp_path).read_bytes() == CONTENT
    assert Server.ranges == ["bytes=1000-"]


def test_a_server_without_ranges_sends_the_whole_file(url, tmp_path):
    (tmp_path / "pusht.zip.partial").write_bytes(CONTENT[:1000])
    Server.faults = ["ignores ranges"]
    assert get(url, tmp_path).read_bytes() == CONTENT


def test_a_missing_file_is_an_error_at_once(url, tmp_path):
    Server.faults = ["404"]
    with pytest.raises(ValueError, match="404 Not Found") as problem:
        get(url, tmp_path)
    assert len(Server.ranges) == 1 and "\n" not in str(problem.value)


def test_it_gives_up_after_five_attempts_and_keeps_received_bytes(url, tmp_path):
    Server.faults = ["breaks off"] + ["503"] * 9
    with pytest.raises(ValueError, match=r"in 5 attempts .*503.* run the same command again"):
        get(url, tmp_path)
    assert (tmp_path / "pusht.zip.partial").stat().st_size == len(CONTENT) // 2


def test_another_checksum_is_refused(url, tmp_path):
    with pytest.raises(ValueError, match="is required"):
        get(url, tmp_path, "0" * 64)
    assert not list(tmp_path.iterdir())


def test_a_wrong_checksum_does_not_delete_an_existing_file(url, tmp_path):
    path = get(url, tmp_path)
    with pytest.raises(ValueError, match=r"pusht\.zip is there, but its SHA-256 .*--checksum"):
        get(url, tmp_path, "0" * 64)
    assert path.read_bytes() == CONTENT


def test_a_complete_partial_file_is_not_downloaded_again(url, tmp_path):
    (tmp_path / "pusht.zip.partial").write_bytes(CONTENT)
    assert get(url, tmp_path).read_bytes() == CONTENT
    assert Server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_partial_file_longer_than_the_file_starts_over(url, tmp_path):
    (tmp_path / "pusht.zip.partial").write_bytes(CONTENT + b"more")
    assert get(url, tmp_path).read_bytes() == CONTENT


def test_bytes_from_another_offset_than_requested_do_not_damage_the_file(url, tmp_path):
    (tmp_path / "pusht.zip.partial").write_bytes(CONTENT[:1000])
    Server.faults = ["begins earlier"]
    assert get(url, tmp_path).read_bytes() == CONTENT
    assert Server.ranges == ["bytes=1000-"]


def test_a_stalled_request_is_repeated(url, tmp_path, monkeypatch):
    monkeypatch.setattr("data.download.TIMEOUT", 0.3)
    Server.faults = ["stalls"]
    assert get(url, tmp_path).read_bytes() == CONTENT
    assert Server.ranges == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_full_disk_is_an_error_at_once_and_keeps_received_bytes(url, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"partial cannot be written .*run again to resume"):
            get(url, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(Server.ranges) == 1
    assert (tmp_path / "pusht.zip.partial").read_bytes() == CONTENT[:300_000]
    assert get(url, tmp_path).read_bytes() == CONTENT
