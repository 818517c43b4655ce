"""Where an S3 server is and how to get in: `s3://bucket?endpoint=https://host:9000`, credentials from elsewhere.

They are the secrets `MINIO_ACCESS_KEY` and `MINIO_SECRET_KEY`, or come from AWS's variables, or from the Airflow
connection that `&connection=ID` names: login and password, and in its extra `aws_session_token`, and `endpoint_url` and
`region_name` unless the URI has them.
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
from fmnist_tasks.registry.tries import may_pass, tried

_KNOWN = {"endpoint", "region", "connection"}
_EXTRA = ("endpoint_url", "region_name", "aws_session_token")  # of a connection
# What would lead to other credentials or another server, if it were followed.
_UNSUPPORTED = {"assume_role_kwargs", "assume_role_method", "profile_name", "role_arn", "service_config"}
_TIMEOUT = urllib3.Timeout(connect=5, read=20)  # seconds without an answer
_PASSING = (429, 500, 502, 503, 504)  # what servers and what stands before them say when another try may succeed


@dataclass(frozen=True)
class Bucket:
    """A bucket and the client that reaches it."""

    name: str
    endpoint: str  # http://host:port or https://host:port
    client: Minio


def reach(uri: str) -> Bucket:
    """The bucket that a URI names; nothing is sent yet. Raises :class:`SettingsError`, which never repeats the URI."""
    try:
        parts = urlsplit(uri)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError as error:
        raise SettingsError("FMNIST_STORE: cannot be read as an address; are its brackets closed?") from error
    if not _is_bucket(parts.netloc) or parts.path.strip("/") or parts.fragment:
        raise SettingsError(
            "FMNIST_STORE: s3:// must be followed by the name of a bucket (3 to 63 small letters, digits, single dots "
            "and hyphens, no IP address), without credentials or path"
        )
    if unknown := sorted(set(options) - _KNOWN):
        raise SettingsError(f"FMNIST_STORE: unknown {', '.join(unknown)}; known are {', '.join(sorted(_KNOWN))}")
    connection = _named(options["connection"]) if "connection" in options else None
    extra = _read_extra(connection) if connection else {}
    region = options.get("region") or extra.get("region_name") or "us-east-1"  # so that no request asks for it
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
            credentials=_credentials(connection, extra),
            region=region,
            http_client=_pool(),
        )
    except ValueError as error:  # for instance a port above 65535
        raise SettingsError(refusal) from error
    return Bucket(parts.netloc, f"{address.scheme}://{address.netloc}", client)


def _is_bucket(name: str) -> bool:
    try:
        check_bucket_name(name, strict=True, s3_check=True)
    except ValueError:
        return False
    return name == name.lower()


def _read_extra(connection: Any) -> dict[str, str]:
    """What is used of the extra of a connection; raises :class:`SettingsError` for what would have to be."""
    extra = connection.extra_dejson
    if unsupported := sorted(_UNSUPPORTED & set(extra)):
        raise SettingsError(
            f"FMNIST_STORE: the Airflow connection has {', '.join(unsupported)} in its extra, which is not supported; "
            f"give it login, password, and in its extra {', '.join(_EXTRA)} as needed"
        )
    used = {name: extra[name] for name in _EXTRA if extra.get(name)}
    if wrong := [name for name, value in used.items() if not isinstance(value, str)]:
        raise SettingsError(f"FMNIST_STORE: {', '.join(wrong)} in the extra of the Airflow connection must be text")
    return used


def _credentials(connection: Any, extra: dict[str, str]) -> Provider:
    try:
        if connection:
            return StaticProvider(connection.login, connection.password, extra.get("aws_session_token"))
        user, secret = find_secret("MINIO_ACCESS_KEY"), find_secret("MINIO_SECRET_KEY")
        provider = StaticProvider(user, secret) if user and secret else EnvAWSProvider()
        provider.retrieve()
    except ValueError as error:
        raise SettingsError(
            "FMNIST_STORE: no credentials for the S3 server; set MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or name an "
            "Airflow connection that has login and password: &connection=ID"
        ) from error
    return provider


def _named(name: str) -> Any:
    if (connection := find_connection(name)) is None:
        raise SettingsError(
            "FMNIST_STORE: there is no Airflow connection of the name that it has; `airflow connections add`"
        )
    return connection


def _pool() -> urllib3.PoolManager:
    """Connections that trust the system's authorities, or those in SSL_CERT_FILE.

    An answer that may pass becomes an exception, like a connection that fails: one kind of error to try again on.
    """
    once = urllib3.Retry(0, status_forcelist=_PASSING, allowed_methods=None)
    return _PatientPool(timeout=_TIMEOUT, maxsize=16, retries=once, cert_reqs="CERT_REQUIRED")


class _PatientPool(urllib3.PoolManager):
    """Sends each request again as long as its failure may pass."""

    def urlopen(self, *args: Any, **kwargs: Any) -> urllib3.BaseHTTPResponse:
        request = super().urlopen
        return tried(lambda: request(*args, **kwargs), may_pass)
