"""Releases in use: opened after every byte was checked, measured again, asked about images, rolled back to."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fmnist_tasks.alerts import Alert, send
from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError, ModelError, RejectedError, SettingsError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.champion import Entry, Log
from fmnist_tasks.registry.pruning_flag import forbid_pruning
from fmnist_tasks.registry.store import Store
from fmnist_tasks.settings import LONGEST_REASON
from fmnist_tasks.text import make_printable

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
    manifest_sha256: str
    signature: str  # what is known of the manifest's, as text
    files: dict[str, bytes]
    model: keras.Model


def in_service(store: Store) -> Entry:
    """The champion; raises :class:`MissingError` if there is none."""
    entry = champion.champion(store)
    if entry is None:
        raise MissingError("there is no champion yet; `make run` makes one")
    return entry


def require_champion(store: Store, version: str | None) -> Entry:
    """The champion; raises :class:`ConflictError` if a version is given and it is another one."""
    entry = in_service(store)
    if version and entry.version != version:
        raise ConflictError(
            f"the champion is {entry.version}, not {version} as you expected; nothing was changed. Look at the new "
            "champion, then repeat with it as the one to replace"
        )
    return entry


def open_release(store: Store, version: str) -> Release:
    """Check a release's manifest, and every byte against it, then load its model."""
    document = releases.open_manifest(store, version)
    files = releases.read_files(store, document.content)

    from fmnist_tasks.model import h5  # TensorFlow, for nothing unless all is intact

    return Release(
        document.content,
        document.sha256,
        store.keys.describe(document.signed_by),
        files,
        h5.load(files["model.h5"], f"model.h5 of release {version}"),
    )


def verify(store: Store, version: str) -> dict[str, Any]:
    """Open a release and measure it on its test images again.

    Raises :class:`ModelError` if a prediction is not a finite number, or if its accuracy is not the manifest's.
    """
    import numpy as np

    from fmnist_tasks.data.dataset import load_test
    from fmnist_tasks.evaluation.metrics import classification
    from fmnist_tasks.model import h5

    release = open_release(store, version)
    images, labels = load_test(store, release.manifest["data"])
    probabilities, familiarity = h5.predict(release.model, images)
    wrong = int(np.sum(~np.isfinite(probabilities).all(axis=1) | ~np.isfinite(familiarity)))
    if wrong:
        raise ModelError(
            f"release {version}: the predictions for {wrong:,} of {len(images):,} test images are not finite"
        )
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
        "manifest_sha256": release.manifest_sha256,
        "signature": release.signature,
    }


def rollback(
    store: Store, version: str, reason: str, *, actor: str, after: int | None = None, force: bool = False
) -> Entry:
    """Make an earlier release the champion again, and withdraw the one that it replaces.

    `after` is the log entry of the champion that the user saw and wants to replace; by default that of the present one.
    The release must pass :func:`verify`. It must also have been the champion before and have the champion's classes,
    unless `force` waives both.

    Raises :class:`SettingsError` for a request without meaning, :class:`ConflictError` if the champion is another one
    than the user saw, :class:`RejectedError` if a requirement is not met, and what `verify` raises.
    """
    reason = require_reason(reason)
    log_entries = champion.read_log(store)
    current = log_entries.champion
    if current is None:
        raise MissingError("there is no champion yet, so nothing can be rolled back")
    if current.version == version:
        raise SettingsError(f"{version} is the champion already")
    log.info("rollback from %s to %s by %s: %s", current.version, version, actor, reason)
    champion.require_signing(store.keys, log_entries)
    if not force:
        _require_former_champion(store, log_entries, current.version, version)
    with forbid_pruning(store, f"rollback to {version}"):
        verified = verify(store, version)
        entry = champion.append(
            store,
            version=version,
            action="rollback",
            reason=reason,
            write_id=str(uuid4()),
            actor=actor,
            after=current.sequence if after is None else after,
            origin=find_origin(store, log_entries, current.version),
            manifest_sha256=verified["manifest_sha256"],
        )
    lifted = ", whose withdrawal is lifted" if version in log_entries.withdrawn else ""
    told = f"{entry.actor} rolled back from {current.version}, which is withdrawn, to {version}{lifted}: {reason}"
    log.info("number %d of the champion log: %s", entry.sequence, told)
    send(Alert("champion changed", None, told, identity=f"entry {entry.sequence}"))
    return entry


def require_reason(reason: str) -> str:
    """The reason as one printable line; raises :class:`SettingsError` if nothing is left, or if it is too long."""
    reason = make_printable(reason)
    if not reason:
        raise SettingsError("a reason is required; it is kept with the decision")
    if len(reason) > LONGEST_REASON:
        raise SettingsError(f"the reason has {len(reason):,} characters, more than {LONGEST_REASON}; shorten it")
    return reason


def _require_former_champion(store: Store, log_entries: Log, current: str, version: str) -> None:
    wrong = []
    if not log_entries.has_been_champion(version):
        wrong.append("it has never been the champion")
    try:
        theirs = releases.read_manifest(store, current, log_entries)["classes"]
    except (MissingError, IntegrityError) as error:
        wrong.append(f"its classes cannot be compared with the champion's ({error})")
    else:
        if releases.read_manifest(store, version, log_entries)["classes"] != theirs:
            wrong.append(f"its classes are not those of the champion {current}")
    if wrong:
        raise RejectedError(
            f"no rollback to {version}: {', and '.join(wrong)}; to roll back all the same, use `fmnist rollback "
            "--force`, or tick Force in the form of the DAG fmnist_rollback"
        )


def find_origin(store: Store, log_entries: Log, version: str) -> champion.Origin:
    """The origin of a release, from its manifest or, if that is lost, from the log."""
    try:
        return releases.origin_of(releases.read_manifest(store, version, log_entries))
    except (MissingError, IntegrityError) as error:
        log.warning("the origin of %s is taken from the champion log: %s", version, error)
        return log_entries.origin_of(version)


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
