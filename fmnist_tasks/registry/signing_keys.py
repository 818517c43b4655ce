"""The keys of a process, and how to make new ones.

Every reader has the trusted keys, `FMNIST_TRUSTED_KEYS`, which are JSON and public. Only processes that publish,
promote and roll back have the signing key, an Ed25519 private key in PEM: `FMNIST_SIGNING_KEY`, or the password of the
Airflow connection that `FMNIST_SIGNING_CONNECTION` names. Both can also come from a file or a command (`…_FILE`,
`…_CMD`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from fmnist_tasks.connections import find_connection
from fmnist_tasks.credentials import find_secret
from fmnist_tasks.errors import SettingsError
from fmnist_tasks.registry.signing import (
    DatasetHistory,
    Keys,
    SealedEntries,
    TrustedKey,
    TrustedKeys,
    compute_key_id,
    digest_entries,
)
from fmnist_tasks.schemas.base import describe_faults

TRUSTED_KEYS, SIGNING_KEY, CONNECTION = "FMNIST_TRUSTED_KEYS", "FMNIST_SIGNING_KEY", "FMNIST_SIGNING_CONNECTION"
TRUSTED_FILE = "trusted-keys.json"


def read_keys(environment: Mapping[str, str] = os.environ) -> Keys:
    """Return the keys of this process; raises :class:`SettingsError` for unusable keys, or keys that do not match."""
    trusted = read_trusted_keys(environment)
    pem = find_secret(SIGNING_KEY, environment) or _read_connection(environment.get(CONNECTION))
    if not pem:
        return Keys(trusted)
    signing = parse_signing_key(pem)
    if trusted is None:
        raise SettingsError(
            f"{SIGNING_KEY} is set, but the trusted keys are not; set {TRUSTED_KEYS}_FILE to the file that "
            "`fmnist keys new` wrote"
        )
    if trusted.find_rank(key_id := compute_key_id(signing.public_key())) is None:
        raise SettingsError(
            f"{SIGNING_KEY} is key {key_id[:16]}, which is not among the trusted keys, so no reader would accept its "
            f"signatures; use the {TRUSTED_FILE} that was written together with this key, or a newer one"
        )
    return Keys(trusted, signing)


def read_trusted_keys(environment: Mapping[str, str]) -> TrustedKeys | None:
    """Return the trusted keys of this process, or None; raises like :func:`parse_trusted_keys`."""
    text = find_secret(TRUSTED_KEYS, environment)
    return parse_trusted_keys(text) if text else None


def parse_trusted_keys(text: str) -> TrustedKeys:
    """Parse the JSON of a file of trusted keys; raises :class:`SettingsError` with each fault."""
    try:
        return TrustedKeys.model_validate_json(text)
    except ValidationError as error:
        raise SettingsError(
            f"{TRUSTED_KEYS}: {describe_faults(error)}; use the file that `fmnist keys new` wrote"
        ) from error


def parse_signing_key(pem: str) -> Ed25519PrivateKey:
    """Parse an Ed25519 private key in PEM, or the middle line of one.

    Raises :class:`SettingsError`, whose message never contains the key.
    """
    if "-----" not in pem:  # the middle line, for settings that allow only one line
        pem = f"-----BEGIN PRIVATE KEY-----\n{pem.strip()}\n-----END PRIVATE KEY-----\n"
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(
            f"{SIGNING_KEY} is not an unencrypted private key in PEM; `fmnist keys new` makes one"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{SIGNING_KEY} is not an Ed25519 key; `fmnist keys new` makes one")
    return key


def make_keys(
    trusted: TrustedKeys | None,
    digests: Sequence[str],
    manifests: Mapping[str, str] | None = None,
    datasets: Mapping[str, tuple[Sequence[str], Mapping[str, str]]] | None = None,
    *,
    revoke_earlier: bool = False,
) -> tuple[str, TrustedKeys]:
    """Return a new signing key (PEM), and the trusted keys with its public key as the newest.

    `digests` are those of the present log entries. With the first key, these become the entries that may be unsigned,
    and `manifests`, digests (SHA-256, hex) by version, the releases that may be; `datasets` has both for each other
    dataset of the store. With `revoke_earlier`, no later entry may be signed with an earlier key.
    """
    signing = Ed25519PrivateKey.generate()
    pem = signing.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = signing.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    new = TrustedKey(public_key=public.decode())
    present = _seal_entries(digests)
    entries = {name: _seal_entries(own_digests) for name, (own_digests, _) in (datasets or {}).items()}
    if trusted is None:
        histories = {
            name: DatasetHistory(unsigned=entries[name], unsigned_manifests=dict(own_manifests))
            for name, (_, own_manifests) in (datasets or {}).items()
        }
        return pem.decode(), TrustedKeys(
            store=uuid4().hex,
            unsigned=present,
            unsigned_manifests=dict(manifests or {}),
            datasets=histories,
            keys=(new,),
        )
    if not revoke_earlier:
        return pem.decode(), trusted.model_copy(update={"keys": (*trusted.keys, new)})
    revoked = [key.id for key in trusted.keys if key.revoked_after is None]
    histories = dict(trusted.datasets)
    for name, sealed in entries.items():
        history = histories.get(name, DatasetHistory())
        revocations = {**dict.fromkeys(revoked, sealed), **history.revoked_after}
        histories[name] = history.model_copy(update={"revoked_after": revocations})
    earlier = (key if key.revoked_after else key.model_copy(update={"revoked_after": present}) for key in trusted.keys)
    return pem.decode(), trusted.model_copy(update={"keys": (*earlier, new), "datasets": histories})


def _seal_entries(digests: Sequence[str]) -> SealedEntries:
    return SealedEntries(count=len(digests), sha256=digest_entries(digests))


def write_keys(folder: Path, pem: str, trusted: TrustedKeys) -> tuple[Path, Path]:
    """Write the signing key, readable by this user only, and the trusted keys; return their paths.

    An earlier file of trusted keys is copied to `trusted-keys.json.old`. If a file cannot be written, removes the
    signing key and raises :class:`SettingsError`.
    """
    signing, public = folder / f"signing-key-{trusted.keys[-1].id[:16]}.pem", folder / TRUSTED_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(signing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(pem)
        temporary = public.with_suffix(".new")
        temporary.write_text(trusted.model_dump_json(indent=2, exclude_none=True) + "\n")
        if public.exists():
            shutil.copyfile(public, public.with_suffix(".json.old"))
        temporary.replace(public)
    except OSError as error:
        with suppress(OSError):
            signing.unlink()
        raise SettingsError(f"{folder}: cannot write the keys: {error.strerror}; choose another folder") from error
    return signing, public


def _read_connection(name: str | None) -> str | None:
    if not name:
        return None
    connection = find_connection(name)
    if connection is None or not connection.password:
        raise SettingsError(
            f"{CONNECTION}: there is no Airflow connection of that name with a password; create it, with the signing "
            "key as its password"
        )
    return str(connection.password)
