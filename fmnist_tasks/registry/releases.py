"""Releases: published versions that never change. A release exists once its manifest exists, which is written last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError, SettingsError
from fmnist_tasks.registry.blobs import compute_reference, get_verified
from fmnist_tasks.registry.champion import Log, Origin, read_log, require_version
from fmnist_tasks.registry.documents import MAX_BYTES, compute_digest
from fmnist_tasks.registry.signing import Keys
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.data import DatasetProperties
from fmnist_tasks.schemas.releases import Entry, Manifest, ReleaseFacts
from fmnist_tasks.settings import Parameters

_MANIFEST = re.compile(r"releases/([^/]+)/manifest\.json")
_CONTROL_PARAMETERS = {"force", "approval"}  # they do not affect the model: whether to train, and who decides


def make_file_key(version: str, name: str) -> str:
    """Return the key of a file of a release."""
    return f"releases/{version}/{name}"


@dataclass(frozen=True)
class SignedManifest:
    """A manifest, its stored bytes with their digest, and the ID of the key that signed it (None: unsigned)."""

    manifest: Manifest
    data: bytes
    sha256: str
    signed_by: str | None


def choose_version(store: Store, version: str, facts: ReleaseFacts, champion_log: Log) -> str:
    """Return the version under which to publish: this one, or the first free one of VERSION.2, VERSION.3 ….

    A release that exists is published again only if it has exactly these facts or has been the champion. Otherwise the
    model was evaluated or approved again in the meantime, and its release has another version.
    """

    def is_usable(name: str) -> bool:
        if store.stat(make_file_key(name, "manifest.json")) is None or champion_log.has_been_champion(name):
            return True
        manifest = read_manifest(store, name, champion_log)
        return manifest.model_dump(include=set(ReleaseFacts.model_fields)) == facts.model_dump()

    return next(filter(is_usable, chain([version], (f"{version}.{number}" for number in count(2)))))


def publish_release(store: Store, version: str, files: dict[str, bytes], facts: ReleaseFacts) -> Manifest:
    """Write the files, then the manifest, which names each with its SHA-256; return the manifest.

    Completes an interrupted publication. If the release exists with the same model, writes nothing; if it exists with
    another model, raises :class:`ConflictError`.
    """
    key = make_file_key(version, "manifest.json")
    if store.stat(key) is None:
        references = {}
        for name, data in files.items():
            store.put(make_file_key(version, name), data)
            references[name] = compute_reference(make_file_key(version, name), data)
        manifest = Manifest(**dict(facts), version=version, files=references)
        store.put_if_absent(key, store.keys.encode(key, "manifest", manifest.to_json()))
    manifest = read_manifest(store, version)
    if manifest.model_sha256 != facts.model_sha256:
        raise ConflictError(f"release {version} exists with another model; a release never changes, so start a new run")
    return manifest


def describe_differences(manifest: Manifest, dataset: DatasetProperties) -> list[str]:
    """Return in what a model's dataset differs from another one, so that the model cannot be used for its images."""
    theirs = manifest.dataset
    properties = {
        "name": (theirs.name, dataset.name),
        "classes": (theirs.classes, dataset.classes),
        "images": (str(theirs.image_format), str(dataset.image_format)),
    }
    return [f"{key} {old!s:.200}, not {new!s:.200}" for key, (old, new) in properties.items() if old != new]


def require_same_dataset(manifest: Manifest, dataset: DatasetProperties) -> None:
    """Raise :class:`SettingsError` if the champion's model was trained on another dataset."""
    if faults := describe_differences(manifest, dataset):
        raise SettingsError(
            f"the champion {manifest.version} belongs to another dataset: {'; '.join(faults)}. Nothing is compared or "
            "changed. Put this dataset's declaration into FMNIST_DATASETS, which gives it its own part of the store, "
            "or set FMNIST_STORE to another store"
        )


def read_manifest(store: Store, version: str, champion_log: Log | None = None) -> Manifest:
    """Return the manifest of a release; raises like :func:`open_manifest`."""
    return open_manifest(store, version, champion_log).manifest


def open_manifest(store: Store, version: str, champion_log: Log | None = None) -> SignedManifest:
    """Return the manifest of a release after comparing it with the champion log, which is read if it is None.

    Raises :class:`MissingError` if the release does not exist, and :class:`IntegrityError` if this is not the manifest
    that was published: it was changed or copied, differs from the one that the log names, or is unsigned or signed by a
    replaced key and not named in the log.
    """
    require_version(version)
    champion_log = read_log(store) if champion_log is None else champion_log
    key = make_file_key(version, "manifest.json")
    try:
        data = store.get(key, MAX_BYTES)
    except MissingError as error:
        if champion_log.champion and champion_log.champion.version == version:
            raise IntegrityError(_describe_missing_champion(champion_log.champion)) from error
        raise MissingError(f"there is no release {version}; `fmnist releases` lists all") from error
    document = store.keys.decode(key, "manifest", data)
    if document.content.get("version") != version:
        raise IntegrityError(
            f"{key} is the manifest of release {document.content.get('version')!s:.100}, so it was copied or renamed; "
            "it is not used. Restore the original from a backup, or delete it"
        )
    if entry := champion_log.find_manifest_entry(version):
        if document.sha256 != entry.manifest_sha256:
            raise IntegrityError(
                f"{key} is not the manifest that entry {entry.sequence} of the champion log names, so it was "
                "replaced; restore the original from a backup or an earlier version of the object"
            )
    elif document.signed_by is None:
        _require_unsigned(store.keys, version, document.sha256, key)
    elif not store.keys.is_valid_signer(document.signed_by, len(champion_log.entries) + 1, champion_log.newest_key):
        raise IntegrityError(
            f"{key} is signed by key {document.signed_by[:16]}, which was replaced, and no entry of the champion log "
            "names it; it is not used. Delete the release (docs/signing.md, Replace a key)"
        )
    return SignedManifest(Manifest.parse(document.content, key), data, document.sha256, document.signed_by)


def find_missing_champion(store: Store, champion_log: Log) -> str | None:
    """Return a message if the champion's manifest is missing, and None otherwise."""
    current = champion_log.champion
    if current is None or store.stat(make_file_key(current.version, "manifest.json")):
        return None
    return _describe_missing_champion(current)


def _describe_missing_champion(entry: Entry) -> str:
    """Return what is missing if the champion has no manifest, and what to do."""
    return (
        f"releases/{entry.version}/manifest.json is missing, although log entry {entry.sequence} made this release the "
        "champion; restore it from a backup or an earlier version of the object. If that is impossible, roll back to "
        "another release (fmnist rollback VERSION --force), or start again with an empty store"
    )


def _require_unsigned(keys: Keys, version: str, sha256: str, key: str) -> None:
    """Raise :class:`IntegrityError` unless the manifest may be unsigned: without keys, or from before signing began."""
    if keys.trusted and keys.trusted.unsigned_manifests.get(version) != sha256:
        raise IntegrityError(
            f"{key} is unsigned, and not one of the manifests that existed when signing began (trusted keys), so "
            "nothing shows that this project published it; it is not used. Restore it from a backup, or delete the "
            "release"
        )


def describe_inputs(fingerprint: str, code_digest: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that affects a model, by name: data, code and parameters of a run."""
    training_parameters = {name: value for name, value in parameters.items() if name not in _CONTROL_PARAMETERS}
    return {"data": fingerprint, "code": code_digest, **training_parameters}


def make_manifest_origin(manifest: Manifest) -> Origin:
    """Return the origin of a release, without inputs if another version of this project had other parameters."""
    parameters = read_parameters(manifest)
    if parameters is None:
        return Origin(manifest.model_sha256)
    return make_origin(manifest.model_sha256, manifest.dataset.fingerprint, manifest.code.digest, parameters)


def read_parameters(manifest: Manifest) -> dict[str, Any] | None:
    """Return the parameters of a release in the present form, or None if this version does not accept them."""
    try:
        return Parameters.from_mapping(manifest.parameters).to_json()
    except SettingsError:
        return None


def make_origin(model_sha256: str, fingerprint: str, code_digest: str, parameters: Mapping[str, Any]) -> Origin:
    """Return the origin of a model, by which a candidate that repeats a withdrawn release is recognised."""
    return Origin(model_sha256, compute_digest(describe_inputs(fingerprint, code_digest, parameters)))


def read_files(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Return all files of a release by name, each verified against the manifest."""
    return {name: get_verified(store, reference) for name, reference in manifest.files.items()}


def list_versions(store: Store) -> list[str]:
    """Return all versions, oldest first."""
    return [match[1] for stat in store.list("releases/") if (match := _MANIFEST.fullmatch(stat.key))]
