"""Requests to an S3 server: tried again while that may help, and errors in words that say what to do.

A request is not sent again once `BUDGET` seconds have passed, and no try waits longer than the client's time limits: no
request takes more than a minute.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeVar

from minio.error import MinioException, S3Error
from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential
from urllib3.exceptions import HTTPError, MaxRetryError, NameResolutionError, NewConnectionError
from urllib3.exceptions import TimeoutError as TookTooLong

from fmnist_tasks.errors import AccessError, FmnistError, StoreError

BUDGET = 30  # seconds

_DISTURBED = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "IncompleteBody", "NoSuchUpload"}
_UNKNOWN = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidTokenId", "ExpiredToken"}
_FORBIDDEN = {"AccessDenied", "AllAccessDisabled", "AccountProblem"}

T = TypeVar("T")


def tried(action: Callable[[], T], may_pass: Callable[[BaseException], bool]) -> T:
    """The result of the action, called again after a growing random delay as long as its error may pass."""
    again = Retrying(
        retry=retry_if_exception(may_pass),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        stop=stop_before_delay(BUDGET),
        reraise=True,
    )
    return again(action)


def explained(error: Exception, doing: str, endpoint: str) -> FmnistError:
    """The project's own error for one of the client's, without the request's headers or anything secret."""
    cause = _cause(error)
    if isinstance(error, S3Error):
        return _refusal(error, doing, endpoint)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return AccessError(
            f"{doing}: the certificate of {endpoint} is not trusted ({cause.verify_message}); put the authority's "
            "certificate into a file and name it in SSL_CERT_FILE"
        )
    if isinstance(cause, ssl.SSLError) and not may_pass(error):
        return AccessError(f"{doing}: {endpoint} does not speak TLS ({cause.reason}); is the endpoint http:// instead?")
    return StoreError(f"{doing}: {endpoint} {_ailment(cause)}; see that the server runs, and clear the task")


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: not when the certificate is not trusted, or there is no TLS."""
    cause = _cause(error)
    if isinstance(cause, ssl.SSLError):
        return isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    return isinstance(error, HTTPError)


def was_disturbed(error: BaseException) -> bool:
    """Whether an operation whose requests were answered may succeed later: a download broke off, or two collided."""
    if isinstance(error, S3Error):
        return error.code in _DISTURBED
    return isinstance(error, HTTPError) and not isinstance(error, MaxRetryError)


def _cause(error: BaseException) -> BaseException:
    """What lies below urllib3's wrappings."""
    while isinstance(error, MaxRetryError) and error.reason:
        error = error.reason
    inner = error.args[0] if error.args else None
    return inner if isinstance(inner, ssl.SSLError) else error


def _ailment(cause: BaseException) -> str:
    if isinstance(cause, NameResolutionError):
        return "has a name that cannot be resolved"
    if isinstance(cause, NewConnectionError):
        return "accepts no connection"
    if isinstance(cause, TookTooLong):
        return "does not answer in time"
    if isinstance(cause, MinioException | HTTPError):
        return f"fails: {cause}"
    return f"fails: {type(cause).__name__}"


def _refusal(error: S3Error, doing: str, endpoint: str) -> FmnistError:
    said = f"{error.code}: {error.message}"
    if error.code in _UNKNOWN:
        return AccessError(f"{doing}: {endpoint} does not accept these credentials ({said}); check key and secret")
    if error.code in _FORBIDDEN:
        return AccessError(
            f"{doing}: {endpoint} does not allow it with these credentials ({said}); grant it, see include/policies"
        )
    if error.code == "RequestTimeTooSkewed":
        return AccessError(f"{doing}: this machine's clock and that of {endpoint} differ too much; set them ({said})")
    if error.code == "AuthorizationHeaderMalformed":
        return AccessError(f"{doing}: {endpoint} serves another region ({said}); name it with &region= in FMNIST_STORE")
    return StoreError(f"{doing}: {endpoint} says {said}; see the server's log, and clear the task")
