"""Addresses and connections of S3 servers: each part is used, or refused with a clear message."""

from __future__ import annotations

import json
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlsplit

import pytest
from urllib3.exceptions import MaxRetryError, ProtocolError

from fmnist_tasks.errors import SettingsError, StoreError
from fmnist_tasks.registry import s3_address
from fmnist_tasks.registry.s3_address import open_bucket
from fmnist_tasks.registry.stores import open_store

REFUSED = [
    *(f"s3://{bucket}?endpoint=http://127.0.0.1:9" for bucket in (
        "a..b", "a.-b", "192.168.1.1", "ab", "-ab", "abc-", "a_b", "Abc", "a" * 64, "bü", "a b", "a%20b",
        "[abc", "[::1]", "abc:80",
        "xn--abc", "abc--ol-s3",
    )),
    *(f"s3://bucket?endpoint={endpoint}" for endpoint in (
        "", "http://127.0.0.1:99999", "http://127.0.0.1:-1", "http://127.0.0.1:0", "http://127.0.0.1:x", "http://", "https://",
        "ftp://host", "host:9000", "http://[::1", "http://]", "http://a b:9000", "http://host/path", "http://host%3Fx", "http://host%23x",
        "http://user@host", "http://a%0Ab", "https://foo.amazonaws.com",
    )),
    *(f"s3://bucket?endpoint=http://127.0.0.1:9&region={region}" for region in (
        "eu central", "eu_central", "-eu", "eu-", "ü", "e" * 64, "eu/west", "a%0Ab",
    )),
    "s3://bucket", "s3://", "s3:bucket", "s3:/bucket", "s3://bucket?endpoint=http://127.0.0.1:9#x",
    "s3://bucket?endpoint=http://127.0.0.1:9&secure=1", "s3://bucket?x", "s3://bucket?%", "\'s3://bucket?endpoint=http://h\'",
]  # fmt: skip
ACCEPTED = [
    "s3://bucket?endpoint=http://127.0.0.1:9",
    "S3://buc.ket-1?endpoint=https://host",
    "s3://bucket?endpoint=http://[::1]:9000/",
    "s3://bucket?endpoint=http%3A%2F%2Fhost%3A9000&region=eu-central-1",
    "s3://bucket?endpoint=https://s3.eu-west-1.amazonaws.com&region=",
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set credentials, and refuse every request."""

    def refuse(self: object, *args: Any, **kwargs: Any) -> NoReturn:
        raise MaxRetryError(None, "/", ProtocolError("refused"))  # type: ignore[arg-type]

    monkeypatch.setattr(s3_address._RetryingPool, "urlopen", refuse)
    for name in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"):
        monkeypatch.setenv(name, "key")


@pytest.mark.parametrize("uri", REFUSED)
def test_an_invalid_address_is_refused_with_a_clear_message(uri: str) -> None:
    with pytest.raises(SettingsError, match="FMNIST_STORE"):
        open_store(uri)


@pytest.mark.parametrize("uri", ACCEPTED)
def test_an_accepted_address_takes_requests(uri: str) -> None:
    store = open_store(uri)
    for send in (
        lambda: store.get("k"),
        lambda: store.put("k", b"x"),
        lambda: store.stat("k"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreError):
            send()


def set_connection(monkeypatch: pytest.MonkeyPatch, **extra: object) -> None:
    connection = {"conn_type": "aws", "login": "A", "password": "B", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps(connection))


def sign_request(uri: str) -> dict[str, str]:
    """Return the query of a signed request."""
    bucket = open_bucket(uri)
    return dict(parse_qsl(urlsplit(bucket.client.presigned_get_object(bucket.name, "k")).query))


def test_token_region_and_endpoint_of_a_connection_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"endpoint_url": "http://127.0.0.1:9", "region_name": "eu-west-1", "aws_session_token": "T", "verify": True}
    set_connection(monkeypatch, **extra)
    query = sign_request("s3://bucket?connection=store")
    assert query["X-Amz-Security-Token"] == "T"
    assert query["X-Amz-Credential"].endswith("/eu-west-1/s3/aws4_request")
    query = sign_request("s3://bucket?connection=store&region=eu-central-1&endpoint=http://127.0.0.1:8")
    assert query["X-Amz-Credential"].endswith("/eu-central-1/s3/aws4_request")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"role_arn": "arn:aws:iam::1:role/x"}, "has role_arn in its extra, which is not supported"),
        ({"region_name": 5}, "region_name in the extra of the Airflow connection must be text"),
        ({"region_name": "eu west"}, "region must be letters"),
        ({"endpoint_url": "http://127.0.0.1:99999"}, "endpoint must be http"),
    ],
)
def test_unsupported_fields_of_a_connection_are_refused(
    monkeypatch: pytest.MonkeyPatch, extra: dict[str, object], reason: str
) -> None:
    set_connection(monkeypatch, **{"endpoint_url": "http://127.0.0.1:9", **extra})
    with pytest.raises(SettingsError, match=reason):
        open_store("s3://bucket?connection=store")
