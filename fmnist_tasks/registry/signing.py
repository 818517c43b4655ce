"""Signed documents: JSON in DSSE envelopes (github.com/secure-systems-lab/dsse) with Ed25519 signatures (RFC 8032).

A seal reveals accidental changes; a signature reveals changes by anyone who does not have the signing key. A signed
document also contains its key in the store, and the ID of the store, which is part of the trusted keys. So it cannot
replace another document, in this store or in another store with the same signing key.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fmnist_tasks.errors import IntegrityError, SettingsError
from fmnist_tasks.registry.documents import render_document, seal, unseal

Kind = Literal["manifest", "champion-entry", "run-record"]


def encode_for_signing(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes to sign: the payload with its type, in DSSE's pre-authentication encoding (PAE)."""
    encoded_type = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(encoded_type), encoded_type, len(payload), payload)


def compute_key_id(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 (hex) of the key in DER, as `openssl pkey -pubin -outform DER | sha256sum` prints it."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def load_public_key(pem: str) -> Ed25519PublicKey:
    """Parse an Ed25519 public key in PEM; raises ValueError for anything else."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("is not an Ed25519 public key")
    return key


def _require_public_key(pem: str) -> str:
    load_public_key(pem)
    return pem


class SealedEntries(BaseModel):
    """The first entries of the champion log, up to a number; they must not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # see `digest_entries`


class TrustedKey(BaseModel):
    """A public key whose signatures are accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    public_key: Annotated[str, AfterValidator(_require_public_key)]  # PEM
    revoked_after: SealedEntries | None = None  # it may sign these entries, and no later one

    @property
    def id(self) -> str:
        """The ID of the key."""
        return compute_key_id(load_public_key(self.public_key))


class DatasetHistory(BaseModel):
    """What may be unsigned, or signed by revoked keys, in the part of the store that belongs to a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unsigned: SealedEntries | None = None
    unsigned_manifests: dict[str, str] = {}
    revoked_after: dict[str, SealedEntries] = {}  # by key ID


class TrustedKeys(BaseModel):
    """The keys whose signatures a store accepts, oldest first; a key must not sign after a newer one has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    store: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]  # a random ID, which every signed document contains
    unsigned: SealedEntries | None = None  # the entries from before signing began
    unsigned_manifests: dict[str, str] = {}  # by version: SHA-256 of the manifest of each release from that time
    datasets: dict[str, DatasetHistory] = {}  # by name; of the default dataset, the two fields above
    keys: Annotated[tuple[TrustedKey, ...], Field(min_length=1)]

    @property
    def unsigned_count(self) -> int:
        """The number of log entries that may be unsigned."""
        return self.unsigned.count if self.unsigned else 0

    @property
    def sealed_entries(self) -> list[SealedEntries]:
        """The entries that must not change: those from before signing began, and from before each revocation."""
        return [entries for entries in (self.unsigned, *(key.revoked_after for key in self.keys)) if entries]

    def restrict(self, dataset: str) -> TrustedKeys:
        """Return the trusted keys for the part of the store that belongs to a dataset.

        It has its own ID, so that no document can be copied from one dataset to another.
        """
        history = self.datasets.get(dataset, DatasetHistory())
        none = SealedEntries(count=0, sha256=digest_entries([]))  # a dataset that did not exist at the revocation
        keys = (
            key.model_copy(update={"revoked_after": history.revoked_after.get(key.id, none)})
            if key.revoked_after
            else key
            for key in self.keys
        )
        own = {
            "store": hashlib.sha256(f"{self.store}/{dataset}".encode()).hexdigest()[:32],
            "unsigned": history.unsigned,
            "unsigned_manifests": history.unsigned_manifests,
            "datasets": {},
            "keys": tuple(keys),
        }
        return self.model_copy(update=own)

    def find_rank(self, key_id: str) -> int | None:
        """Return the position of a key, 0 for the oldest; None if it is not trusted."""
        return next((rank for rank, key in enumerate(self.keys) if key.id == key_id), None)

    def is_active_key(self, key_id: str | None) -> bool:
        """Return whether the key is trusted and not revoked; False for None."""
        return any(key.id == key_id and key.revoked_after is None for key in self.keys)


class _Signature(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keyid: str
    sig: str


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="forbid")

    payload: str  # base64, as is the signature
    payloadType: str  # noqa: N815 - DSSE's name
    signatures: tuple[_Signature]


@dataclass(frozen=True)
class Document:
    """A stored document with intact bytes and, if it is signed and there are trusted keys, a valid signature."""

    content: dict[str, Any]
    sha256: str  # of the stored bytes
    signed_by: str | None = None  # ID of the key; None: unsigned


@dataclass(frozen=True)
class Keys:
    """The keys of a process: none, trusted keys to verify with, or these and a signing key."""

    trusted: TrustedKeys | None = None
    signing: Ed25519PrivateKey | None = None

    def restrict(self, dataset: str) -> Keys:
        """Return the keys for the part of the store that belongs to a dataset."""
        return Keys(self.trusted and self.trusted.restrict(dataset), self.signing)

    def require_signing_key(self) -> Ed25519PrivateKey:
        """Return the signing key; raises :class:`SettingsError` if there is none."""
        if self.signing is None:
            raise SettingsError(
                "the documents of this store are signed, but this process has no signing key, so nothing was changed. "
                "Set FMNIST_SIGNING_KEY_FILE and FMNIST_TRUSTED_KEYS_FILE, or run this where they are set"
            )
        return self.signing

    @property
    def signing_id(self) -> str | None:
        """The ID of the signing key, or None."""
        return compute_key_id(self.signing.public_key()) if self.signing else None

    def is_valid_signer(self, key_id: str, sequence: int, previous_key: str | None) -> bool:
        """Return whether a key may sign that entry of the champion log, after one that the previous key signed."""
        if self.trusted is None:
            return True
        rank = self.trusted.find_rank(key_id)
        if rank is None or (previous_key and rank < (self.trusted.find_rank(previous_key) or 0)):
            return False
        revoked = self.trusted.keys[rank].revoked_after
        return revoked is None or sequence <= revoked.count

    def encode(self, key: str, kind: Kind, content: dict[str, Any]) -> bytes:
        """Return the document as it is stored at the key: signed, or only sealed if there are no trusted keys.

        Raises :class:`SettingsError` if it must be signed and there is no signing key.
        """
        if self.trusted is None:
            return seal(content)
        signing = self.require_signing_key()
        payload = render_document({**content, "key": key, "store": self.trusted.store})
        signature = signing.sign(encode_for_signing(_make_payload_type(kind), payload))
        envelope = _Envelope(
            payload=_to_base64(payload),
            payloadType=_make_payload_type(kind),
            signatures=(_Signature(keyid=str(self.signing_id), sig=_to_base64(signature)),),
        )
        return render_document(envelope.model_dump())

    def decode(self, key: str, kind: Kind, data: bytes) -> Document:
        """Return the document that is stored at the key; the caller decides whether it may be unsigned.

        Raises :class:`IntegrityError` if its bytes have changed, or if it is signed for another key or store, or with a
        signing key that is not trusted. Without trusted keys, signatures are not verified.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if not is_envelope(data):
            return Document(unseal(data, key), sha256)
        try:
            envelope = _Envelope.model_validate_json(data)
            payload = _decode_base64(envelope.payload)
            if self.trusted:  # before its content is parsed
                _require_valid_signature(self.trusted, envelope, payload, key)
            content = json.loads(payload)
            signed_key, store = content.pop("key"), content.pop("store")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(
                f"{key} is not a signed document that this version can read; it is not used. Restore it from a backup"
            ) from error
        signed_by = envelope.signatures[0].keyid
        expected = (_make_payload_type(kind), key, self.trusted.store if self.trusted else store)
        if (envelope.payloadType, signed_key, store) != expected:
            raise IntegrityError(
                f"{key}: its signature is for {envelope.payloadType!s:.60} at {signed_key!s:.200} in store "
                f"{store!s:.40}, not for {expected[0]} at {key} in store {expected[2]}: the object was copied or "
                "renamed, or FMNIST_TRUSTED_KEYS belongs to another store; it is not used"
            )
        return Document(content, sha256, signed_by)

    def sign_bytes(self, data: bytes) -> bytes:
        """Return the signature of bytes that are not a document, or b"" without trusted keys; raises like `encode`."""
        if self.trusted is None:
            return b""
        return self.require_signing_key().sign(encode_for_signing(_make_bytes_type(self.trusted), data))

    def is_valid_signature(self, data: bytes, signature: bytes) -> bool:
        """Return whether a trusted, unrevoked key signed the bytes; without trusted keys, True."""
        if self.trusted is None:
            return True
        for key in self.trusted.keys:
            if key.revoked_after is None:
                with suppress(InvalidSignature):
                    signed = encode_for_signing(_make_bytes_type(self.trusted), data)
                    load_public_key(key.public_key).verify(signature, signed)
                    return True
        return False

    def describe(self, signed_by: str | None) -> str:
        """Describe the signature of a document that was read, by the ID of its key (None: unsigned)."""
        if signed_by is None:
            return "unsigned"
        return f"signed by key {signed_by[:16]}" if self.trusted else "signed, not verified"


NO_KEYS = Keys()


def is_envelope(data: bytes) -> bool:
    """Return whether stored bytes have the form of a signed document."""
    return b'"payloadType":' in data


def extract_text(data: bytes) -> bytes:
    """Return the readable text of a stored document, signed or not, even if it is damaged."""
    payload = re.search(rb'"payload": *"([^"]*)', data) if is_envelope(data) else None
    if payload is None:
        return data
    digits = re.sub(rb"[^A-Za-z0-9+/]", b"", payload[1])
    # If a digit was lost, the text after it is readable from one of the other three offsets.
    return b"\n".join(base64.b64decode(digits[start : start + (len(digits) - start) // 4 * 4]) for start in range(4))


def digest_entries(digests: Sequence[str]) -> str:
    """Return one digest (SHA-256, hex) of the digests of several entries."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _require_valid_signature(trusted: TrustedKeys, envelope: _Envelope, payload: bytes, key: str) -> None:
    signature = envelope.signatures[0]
    rank = trusted.find_rank(signature.keyid)
    if rank is None:
        raise IntegrityError(
            f"{key} is signed by key {signature.keyid[:16]}, which is not among the trusted keys; it is not used. "
            "If the key is new, give this process the newer trusted-keys.json"
        )
    public = load_public_key(trusted.keys[rank].public_key)
    try:
        public.verify(_decode_base64(signature.sig), encode_for_signing(envelope.payloadType, payload))
    except (InvalidSignature, ValueError) as error:
        raise IntegrityError(
            f"{key}: its signature is not valid, so it was forged or changed; it is not used. Restore it from a backup"
        ) from error


def _make_payload_type(kind: Kind) -> str:
    return f"application/vnd.fmnist.{kind}+json"


def _make_bytes_type(trusted: TrustedKeys) -> str:
    return f"application/vnd.fmnist.bytes; store={trusted.store}"


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
