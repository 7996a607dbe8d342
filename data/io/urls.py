"""Addresses of downloads: http and https alone, also where a server sends one elsewhere."""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from data.io.messages import LONGEST, one_line

SCHEMES = ("http", "https")


def url_key(url: str) -> str:
    """Return 8 hex digits: the name of the folder in which downloads of an address are kept."""
    return hashlib.sha256(url.encode()).hexdigest()[:8]


def check_url(url: str, given: str) -> None:
    """Raise ValueError for an address that can never be downloaded; `given` says what holds it."""
    if problem := url_problem(url):
        raise ValueError(f"{given} {url[:LONGEST]!r} {problem}")


def url_problem(url: str) -> str:
    """Say why an address can never be downloaded; empty where it may be."""
    instead = "; download it by other means, and give the file"
    if re.search(r"[\x00-\x20\x7f]", url) or not url.isascii():
        return "holds blanks or other characters that an address cannot hold; write a blank as %20"
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as problem:  # UnicodeError too
        return f"is no address ({one_line(problem)})"
    if parts.scheme == "file":
        return "names a file; give its path alone"
    if parts.scheme not in SCHEMES:
        return f"has the scheme {parts.scheme[:40]!r}, but only http and https can be read{instead}"
    if not re.fullmatch(r"[a-z0-9_.-]*[a-z0-9][a-z0-9_.-]*|[0-9a-f:.]*:[0-9a-f:.%]*", host):
        return f"has the host {host[:40]!r}, which is none; correct the address"
    return f"holds a user name, which is not supported{instead}" if "@" in parts.netloc else ""


class _HttpAlone(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https: urllib would follow one to FTP too."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if problem := url_problem(newurl):
            reason = f"{msg}, and its target {newurl[:LONGEST]!r} {problem}"
            raise urllib.error.HTTPError(newurl, code, reason, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def http_opener() -> urllib.request.OpenerDirector:
    """Return an opener of http and https alone: the usual one reads files too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _HttpAlone(),
    ):
        opener.add_handler(handler)
    return opener
