"""The address of an S3 server, `s3://bucket?endpoint=…`, and its credentials, which are never part of the address.

They come from `MINIO_ACCESS_KEY` and `MINIO_SECRET_KEY`, from the AWS variables, or from the Airflow connection that
`&connection=ID` names. A connection supplies login and password; its extra may have `aws_session_token`, and
`endpoint_url` and `region_name`, over which the URI takes precedence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import urllib3
from minio import Minio
from minio.credentials.providers import EnvAWSProvider, Provider, StaticProvider
from minio.helpers import check_bucket_name

from fmnist_tasks.connections import find_connection
from fmnist_tasks.credentials import find_secret
from fmnist_tasks.errors import SettingsError
from fmnist_tasks.registry.retries import is_transient, retry

_OPTIONS = {"endpoint", "region", "connection"}  # of the URI
_EXTRA_FIELDS = ("endpoint_url", "region_name", "aws_session_token")  # of a connection
# They select other credentials or another server; to ignore them would use the wrong ones.
_UNSUPPORTED_FIELDS = {"assume_role_kwargs", "assume_role_method", "profile_name", "role_arn", "service_config"}
_TIMEOUT = urllib3.Timeout(connect=5, read=20)  # seconds without a response
_TRANSIENT_STATUSES = (429, 500, 502, 503, 504)  # of a server, or a proxy before it, when a retry may succeed


@dataclass(frozen=True)
class Bucket:
    """A bucket and the client for its server."""

    name: str
    endpoint: str  # http://host:port or https://host:port
    client: Minio


def open_bucket(uri: str) -> Bucket:
    """Return the bucket that a URI names; sends no request.

    Raises :class:`SettingsError`, whose message never contains the URI, since that may contain credentials.
    """
    try:
        parts = urlsplit(uri)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError as error:
        raise SettingsError("FMNIST_STORE is not a valid URI; check the brackets around an IPv6 address") from error
    if not _is_bucket_name(parts.netloc) or parts.path.strip("/") or parts.fragment:
        raise SettingsError(
            "FMNIST_STORE: after s3://, name a bucket (3 to 63 lower-case letters, digits, single dots and hyphens; "
            "not an IP address), without credentials or path"
        )
    if unknown := sorted(set(options) - _OPTIONS):
        raise SettingsError(f"FMNIST_STORE: unknown option {', '.join(unknown)}; use {', '.join(sorted(_OPTIONS))}")
    connection = _find_connection(options["connection"]) if "connection" in options else None
    extra = _read_extra(connection) if connection else {}
    region = options.get("region") or extra.get("region_name") or "us-east-1"  # without one, the client requests it
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", region):
        raise SettingsError("FMNIST_STORE: region must be letters, digits and hyphens, such as eu-central-1")
    endpoint = options.get("endpoint") or extra.get("endpoint_url") or ""
    refusal = "FMNIST_STORE: endpoint must be http://host:port or https://host:port, without credentials or path"
    try:
        address = urlsplit(endpoint)
        if not re.fullmatch(r"https?://[^@/?#\s]+/?", endpoint) or address.port == 0:
            raise SettingsError(refusal)
        client = Minio(
            address.netloc,
            secure=address.scheme == "https",
            credentials=_build_credentials(connection, extra),
            region=region,
            http_client=_make_pool(),
        )
    except ValueError as error:  # for instance a port above 65535
        raise SettingsError(refusal) from error
    return Bucket(parts.netloc, f"{address.scheme}://{address.netloc}", client)


def _is_bucket_name(name: str) -> bool:
    try:
        check_bucket_name(name, strict=True, s3_check=True)
    except ValueError:
        return False
    return name == name.lower()


def _read_extra(connection: Any) -> dict[str, str]:
    """Return the supported fields of a connection's extra; raises :class:`SettingsError` for unsupported ones."""
    extra = connection.extra_dejson
    if unsupported := sorted(_UNSUPPORTED_FIELDS & set(extra)):
        raise SettingsError(
            f"FMNIST_STORE: the Airflow connection has {', '.join(unsupported)} in its extra, which is not supported; "
            f"set login and password, and in the extra {', '.join(_EXTRA_FIELDS)} as needed"
        )
    fields = {name: extra[name] for name in _EXTRA_FIELDS if extra.get(name)}
    if wrong := [name for name, value in fields.items() if not isinstance(value, str)]:
        raise SettingsError(f"FMNIST_STORE: {', '.join(wrong)} in the extra of the Airflow connection must be text")
    return fields


def _build_credentials(connection: Any, extra: dict[str, str]) -> Provider:
    try:
        if connection:
            return StaticProvider(connection.login, connection.password, extra.get("aws_session_token"))
        user, secret = find_secret("MINIO_ACCESS_KEY"), find_secret("MINIO_SECRET_KEY")
        provider = StaticProvider(user, secret) if user and secret else EnvAWSProvider()
        provider.retrieve()
    except ValueError as error:
        raise SettingsError(
            "FMNIST_STORE: no credentials for the S3 server; set MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or name an "
            "Airflow connection with login and password: &connection=ID"
        ) from error
    return provider


def _find_connection(name: str) -> Any:
    if (connection := find_connection(name)) is None:
        raise SettingsError(
            "FMNIST_STORE: the connection that it names does not exist in Airflow; create it (docs/store.md)"
        )
    return connection


def _make_pool() -> urllib3.PoolManager:
    """Return a pool of connections that trust the system's certificate authorities, or those in SSL_CERT_FILE.

    A response with a transient status raises an exception, as a failed connection does, so both are retried alike.
    """
    no_retries = urllib3.Retry(0, status_forcelist=_TRANSIENT_STATUSES, allowed_methods=None)
    return _RetryingPool(timeout=_TIMEOUT, maxsize=16, retries=no_retries, cert_reqs="CERT_REQUIRED")


class _RetryingPool(urllib3.PoolManager):
    """Retries each request while its error is transient."""

    def urlopen(self, *args: Any, **kwargs: Any) -> urllib3.BaseHTTPResponse:
        request = super().urlopen
        return retry(lambda: request(*args, **kwargs), is_transient)
