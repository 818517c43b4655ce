"""Behaviour that only S3 stores have, on a real MinIO server and in the requests."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import SpooledTemporaryFile
from threading import Thread

import minio as client
import pytest
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from fmnist_tasks.errors import AccessError, SettingsError, StoreError
from fmnist_tasks.registry import retries, s3
from fmnist_tasks.registry.bucket_lifecycle import RULES, add_rules
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.s3_address import open_bucket
from fmnist_tasks.registry.store import Store
from fmnist_tasks.registry.stores import open_store
from fmnist_tasks.settings import Settings
from tests.support.certificate import make_certificate
from tests.support.minio_server import MinioServer
from tests.support.proxy import Fault, Proxy

pytestmark = pytest.mark.integration

NO_CREDENTIALS = {"MINIO_ACCESS_KEY": "", "MINIO_SECRET_KEY": "", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


def open_proxied_store() -> Store:
    """Open the store that the settings name, as a new process does."""
    return open_store(Settings.from_environment().store)


def make_client(minio_server: MinioServer) -> client.Minio:
    return client.Minio(f"127.0.0.1:{minio_server.port}", *minio_server.credentials.values(), secure=False)


def test_the_first_write_creates_the_bucket_with_versioning(minio_server: MinioServer, minio_store: S3Store) -> None:
    assert list(minio_store.list("")) == []
    assert not make_client(minio_server).bucket_exists(minio_store.bucket)
    minio_store.put("k", b"one")
    minio_store.put("k", b"two")
    assert make_client(minio_server).get_bucket_versioning(minio_store.bucket).status == "Enabled"
    assert len(list(make_client(minio_server).list_objects(minio_store.bucket, "k", include_version=True))) == 2
    assert list_rules(minio_server, minio_store.bucket) == OUR_RULES


OUR_RULES = [("checkpoints", "checkpoints/", 1, True), ("earlier versions", "", 30, True)]


def list_rules(minio_server: MinioServer, bucket: str) -> list[tuple[str, str, int, bool]]:
    """Return each rule of the server: ID, prefix, days of earlier versions, and whether it removes delete markers."""
    return [
        (
            rule.rule_id,
            rule.rule_filter.prefix,
            rule.noncurrent_version_expiration.noncurrent_days,
            rule.expiration.expired_object_delete_marker,
        )
        for rule in make_client(minio_server).get_bucket_lifecycle(bucket).rules
    ]


def read_rules(minio_server: MinioServer, bucket: str) -> str:
    """Return the rules as XML."""
    return make_client(minio_server)._execute("GET", bucket, query_params={"lifecycle": ""}).data.decode()


def test_rules_are_added_to_those_that_a_user_has_set(minio_server: MinioServer, minio_store: S3Store) -> None:
    client, bucket = make_client(minio_server), minio_store.bucket
    client.make_bucket(bucket)
    # A rule with a size, which the client's classes do not know, and one of ours with other days.
    user_rules = (
        "<Rule><ID>mine</ID><Status>Enabled</Status><Filter><And><Prefix>runs/</Prefix>"
        "<ObjectSizeGreaterThan>1000</ObjectSizeGreaterThan></And></Filter><Expiration><Days>90</Days></Expiration></Rule>"
        "<Rule><ID>checkpoints</ID><Status>Enabled</Status><Filter><Prefix>checkpoints/</Prefix></Filter>"
        "<NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays></NoncurrentVersionExpiration></Rule>"
    )
    body = f"<LifecycleConfiguration>{user_rules}</LifecycleConfiguration>".encode()
    md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    client._execute("PUT", bucket, body=body, headers={"Content-MD5": md5}, query_params={"lifecycle": ""})
    before = read_rules(minio_server, bucket)
    for _ in range(2):
        add_rules(client, bucket, RULES)
        after = read_rules(minio_server, bucket)
        rules = re.findall("<Rule>.*?</Rule>", after)
        assert rules[:2] == re.findall("<Rule>.*?</Rule>", before)
        assert [re.findall("<ID>(.*?)</ID>", rule) for rule in rules] == [
            ["mine"],
            ["checkpoints"],
            ["earlier versions"],
        ]
        assert "<NoncurrentDays>30</NoncurrentDays>" in rules[2]
        assert "<ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker>" in rules[2]


def test_rules_that_a_user_has_set_stay(minio_server: MinioServer, minio_store: S3Store) -> None:
    make_client(minio_server).make_bucket(minio_store.bucket)
    user_rule = Rule(ENABLED, rule_id="mine", rule_filter=Filter(prefix="runs/"), expiration=Expiration(days=90))
    make_client(minio_server).set_bucket_lifecycle(minio_store.bucket, LifecycleConfig([user_rule]))
    minio_store.put("k", b"x")
    assert [rule.rule_id for rule in make_client(minio_server).get_bucket_lifecycle(minio_store.bucket).rules] == [
        "mine"
    ]


def test_a_bucket_without_versioning_gets_it(minio_server: MinioServer, minio_store: S3Store) -> None:
    """A killed process may have created the bucket only."""
    make_client(minio_server).make_bucket(minio_store.bucket)
    minio_store.put("k", b"x")
    assert make_client(minio_server).get_bucket_versioning(minio_store.bucket).status == "Enabled"


def test_suspended_versioning_stays_suspended(minio_server: MinioServer, minio_store: S3Store) -> None:
    make_client(minio_server).make_bucket(minio_store.bucket)
    make_client(minio_server).set_bucket_versioning(
        minio_store.bucket, client.versioningconfig.VersioningConfig("Suspended")
    )
    minio_store.put("k", b"x")
    assert make_client(minio_server).get_bucket_versioning(minio_store.bucket).status == "Suspended"


@pytest.mark.parametrize(
    ("key", "content_type"),
    [
        ("releases/v/model.h5", "application/x-hdf5"),
        ("releases/v/manifest.json", "application/json; charset=utf-8"),
        ("releases/v/model_card.md", "text/markdown; charset=utf-8"),
        ("releases/v/report.html", "text/html; charset=utf-8"),
        ("releases/v/figures/x.png", "image/png"),
        ("blobs/sha256/ab", "application/octet-stream"),
    ],
)
def test_objects_have_their_content_type_and_digest(
    minio_server: MinioServer, minio_store: S3Store, key: str, content_type: str
) -> None:
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    minio_store.put(key, b"test")
    minio_store.put_if_absent(f"again/{key}", b"test")
    for name in (key, f"again/{key}"):
        stat = make_client(minio_server).stat_object(minio_store.bucket, name)
        assert stat.content_type == content_type
        assert stat.metadata["x-amz-meta-sha256"] == digest


def test_the_server_refuses_a_second_create(minio_store: S3Store, proxy: Proxy) -> None:
    store = open_proxied_store()
    assert store.put_if_absent("k", b"first")
    proxy.reset()
    assert not store.put_if_absent("k", b"second")
    (request,) = proxy.requests
    assert (request.method, request.status) == ("PUT", 412)
    assert request.headers["if-none-match"] == "*"
    assert not [name for name in request.headers if name.startswith("x-amz-meta-") and "match" in name]
    assert minio_store.get("k") == b"first"


def test_the_condition_is_not_sent_as_metadata(minio_server: MinioServer, minio_store: S3Store) -> None:
    minio_store.put_if_absent("k", b"first")
    names = [name.lower() for name in make_client(minio_server).stat_object(minio_store.bucket, "k").metadata]
    assert not [name for name in names if "match" in name]


def test_a_server_without_conditional_creates_gets_no_log_entry(proxy: Proxy) -> None:
    proxy.reset(lambda request: Fault(status=200) if "if-none-match" in request.headers else None)
    with pytest.raises(AccessError, match=r"ignores the condition If-None-Match and overwrites.*docs/store.md"):
        open_proxied_store().put_if_absent("champion/00000001.json", b"x")
    assert not [request for request in proxy.requests if "champion" in request.path]


def test_large_objects_are_sent_in_parts_but_conditional_ones_never(minio_store: S3Store, proxy: Proxy) -> None:
    large = bytes(9 << 20)
    open_proxied_store().put("large", io.BytesIO(large))
    assert {request.path.partition("?")[2].partition("=")[0] for request in proxy.requests} >= {"uploads", "partNumber"}
    proxy.reset()
    assert open_proxied_store().put_if_absent("other", large)
    assert not [request for request in proxy.requests if "upload" in request.path.lower()]
    assert minio_store.get("other") == large


@pytest.mark.exhaustive
def test_a_gigabyte_is_transferred_in_little_memory(minio_store: S3Store, tmp_path: Path) -> None:
    program = """
import re, sys
from pathlib import Path
from fmnist_tasks.registry.blobs import open_verified, put_blob
from fmnist_tasks.registry.stores import open_store
from fmnist_tasks.settings import Settings
store = open_store(Settings.from_environment().store)
with open(sys.argv[1], "rb") as file:
    reference = put_blob(store, file)
with open_verified(store, reference) as file:
    assert file.seek(0, 2) == 1 << 30
# Not ru_maxrss, which a process inherits from its parent.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10)
"""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 30)
    arguments = [sys.executable, "-c", program, str(large)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=500)
    assert int(result.stdout) < 200  # MiB


# Permanent errors: each has its own message, and no request is repeated.


@pytest.mark.parametrize("operation", ["get", "stat", "put", "list"])
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MINIO_SECRET_KEY": "not the right one"}, "does not accept these credentials .SignatureDoesNotMatch"),
        ({"MINIO_ACCESS_KEY": "nobody"}, "does not accept these credentials .InvalidAccessKeyId"),
    ],
)
def test_wrong_credentials_fail_at_once_and_are_not_shown(
    minio_store: S3Store,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    variables: dict[str, str],
    message: str,
) -> None:
    minio_store.put("k", b"x")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AccessError, match=message) as error:
        call_store(open_proxied_store(), operation)
    assert len(proxy.requests) == (2 if operation == "stat" else 1)  # a response to HEAD does not have the reason
    text = "".join(traceback.format_exception(error.value))
    assert os.environ["MINIO_SECRET_KEY"] not in text
    assert "Signature=" not in text


def call_store(store: Store, operation: str) -> object:
    return {
        "get": lambda: store.get("k"),
        "stat": lambda: store.stat("k"),
        "put": lambda: store.put("k", b"x"),
        "list": lambda: list(store.list("")),
    }[operation]()


@pytest.mark.parametrize("operation", ["get", "stat", "put", "list"])
def test_missing_rights_to_the_bucket_fail_at_once(
    minio_server: MinioServer, minio_store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    minio_store.put("k", b"x")
    for name, value in minio_server.create_user("reader", "another-bucket").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AccessError, match=r"does not allow it with these credentials .AccessDenied.*include/policies"):
        call_store(open_proxied_store(), operation)
    assert len(proxy.requests) <= 2


@pytest.mark.parametrize("operation", ["get", "stat", "put", "list"])
def test_a_clock_that_is_an_hour_off_fails_at_once(
    minio_store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    minio_store.put("k", b"x")
    now = client.time.utcnow
    monkeypatch.setattr("minio.time.utcnow", lambda: now() - timedelta(hours=1))
    with pytest.raises(AccessError, match=r"the clocks of this machine and of http://\S+ differ too much .*; set them"):
        call_store(open_proxied_store(), operation)
    assert len(proxy.requests) <= 2


def test_an_untrusted_certificate_is_refused(tls: MinioServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tls.credentials.items():
        monkeypatch.setenv(name, value)
    store = open_store(tls.build_uri(bucket))
    with pytest.raises(AccessError, match=r"certificate of https://\S+ is not trusted \(.*; put.*SSL_CERT_FILE"):
        store.get("k")
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.certificate))
    trusting_store = open_store(tls.build_uri(bucket))
    trusting_store.put("k", b"x")
    assert trusting_store.put_if_absent("l", b"y")
    assert trusting_store.get("k") == b"x"


def test_https_to_a_server_without_tls_fails_with_a_remedy(minio_server: MinioServer, minio_store: S3Store) -> None:
    store = open_store(minio_server.build_uri(minio_store.bucket, minio_server.endpoint.replace("http:", "https:")))
    with pytest.raises(
        AccessError, match=r"does not speak TLS .*if the server has no TLS, use http:// in the endpoint"
    ):
        store.get("k")


@pytest.fixture(scope="module")
def tls(minio_server: MinioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """A MinIO server with a self-signed certificate."""
    certificate, _ = make_certificate(tmp_path_factory.mktemp("certificates"))
    server = MinioServer(tmp_path_factory.mktemp("tls") / "data", certificate=certificate)
    server.start()
    yield server
    server.stop()


# Settings.


@pytest.mark.parametrize(
    "uri",
    [
        "s3://user:hidden@bucket?endpoint=http://127.0.0.1:9",
        "s3://bucket?endpoint=http://user:hidden@127.0.0.1:9",
        "s3://bucket/hidden?endpoint=http://127.0.0.1:9",
        "s3://bucket?endpoint=127.0.0.1:9",
        "s3://bucket?endpoint=http://127.0.0.1:9/hidden",
        "s3://bucket?endpoint=http://127.0.0.1:9&secret=x",
        "s3://bucket",
        "s3://b",
        "s3://",
    ],
)
def test_an_invalid_uri_is_refused_and_not_printed(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    for name in NO_CREDENTIALS:
        monkeypatch.setenv(name, "set")
    with pytest.raises(SettingsError, match="FMNIST_STORE") as error:
        open_store(uri)
    assert "hidden@" not in str(error.value)
    assert "hidden?" not in str(error.value)


def test_missing_credentials_are_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"no credentials .*MINIO_ACCESS_KEY and MINIO_SECRET_KEY.*connection="):
        open_store("s3://bucket?endpoint=http://127.0.0.1:9")


def test_requests_are_signed_for_the_region_that_the_uri_names(minio_store: S3Store) -> None:
    bucket = open_bucket("s3://bucket?endpoint=http://127.0.0.1:9&region=eu-central-1")
    assert "%2Feu-central-1%2Fs3%2F" in bucket.client.presigned_get_object(bucket.name, "k")


def test_credentials_are_read_under_their_aws_names(
    minio_server: MinioServer, minio_store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, secret = minio_server.credentials.values()
    for name, value in {**NO_CREDENTIALS, "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}.items():
        monkeypatch.setenv(name, value)
    open_proxied_store().put("k", b"x")
    assert minio_store.get("k") == b"x"


class ChunkedHandler(BaseHTTPRequestHandler):
    """Responds to every GET with an object in chunks, without its length, as some proxies do."""

    protocol_version = "HTTP/1.1"
    is_complete = True  # false: the connection breaks before the last chunk

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"3\r\nabc\r\n3\r\ndef\r\n" + (b"0\r\n\r\n" if self.is_complete else b""))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("is_complete", [True, False])
def test_an_object_without_a_content_length_is_read_completely_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, is_complete: bool
) -> None:
    monkeypatch.setattr(ChunkedHandler, "is_complete", is_complete)
    monkeypatch.setattr(retries, "MAX_RETRY_SECONDS", 0.5)
    monkeypatch.setenv("MINIO_ACCESS_KEY", "user")
    monkeypatch.setenv("MINIO_SECRET_KEY", "a secret that is long enough")
    files: list[SpooledTemporaryFile[bytes]] = []
    make_file = SpooledTemporaryFile
    monkeypatch.setattr(s3, "SpooledTemporaryFile", lambda size: files.append(make_file(size)) or files[-1])
    with HTTPServer(("127.0.0.1", 0), ChunkedHandler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        store = open_store(f"s3://bucket?endpoint=http://127.0.0.1:{server.server_port}")
        try:
            if is_complete:
                assert store.get("k") == b"abcdef"
            else:
                with pytest.raises(StoreError, match="cannot read"):
                    store.get("k")
        finally:
            server.shutdown()
            thread.join()
    assert files
    assert all(file.closed for file in files)
