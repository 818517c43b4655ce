"""Where keys come from, how they are made, and what is wrong with those that cannot be used."""

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
from fmnist_tasks.registry.audit import audit
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.keys import make_keys, parse_trusted_keys, read_keys, write_keys
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.store import open_store
from tests.support.signed_store import make_history, make_signer, promote, publish

PEM, TRUSTED = make_keys(None, [], revoke_earlier=False)
TRUSTED_JSON = TRUSTED.model_dump_json()


def encode(key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> str:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode()


RSA = rsa.generate_private_key(65537, 2048)
RSA_PUBLIC = (
    RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
)


def test_no_keys_are_the_default() -> None:
    assert read_keys({}) == read_keys({"FMNIST_TRUSTED_KEYS": "", "FMNIST_SIGNING_KEY": ""})
    assert read_keys({}).trusted is None


def test_keys_come_from_the_environment_or_from_files(tmp_path: Path) -> None:
    signing, trusted = write_keys(tmp_path, PEM, TRUSTED)
    named = read_keys({"FMNIST_TRUSTED_KEYS": TRUSTED_JSON, "FMNIST_SIGNING_KEY": PEM})
    from_files = read_keys({"FMNIST_TRUSTED_KEYS_FILE": str(trusted), "FMNIST_SIGNING_KEY_FILE": str(signing)})
    in_one_line = read_keys({"FMNIST_TRUSTED_KEYS": TRUSTED_JSON, "FMNIST_SIGNING_KEY": PEM.splitlines()[1]})
    assert named.trusted == from_files.trusted == TRUSTED
    assert named.signing_id == from_files.signing_id == in_one_line.signing_id == TRUSTED.keys[0].id


def test_a_signing_key_comes_from_an_airflow_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "generic", "password": PEM}
    monkeypatch.setenv("AIRFLOW_CONN_MY_KEY", json.dumps(connection))
    found = read_keys({"FMNIST_TRUSTED_KEYS": TRUSTED_JSON, "FMNIST_SIGNING_CONNECTION": "my_key"})
    assert found.signing_id == TRUSTED.keys[0].id
    for wrong in ("nobody", "empty"):
        monkeypatch.setenv("AIRFLOW_CONN_EMPTY", json.dumps({"conn_type": "generic"}))
        with pytest.raises(SettingsError, match=r"there is no Airflow connection of that name with a password"):
            read_keys({"FMNIST_TRUSTED_KEYS": TRUSTED_JSON, "FMNIST_SIGNING_CONNECTION": wrong})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"FMNIST_TRUSTED_KEYS": ""}, r"FMNIST_SIGNING_KEY: set FMNIST_TRUSTED_KEYS_FILE as well"),
        (
            {"FMNIST_SIGNING_KEY": make_keys(None, [], revoke_earlier=False)[0]},
            r"is key [0-9a-f]{16}, which is not among the tr",
        ),
        ({"FMNIST_SIGNING_KEY": "secret"}, r"FMNIST_SIGNING_KEY: is not an unencrypted PEM private key"),
        ({"FMNIST_SIGNING_KEY": encode(RSA)}, r"FMNIST_SIGNING_KEY: is not an Ed25519 key"),
        ({"FMNIST_SIGNING_KEY": encode(ed25519.Ed25519PrivateKey.generate(), b"p")}, r"is not an unencrypted PEM"),
        ({"FMNIST_TRUSTED_KEYS": "{"}, r"FMNIST_TRUSTED_KEYS: JSON: "),
        (
            {"FMNIST_TRUSTED_KEYS": "{}"},
            r"FMNIST_TRUSTED_KEYS: store: Field required; keys: Field required; use the file",
        ),
        ({"FMNIST_TRUSTED_KEYS": json.dumps({"store": "0" * 32, "keys": []})}, r"FMNIST_TRUSTED_KEYS: keys"),
        (
            {"FMNIST_TRUSTED_KEYS": json.dumps({"store": "0" * 32, "keys": [{"public_key": RSA_PUBLIC}]})},
            r"keys.0.public_key: Value error, is not an Ed25519 public key",
        ),
        ({"FMNIST_TRUSTED_KEYS": json.dumps(json.loads(TRUSTED_JSON) | {"schema_version": 2})}, "schema_version"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_and_not_repeated(changed: dict[str, str], reason: str) -> None:
    environment = {"FMNIST_TRUSTED_KEYS": TRUSTED_JSON, "FMNIST_SIGNING_KEY": PEM, **changed}
    with pytest.raises(SettingsError, match=reason) as caught:
        read_keys(environment)
    assert not environment["FMNIST_SIGNING_KEY"] or environment["FMNIST_SIGNING_KEY"] not in str(caught.value)


def test_a_store_is_opened_with_the_keys_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_TRUSTED_KEYS", TRUSTED_JSON)
    assert open_store(tmp_path.as_uri()).keys.trusted == TRUSTED
    monkeypatch.setenv("FMNIST_SIGNING_KEY", "no key")
    with pytest.raises(SettingsError):
        open_store(tmp_path.as_uri())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    monkeypatch.setenv("FMNIST_STORE", (tmp_path / "store").as_uri())
    return FolderStore(tmp_path / "store")


def fmnist(*arguments: object, expect: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == expect, result.output
    return result.stdout if expect == 0 else result.stderr


def test_first_key_rotation_and_audit_in_the_shell(
    home: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_history(home)
    folder = tmp_path / "keys"
    made = json.loads(fmnist("keys", "new", folder, "--json"))
    signing = Path(made["FMNIST_SIGNING_KEY_FILE"])
    assert stat.S_IMODE(signing.stat().st_mode) == 0o600
    trusted = parse_trusted_keys(Path(made["FMNIST_TRUSTED_KEYS_FILE"]).read_text())
    assert trusted.unsigned_count == 5
    for name in ("FMNIST_SIGNING_KEY_FILE", "FMNIST_TRUSTED_KEYS_FILE"):
        monkeypatch.setenv(name, made[name])

    signed = open_store(home.root.as_uri())
    publish(signed, "v5")
    promote(signed, "v5")
    rows = json.loads(fmnist("history", "--json"))
    assert [row["signature"] for row in rows] == ["unsigned"] * 5 + [f"signed by key {made['key'][:16]}"]

    again = json.loads(fmnist("keys", "new", folder, "--revoke-earlier", "--json"))
    both = parse_trusted_keys(Path(again["FMNIST_TRUSTED_KEYS_FILE"]).read_text())
    assert (both.store, both.unsigned) == (trusted.store, trusted.unsigned)
    assert [(key.id, key.revoked_after and key.revoked_after.count) for key in both.keys] == [
        (made["key"], 6),
        (again["key"], None),
    ]
    assert signing.exists()
    assert "was replaced and may not sign entry 7" in fmnist("restore", "v4", "--reason", "r", expect=1)

    monkeypatch.setenv("FMNIST_SIGNING_KEY_FILE", again["FMNIST_SIGNING_KEY_FILE"])
    fmnist("restore", "v4", "--reason", "r")
    found = json.loads(fmnist("audit", "--json"))
    assert (found["entries"], found["signed_entries"], found["signatures"]) == (7, 2, "verified")
    assert json.loads(fmnist("audit", "--json", "--expect", found["head"])) == found

    home.put("releases/v5/model.h5", b"another")
    assert "releases/v5/model.h5: is 7 bytes, expected at most 2" in fmnist("audit", expect=1)


def test_a_new_key_never_forgets_the_earlier_ones(
    home: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.keys = make_signer()
    make_history(home)
    assert "the champion log is signed already; set FMNIST_TRUSTED_KEYS_FILE" in fmnist(
        "keys", "new", tmp_path / "k", expect=1
    )
    assert home.keys.trusted
    monkeypatch.setenv("FMNIST_TRUSTED_KEYS", home.keys.trusted.model_dump_json())
    fmnist("keys", "new", tmp_path / "k")
    found = parse_trusted_keys((tmp_path / "k" / "trusted-keys.json").read_text())
    assert found.keys[0] == home.keys.trusted.keys[0]
    write_keys(tmp_path / "other", PEM, TRUSTED)
    assert "differs from FMNIST_TRUSTED_KEYS" in fmnist("keys", "new", tmp_path / "other", expect=1)
    assert len(champion.history(home)) == audit(home)["entries"]


def test_a_key_is_replaced_whatever_lies_among_the_releases(home: FolderStore, tmp_path: Path) -> None:
    """Otherwise anybody who may write the store could keep a leaked key from being revoked."""
    home.keys = make_signer()
    make_history(home)
    assert home.keys.trusted
    write_keys(tmp_path / "k", PEM, home.keys.trusted)
    home.put("releases/v9/manifest.json", seal({"version": "v9"}))
    found = json.loads(fmnist("keys", "new", tmp_path / "k", "--revoke-earlier", "--json"))
    assert (found["store"], found["entries"]) == (home.root.as_uri(), 5)
    assert parse_trusted_keys((tmp_path / "k" / "trusted-keys.json.old").read_text()) == home.keys.trusted
    assert len(parse_trusted_keys((tmp_path / "k" / "trusted-keys.json").read_text()).keys) == 2


def test_a_key_is_not_replaced_on_a_log_that_does_not_verify(home: FolderStore, tmp_path: Path) -> None:
    """The forged entry would become one that every reader requires."""
    home.keys = make_signer()
    make_history(home)
    assert home.keys.trusted
    write_keys(tmp_path / "k", PEM, home.keys.trusted)
    home.put("champion/00000006.json", home.get("champion/00000005.json"))
    before = (tmp_path / "k" / "trusted-keys.json").read_bytes()
    assert "champion/00000006.json: " in fmnist("keys", "new", tmp_path / "k", "--revoke-earlier", expect=1)
    assert (tmp_path / "k" / "trusted-keys.json").read_bytes() == before


def test_earlier_keys_are_not_revoked_by_the_log_of_another_store(
    home: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.keys = make_signer()
    make_history(home)
    assert home.keys.trusted
    write_keys(tmp_path / "k", PEM, home.keys.trusted)
    monkeypatch.setenv("FMNIST_STORE", (tmp_path / "empty").as_uri())
    assert "is signed with these keys: FMNIST_STORE may name another store" in fmnist(
        "keys", "new", tmp_path / "k", "--revoke-earlier", expect=1
    )


@pytest.mark.parametrize("content", ["text".encode("utf-16"), b"{", None])
def test_trusted_keys_that_cannot_be_read_are_named(home: FolderStore, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "k" / "trusted-keys.json"
    file.parent.mkdir()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    assert "FMNIST_TRUSTED_KEYS" in fmnist("keys", "new", file.parent, expect=1)
    assert list(tmp_path.rglob("*.pem")) == []


def test_keys_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "keys" / "trusted-keys.json").mkdir(parents=True)  # in the way of the second file
    for folder in (tmp_path / "file", tmp_path / "keys"):
        with pytest.raises(SettingsError, match=rf"{folder}: cannot write the keys: .*; choose another folder"):
            write_keys(folder, PEM, TRUSTED)
    assert not list(tmp_path.rglob("*.pem"))
