"""Creating and reading keys, `fmnist keys new`, and the messages about unusable keys."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from fmnist_tasks.errors import SettingsError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.audit import audit_store
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.signing_keys import make_keys, parse_trusted_keys, read_keys, write_keys
from fmnist_tasks.registry.stores import open_store
from tests.support.signed_store import make_history, make_signing_keys, promote, publish

PEM, TRUSTED = make_keys(None, [], revoke_earlier=False)
TRUSTED_JSON = TRUSTED.model_dump_json()


def encode(key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> str:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode()


RSA = rsa.generate_private_key(65537, 2048)
RSA_PUBLIC = (
    RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
)


def test_an_empty_folder_name_is_not_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run_fmnist("keys", "new", "", exit_code=2)
    assert list(tmp_path.iterdir()) == []


def test_by_default_there_are_no_keys() -> None:
    assert read_keys({}) == read_keys({"FMNIST_TRUSTED_KEYS": "", "FMNIST_SIGNING_KEY": ""})
    assert read_keys({}).trusted is None


def test_keys_come_from_the_environment_or_from_files(tmp_path: Path) -> None:
    signing, trusted = write_keys(tmp_path, PEM, TRUSTED)
    from_values = read_keys({"FMNIST_TRUSTED_KEYS": TRUSTED_JSON, "FMNIST_SIGNING_KEY": PEM})
    from_files = read_keys({"FMNIST_TRUSTED_KEYS_FILE": str(trusted), "FMNIST_SIGNING_KEY_FILE": str(signing)})
    from_one_line = read_keys({"FMNIST_TRUSTED_KEYS": TRUSTED_JSON, "FMNIST_SIGNING_KEY": PEM.splitlines()[1]})
    assert from_values.trusted == from_files.trusted == TRUSTED
    assert from_values.signing_id == from_files.signing_id == from_one_line.signing_id == TRUSTED.keys[0].id


def test_a_signing_key_comes_from_an_airflow_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "generic", "password": PEM}
    monkeypatch.setenv("AIRFLOW_CONN_MY_KEY", json.dumps(connection))
    keys = read_keys({"FMNIST_TRUSTED_KEYS": TRUSTED_JSON, "FMNIST_SIGNING_CONNECTION": "my_key"})
    assert keys.signing_id == TRUSTED.keys[0].id
    for wrong in ("nobody", "empty"):
        monkeypatch.setenv("AIRFLOW_CONN_EMPTY", json.dumps({"conn_type": "generic"}))
        with pytest.raises(SettingsError, match=r"there is no Airflow connection of that name with a password"):
            read_keys({"FMNIST_TRUSTED_KEYS": TRUSTED_JSON, "FMNIST_SIGNING_CONNECTION": wrong})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"FMNIST_TRUSTED_KEYS": ""}, r"FMNIST_SIGNING_KEY is set, but the trusted keys are not; set FMNIST_TRUSTED"),
        (
            {"FMNIST_SIGNING_KEY": make_keys(None, [], revoke_earlier=False)[0]},
            r"is key [0-9a-f]{16}, which is not among the tr",
        ),
        ({"FMNIST_SIGNING_KEY": "secret"}, r"FMNIST_SIGNING_KEY is not an unencrypted private key in PEM"),
        ({"FMNIST_SIGNING_KEY": encode(RSA)}, r"FMNIST_SIGNING_KEY is not an Ed25519 key"),
        (
            {"FMNIST_SIGNING_KEY": encode(ed25519.Ed25519PrivateKey.generate(), b"p")},
            r"is not an unencrypted private key",
        ),
        ({"FMNIST_TRUSTED_KEYS": "{"}, r"FMNIST_TRUSTED_KEYS: Invalid JSON: EOF"),
        ({"FMNIST_TRUSTED_KEYS": "{}"}, r"FMNIST_TRUSTED_KEYS: store: missing; keys: missing; use the file"),
        ({"FMNIST_TRUSTED_KEYS": json.dumps({"store": "0" * 32, "keys": []})}, r"FMNIST_TRUSTED_KEYS: keys"),
        (
            {"FMNIST_TRUSTED_KEYS": json.dumps({"store": "0" * 32, "keys": [{"public_key": RSA_PUBLIC}]})},
            r"keys.0.public_key: is not an Ed25519 public key",
        ),
        ({"FMNIST_TRUSTED_KEYS": json.dumps(json.loads(TRUSTED_JSON) | {"schema_version": 2})}, "schema_version"),
    ],
)
def test_unusable_keys_are_refused_and_not_printed(changes: dict[str, str], reason: str) -> None:
    environment = {"FMNIST_TRUSTED_KEYS": TRUSTED_JSON, "FMNIST_SIGNING_KEY": PEM, **changes}
    with pytest.raises(SettingsError, match=reason) as error:
        read_keys(environment)
    assert not environment["FMNIST_SIGNING_KEY"] or environment["FMNIST_SIGNING_KEY"] not in str(error.value)


def test_a_store_is_opened_with_the_keys_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_TRUSTED_KEYS", TRUSTED_JSON)
    assert open_store(tmp_path.as_uri()).keys.trusted == TRUSTED
    monkeypatch.setenv("FMNIST_SIGNING_KEY", "not a key")
    with pytest.raises(SettingsError):
        open_store(tmp_path.as_uri())


@pytest.fixture
def folder_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    monkeypatch.setenv("FMNIST_STORE", (tmp_path / "store").as_uri())
    return FolderStore(tmp_path / "store")


def run_fmnist(*arguments: object, exit_code: int = 0) -> str:
    """Run a command; return its standard output, or its standard error if a failure is expected."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result.stderr if exit_code else result.stdout


def test_the_command_line_creates_replaces_and_audits_keys(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_history(folder_store)
    folder = tmp_path / "keys"
    first = json.loads(run_fmnist("keys", "new", folder, "--json"))
    signing = Path(first["FMNIST_SIGNING_KEY_FILE"])
    assert stat.S_IMODE(signing.stat().st_mode) == 0o600
    trusted = parse_trusted_keys(Path(first["FMNIST_TRUSTED_KEYS_FILE"]).read_text())
    assert trusted.unsigned_count == 5
    for name in ("FMNIST_SIGNING_KEY_FILE", "FMNIST_TRUSTED_KEYS_FILE"):
        monkeypatch.setenv(name, first[name])

    signed = open_store(folder_store.root.as_uri())
    publish(signed, "v5")
    promote(signed, "v5")
    rows = json.loads(run_fmnist("history", "--json"))
    assert [row["signature"] for row in rows] == ["unsigned"] * 5 + [f"signed by key {first['key'][:16]}"]

    second = json.loads(run_fmnist("keys", "new", folder, "--revoke-earlier", "--json"))
    rotated = parse_trusted_keys(Path(second["FMNIST_TRUSTED_KEYS_FILE"]).read_text())
    assert (rotated.store, rotated.unsigned) == (trusted.store, trusted.unsigned)
    assert [(key.id, key.revoked_after and key.revoked_after.count) for key in rotated.keys] == [
        (first["key"], 6),
        (second["key"], None),
    ]
    assert signing.exists()
    assert "was replaced and may not sign entry 7" in run_fmnist("restore", "v4", "--reason", "r", exit_code=1)

    monkeypatch.setenv("FMNIST_SIGNING_KEY_FILE", second["FMNIST_SIGNING_KEY_FILE"])
    run_fmnist("restore", "v4", "--reason", "r")
    summary = json.loads(run_fmnist("audit", "--json"))
    assert (summary["entries"], summary["signed_entries"], summary["signatures"]) == (7, 2, "verified")
    assert json.loads(run_fmnist("audit", "--json", "--expect", summary["head"])) == summary

    folder_store.put("releases/v5/model.h5", b"another")
    assert "releases/v5/model.h5 has 7 bytes, expected at most 2" in run_fmnist("audit", exit_code=1)


def test_a_new_key_never_drops_the_earlier_ones(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_store.keys = make_signing_keys()
    make_history(folder_store)
    assert "the champion log is already signed; set FMNIST_TRUSTED_KEYS_FILE" in run_fmnist(
        "keys", "new", tmp_path / "k", exit_code=1
    )
    assert folder_store.keys.trusted
    monkeypatch.setenv("FMNIST_TRUSTED_KEYS", folder_store.keys.trusted.model_dump_json())
    run_fmnist("keys", "new", tmp_path / "k")
    trusted = parse_trusted_keys((tmp_path / "k" / "trusted-keys.json").read_text())
    assert trusted.keys[0] == folder_store.keys.trusted.keys[0]
    write_keys(tmp_path / "other", PEM, TRUSTED)
    assert "differs from FMNIST_TRUSTED_KEYS" in run_fmnist("keys", "new", tmp_path / "other", exit_code=1)
    assert len(champion.list_entries(folder_store)) == audit_store(folder_store)["entries"]


def test_a_key_can_be_replaced_whatever_is_among_the_releases(folder_store: FolderStore, tmp_path: Path) -> None:
    """Otherwise anyone with write access to the store could prevent the revocation of a leaked key."""
    folder_store.keys = make_signing_keys()
    make_history(folder_store)
    assert folder_store.keys.trusted
    write_keys(tmp_path / "k", PEM, folder_store.keys.trusted)
    folder_store.put("releases/v9/manifest.json", seal({"version": "v9"}))
    output = json.loads(run_fmnist("keys", "new", tmp_path / "k", "--revoke-earlier", "--json"))
    assert (output["store"], output["entries"]) == (folder_store.root.as_uri(), 5)
    assert parse_trusted_keys((tmp_path / "k" / "trusted-keys.json.old").read_text()) == folder_store.keys.trusted
    assert len(parse_trusted_keys((tmp_path / "k" / "trusted-keys.json").read_text()).keys) == 2


def test_a_key_is_not_replaced_on_a_log_that_does_not_verify(folder_store: FolderStore, tmp_path: Path) -> None:
    """The new trusted keys would require the forged entry of every reader."""
    folder_store.keys = make_signing_keys()
    make_history(folder_store)
    assert folder_store.keys.trusted
    write_keys(tmp_path / "k", PEM, folder_store.keys.trusted)
    folder_store.put("champion/00000006.json", folder_store.get("champion/00000005.json"))
    before = (tmp_path / "k" / "trusted-keys.json").read_bytes()
    assert "champion/00000006.json: " in run_fmnist("keys", "new", tmp_path / "k", "--revoke-earlier", exit_code=1)
    assert (tmp_path / "k" / "trusted-keys.json").read_bytes() == before


def test_earlier_keys_are_not_revoked_by_the_log_of_another_store(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_store.keys = make_signing_keys()
    make_history(folder_store)
    assert folder_store.keys.trusted
    write_keys(tmp_path / "k", PEM, folder_store.keys.trusted)
    monkeypatch.setenv("FMNIST_STORE", (tmp_path / "empty").as_uri())
    assert "is signed with these keys: FMNIST_STORE may name another store" in run_fmnist(
        "keys", "new", tmp_path / "k", "--revoke-earlier", exit_code=1
    )


@pytest.mark.parametrize("content", ["text".encode("utf-16"), b"{", None])
def test_unreadable_trusted_keys_are_reported(folder_store: FolderStore, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "k" / "trusted-keys.json"
    file.parent.mkdir()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    assert "FMNIST_TRUSTED_KEYS" in run_fmnist("keys", "new", file.parent, exit_code=1)
    assert list(tmp_path.rglob("*.pem")) == []


def test_keys_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "keys" / "trusted-keys.json").mkdir(parents=True)  # a folder in place of the second file
    for folder in (tmp_path / "file", tmp_path / "keys"):
        with pytest.raises(SettingsError, match=rf"{folder}: cannot write the keys: .*; choose another folder"):
            write_keys(folder, PEM, TRUSTED)
    assert not list(tmp_path.rglob("*.pem"))
