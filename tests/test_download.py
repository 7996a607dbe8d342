import hashlib
import json
import resource
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from data.io.download import fetch, local_file
from preprocess import PushTConfig
from preprocess import pusht as pusht_command

CONTENT = bytes(range(256)) * 4000


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT; the first answers have the faults listed in `faults`."""

    faults: ClassVar[list[str]] = []
    ranges: ClassVar[list[str | None]] = []
    pages: ClassVar[dict[str, tuple[int, str, bytes]]] = {}  # status, location, content
    finished: ClassVar[threading.Event] = threading.Event()

    def do_GET(self):
        if self.path in self.pages:
            return self.send_page(*self.pages[self.path])
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

    def send_page(self, status, location, content):
        self.ranges.append(self.headers.get("Range"))
        self.send_response(status, "x" * 9000 if status == 404 else None)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def url():
    Server.faults, Server.ranges, Server.finished = [], [], threading.Event()
    Server.pages = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/pusht.zip"
    Server.finished.set()
    server.shutdown()
    server.server_close()


def get(url, folder, sha256=None, **more):
    return fetch(url, folder / "pusht.zip", sha256, retry_delay=0.01, **more)


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
    monkeypatch.setattr("data.io.download.TIMEOUT", 0.3)
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


def demos(address, folder, sha256=None, **more):
    return local_file(address, folder, "--demos", sha256, **more)


def test_two_urls_of_one_name_are_kept_apart(url, tmp_path):
    other = url.replace("pusht.zip", "get?file=2&name=/pusht.zip")
    Server.pages = {other[other.index("/get") :]: (200, "", b"other")}
    assert demos(url, tmp_path).read_bytes() == CONTENT
    assert demos(url.replace("pusht.zip", "deep/pusht.zip"), tmp_path) != demos(url, tmp_path)
    assert demos(other, tmp_path).read_bytes() == b"other"
    assert len(Server.ranges) == 3


def test_a_partial_file_of_another_url_is_not_resumed(url, tmp_path, monkeypatch):
    monkeypatch.setattr("data.io.download.time.sleep", lambda _: None)
    Server.faults = ["breaks off", *["503"] * 4]
    with pytest.raises(ValueError, match="5 attempts"):
        demos(url, tmp_path)
    assert demos(url.replace("pusht.zip", "2/pusht.zip"), tmp_path).read_bytes() == CONTENT
    assert Server.ranges[-1] is None
    assert demos(url, tmp_path).read_bytes() == CONTENT
    assert Server.ranges[-1] == f"bytes={len(CONTENT) // 2}-"


def test_a_download_of_an_earlier_version_is_moved_to_its_place(url, tmp_path):
    (tmp_path / "pusht.zip").write_bytes(b"earlier")
    assert demos(url, tmp_path, earlier=True).read_bytes() == b"earlier"
    assert not Server.ranges and not (tmp_path / "pusht.zip").exists()
    (tmp_path / "x.zip").write_bytes(b"of another address")
    assert demos(url.replace("pusht.zip", "x.zip"), tmp_path).read_bytes() == CONTENT


def test_processes_that_need_one_file_download_it_once(url, tmp_path):
    Server.faults = ["stalls"]
    threads = [threading.Thread(target=demos, args=(url, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    Server.finished.set()
    for thread in threads:
        thread.join(20)
    assert demos(url, tmp_path).read_bytes() == CONTENT
    assert Server.ranges == [None, f"bytes={len(CONTENT) // 2}-"]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("file:///etc/hostname", "names a file; give its path alone"),
        ("file://localhost/etc/hostname", "names a file"),
        ("ftp://h/x.zip", "the scheme 'ftp', but only http and https"),
        ("s3://bucket/x.zip", "the scheme 's3', but only http and https"),
        ("http:///x.zip", "the host '', which is none"),
        ("http://.../x.zip", "which is none|is no address"),
        ("http://[::1/x.zip", "is no address"),
        ("http://h:port/x.zip", "is no address"),
        ("http://h:99999/x.zip", "is no address"),
        ("http://" + "a" * 70 + "/x.zip", "is no address"),
        ("http://a b/x.zip", "blanks"),
        ("http://h/a b.zip", "blanks"),
        ("http://h/\n.zip", "blanks"),
        ("http://user:word@h/x.zip", "holds a user name"),
        ("data://text/plain,x" + "y" * 9000, "the scheme 'data'"),
    ],
)
def test_an_address_that_can_never_work_is_refused_without_a_request(address, problem, tmp_path):
    with pytest.raises(ValueError, match=problem) as refused:
        demos(address, tmp_path)
    assert str(refused.value).startswith("--demos ") and len(str(refused.value)) < 500
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "times"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 5)])
def test_an_unknown_host_is_asked_for_once_and_a_busy_name_server_again(
    number, times, tmp_path, monkeypatch
):
    asked = []

    def fail(*arguments, **_):
        asked.append(arguments)
        raise socket.gaierror(number, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ValueError, match="no such name"):
        get("http://nowhere/pusht.zip", tmp_path)
    assert len(asked) == times


def test_a_server_without_tls_is_asked_once(url, tmp_path):
    with pytest.raises(ValueError, match="WRONG_VERSION_NUMBER.*check --demos"):
        get(url.replace("http:", "https:"), tmp_path, given="--demos")


@pytest.mark.parametrize(
    "target",
    ["file:///etc/hostname", "ftp://127.0.0.1/x", "http://a b/", "http://u@h/", "/"],
)
def test_a_redirect_leads_to_http_alone_and_ends(url, tmp_path, target):
    Server.pages = {"/pusht.zip": (302, target, b""), "/": (302, "/", b"")}
    with pytest.raises(ValueError, match=r"cannot be downloaded: .* 302 ") as problem:
        get(url, tmp_path)
    assert "\n" not in str(problem.value) and not (tmp_path / "pusht.zip").exists()


def test_a_redirect_to_http_is_followed(url, tmp_path):
    Server.pages = {"/moved": (302, "/pusht.zip", b"")}
    assert get(url.replace("pusht.zip", "moved"), tmp_path).read_bytes() == CONTENT


def test_what_a_server_says_is_cut(url, tmp_path):
    Server.pages = {"/pusht.zip": (404, "", b"")}
    with pytest.raises(ValueError, match="404 xxx") as problem:
        get(url, tmp_path)
    assert len(str(problem.value)) < 500


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"<!DOCTYPE html><html>sign in</html>", "gave an HTML page"),
        (b'{"error": "no such file"}', "gave a JSON text"),
        (b"PK\3\4" + bytes(400), "gave a zip archive without its end"),
    ],
)
def test_what_is_no_archive_is_deleted_and_downloaded_anew(url, tmp_path, content, named):
    config = PushTConfig(tmp_path, demos=url, num_workers=1)
    Server.pages = {"/pusht.zip": (200, "", content)}
    for requests in (1, 2):
        with pytest.raises(ValueError, match=f"pusht.zip {named}.*deleted: check --demos"):
            pusht_command(config)
        assert len(Server.ranges) == requests
    assert not list((tmp_path / "download").rglob("pusht.zip*"))


def test_a_page_that_was_kept_before_is_downloaded_anew(url, tmp_path):
    (tmp_path / "pusht.zip").write_bytes(b"<html>")

    def check(path):
        return "a page" if path.read_bytes().startswith(b"<") else ""

    assert get(url, tmp_path, check=check).read_bytes() == CONTENT


def test_the_checksum_of_a_local_file_is_compared(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(CONTENT)
    right = hashlib.sha256(CONTENT).hexdigest()
    assert demos(str(path), tmp_path, right.upper()) == path
    for sha256, problem in (
        ("0" * 64, r"x\.npz: its SHA-256 is .*correct --checksum"),
        (right[:60], "is no SHA-256"),
    ):
        with pytest.raises(ValueError, match=problem):
            demos(str(path), tmp_path, sha256)
    with pytest.raises(ValueError, match="is a folder, and --checksum is that of a file"):
        demos(str(tmp_path), tmp_path, right)
    with pytest.raises(ValueError, match="--checksum needs --demos"):
        pusht_command(PushTConfig(tmp_path / "run", checksum=right))


@pytest.mark.parametrize(("named", "requests"), [("pusht.zip", 0), ("other/pusht.zip", 1)])
def test_an_earlier_download_is_used_where_the_shards_are_of_its_url(
    url, tmp_path, named, requests
):
    (tmp_path / "shards").mkdir()
    command = f"python preprocess.py pusht --demos {url}"
    info = {"description": {}, "shards": 1, "command": command, "seconds": 0.0}
    (tmp_path / "shards" / "build.json").write_text(json.dumps(info))
    (tmp_path / "download").mkdir()
    with zipfile.ZipFile(tmp_path / "download" / "pusht.zip", "w") as archive:
        archive.writestr("notes", "no demonstrations")
    demos = url.replace("pusht.zip", named)
    with pytest.raises(ValueError):
        pusht_command(PushTConfig(tmp_path, demos=demos, num_workers=1))
    assert len(Server.ranges) == requests
