"""What a client is told in the place of an answer: a status, and one plain line."""

from __future__ import annotations


class Refused(Exception):
    def __init__(self, status: int, detail: str, retry_after: int = 0) -> None:
        """retry_after: seconds, 0 where asking again does not help."""
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after


def busy(detail: str, seconds: int = 1) -> Refused:
    """503: the same request may be answered later."""
    return Refused(503, detail, max(1, seconds))
