"""Who may ask a server of ours: those who name this machine, or know the key."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from pipeline.play.browser.server_config import LOOPBACK, ServerConfig

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def host_is_ours(config: ServerConfig, host: str) -> bool:
    """Whether the Host of a request names this machine: a foreign name that leads here (DNS
    rebinding) does not.  Elsewhere the key protects."""
    if not config.is_local:
        return True
    try:
        return urlsplit(f"//{host}").hostname in LOOPBACK
    except ValueError:  # half of an IPv6 address
        return False


def knows(config: ServerConfig, key: str) -> bool:
    """Compare a key in a time that does not depend on how much of it is right."""
    return hmac.compare_digest(key.encode(), config.key.encode())
