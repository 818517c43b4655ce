"""What an S3 server adds to the contract of every store, seen on a real MinIO and on the wire."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
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
from fmnist_tasks.registry import s3, tries
from fmnist_tasks.registry.access import reach
from fmnist_tasks.registry.lifecycle import RULES, add_rules
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.store import Store, open_store
from fmnist_tasks.settings import Settings
from tests.support.certificate import make_certificate
from tests.support.minio_server import MinioServer
from tests.support.proxy import Fault, Proxy

pytestmark = pytest.mark.integration

NO_CREDENTIALS = {"MINIO_ACCESS_KEY": "", "MINIO_SECRET_KEY": "", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


def fresh() -> Store:
    """A store as the settings name it, as a process would open it that begins now."""
    return open_store(Settings.from_environment().store)


def raw(minio_server: MinioServer) -> client.Minio:
    return client.Minio(f"127.0.0.1:{minio_server.port}", *minio_server.credentials.values(), secure=False)


def test_the_first_write_makes_the_bucket_with_versioning(minio_server: MinioServer, minio_store: S3Store) -> None:
    assert list(minio_store.list("")) == []
    assert not raw(minio_server).bucket_exists(minio_store.bucket)
    minio_store.put("k", b"one")
    minio_store.put("k", b"two")
    assert raw(minio_server).get_bucket_versioning(minio_store.bucket).status == "Enabled"
    assert len(list(raw(minio_server).list_objects(minio_store.bucket, "k", include_version=True))) == 2
    assert list_rules(minio_server, minio_store.bucket) == OUR_RULES


OUR_RULES = [("checkpoints", "checkpoints/", 1, True), ("earlier versions", "", 30, True)]


def list_rules(minio_server: MinioServer, bucket: str) -> list[tuple[str, str, int, bool]]:
    """Of each rule, as the server has it: name, prefix, days of earlier versions, whether it removes delete markers."""
    return [
        (
            rule.rule_id,
            rule.rule_filter.prefix,
            rule.noncurrent_version_expiration.noncurrent_days,
            rule.expiration.expired_object_delete_marker,
        )
        for rule in raw(minio_server).get_bucket_lifecycle(bucket).rules
    ]


def read_rules(minio_server: MinioServer, bucket: str) -> str:
    """The rules as the server's own XML."""
    return raw(minio_server)._execute("GET", bucket, query_params={"lifecycle": ""}).data.decode()


def test_rules_are_added_beside_those_that_a_person_has_set(minio_server: MinioServer, minio_store: S3Store) -> None:
    client, bucket = raw(minio_server), minio_store.bucket
    client.make_bucket(bucket)
    # With a size, of which the client's own classes know nothing, and one of ours, changed.
    theirs = (
        "<Rule><ID>mine</ID><Status>Enabled</Status><Filter><And><Prefix>runs/</Prefix>"
        "<ObjectSizeGreaterThan>1000</ObjectSizeGreaterThan></And></Filter><Expiration><Days>90</Days></Expiration></Rule>"
        "<Rule><ID>checkpoints</ID><Status>Enabled</Status><Filter><Prefix>checkpoints/</Prefix></Filter>"
        "<NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays></NoncurrentVersionExpiration></Rule>"
    )
    body = f"<LifecycleConfiguration>{theirs}</LifecycleConfiguration>".encode()
    md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    client._execute("PUT", bucket, body=body, headers={"Content-MD5": md5}, query_params={"lifecycle": ""})
    before = read_rules(minio_server, bucket)
    for _ in range(2):
        add_rules(client, bucket, RULES)
        after = read_rules(minio_server, bucket)
        parts = re.findall("<Rule>.*?</Rule>", after)
        assert parts[:2] == re.findall("<Rule>.*?</Rule>", before)
        assert [re.findall("<ID>(.*?)</ID>", part) for part in parts] == [
            ["mine"],
            ["checkpoints"],
            ["earlier versions"],
        ]
        assert "<NoncurrentDays>30</NoncurrentDays>" in parts[2]
        assert "<ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker>" in parts[2]


def test_rules_that_a_person_has_set_for_a_bucket_stay(minio_server: MinioServer, minio_store: S3Store) -> None:
    raw(minio_server).make_bucket(minio_store.bucket)
    mine = Rule(ENABLED, rule_id="mine", rule_filter=Filter(prefix="runs/"), expiration=Expiration(days=90))
    raw(minio_server).set_bucket_lifecycle(minio_store.bucket, LifecycleConfig([mine]))
    minio_store.put("k", b"x")
    assert [rule.rule_id for rule in raw(minio_server).get_bucket_lifecycle(minio_store.bucket).rules] == ["mine"]


def test_a_bucket_left_without_versioning_by_a_killed_process_gets_it(
    minio_server: MinioServer, minio_store: S3Store
) -> None:
    raw(minio_server).make_bucket(minio_store.bucket)
    minio_store.put("k", b"x")
    assert raw(minio_server).get_bucket_versioning(minio_store.bucket).status == "Enabled"


def test_a_bucket_whose_versioning_a_person_suspended_stays_so(minio_server: MinioServer, minio_store: S3Store) -> None:
    raw(minio_server).make_bucket(minio_store.bucket)
    raw(minio_server).set_bucket_versioning(minio_store.bucket, client.versioningconfig.VersioningConfig("Suspended"))
    minio_store.put("k", b"x")
    assert raw(minio_server).get_bucket_versioning(minio_store.bucket).status == "Suspended"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("releases/v/model.h5", "application/x-hdf5"),
        ("releases/v/manifest.json", "application/json; charset=utf-8"),
        ("releases/v/model_card.md", "text/markdown; charset=utf-8"),
        ("releases/v/report.html", "text/html; charset=utf-8"),
        ("releases/v/figures/x.png", "image/png"),
        ("blobs/sha256/ab", "application/octet-stream"),
    ],
)
def test_objects_carry_their_type_and_digest(
    minio_server: MinioServer, minio_store: S3Store, key: str, kind: str
) -> None:
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    minio_store.put(key, b"test")
    minio_store.put_if_absent(f"again/{key}", b"test")
    for name in (key, f"again/{key}"):
        found = raw(minio_server).stat_object(minio_store.bucket, name)
        assert found.content_type == kind
        assert found.metadata["x-amz-meta-sha256"] == digest


def test_the_server_itself_refuses_a_second_create(minio_store: S3Store, proxy: Proxy) -> None:
    store = fresh()
    assert store.put_if_absent("k", b"first")
    proxy.reset()
    assert not store.put_if_absent("k", b"second")
    (request,) = proxy.requests
    assert (request.method, request.status) == ("PUT", 412)
    assert request.headers["if-none-match"] == "*"
    assert not [name for name in request.headers if name.startswith("x-amz-meta-") and "match" in name]
    assert minio_store.get("k") == b"first"


def test_the_condition_never_becomes_metadata(minio_server: MinioServer, minio_store: S3Store) -> None:
    minio_store.put_if_absent("k", b"first")
    names = [name.lower() for name in raw(minio_server).stat_object(minio_store.bucket, "k").metadata]
    assert not [name for name in names if "match" in name]


def test_a_server_that_ignores_conditions_is_never_written_to(proxy: Proxy) -> None:
    ignoring = lambda request: Fault(status=200) if "if-none-match" in request.headers else None  # noqa: E731
    proxy.reset(ignoring)
    with pytest.raises(AccessError, match=r"overwrites what it should create only if absent.*see the README"):
        fresh().put_if_absent("champion/00000001.json", b"x")
    assert not [request for request in proxy.requests if "champion" in request.path]


def test_large_objects_go_in_parts_and_conditional_ones_never(minio_store: S3Store, proxy: Proxy) -> None:
    large = bytes(9 << 20)
    fresh().put("large", io.BytesIO(large))
    assert {request.path.partition("?")[2].partition("=")[0] for request in proxy.requests} >= {"uploads", "partNumber"}
    proxy.reset()
    assert fresh().put_if_absent("other", large)
    assert not [request for request in proxy.requests if "upload" in request.path.lower()]
    assert minio_store.get("other") == large


def test_large_transfers_tell_how_far_they_are(minio_store: S3Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    minio_store.put("small", bytes(1 << 20))
    assert "MB" not in caplog.text
    minio_store.put("large", bytes(20_000_000))
    assert "large: 20 of 20 MB" in caplog.text
    caplog.clear()
    minio_store.get("large")
    told = [int(text) for text in re.findall(r"large: (\d+) of 20 MB", caplog.text)]
    assert len(told) == 4
    assert told == sorted(told)


@pytest.mark.exhaustive
def test_a_gigabyte_passes_in_little_memory(minio_store: S3Store, tmp_path: Path) -> None:
    program = """
import re, sys
from pathlib import Path
from fmnist_tasks.registry.blobs import open_verified, put_blob
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import Settings
store = open_store(Settings.from_environment().store)
with open(sys.argv[1], "rb") as file:
    reference = put_blob(store, file)
with open_verified(store, reference) as file:
    assert file.seek(0, 2) == 1 << 30
# Not ru_maxrss, which a process inherits from the one that started it.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10)
"""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 30)
    arguments = [sys.executable, "-c", program, str(large)]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=500)
    assert int(ended.stdout) < 200  # MiB


# Errors that cannot pass: each in words of its own, and no request repeated.


@pytest.mark.parametrize("ask", ["get", "stat", "put", "list"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"MINIO_SECRET_KEY": "not the right one"}, "does not accept these credentials .SignatureDoesNotMatch"),
        ({"MINIO_ACCESS_KEY": "nobody"}, "does not accept these credentials .InvalidAccessKeyId"),
    ],
)
def test_wrong_credentials(
    minio_store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, ask: str, changed: dict[str, str], message: str
) -> None:
    minio_store.put("k", b"x")
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AccessError, match=message) as caught:
        asked(fresh(), ask)
    assert len(proxy.requests) == (2 if ask == "stat" else 1)  # an answer to HEAD does not tell why
    told = "".join(traceback.format_exception(caught.value))
    assert os.environ["MINIO_SECRET_KEY"] not in told
    assert "Signature=" not in told


def asked(store: Store, what: str) -> object:
    return {
        "get": lambda: store.get("k"),
        "stat": lambda: store.stat("k"),
        "put": lambda: store.put("k", b"x"),
        "list": lambda: list(store.list("")),
    }[what]()


@pytest.mark.parametrize("ask", ["get", "stat", "put", "list"])
def test_no_right_to_the_bucket(
    minio_server: MinioServer, minio_store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    minio_store.put("k", b"x")
    for name, value in minio_server.create_user("reader", "another-bucket").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AccessError, match=r"does not allow it with these credentials .AccessDenied.*include/policies"):
        asked(fresh(), ask)
    assert len(proxy.requests) <= 2


@pytest.mark.parametrize("ask", ["get", "stat", "put", "list"])
def test_a_clock_that_is_an_hour_off(
    minio_store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    minio_store.put("k", b"x")
    now = client.time.utcnow
    monkeypatch.setattr("minio.time.utcnow", lambda: now() - timedelta(hours=1))
    with pytest.raises(AccessError, match=r"this machine's clock and that of http://\S+ differ too much; set them"):
        asked(fresh(), ask)
    assert len(proxy.requests) <= 2


def test_an_authority_that_is_not_trusted(tls: MinioServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tls.credentials.items():
        monkeypatch.setenv(name, value)
    store = open_store(tls.build_uri(bucket))
    with pytest.raises(AccessError, match=r"certificate of https://\S+ is not trusted \(.*; put.*SSL_CERT_FILE"):
        store.get("k")
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.certificate))
    trusting = open_store(tls.build_uri(bucket))
    trusting.put("k", b"x")
    assert trusting.put_if_absent("l", b"y")
    assert trusting.get("k") == b"x"


def test_plain_text_spoken_to_a_tls_client(minio_server: MinioServer, minio_store: S3Store) -> None:
    store = open_store(minio_server.build_uri(minio_store.bucket, minio_server.endpoint.replace("http:", "https:")))
    with pytest.raises(AccessError, match=r"does not speak TLS .*is the endpoint http:// instead"):
        store.get("k")


@pytest.fixture(scope="module")
def tls(minio_server: MinioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """A MinIO server behind a certificate that no authority has signed."""
    certificate, _ = make_certificate(tmp_path_factory.mktemp("certificates"))
    own = MinioServer(tmp_path_factory.mktemp("tls") / "data", certificate=certificate)
    own.start()
    yield own
    own.stop()


# Settings.


@pytest.mark.parametrize(
    "uri",
    [
        "s3://user:geheim@bucket?endpoint=http://127.0.0.1:9",
        "s3://bucket?endpoint=http://user:geheim@127.0.0.1:9",
        "s3://bucket/geheim?endpoint=http://127.0.0.1:9",
        "s3://bucket?endpoint=127.0.0.1:9",
        "s3://bucket?endpoint=http://127.0.0.1:9/geheim",
        "s3://bucket?endpoint=http://127.0.0.1:9&geheimnis=x",
        "s3://bucket",
        "s3://b",
        "s3://",
    ],
)
def test_a_uri_that_names_no_server_is_refused_without_being_repeated(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    for name in NO_CREDENTIALS:
        monkeypatch.setenv(name, "set")
    with pytest.raises(SettingsError, match="FMNIST_STORE") as caught:
        open_store(uri)
    assert "geheim@" not in str(caught.value)
    assert "geheim?" not in str(caught.value)


def test_credentials_that_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"no credentials .*MINIO_ACCESS_KEY and MINIO_SECRET_KEY.*connection="):
        open_store("s3://bucket?endpoint=http://127.0.0.1:9")


def test_requests_are_signed_for_the_region_that_the_uri_names(minio_store: S3Store) -> None:
    bucket = reach("s3://bucket?endpoint=http://127.0.0.1:9&region=eu-central-1")
    assert "%2Feu-central-1%2Fs3%2F" in bucket.client.presigned_get_object(bucket.name, "k")


def test_credentials_by_their_aws_names(
    minio_server: MinioServer, minio_store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, secret = minio_server.credentials.values()
    for name, value in {**NO_CREDENTIALS, "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}.items():
        monkeypatch.setenv(name, value)
    fresh().put("k", b"x")
    assert minio_store.get("k") == b"x"


class Chunking(BaseHTTPRequestHandler):
    """Answers every GET with an object in chunks, without its length, as some proxies do, and may break off."""

    protocol_version = "HTTP/1.1"
    ends = True

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"3\r\nabc\r\n3\r\ndef\r\n" + (b"0\r\n\r\n" if self.ends else b""))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("ends", [True, False])
def test_an_object_whose_length_is_not_told_is_read_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(Chunking, "ends", ends)
    monkeypatch.setattr(tries, "BUDGET", 0.5)
    monkeypatch.setenv("MINIO_ACCESS_KEY", "user")
    monkeypatch.setenv("MINIO_SECRET_KEY", "a secret that is long enough")
    opened: list[SpooledTemporaryFile[bytes]] = []
    make = SpooledTemporaryFile
    monkeypatch.setattr(s3, "SpooledTemporaryFile", lambda size: opened.append(make(size)) or opened[-1])
    with HTTPServer(("127.0.0.1", 0), Chunking) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        store = open_store(f"s3://bucket?endpoint=http://127.0.0.1:{server.server_port}")
        try:
            if ends:
                assert store.get("k") == b"abcdef"
            else:
                with pytest.raises(StoreError, match="cannot read"):
                    store.get("k")
        finally:
            server.shutdown()
            thread.join()
    assert opened
    assert all(file.closed for file in opened)
