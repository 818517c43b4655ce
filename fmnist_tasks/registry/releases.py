"""Releases: immutable published versions. A release exists once its manifest does, which is written last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmnist_tasks.errors import ConflictError, MissingError, SettingsError
from fmnist_tasks.registry.blobs import describe, get_verified
from fmnist_tasks.registry.champion import Origin
from fmnist_tasks.registry.documents import digest_of, read_document, seal
from fmnist_tasks.registry.store import Store
from fmnist_tasks.settings import Parameters

Manifest = dict[str, Any]

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
        store.put_if_absent(file_key(version, "manifest.json"), seal({**facts, "version": version, "files": named}))
    manifest = read_manifest(store, version)
    if manifest["model_sha256"] != facts["model_sha256"]:
        raise ConflictError(f"release {version} exists with another model; a release is never changed")
    return manifest


def read_manifest(store: Store, version: str) -> Manifest:
    """The manifest of a release; raises :class:`MissingError` if there is no such release."""
    try:
        return read_document(store, file_key(version, "manifest.json"))
    except MissingError as error:
        raise MissingError(f"there is no release {version}; `fmnist releases` lists those that exist") from error


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
    return [stat.key.split("/")[1] for stat in store.list("releases/") if stat.key.endswith("/manifest.json")]
