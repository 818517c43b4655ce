"""Releases in use: opened after every byte was checked, measured again, asked about images, rolled back to."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fmnist_tasks.alerts import Alert, send
from fmnist_tasks.errors import MissingError, ModelError, RejectedError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.champion import Entry
from fmnist_tasks.registry.store import Store

if TYPE_CHECKING:
    import keras
    import numpy as np

log = logging.getLogger(__name__)

# An accuracy may differ from the manifest's by this much: on another processor a last bit can turn an answer.
_TURNED = 0.001


@dataclass(frozen=True)
class Release:
    """A published version whose files are intact and whose model is loaded."""

    manifest: releases.Manifest
    files: dict[str, bytes]
    model: keras.Model


def in_service(store: Store) -> Entry:
    """The champion; raises :class:`MissingError` if there is none."""
    entry = champion.champion(store)
    if entry is None:
        raise MissingError("there is no champion yet; `make run` makes one")
    return entry


def open_release(store: Store, version: str) -> Release:
    """Check every byte of a release against its manifest, then load its model."""
    manifest = releases.read_manifest(store, version)
    files = releases.read_files(store, manifest)

    from fmnist_tasks.model import h5  # TensorFlow, for nothing unless all is intact

    return Release(manifest, files, h5.load(files["model.h5"], f"model.h5 of release {version}"))


def verify(store: Store, version: str) -> dict[str, Any]:
    """Open a release and measure it on its test images again; raises :class:`ModelError` if it scores otherwise."""
    from fmnist_tasks.data.dataset import load_test
    from fmnist_tasks.evaluation.metrics import classification
    from fmnist_tasks.model import h5

    release = open_release(store, version)
    images, labels = load_test(store, release.manifest["data"])
    probabilities, _ = h5.predict(release.model, images)
    found = classification(labels, probabilities, release.manifest["classes"])["accuracy"]
    promised = release.manifest["figures"]["test"]["accuracy"]
    if not abs(found - promised) <= _TURNED:
        raise ModelError(f"release {version}: test accuracy is {found:.2%}, its manifest says {promised:.2%}")
    return {
        "version": version,
        "files": len(release.files),
        "bytes": sum(map(len, release.files.values())),
        "test_accuracy": found,
        "intact": True,
    }


def rollback(store: Store, version: str, reason: str) -> Entry:
    """Make an earlier release the champion again, once its bytes were checked and its model loaded."""
    current = in_service(store)
    log.info("rollback begins: from %s to %s, because: %s", current.version, version, reason)
    if not reason.strip():
        raise RejectedError("a rollback needs a reason; it is kept in the champion log")
    if current.version == version:
        raise RejectedError(f"{version} is the champion already")
    open_release(store, version)
    entry = champion.append(
        store, version=version, action="rollback", reason=reason.strip(), write_id=str(uuid4()), after=current.sequence
    )
    log.info("rollback done: %s is the champion, number %d", version, entry.sequence)
    send(Alert("champion changed", None, f"{version} is the champion again, instead of {current.version}: {reason}"))
    return entry


def answers(release: Release, images: np.ndarray) -> list[dict[str, Any]]:
    """What the release says of each image, uint8 (N, 28, 28): the class, or that it shows no clothing."""
    from fmnist_tasks.model import h5, novelty

    classes, bound = release.manifest["classes"], release.manifest["novelty_threshold"]
    return [
        {
            "answer": novelty.answer(probabilities, float(familiarity), classes, bound),
            "class": classes[int(probabilities.argmax())],
            "probability": round(float(probabilities.max()), 4),
            "probabilities": {name: round(float(share), 4) for name, share in zip(classes, probabilities, strict=True)},
            "familiarity": round(float(familiarity), 4),
            "release": release.manifest["version"],
        }
        for probabilities, familiarity in zip(*h5.predict(release.model, images), strict=True)
    ]
