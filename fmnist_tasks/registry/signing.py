"""Signed documents: JSON in DSSE envelopes (github.com/secure-systems-lab/dsse) with Ed25519 signatures (RFC 8032).

A seal tells of accidents; a signature tells of everybody who does not have the key. What is signed also says where it
belongs: its key in the store, and the store, by an id that is kept with the trusted keys. So no document can take the
place of another one, of this store or of a second store with the same signing key.
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
from fmnist_tasks.registry.documents import render, seal, unseal

Kind = Literal["manifest", "champion-entry", "run-record"]


def encode_for_signing(payload_type: str, payload: bytes) -> bytes:
    """What is signed: the payload with its type, in DSSE's pre-authentication encoding (PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def compute_key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 (hex) of the key in DER, as `openssl pkey -pubin -outform DER | sha256sum` prints it."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def load_public_key(pem: str) -> Ed25519PublicKey:
    """The Ed25519 public key in a PEM text; raises ValueError for anything else."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("is not an Ed25519 public key")
    return key


def _check_public_key(pem: str) -> str:
    load_public_key(pem)
    return pem


class SealedEntries(BaseModel):
    """The first entries of the champion log, which may not change any more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # see `digest_entries`


class TrustedKey(BaseModel):
    """A public key whose signatures count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    public_key: Annotated[str, AfterValidator(_check_public_key)]  # PEM
    revoked_after: SealedEntries | None = None  # it may have signed these, and no later one

    @property
    def id(self) -> str:
        """The id of the key."""
        return compute_key_id(load_public_key(self.public_key))


class TrustedKeys(BaseModel):
    """Whose signatures count in a store, oldest key first: an older key does not sign after a newer one has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    store: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]  # a random id, which every signed document names
    unsigned: SealedEntries | None = None  # those from before the log was signed
    unsigned_manifests: dict[str, str] = {}  # by version of each release from then, the SHA-256 of its manifest
    keys: Annotated[tuple[TrustedKey, ...], Field(min_length=1)]

    @property
    def unsigned_count(self) -> int:
        """How many entries of the champion log may be unsigned."""
        return self.unsigned.count if self.unsigned else 0

    @property
    def sealed(self) -> list[SealedEntries]:
        """All that is known of entries which may not change any more."""
        return [one for one in (self.unsigned, *(key.revoked_after for key in self.keys)) if one]

    def rank(self, key_id: str) -> int | None:
        """The place of a key in their order; None for one that is not trusted."""
        return next((rank for rank, key in enumerate(self.keys) if key.id == key_id), None)

    def accepts(self, key_id: str | None) -> bool:
        """Whether what has no place in the log counts if it is signed by that key (None: by none)."""
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
    """A stored document whose bytes are intact and whose signature, if there is one to check, is valid."""

    content: dict[str, Any]
    sha256: str  # of the stored bytes
    signed_by: str | None = None  # id of the key; None: unsigned


@dataclass(frozen=True)
class Keys:
    """What a process has of keys: none, those to check with, and perhaps one to sign with."""

    trusted: TrustedKeys | None = None
    signing: Ed25519PrivateKey | None = None

    def require_signing_key(self) -> Ed25519PrivateKey:
        """The key to sign with; raises :class:`SettingsError` if there is none."""
        if self.signing is None:
            raise SettingsError(
                "the documents of this store are signed, and this process has no signing key. Set "
                "FMNIST_SIGNING_KEY_FILE and FMNIST_TRUSTED_KEYS_FILE, or run this where they are set. Nothing was "
                "changed"
            )
        return self.signing

    @property
    def signing_id(self) -> str | None:
        """The id of the key to sign with."""
        return compute_key_id(self.signing.public_key()) if self.signing else None

    def may_sign(self, key_id: str, sequence: int, earlier: str | None) -> bool:
        """Whether a key may have signed that entry of the champion log, after one that the earlier key signed."""
        if self.trusted is None:
            return True
        rank = self.trusted.rank(key_id)
        if rank is None or (earlier and rank < (self.trusted.rank(earlier) or 0)):
            return False
        revoked = self.trusted.keys[rank].revoked_after
        return revoked is None or sequence <= revoked.count

    def encode(self, key: str, kind: Kind, content: dict[str, Any]) -> bytes:
        """The document as it is to be stored at the key: signed, or without trusted keys only sealed.

        Raises :class:`SettingsError` if it has to be signed and there is no key for that.
        """
        if self.trusted is None:
            return seal(content)
        signing = self.require_signing_key()
        payload = render({**content, "key": key, "store": self.trusted.store})
        signature = signing.sign(encode_for_signing(_payload_type(kind), payload))
        envelope = _Envelope(
            payload=_to_base64(payload),
            payloadType=_payload_type(kind),
            signatures=(_Signature(keyid=str(self.signing_id), sig=_to_base64(signature)),),
        )
        return render(envelope.model_dump())

    def decode(self, key: str, kind: Kind, data: bytes) -> Document:
        """The document stored at the key; whether it may be unsigned is for the caller to say.

        Raises :class:`IntegrityError` if its bytes were changed, or if it is signed, but not for this place or not by
        a trusted key. Without trusted keys, signatures are not checked.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if not is_envelope(data):
            return Document(unseal(data, key), sha256)
        try:
            envelope = _Envelope.model_validate_json(data)
            payload = _from_base64(envelope.payload)
            if self.trusted:  # before its content is looked at
                _check_signature(self.trusted, envelope, payload, key)
            content = json.loads(payload)
            place, store = content.pop("key"), content.pop("store")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(
                f"{key}: is not a signed document that this version can read; it is not used"
            ) from error
        signed_by = envelope.signatures[0].keyid
        expected = (_payload_type(kind), key, self.trusted.store if self.trusted else store)
        if (envelope.payloadType, place, store) != expected:
            raise IntegrityError(
                f"{key}: its signature is for {envelope.payloadType!s:.60} at {place!s:.200} in store {store!s:.40}, "
                f"not for {expected[0]} at {key} in store {expected[2]}: the object was copied or renamed, or "
                "FMNIST_TRUSTED_KEYS belongs to another store; it is not used"
            )
        return Document(content, sha256, signed_by)

    def sign_bytes(self, data: bytes) -> bytes:
        """The signature of bytes that are kept beside it, or nothing without trusted keys; raises like `encode`."""
        if self.trusted is None:
            return b""
        return self.require_signing_key().sign(encode_for_signing(_bytes_type(self.trusted), data))

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        """Whether a trusted key that is not revoked has signed the bytes; without trusted keys, nobody has to."""
        if self.trusted is None:
            return True
        for key in self.trusted.keys:
            if key.revoked_after is None:
                with suppress(InvalidSignature):
                    signed = encode_for_signing(_bytes_type(self.trusted), data)
                    load_public_key(key.public_key).verify(signature, signed)
                    return True
        return False

    def describe(self, signed_by: str | None) -> str:
        """What a reader can say about the signature of a document that it has read."""
        if signed_by is None:
            return "unsigned"
        return f"signed by key {signed_by[:16]}" if self.trusted else "signed, not verified"


NO_KEYS = Keys()


def is_envelope(data: bytes) -> bool:
    """Whether stored bytes claim to be a signed document."""
    return b'"payloadType":' in data


def extract_text(data: bytes) -> bytes:
    """The text of a stored document, signed or not, as far as it can be read, however damaged it is."""
    payload = re.search(rb'"payload": *"([^"]*)', data) if is_envelope(data) else None
    if payload is None:
        return data
    digits = re.sub(rb"[^A-Za-z0-9+/]", b"", payload[1])
    # A lost digit shifts all that follow: what is not text in one of the four positions is in another.
    return b"\n".join(base64.b64decode(digits[start : start + (len(digits) - start) // 4 * 4]) for start in range(4))


def digest_entries(digests: Sequence[str]) -> str:
    """One digest (SHA-256, hex) for those of several entries."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _check_signature(trusted: TrustedKeys, envelope: _Envelope, payload: bytes, key: str) -> None:
    signature = envelope.signatures[0]
    rank = trusted.rank(signature.keyid)
    if rank is None:
        raise IntegrityError(
            f"{key}: is signed by key {signature.keyid[:16]}, which is not among the trusted ones; it is not used. "
            "If the key was replaced recently, give this process the newer trusted-keys.json"
        )
    public = load_public_key(trusted.keys[rank].public_key)
    try:
        public.verify(_from_base64(signature.sig), encode_for_signing(envelope.payloadType, payload))
    except (InvalidSignature, ValueError) as error:
        raise IntegrityError(
            f"{key}: its signature is not valid, so it was forged or changed; it is not used"
        ) from error


def _payload_type(kind: Kind) -> str:
    return f"application/vnd.fmnist.{kind}+json"


def _bytes_type(trusted: TrustedKeys) -> str:
    return f"application/vnd.fmnist.bytes; store={trusted.store}"


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
