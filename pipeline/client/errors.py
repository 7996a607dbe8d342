"""What goes wrong between a client and the service, by kind; never a silent zero."""

from __future__ import annotations


class ServiceError(Exception):
    """Any of them."""

    status: int | None = None
    """Of the answer, where there was one."""

    def __init__(self, detail: str, status: int | None = None, retry_after: float = 0.0) -> None:
        """retry_after: seconds, as the service says."""
        super().__init__(detail)
        self.status, self.retry_after = status, retry_after


class Unreachable(ServiceError):
    """Nothing answers at this address, or the connection was lost."""


class TimedOut(ServiceError):
    """No answer within the client's own time, or the service's deadline (504)."""


class Busy(ServiceError):
    """The model is being loaded, or too many ask (503)."""


class Unauthorized(ServiceError):
    """The key is missing, or another one (401)."""


class SpecMismatch(ServiceError):
    """These latents are another run's (409)."""


class NotAvailable(ServiceError):
    """The run cannot do this (404)."""


class BadRequest(ServiceError):
    """The service refuses what was asked (400, 413, 415, 422, ...)."""


class BadAnswer(ServiceError):
    """What came is no answer of this service: another server, or a fault (500)."""


BY_STATUS: dict[int, type[ServiceError]] = {
    401: Unauthorized,
    404: NotAvailable,
    409: SpecMismatch,
    503: Busy,
    504: TimedOut,
}


def error_of(status: int, detail: str, retry_after: float) -> ServiceError:
    kind = BY_STATUS.get(status, BadRequest if 400 <= status < 500 else BadAnswer)
    return kind(detail, status, retry_after)
