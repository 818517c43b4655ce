"""Releases: immutable published versions. A release exists once its manifest does, which is written last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError, SettingsError
from fmnist_tasks.registry.blobs import describe, get_verified
from fmnist_tasks.registry.champion import Log, Origin, read_log
from fmnist_tasks.registry.documents import MAX_BYTES, digest_of
from fmnist_tasks.registry.signing import Document, Keys
from fmnist_tasks.registry.store import Store
from fmnist_tasks.settings import Parameters

Manifest = dict[str, Any]

_MANIFEST = re.compile(r"releases/([^/]+)/manifest\.json")
_DECIDING = {"force", "approval"}  # parameters that shape no model: whether to train, and who decides


def file_key(version: str, name: str) -> str:
    """Key of a file of a release."""
    return f"releases/{version}/{name}"


def publish(store: Store, version: str, files: dict[str, bytes], facts: dict[str, Any]) -> Manifest:
    """Write the files, then the manifest that names each with its SHA-256; complete a publication cut short.

    The facts must hold `model_sha256`. If the release exists already, the same model is no error and nothing is
    written; another model raises :class:`ConflictError`.
    """
    if store.stat(file_key(version, "manifest.json")) is None:
        named = {}
        for name, data in files.items():
            store.put(file_key(version, name), data)
            named[name] = describe(file_key(version, name), data)
        key = file_key(version, "manifest.json")
        manifest = {**facts, "version": version, "files": named}
        store.put_if_absent(key, store.keys.encode(key, "manifest", manifest))
    manifest = read_manifest(store, version)
    if manifest["model_sha256"] != facts["model_sha256"]:
        raise ConflictError(f"release {version} exists with another model; a release is never changed")
    return manifest


def read_manifest(store: Store, version: str, log: Log | None = None) -> Manifest:
    """The manifest of a release; raises like :func:`open_manifest`."""
    return open_manifest(store, version, log).content


def open_manifest(store: Store, version: str, log: Log | None = None) -> Document:
    """The manifest of a release, held against the champion log, which is read unless it is given.

    Raises :class:`MissingError` if there is no such release, and :class:`IntegrityError` if it is not the manifest that
    was published: if it was changed or copied, is another one than the log names, or is unsigned or signed by a
    replaced key although nothing in the log vouches for it.
    """
    key = file_key(version, "manifest.json")
    try:
        document = store.keys.decode(key, "manifest", store.get(key, MAX_BYTES))
    except MissingError as error:
        raise MissingError(f"there is no release {version}; `fmnist releases` lists those that exist") from error
    if document.content.get("version") != version:
        raise IntegrityError(
            f"{key}: is the manifest of release {document.content.get('version')!s:.100}, so it was copied or renamed; "
            "it is not used"
        )
    log = read_log(store) if log is None else log
    if entry := log.find_manifest(version):
        if document.sha256 != entry.manifest_sha256:
            raise IntegrityError(
                f"{key}: is not the manifest that entry {entry.sequence} of the champion log names, so it was "
                "replaced; recover the original from a backup or an earlier version of the object"
            )
    elif document.signed_by is None:
        _require_unsigned(store.keys, version, document.sha256, key)
    elif not store.keys.may_sign(document.signed_by, len(log.entries) + 1, log.newest_key):
        raise IntegrityError(
            f"{key}: is signed by key {document.signed_by[:16]}, which was replaced, and no entry of the champion log "
            "names it; it is not used. Delete the release (docs/signing.md, Replace a key)"
        )
    return document


def _require_unsigned(keys: Keys, version: str, sha256: str, key: str) -> None:
    """Raise :class:`IntegrityError` unless the manifest is that of a release from before documents were signed."""
    if keys.trusted and keys.trusted.unsigned_manifests.get(version) != sha256:
        raise IntegrityError(
            f"{key}: is unsigned, and not as it was when signing began (trusted keys), so nothing shows that it was "
            "published by this project; it is not used. Restore it, or delete the release"
        )


def describe_inputs(fingerprint: str, code_digest: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that shapes a model, by name: the data, the code and the parameters of a run."""
    shaping = {name: value for name, value in parameters.items() if name not in _DECIDING}
    return {"data": fingerprint, "code": code_digest, **shaping}


def origin_of(manifest: Manifest) -> Origin:
    """The origin of a release; without its inputs if its parameters are those of another version of this project."""
    parameters = read_parameters(manifest)
    if parameters is None:
        return Origin(manifest["model_sha256"])
    return find_origin(
        manifest["model_sha256"], manifest["data"]["fingerprint"], manifest["code"]["digest"], parameters
    )


def read_parameters(manifest: Manifest) -> dict[str, Any] | None:
    """The parameters of a release as this version has them, or None if they are those of another version."""
    try:
        return Parameters.from_mapping(manifest["parameters"]).as_json()
    except SettingsError:
        return None


def find_origin(model_sha256: str, fingerprint: str, code_digest: str, parameters: Mapping[str, Any]) -> Origin:
    """The origin of a model, by which a candidate that repeats a withdrawn release is recognised."""
    return Origin(model_sha256, digest_of(describe_inputs(fingerprint, code_digest, parameters)))


def read_files(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """All files of a release by name, each checked against the manifest."""
    return {name: get_verified(store, reference) for name, reference in manifest["files"].items()}


def versions(store: Store) -> list[str]:
    """All versions, oldest first."""
    return [found[1] for stat in store.list("releases/") if (found := _MANIFEST.fullmatch(stat.key))]
