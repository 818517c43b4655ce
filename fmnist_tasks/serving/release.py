"""Open a release after checking every byte, verify it, and classify images with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fmnist_tasks.errors import AccessError, ConflictError, IntegrityError, MissingError, ModelError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.releases import Entry, Manifest
from fmnist_tasks.settings import name_run_command

if TYPE_CHECKING:
    import keras
    import numpy as np

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
        raise MissingError(f"there is no champion yet; create one with `{name_run_command(store.dataset)}`")
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


def fetch_release(store: Store, version: str, folder: Path) -> Path:
    """Save the verified manifest and files of a release as `folder/VERSION`, and return this path.

    Raises :class:`ConflictError` if it exists, and :class:`AccessError` if it cannot be written; then nothing is saved.
    """
    signed = releases.open_manifest(store, version)
    files = {"manifest.json": signed.data, **releases.read_files(store, signed.manifest)}
    target = folder / version
    if target.exists():
        raise ConflictError(f"{target} exists already; delete it, or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".") as temporary:
            unfinished = Path(temporary).resolve() / version
            for name, content in files.items():
                path = (unfinished / name).resolve()
                if not path.is_relative_to(unfinished):
                    raise IntegrityError(f"release {version}: {name!r} is not the name of a file in its folder")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            unfinished.rename(target)
    except OSError as error:
        raise AccessError(f"{target} cannot be written: {error}") from error
    return target


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


def classify_images(release: Release, images: np.ndarray) -> list[dict[str, Any]]:
    """Predictions for images, uint8 (N, H, W) or (N, H, W, 3): class, probabilities and OOD score of each.

    `answer` is the class, or the text for out-of-distribution images if the score is above the threshold;
    `looks_inverted` is whether the image seems to be a negative of one of the dataset.
    """
    from fmnist_tasks.data.image_files import looks_inverted
    from fmnist_tasks.model import h5
    from fmnist_tasks.model.ood import detector

    dataset, threshold = release.manifest.dataset, release.manifest.ood_threshold
    classes = dataset.classes
    return [
        {
            "answer": detector.choose_label(probabilities, float(score), dataset, threshold),
            "class": classes[int(probabilities.argmax())],
            "probability": round(float(probabilities.max()), 4),
            "probabilities": {name: round(float(share), 4) for name, share in zip(classes, probabilities, strict=True)},
            "ood_score": round(float(score), 4),
            "looks_inverted": looks_inverted(image, dataset.image_format),
            "release": release.manifest.version,
        }
        for image, probabilities, score in zip(images, *h5.predict(release.model, images), strict=True)
    ]
