"""Use releases: open one after checking every byte, verify it, classify images with it, roll back to it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fmnist_tasks.alerts import Alert, send_alert
from fmnist_tasks.errors import READ_ERRORS, ConflictError, MissingError, ModelError, RejectedError, SettingsError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.champion import Log
from fmnist_tasks.registry.pruning_flag import forbid_pruning
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.releases import Entry, Manifest
from fmnist_tasks.settings import MAX_REASON_LENGTH
from fmnist_tasks.text import make_printable

if TYPE_CHECKING:
    import keras
    import numpy as np

log = logging.getLogger(__name__)

# Allowed difference from the accuracy in the manifest: on another processor, rounding can change single predictions.
_ACCURACY_TOLERANCE = 0.001


@dataclass(frozen=True)
class Release:
    """A release with verified files and a loaded model."""

    manifest: Manifest
    manifest_sha256: str
    signature: str  # text: signed by which key, or unsigned
    files: dict[str, bytes]
    model: keras.Model


def require_champion(store: Store, expected: str | None = None) -> Entry:
    """The log entry that made the current champion.

    Raises :class:`MissingError` if there is no champion, and :class:`ConflictError` if it is not the expected release.
    """
    entry = champion.find_champion(store)
    if entry is None:
        raise MissingError("there is no champion yet; create one with `make run`")
    if expected and entry.version != expected:
        raise ConflictError(
            f"the champion is {entry.version}, not {expected} as expected; nothing was changed. Check the new "
            "champion, then repeat with it as the release to replace"
        )
    return entry


def open_release(store: Store, version: str) -> Release:
    """Check a release's manifest, check every file against it, then load its model."""
    signed = releases.open_manifest(store, version)
    files = releases.read_files(store, signed.manifest)

    from fmnist_tasks.model import h5  # imports TensorFlow, so only after the files are verified

    return Release(
        signed.manifest,
        signed.sha256,
        store.keys.describe(signed.signed_by),
        files,
        h5.load_model(files["model.h5"], f"model.h5 of release {version}"),
    )


def verify_release(store: Store, version: str) -> dict[str, Any]:
    """Open a release and evaluate it on its test images again.

    Raises :class:`ModelError` if a prediction is not finite, or if the accuracy differs from the manifest's.
    """
    from fmnist_tasks.data.dataset import load_test_split
    from fmnist_tasks.evaluation.metrics import measure_accuracy
    from fmnist_tasks.model import h5

    release = open_release(store, version)
    images, labels = load_test_split(store, release.manifest.dataset)
    try:
        probabilities, _ = h5.predict(release.model, images)
    except ModelError as error:
        raise ModelError(f"release {version}: {error}") from error
    accuracy = measure_accuracy(labels, probabilities)
    expected = release.manifest.metrics.test.accuracy
    if not abs(accuracy - expected) <= _ACCURACY_TOLERANCE:
        raise ModelError(f"release {version}: test accuracy is {accuracy:.2%}, but {expected:.2%} in its manifest")
    return {
        "version": version,
        "files": len(release.files),
        "bytes": sum(map(len, release.files.values())),
        "test_accuracy": accuracy,
        "intact": True,
        "manifest_sha256": release.manifest_sha256,
        "signature": release.signature,
    }


def roll_back(
    store: Store, version: str, reason: str, *, actor: str, after: int | None = None, force: bool = False
) -> Entry:
    """Make an earlier release the champion again, and withdraw the release that it replaces.

    `after` is the sequence number of the log entry that the user wants to replace; by default, that of the current
    champion. The release must pass :func:`verify_release`. It must also have been the champion before and have the
    champion's classes, unless `force` waives both.

    Raises :class:`SettingsError` if the reason is invalid or the release is already the champion,
    :class:`ConflictError` if the champion changed after `after`, :class:`RejectedError` if a requirement is not met,
    and whatever `verify_release` raises.
    """
    reason = require_reason(reason)
    champion_log = champion.read_log(store)
    current = champion_log.champion
    if current is None:
        raise MissingError("there is no champion yet, so there is nothing to roll back; create one with `make run`")
    if current.version == version:
        raise SettingsError(f"{version} is already the champion")
    log.info("rolling back from %s to %s, requested by %s: %s", current.version, version, actor, reason)
    champion.require_signing(store.keys, champion_log)
    if not force:
        _require_former_champion(store, champion_log, current.version, version)
    with forbid_pruning(store, f"rollback to {version}"):
        verified = verify_release(store, version)
        entry = champion.append_entry(
            store,
            version=version,
            action="rollback",
            reason=reason,
            write_id=str(uuid4()),
            actor=actor,
            after=current.sequence if after is None else after,
            origin=find_origin(store, champion_log, current.version),
            manifest_sha256=verified["manifest_sha256"],
        )
    lifted = ", whose withdrawal is lifted" if version in champion_log.withdrawn else ""
    message = f"{entry.actor} rolled back from {current.version}, now withdrawn, to {version}{lifted}: {reason}"
    log.info("entry %d of the champion log: %s", entry.sequence, message)
    send_alert(Alert("champion changed", None, message, identity=f"entry {entry.sequence}"))
    return entry


def require_reason(reason: str) -> str:
    """The reason as one printable line. Raises :class:`SettingsError` if it is empty or too long."""
    reason = make_printable(reason)
    if not reason:
        raise SettingsError("a reason is required; it is stored with the decision")
    if len(reason) > MAX_REASON_LENGTH:
        raise SettingsError(f"the reason has {len(reason):,} characters, more than {MAX_REASON_LENGTH}; shorten it")
    return reason


def _require_former_champion(store: Store, champion_log: Log, current: str, version: str) -> None:
    faults = []
    if not champion_log.has_been_champion(version):
        faults.append("it has never been the champion")
    try:
        champion_classes = releases.read_manifest(store, current, champion_log).classes
    except READ_ERRORS as error:
        faults.append(f"its classes cannot be compared with the champion's ({error})")
    else:
        if releases.read_manifest(store, version, champion_log).classes != champion_classes:
            faults.append(f"its classes differ from those of the champion {current}")
    if faults:
        raise RejectedError(
            f"cannot roll back to {version}: {', and '.join(faults)}; to roll back anyway, use `fmnist rollback "
            "--force`, or tick Force in the form of the DAG fmnist_rollback"
        )


def find_origin(store: Store, champion_log: Log, version: str) -> champion.Origin:
    """The origin of a release, from its manifest or, if that is missing or damaged, from the champion log."""
    try:
        return releases.make_manifest_origin(releases.read_manifest(store, version, champion_log))
    except READ_ERRORS as error:
        log.warning("using the champion log for the origin of %s: %s", version, error)
        return champion_log.find_origin(version)


def classify_images(release: Release, images: np.ndarray) -> list[dict[str, Any]]:
    """Predictions for images, uint8 (N, 28, 28): class, probabilities and OOD score of each.

    `answer` is the class, or the text for out-of-distribution images if the score is above the threshold.
    """
    from fmnist_tasks.model import h5
    from fmnist_tasks.model.ood import detector

    classes, threshold = release.manifest.classes, release.manifest.ood_threshold
    return [
        {
            "answer": detector.choose_label(probabilities, float(score), classes, threshold),
            "class": classes[int(probabilities.argmax())],
            "probability": round(float(probabilities.max()), 4),
            "probabilities": {name: round(float(share), 4) for name, share in zip(classes, probabilities, strict=True)},
            "ood_score": round(float(score), 4),
            "release": release.manifest.version,
        }
        for probabilities, score in zip(*h5.predict(release.model, images), strict=True)
    ]
