"""A Hugging Face Hub on this machine: repositories of commits, uploads, and the faults of a server.

It speaks what huggingface_hub does with HF_HUB_DISABLE_XET=1: the API of repositories and commits,
git-lfs uploads, and downloads with their redirects left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "Ab1" * 11
"""Of a user who may write."""
READ_TOKEN = "hf_" + "Cd2" * 11
"""Of one who may only read."""


@dataclass
class Repository:
    private: bool
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by path, of each commit, the newest last."""
    refs: dict[str, str] = field(default_factory=dict)
    """Commits by the names of branches and tags."""

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        text = f"{len(self.commits)} {sorted(files)}"
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name] = dict(files)
        self.refs[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        if revision in self.refs:
            return self.refs[revision]
        return revision if revision in self.commits else None


class FakeHub(ThreadingHTTPServer):
    """`address` is what HF_ENDPOINT has to be."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        """Method and path of each."""
        self.cut = 0
        """Downloads of files that end after half of their bytes, from now on."""
        self.status = 0
        """What every request is answered with; 0 for what it should be."""
        self.bad_card = ""
        """What is wrong with every card; empty for nothing."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo]
        return repository.commits[repository.resolve(revision) or ""]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.server.requests.append(f"{self.command} {path}")
        if self.server.status:
            return self._error(self.server.status, "")
        for pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                return answer(self, body, **found.groupdict())
        self._error(404, "")

    # -- who asks -------------------------------------------------------------------------------

    def _user(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return {TOKEN: "writer", READ_TOKEN: "reader", "": ""}.get(token, "unknown")

    def _repository(self, repo: str, writing: bool = False) -> Repository | None:
        """The repository, if who asks may see it; else the answer is given, and None."""
        user, found = self._user(), self.server.repositories.get(repo)
        if user == "unknown":
            self._error(401, "", "Invalid credentials in Authorization header")
        elif found is None or (found.private and not user):
            self._error(401 if not user else 404, "RepoNotFound", "Repository not found")
        elif writing and user != "writer":
            self._error(403, "", "Forbidden: pass a token with write access")
        elif found.gated and not writing and user != "writer":
            self._error(403 if user else 401, "GatedRepo", "Access to this model is restricted")
        else:
            return found
        return None

    # -- the API --------------------------------------------------------------------------------

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        user = self._user()
        if user != "writer":
            status = 403 if user == "reader" else 401
            return self._error(status, "", "Invalid credentials" if status == 401 else "Forbidden")
        if repo in self.server.repositories:
            return self._json({"url": f"{self.server.address}/{repo}"}, 409)
        made = Repository(private=asked.get("visibility") == "private")
        made.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server.repositories[repo] = made
        self._json({"url": f"{self.server.address}/{repo}"})

    def info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        found = self._repository(repo)
        if found is None:
            return
        commit = found.resolve(revision or "main")
        if commit is None:
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        siblings = [{"rfilename": name} for name in found.commits[commit]]
        about = {"id": repo, "sha": commit, "private": found.private, "siblings": siblings}
        self._json(about | {"tags": [], "downloads": 0, "likes": 0, "gated": found.gated})

    def tree(self, body: bytes, repo: str, revision: str) -> None:
        found = self._repository(repo)
        if found is None:
            return
        commit = found.resolve(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        files = found.commits[commit].items()
        self._json([_entry(name, content) for name, content in files])

    def validate(self, body: bytes) -> None:
        if self.server.bad_card:
            return self._json({"errors": [{"message": self.server.bad_card}]}, 400)
        self._json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if self._repository(repo, writing=True) is None:
            return
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = {n: "lfs" if n.endswith((".safetensors", ".h5")) else "regular" for n in names}
        files = [{"path": n, "uploadMode": modes[n], "shouldIgnore": False} for n in names]
        self._json({"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        if self._repository(repo, writing=True) is None:
            return
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.server.address}/lfs/{wanted['oid']}"}}
            known = wanted["oid"] in self.server.lfs
            objects.append(
                wanted | {"authenticated": True} | ({} if known else {"actions": upload})
            )
        self._json({"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, "", "other content")
        self.server.lfs[oid] = body
        self._json({})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        found = self._repository(repo, writing=True)
        if found is None:
            return
        files = dict(found.commits[found.refs[revision]])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        name = found.commit(files, revision)
        url = f"{self.server.address}/{repo}/commit/{name}"
        self._json({"success": True, "commitOid": name, "commitUrl": url})

    def download(self, body: bytes, repo: str, rest: str) -> None:
        found = self._repository(repo)
        if found is None:
            return
        revision, _, name = rest.partition("/")
        commit = found.resolve(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        if name not in found.commits[commit]:
            return self._error(404, "EntryNotFound", "Entry not found")
        content = found.commits[commit][name]
        etag = _entry(name, content)["oid"]
        begins = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(begins[1]) if begins else 0
        self.send_response(206 if begins else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{etag}"')
        if begins:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cut and name.endswith(".safetensors"):
            self.server.cut -= 1
            self.wfile.write(content[first : first + (len(content) - first) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(content[first:])

    # -- answers --------------------------------------------------------------------------------

    def _json(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """A file as the Hub lists it."""
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": blob}


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_API = rf"/api/models/{_REPO}"
_ROUTES: list[tuple[str, Any]] = [
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET {_API}", _Handler.info),
    (rf"GET {_API}/revision/(?P<revision>.+)", _Handler.info),
    (rf"GET {_API}/tree/(?P<revision>.+)", _Handler.tree),
    (rf"POST {_API}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"POST {_API}/commit/(?P<revision>.+)", _Handler.commit),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(?P<oid>\w+)", _Handler.store),
    (rf"(GET|HEAD) /{_REPO}/resolve/(?P<rest>.+)", _Handler.download),
]
