"""The users that the init job creates: their rights, and attacks that the server refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import urllib3
from minio import Minio, MinioAdmin
from minio.commonconfig import ENABLED, CopySource, Filter
from minio.credentials import AssumeRoleProvider, Credentials
from minio.credentials.providers import StaticProvider
from minio.datatypes import Part, PostPolicy
from minio.deleteobjects import DeleteObject
from minio.error import MinioAdminException, S3Error, ServerError
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from minio.objectlockconfig import DAYS, GOVERNANCE, ObjectLockConfig
from minio.retention import Retention
from minio.select import CSVInputSerialization, CSVOutputSerialization, SelectRequest
from minio.signer import sign_v4_s3
from minio.versioningconfig import SUSPENDED, VersioningConfig

from fmnist_tasks.errors import AccessError, SettingsError
from fmnist_tasks.registry import provision
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.s3_address import Bucket
from fmnist_tasks.settings import PROJECT
from tests.support.forged_uploads import (
    CONTENT,
    UNSIGNED_TRAILER,
    Upload,
    encode_with_trailer,
    forge_uploads,
    make_archive,
)
from tests.support.minio_server import MinioServer, VersityServer
from tests.support.requirements import MINIO, VERSITY, require

pytestmark = pytest.mark.integration

PIPELINE = provision.PIPELINE
ENTRY, MANIFEST = "champion/00000001.json", "releases/v1/manifest.json"
WRITE_ONCE = [ENTRY, MANIFEST, f"datasets/digits/{ENTRY}", f"datasets/digits/{MANIFEST}"]


@dataclass(frozen=True)
class Provisioned:
    """A server on which the init job has run."""

    server: MinioServer
    users: dict[str, tuple[str, str]]  # by role: access key and secret
    leaked: list[StaticProvider] = field(default_factory=list)  # created with an earlier secret of the publisher

    @property
    def authority(self) -> str:
        return urlsplit(self.server.endpoint).netloc

    def connect_as(self, role: str) -> Minio:
        return self.connect(StaticProvider(*self.users[role]))

    def connect(self, credentials: StaticProvider) -> Minio:
        return Minio(self.authority, credentials=credentials, secure=False, region="us-east-1")

    def open_store(self, role: str, bucket: str) -> S3Store:
        return S3Store(Bucket(bucket, self.server.endpoint, self.connect_as(role)))

    def list_versions(self, prefix: str = "") -> list[tuple[str, str, bool]]:
        """Return each version in the pipeline's bucket: key, version ID, and whether it is a delete marker."""
        items = self.connect_as("root").list_objects(PIPELINE, prefix=prefix, recursive=True, include_version=True)
        return [(str(item.object_name), str(item.version_id), item.is_delete_marker) for item in items]


@pytest.fixture(scope="module", params=["minio", pytest.param("versity", marks=pytest.mark.exhaustive)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    if request.param == "minio":
        yield request.getfixturevalue("minio_server")
        return
    require(VERSITY)
    versity = VersityServer(tmp_path_factory.mktemp("versity") / "data")
    versity.start()
    yield versity
    versity.stop()


@pytest.fixture(scope="module")
def provisioned(server: MinioServer) -> Provisioned:
    access, secret = server.credentials.values()
    users = {role: (uuid4().hex[:20], uuid4().hex) for role in provision.ROLES}
    root = {"MINIO_ENDPOINT": server.endpoint, "MINIO_ROOT_USER": access, "MINIO_ROOT_PASSWORD": secret}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {**root, "STORE": server.kind}.items():
            monkeypatch.setenv(name, value)
        for role, (key, password) in users.items():
            monkeypatch.setenv(f"{role.upper()}_ACCESS_KEY", key)
            monkeypatch.setenv(f"{role.upper()}_PASSWORD", password)
        provisioned = Provisioned(
            server, {"root": (access, secret), "nobody": (uuid4().hex[:20], "s3cr3t-enough"), **users}
        )
        if server.kind == "minio":  # as an earlier version did: fewer rules, and roles as access keys
            provisioned.connect_as("root").make_bucket(PIPELINE)
            provisioned.connect_as("root").set_bucket_versioning(PIPELINE, VersioningConfig(ENABLED))
            admin = MinioAdmin(endpoint=provisioned.authority, credentials=StaticProvider(access, secret), secure=False)
            provision.add_user(admin, provision.User("publisher", PIPELINE, "publisher", "a-known-secret"), "publisher")
            admin.user_add(users["publisher"][0], "a-leaked-secret")
            admin.policy_set("readwrite", user=users["publisher"][0])
            provisioned.leaked.extend(make_other_credentials(provisioned, users["publisher"][0], "a-leaked-secret"))
        for _ in range(2):
            provision.main()
    store = provisioned.open_store("publisher", PIPELINE)
    for key in WRITE_ONCE:
        assert store.put_if_absent(key, b"first")
    return provisioned


def test_the_init_job_creates_buckets_and_users_with_the_least_rights(provisioned: Provisioned) -> None:
    root = provisioned.connect_as("root")
    if provisioned.server.kind == "minio":
        assert root.get_bucket_versioning(PIPELINE).status == ENABLED
        rules = root.get_bucket_lifecycle(PIPELINE).rules
        assert [rule.rule_id for rule in rules] == ["checkpoints", "earlier versions"]
        (rule,) = root.get_bucket_lifecycle(provision.LOGS).rules
        assert (rule.rule_filter.prefix, rule.expiration.days) == ("", 90)
    for role, (own, foreign) in {"publisher": ("fmnist", "fmnist-logs"), "logs": ("fmnist-logs", "fmnist")}.items():
        store = provisioned.open_store(role, own)
        store.put("tasks/one.log", role.encode())
        with pytest.raises(AccessError, match="does not allow it"):
            store.delete("tasks/one.log")
        with pytest.raises(AccessError, match="does not allow it"):
            provisioned.open_store(role, foreign).get("tasks/one.log")
    assert provisioned.open_store("reader", PIPELINE).get("tasks/one.log") == b"publisher"
    for role in ("reader", "pruner"):
        with pytest.raises(AccessError, match="does not allow it"):
            provisioned.open_store(role, PIPELINE).put("tasks/one.log", b"")
    for folder in ("", "datasets/digits/"):
        provisioned.open_store("pruner", PIPELINE).delete(f"{folder}releases/v0/model.h5")
        provisioned.open_store("publisher", PIPELINE).put(f"{folder}releases/v1/model.h5", b"a model")
        check_uploader(provisioned.open_store("uploader", PIPELINE), folder)
        provisioned.open_store("publisher", PIPELINE).delete(f"{folder}incoming/week.zip")


def check_uploader(store: S3Store, folder: str) -> None:
    """Assert that an uploader can add batches of a dataset, and neither read, change nor delete anything else."""
    assert store.stat(f"{folder}incoming/week.zip") is None
    assert store.put_if_absent(f"{folder}incoming/week.zip", b"images")
    attempts: list[Callable[[], object]] = [
        lambda: store.put(f"{folder}releases/v2/model.h5", b""),
        lambda: store.put(f"{folder}champion/00000002.json", b""),
        lambda: store.put(f"{folder}releases/incoming/model.h5", b""),  # a `*` in a policy matches a slash too
        lambda: store.put(f"{folder}runs/incoming/ingest.json", b""),
        lambda: store.put(f"{folder}working/incoming/x", b""),
        lambda: store.get(f"{folder}releases/v1/model.h5"),
        lambda: store.delete(f"{folder}incoming/week.zip"),
    ]
    for attempt in attempts:
        with pytest.raises(AccessError, match="does not allow it"):
            attempt()


def test_a_user_with_a_known_name_is_removed(provisioned: Provisioned) -> None:
    client = Minio(provisioned.authority, "publisher", "a-known-secret", secure=False, region="us-east-1")
    with pytest.raises(S3Error, match="InvalidAccessKeyId"):
        list(client.list_objects(PIPELINE))


def make_other_credentials(provisioned: Provisioned, access: str, secret: str) -> list[StaticProvider]:
    """Create a service account and temporary credentials as a user of MinIO."""
    user = MinioAdmin(endpoint=provisioned.authority, credentials=StaticProvider(access, secret), secure=False)
    account, password = uuid4().hex[:20], uuid4().hex
    user.add_service_account(access_key=account, secret_key=password)
    assumed = AssumeRoleProvider(
        sts_endpoint=provisioned.server.endpoint, access_key=access, secret_key=secret
    ).retrieve()
    temporary = StaticProvider(assumed.access_key, assumed.secret_key, assumed.session_token)
    providers = [StaticProvider(account, password), temporary]
    for credentials in providers:
        list(provisioned.connect(credentials).list_objects(PIPELINE))
    return providers


def test_credentials_created_with_a_leaked_secret_end_with_it(provisioned: Provisioned) -> None:
    """Service accounts and temporary credentials of MinIO; Versity has neither."""
    for credentials in provisioned.leaked:
        with pytest.raises(S3Error, match=r"InvalidAccessKeyId|InvalidTokenId"):
            list(provisioned.connect(credentials).list_objects(PIPELINE))


def test_no_user_can_create_credentials_that_outlive_a_change_of_the_secret(provisioned: Provisioned) -> None:
    """Service accounts of MinIO; Versity has none."""
    if provisioned.server.kind == "minio":
        for role in provision.ROLES:
            user = StaticProvider(*provisioned.users[role])
            admin = MinioAdmin(endpoint=provisioned.authority, credentials=user, secure=False)
            with pytest.raises(MinioAdminException, match="AccessDenied"):
                admin.add_service_account(access_key=f"another-{role}", secret_key=uuid4().hex)


@pytest.mark.parametrize("role", ["root", *provision.ROLES, "nobody"])
def test_nobody_uploads_in_the_name_of_another_user_without_the_secret(provisioned: Provisioned, role: str) -> None:
    root, key = provisioned.connect_as("root"), f"incoming/forged-{role}"
    upload_id = root._create_multipart_upload(PIPELINE, key, {})
    before = provisioned.list_versions()
    responses = {
        upload: upload.send(provisioned.server.endpoint)
        for upload in forge_uploads(provisioned.users[role][0], PIPELINE, key, upload_id)
    }
    assert {upload.name: response for upload, response in responses.items() if not 400 <= response[0] < 500} == {}
    assert all(re.search("<Code>.+</Code>", text) for _, text in responses.values())
    assert provisioned.list_versions() == before
    assert root._list_parts(PIPELINE, key, upload_id).parts == []


def sign_upload(provisioned: Provisioned, role: str, age: timedelta, secret: str = "") -> Upload:
    """Return an upload with an unsigned trailer, as AWS clients send it, with a signature by a user of this age."""
    access_key, own_secret = provisioned.users[role]
    moment = datetime.now(UTC) - age
    headers = {
        "Host": provisioned.authority,
        "X-Amz-Content-Sha256": UNSIGNED_TRAILER,
        "X-Amz-Date": f"{moment:%Y%m%dT%H%M%SZ}",
        "X-Amz-Decoded-Content-Length": str(len(CONTENT)),
        "X-Amz-Trailer": "x-amz-checksum-crc32",
    }
    path = f"/{PIPELINE}/incoming/signed-{uuid4().hex}"
    signed = sign_v4_s3(
        method="PUT",
        url=urlsplit(provisioned.server.endpoint + path),
        region="us-east-1",
        headers=dict(headers),
        credentials=Credentials(access_key, secret or own_secret),
        content_sha256=UNSIGNED_TRAILER,
        date=moment,
    )
    signed_headers = {name: str(value) for name, value in signed.items() if name != "Host"}  # every request has it
    return Upload("signed", path, headers=tuple(signed_headers.items()), body=encode_with_trailer(CONTENT))


def test_an_unsigned_trailer_is_accepted_only_with_a_valid_signature(provisioned: Provisioned) -> None:
    endpoint, store = provisioned.server.endpoint, provisioned.open_store("publisher", PIPELINE)
    valid = sign_upload(provisioned, "publisher", timedelta())
    assert valid.send(endpoint)[0] == 200
    assert store.get(valid.path.removeprefix(f"/{PIPELINE}/")) == CONTENT
    refused = {
        "without the right": sign_upload(provisioned, "reader", timedelta()),
        "with the secret of another user": sign_upload(
            provisioned, "publisher", timedelta(), provisioned.users["reader"][1]
        ),
        "replayed after an hour": sign_upload(provisioned, "publisher", timedelta(hours=1)),
        "from the future": sign_upload(provisioned, "publisher", timedelta(hours=-1)),
    }
    assert {name: upload.send(endpoint)[0] for name, upload in refused.items()} == dict.fromkeys(refused, 403)
    for upload in refused.values():
        assert store.stat(upload.path.removeprefix(f"/{PIPELINE}/")) is None


def test_a_presigned_upload_is_accepted(provisioned: Provisioned) -> None:
    url = provisioned.connect_as("publisher").presigned_put_object(PIPELINE, "incoming/presigned")
    assert urllib3.request("PUT", url, body=CONTENT).status == 200
    assert provisioned.open_store("reader", PIPELINE).get("incoming/presigned") == CONTENT


def post_form(client: Minio, key: str, authority: str) -> None:
    policy = PostPolicy(PIPELINE, datetime.now(UTC) + timedelta(minutes=1))
    policy.add_equals_condition("key", key)
    fields = {**client.presigned_post_policy(policy), "key": key, "file": ("x", b"another")}
    response = urllib3.request("POST", f"http://{authority}/{PIPELINE}", fields=fields)
    if response.status >= 400:
        raise ServerError(response.data.decode(), response.status)


def upload_in_parts(client: Minio, key: str) -> None:
    upload_id = client._create_multipart_upload(PIPELINE, key, {})
    etag = client._upload_part(PIPELINE, key, b"another", {}, upload_id, 1)
    client._complete_multipart_upload(PIPELINE, key, upload_id, [Part(1, etag)])


def delete_several(client: Minio, *objects: DeleteObject) -> None:
    if errors := list(client.remove_objects(PIPELINE, objects)):
        raise ServerError(str(errors[0].code), 403)


def put(client: Minio, key: str, headers: dict[str, str] | None = None, query: dict[str, str] | None = None) -> None:
    client._execute("PUT", PIPELINE, key, body=b"another", headers={**(headers or {})}, query_params={**(query or {})})


IF_ABSENT = {"If-None-Match": "*"}
# Attempts of a publisher to change an object; arguments: client, key, version ID, the server's authority.
OVERWRITES: dict[str, Callable[[Minio, str, str, str], object]] = {
    "put": lambda client, key, *_: put(client, key),
    "put if matching": lambda client, key, *_: put(
        client, key, {"If-Match": client.stat_object(PIPELINE, key).etag or ""}
    ),
    "copy": lambda client, key, *_: client.copy_object(PIPELINE, key, CopySource(PIPELINE, "incoming/another")),
    "multipart upload": lambda client, key, *_: upload_in_parts(client, key),
    "put, slash before": lambda client, key, *_: put(client, f"/{key}"),
}
CHANGES: dict[str, Callable[[Minio, str, str, str], object]] = {
    "copy if absent": lambda client, key, *_: put(
        client, key, {**IF_ABSENT, "X-Amz-Copy-Source": f"/{PIPELINE}/incoming/another"}
    ),
    "POST form": lambda client, key, _, authority: post_form(client, key, authority),
    "put if absent": lambda client, key, *_: put(client, key, IF_ABSENT),
    "put as a version": lambda client, key, version, _: put(client, key, IF_ABSENT, {"versionId": version}),
    "put as the null version": lambda client, key, *_: put(client, key, IF_ABSENT, {"versionId": "null"}),
    "put as a new version": lambda client, key, *_: put(
        client, key, IF_ABSENT, {"versionId": "11111111-1111-4111-8111-111111111111"}
    ),
    "put if absent, slash before": lambda client, key, *_: put(client, f"/{key}", IF_ABSENT),
    "put for replication": lambda client, key, *_: put(
        client, key, {**IF_ABSENT, "X-Minio-Source-Replication-Request": "true", "X-Minio-Source-Etag": "0" * 32}
    ),
    "archive": lambda client, key, *_: client._execute(
        "PUT", PIPELINE, "any.tar", body=make_archive(key), headers={"X-Amz-Meta-Snowball-Auto-Extract": "true"}
    ),
    "delete": lambda client, key, *_: client.remove_object(PIPELINE, key),
    "delete the version": lambda client, key, version, _: client.remove_object(PIPELINE, key, version),
    "delete several": lambda client, key, *_: delete_several(client, DeleteObject(key)),
    "delete versions": lambda client, key, version, _: delete_several(client, DeleteObject(key, version)),
    "set retention": lambda client, key, *_: client.set_object_retention(
        PIPELINE, key, Retention(GOVERNANCE, datetime.now(UTC) + timedelta(days=1))
    ),
    "set lifecycle": lambda client, *_: client.set_bucket_lifecycle(
        PIPELINE, LifecycleConfig([Rule(ENABLED, rule_filter=Filter(prefix=""), expiration=Expiration(days=1))])
    ),
    "suspend versioning": lambda client, *_: client.set_bucket_versioning(PIPELINE, VersioningConfig(SUSPENDED)),
    "lock objects": lambda client, *_: client.set_object_lock_config(PIPELINE, ObjectLockConfig(GOVERNANCE, 1, DAYS)),
    "set policy": lambda client, *_: client.set_bucket_policy(PIPELINE, '{"Version": "2012-10-17", "Statement": []}'),
    "delete the bucket": lambda client, *_: client.remove_bucket(PIPELINE),
}


@pytest.mark.parametrize("key", WRITE_ONCE)
def test_a_publisher_cannot_change_log_entries_or_manifests(provisioned: Provisioned, key: str) -> None:
    """On Versity a publisher can overwrite them, as this test shows; it stores an archive like any other object."""
    publisher = provisioned.connect_as("publisher")
    put(publisher, "incoming/another")
    ((_, version, _),) = provisioned.list_versions(key)
    accepted = []
    for name, change in {**CHANGES, **OVERWRITES}.items():
        before = provisioned.list_versions()
        try:
            change(publisher, key, version, provisioned.authority)
        except (S3Error, ServerError):
            assert provisioned.list_versions() == before, name
        else:
            accepted.append(name)
    content = provisioned.connect_as("root").get_object(PIPELINE, key).data
    if provisioned.server.kind == "minio":
        assert (accepted, content) == ([], b"first")
        assert provisioned.connect_as("root").get_bucket_versioning(PIPELINE).status == ENABLED
    else:
        assert (accepted, content) == (["archive", *OVERWRITES], b"another")


def test_replication_headers_are_refused(provisioned: Provisioned) -> None:
    """CVE-2026-34204 of MinIO; Versity ignores these headers."""
    publisher = provisioned.connect_as("publisher")
    sealed = {f"X-Minio-Replication-Server-Side-Encryption-{name}": "AAAA" for name in ("Iv", "Sealed-Key")}
    for key, headers in {
        "champion/00000009.json": {**IF_ABSENT, "X-Minio-Source-Mtime": "2099-01-01T00:00:00Z"},
        "incoming/encrypted": {
            **sealed,
            "X-Minio-Replication-Server-Side-Encryption-Seal-Algorithm": "DAREv2-HMAC-SHA256",
        },
    }.items():
        with suppress(S3Error):
            put(publisher, key, headers)
        for item in publisher.list_objects(PIPELINE, prefix=key):
            assert item.last_modified
            assert abs(item.last_modified - datetime.now(UTC)) < timedelta(minutes=5)
            assert publisher.get_object(PIPELINE, key).data == b"another"


def test_s3_select_cannot_exhaust_the_memory_of_minio(provisioned: Provisioned) -> None:
    """CVE-2026-39414; Versity has no S3 Select."""
    if provisioned.server.kind == "minio":
        request = SelectRequest("SELECT * FROM S3Object", CSVInputSerialization(), CSVOutputSerialization())
        with pytest.raises(S3Error, match="S3 Select"):
            provisioned.connect_as("reader").select_object_content(PIPELINE, ENTRY, request)


@pytest.mark.parametrize("bucket", [PIPELINE, provision.LOGS, "no-such-bucket"])
def test_a_form_cannot_exhaust_the_memory_of_minio(provisioned: Provisioned, bucket: str) -> None:
    """MinIO's handler reads a list of any length before it verifies the signature; Versity has no such list."""
    if provisioned.server.kind == "minio":
        fields = {"key": "k", "x-minio-fanout-list": "{}" * 2000, "file": ("f", b"content")}
        response = urllib3.request("POST", f"{provisioned.server.endpoint}/{bucket}", fields=fields)
        assert response.status == 403
        assert b"does not accept POST forms" in response.data


@pytest.mark.parametrize("pattern", ["champion/*,releases/*", "/fmnist/champion/*", "champion", "b/", "b/[/*"])
def test_an_invalid_pattern_of_write_once_keys_is_refused(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(MINIO)
    monkeypatch.setenv("WRITE_ONCE_KEYS", f"fmnist/champion/* {pattern}")
    with pytest.raises(RuntimeError, match=r"WRITE_ONCE_KEYS: .* is not a valid pattern"):
        MinioServer(tmp_path / "data").start()


def run_init_job(provisioned: Provisioned, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the init job with these access keys, by role."""
    access, secret = provisioned.users["root"]
    environment = {"MINIO_ENDPOINT": provisioned.server.endpoint, "STORE": provisioned.server.kind}
    environment |= {"MINIO_ROOT_USER": access, "MINIO_ROOT_PASSWORD": secret}
    for role, key in keys.items():
        environment |= {f"{role.upper()}_ACCESS_KEY": key, f"{role.upper()}_PASSWORD": uuid4().hex}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    provision.main()


def test_the_init_job_refuses_one_user_for_two_roles(provisioned: Provisioned, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {role: uuid4().hex[:20] for role in provision.ROLES}
    with pytest.raises(SettingsError, match="are the same"):
        run_init_job(provisioned, keys | {"reader": keys["publisher"]}, monkeypatch)


@pytest.mark.parametrize("server", ["minio"], indirect=True)  # Versity disables no users
def test_the_init_job_refuses_a_disabled_user(provisioned: Provisioned, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {role: uuid4().hex[:20] for role in provision.ROLES}
    provider = StaticProvider(*provisioned.users["root"])
    admin = MinioAdmin(endpoint=provisioned.authority, credentials=provider, secure=False)
    admin.user_add(keys["reader"], "a-leaked-secret")
    admin.user_disable(keys["reader"])
    with pytest.raises(AccessError, match="the user of the role reader is disabled"):
        run_init_job(provisioned, keys, monkeypatch)


def test_not_even_the_administrator_can_overwrite_a_log_entry_in_minio(provisioned: Provisioned) -> None:
    if provisioned.server.kind == "minio":
        with pytest.raises(S3Error, match="written once"):
            put(provisioned.connect_as("root"), ENTRY)


@pytest.mark.exhaustive
def test_the_contract_holds_on_versity(tmp_path: Path) -> None:
    """Runs the tests of the command in docs/store.md, in another pytest process."""
    require(VERSITY)
    server = VersityServer(tmp_path / "data")
    server.start()
    environment = os.environ | server.credentials | {"FMNIST_TEST_ENDPOINT": server.endpoint}
    files = ["tests/contract", "tests/registry/test_faults.py", "tests/registry/test_pruning.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not folder", *files]
    try:
        process = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True)
    finally:
        server.stop()
    assert process.returncode == 0, process.stdout
    assert re.search(r"^\d{2,} passed", process.stdout, re.MULTILINE)
