"""Retries of requests to an S3 server, and errors that say what to do.

A request is repeated for at most `MAX_RETRY_SECONDS`, and an attempt takes no longer than the client's time limits, so
no request takes more than a minute.
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

MAX_RETRY_SECONDS = 30

# Codes of S3 errors.
_RETRYABLE_CODES = {
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestTimeout",
    "IncompleteBody",
    "NoSuchUpload",
}
_CREDENTIAL_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidTokenId", "ExpiredToken"}
_PERMISSION_CODES = {"AccessDenied", "AllAccessDisabled", "AccountProblem"}

T = TypeVar("T")


def retry(action: Callable[[], T], is_transient: Callable[[BaseException], bool]) -> T:
    """Return the result of the action; repeat it after growing random delays while its error is transient."""
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        stop=stop_before_delay(MAX_RETRY_SECONDS),
        reraise=True,
    )
    return retrying(action)


def to_store_error(error: Exception, failure: str, endpoint: str) -> FmnistError:
    """Convert an error of the client to one of this project; `failure` says what failed.

    The message contains no headers of the request and no secrets.
    """
    cause = _find_cause(error)
    if isinstance(error, S3Error):
        return _to_response_error(error, failure, endpoint)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return AccessError(
            f"{failure}: the certificate of {endpoint} is not trusted ({cause.verify_message}); put the certificate of "
            "its authority into a file, and name that in SSL_CERT_FILE"
        )
    if isinstance(cause, ssl.SSLError) and not is_transient(error):
        return AccessError(
            f"{failure}: {endpoint} does not speak TLS ({cause.reason}); if the server has no TLS, use http:// in the "
            "endpoint"
        )
    return StoreError(
        f"{failure}: {endpoint} {_describe_cause(cause)}; check that the server is running, then clear the task"
    )


def is_transient(error: BaseException) -> bool:
    """Return whether a repeated request may succeed: not if the certificate is untrusted, or the server has no TLS."""
    cause = _find_cause(error)
    if isinstance(cause, ssl.SSLError):
        return isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    return isinstance(error, HTTPError)


def is_operation_retryable(error: BaseException) -> bool:
    """Return whether an operation may succeed if it is repeated, after an interrupted download or a conflict."""
    if isinstance(error, S3Error):
        return error.code in _RETRYABLE_CODES
    return isinstance(error, HTTPError) and not isinstance(error, MaxRetryError)


def _find_cause(error: BaseException) -> BaseException:
    """Return the error that urllib3 has wrapped."""
    while isinstance(error, MaxRetryError) and error.reason:
        error = error.reason
    inner = error.args[0] if error.args else None
    return inner if isinstance(inner, ssl.SSLError) else error


def _describe_cause(cause: BaseException) -> str:
    if isinstance(cause, NameResolutionError):
        return "has a name that cannot be resolved"
    if isinstance(cause, NewConnectionError):
        return "does not accept connections"
    if isinstance(cause, TookTooLong):
        return "does not respond in time"
    if isinstance(cause, MinioException | HTTPError):
        return f"fails: {cause}"
    return f"fails: {type(cause).__name__}"


def _to_response_error(error: S3Error, failure: str, endpoint: str) -> FmnistError:
    reason = f"{error.code}: {error.message}"
    if error.code in _CREDENTIAL_CODES:
        return AccessError(
            f"{failure}: {endpoint} does not accept these credentials ({reason}); correct access key and secret"
        )
    if error.code in _PERMISSION_CODES:
        return AccessError(
            f"{failure}: {endpoint} does not allow it with these credentials ({reason}); grant the right "
            "(include/policies)"
        )
    if error.code == "RequestTimeTooSkewed":
        return AccessError(
            f"{failure}: the clocks of this machine and of {endpoint} differ too much ({reason}); set them"
        )
    if error.code == "AuthorizationHeaderMalformed":
        return AccessError(f"{failure}: {endpoint} is in another region ({reason}); add &region= to FMNIST_STORE")
    return StoreError(f"{failure}: {endpoint} responded with {reason}; see the server's log, then clear the task")
