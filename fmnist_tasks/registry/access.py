"""Where an S3 server is and how to get in: `s3://bucket?endpoint=https://host:9000`, credentials from elsewhere.

They come from the environment (`MINIO_ACCESS_KEY` and `MINIO_SECRET_KEY`, or AWS's names), or from the Airflow
connection that `&connection=ID` names: login, password, and `endpoint_url` in its extra unless the URI has an endpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import urllib3
from minio import Minio
from minio.credentials.providers import ChainedProvider, EnvAWSProvider, EnvMinioProvider, Provider, StaticProvider

from fmnist_tasks.connections import find_connection
from fmnist_tasks.errors import SettingsError
from fmnist_tasks.registry.tries import may_pass, tried

_KNOWN = {"endpoint", "region", "connection"}
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
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc) or parts.path.strip("/"):
        raise SettingsError("FMNIST_STORE: s3:// must be followed by the name of a bucket, without credentials or path")
    if unknown := sorted(set(options) - _KNOWN):
        raise SettingsError(f"FMNIST_STORE: unknown {', '.join(unknown)}; known are {', '.join(sorted(_KNOWN))}")
    connection = _named(options["connection"]) if "connection" in options else None
    endpoint = options.get("endpoint") or (connection and connection.extra_dejson.get("endpoint_url")) or ""
    address = urlsplit(endpoint)
    if address.scheme not in {"http", "https"} or not re.fullmatch(r"[^@]+", address.netloc) or address.path.strip("/"):
        raise SettingsError("FMNIST_STORE: endpoint must be http://host:port or https://host:port, without credentials")
    client = Minio(
        address.netloc,
        secure=address.scheme == "https",
        credentials=_credentials(connection),
        region=options.get("region", "us-east-1"),  # named here, so that no request is spent on asking for it
        http_client=_pool(),
    )
    return Bucket(parts.netloc, f"{address.scheme}://{address.netloc}", client)


def _credentials(connection: Any) -> Provider:
    try:
        if connection:
            return StaticProvider(connection.login, connection.password)
        provider = ChainedProvider([EnvMinioProvider(), EnvAWSProvider()])
        provider.retrieve()
    except ValueError as error:
        raise SettingsError(
            "FMNIST_STORE: no credentials for the S3 server; set MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or name an "
            "Airflow connection that has login and password: &connection=ID"
        ) from error
    return provider


def _named(name: str) -> Any:
    if (connection := find_connection(name)) is None:
        raise SettingsError(f"FMNIST_STORE: there is no Airflow connection {name}; `airflow connections add`")
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
