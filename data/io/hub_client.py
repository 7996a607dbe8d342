"""The Hub's client, and what it raises as one line that says what to do.

The token is the client's own (`hf auth login`, or HF_TOKEN): it is never read into a config, and
taken out of whatever is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from data.io.hub_address import HubAddress
from data.io.messages import shortened

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOG_IN = "hf auth login, or HF_TOKEN"
TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")  # what the Hub's tokens look like


def client() -> ModuleType:
    """Import the Hub's library; ValueError says how to install it."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import safetensors  # noqa: F401
        from huggingface_hub.utils import logging
    except ImportError as problem:
        raise ValueError(
            f"the Hugging Face Hub needs {problem.name}; install it with: "
            f"pip install -r requirements-hub.txt"
        ) from None
    # its warnings of each attempt: the last one is reported
    logging.set_verbosity_error()
    return huggingface_hub


def hub_api() -> HfApi:
    return client().HfApi(endpoint=endpoint(), library_name="dreamstage")


def endpoint() -> str:
    """The address of the Hub itself, which HF_ENDPOINT changes."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or client().constants.ENDPOINT


def page_of(repo: str) -> str:
    return f"{endpoint()}/{repo}"


def redacted(text: str) -> str:
    """Take every token out of a text."""
    for token in _tokens():
        text = text.replace(token, "***")
    return TOKEN.sub("***", text)


def holds_token(text: str) -> bool:
    return redacted(text) != text


def _tokens() -> list[str]:
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    found = {client().get_token() or "", *(os.environ.get(name, "").strip() for name in names)}
    return [token for token in found if len(token) > 3]


@contextmanager
def plain_errors(address: HubAddress, writing: bool = False) -> Iterator[None]:
    """Raise ValueError, one line of what is wrong and the way out, for whatever the client raises.

    writing: something is published, else read.
    """
    try:
        yield
    except Exception as problem:  # a client, its HTTP library, and what a server sends
        _raise_plain(problem, address, writing)


def _raise_plain(problem: Exception, address: HubAddress, writing: bool) -> NoReturn:
    if isinstance(problem, OSError) and problem.errno and problem.filename:
        raise problem  # of the disk here: the command line names the file
    line = redacted(describe(problem, address, writing))
    raise ValueError(line) from None


def describe(problem: Exception, address: HubAddress, writing: bool) -> str:
    """Say in one line what is wrong, and the way out."""
    errors = client().errors
    causes = _with_causes(problem)
    absent = any(isinstance(cause, errors.LocalEntryNotFoundError) for cause in causes)
    forbidden = any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes)
    if forbidden or (absent and client().constants.HF_HUB_OFFLINE):
        return (
            f"{address} is not here, and HF_HUB_OFFLINE forbids to ask the Hub; unset it"
            if not writing
            else f"{address} cannot be written while HF_HUB_OFFLINE is set; unset it"
        )
    for kind, line in _lines(errors, address, writing):  # a class before the one it is derived from
        if any(isinstance(cause, kind) for cause in causes):
            return line
    if "metadata in README.md" in str(problem):
        return f"{address}: the Hub refuses the card: {shortened(str(problem))}; correct --license"
    status = next(filter(None, map(_status, causes)), None)
    if status:
        return _of_status(status, problem, address, writing)
    if _is_connection(causes):
        lost = "" if writing else f", and {address} is not here"
        return (
            f"{endpoint()} cannot be reached ({_reason(causes)}){lost}; check the network and run "
            f"the same command again, which resumes"
        )
    if isinstance(problem, OSError) and "Consistency check failed" in str(problem):
        return f"{address}: a file came shorter than it is; run the same command again to resume"
    return f"{address}: {type(problem).__name__}: {shortened(str(problem))}"


def _lines(
    errors: ModuleType, address: HubAddress, writing: bool
) -> list[tuple[type[Exception], str]]:
    page = page_of(address.repo)
    may = "may write to it" if writing else "may read it"
    return [
        (
            errors.GatedRepoError,
            f"{address} is gated; accept its license on {page}, and log in as who accepted it "
            f"({LOG_IN})",
        ),
        (
            errors.RepositoryNotFoundError,
            f"{address}: the Hub shows no such repository: its name is wrong, or it is private, or "
            f"you are not logged in as one who {may} ({LOG_IN})",
        ),
        (
            errors.RevisionNotFoundError,
            f"{address}: there is no branch, tag or commit {address.revision} in {address.repo}; "
            f"leave @{address.revision} out for its main branch, or choose one on {page}",
        ),
        (
            errors.RemoteEntryNotFoundError,
            f"{address}: a file is missing there; choose another revision on {page}",
        ),
        (errors.LocalTokenNotFoundError, f"{address}: you are not logged in ({LOG_IN})"),
        (errors.HFValidationError, f"{address} is no name of a repository; write USER/NAME"),
    ]


def _of_status(status: int, problem: Exception, address: HubAddress, writing: bool) -> str:
    if status == 401:
        return f"{address}: the Hub does not know the token that you are logged in with ({LOG_IN})"
    if status == 403:
        right = "write to" if writing else "read"
        return (
            f"{address}: the token that you are logged in with may not {right} it; make one with "
            f"that right on {endpoint()}/settings/tokens ({LOG_IN})"
        )
    if status == 400:
        said = shortened(str(problem))
        return f"{address}: the Hub refuses what was sent ({said}); correct the card's flags"
    if status in (409, 412):
        return f"{address} was changed meanwhile; run the same command again"
    if status == 429:
        return f"{address}: the Hub takes no more requests of yours for now; wait, then run again"
    if status >= 500:
        return f"{endpoint()} has a fault of its own (status {status}); run the same command later"
    return f"{address}: the Hub answered with status {status} ({shortened(str(problem))})"


def _with_causes(problem: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    following: BaseException | None = problem
    while following is not None and following not in found:
        found.append(following)
        following = following.__cause__ or following.__context__
    return found


def _status(problem: BaseException) -> int | None:
    """The status of an HTTP answer; None where there was none."""
    return getattr(getattr(problem, "response", None), "status_code", None)


def _is_connection(causes: list[BaseException]) -> bool:
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    local = ("LocalEntryNotFoundError", "IncompleteSnapshotError")
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError", *local})


def _reason(causes: list[BaseException]) -> str:
    """What the innermost exception says."""
    return shortened(str(causes[-1])) or type(causes[-1]).__name__
