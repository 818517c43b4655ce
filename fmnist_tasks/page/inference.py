"""Predictions of the champion for "Try it"."""

from __future__ import annotations

import base64
import io
from threading import Lock
from typing import TYPE_CHECKING, Any

from fmnist_tasks.registry import releases
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.data import ImageFormat
from fmnist_tasks.serving.release import Release, classify_images, open_release, require_champion

if TYPE_CHECKING:
    import numpy as np


class ChampionPredictor:
    """Keeps the champion's model in memory, so that only the first prediction after a promotion loads it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._release: Release | None = None
        self._lock = Lock()

    def read_format(self) -> ImageFormat:
        """The format of the champion's images, without loading its model."""
        return releases.read_manifest(self._store, require_champion(self._store).version).dataset.image_format

    def predict(self, images: np.ndarray) -> list[dict[str, Any]]:
        """Predictions for images, uint8 (N, …), each with the image as a data URI and the OOD threshold."""
        release = self._load_champion()
        threshold = release.manifest.ood_threshold
        return [
            {**row, "threshold": threshold, "picture": encode_picture(image)}
            for row, image in zip(classify_images(release, images), images, strict=True)
        ]

    def predict_upload(self, upload: bytes, *, invert: bool) -> dict[str, Any]:
        """The prediction for an image file, or for its negative."""
        from fmnist_tasks.data.image_files import read_image_file

        image = read_image_file(io.BytesIO(upload), "the upload", self.read_format())
        return self.predict((255 - image if invert else image)[None])[0]

    def predict_examples(self) -> list[dict[str, Any]]:
        """Predictions for one random test image of each class, with the true class."""
        import numpy as np

        from fmnist_tasks.data.dataset import load_test_split

        manifest = self._load_champion().manifest
        images, labels = load_test_split(self._store, manifest.dataset)
        random = np.random.default_rng()
        indices = [random.choice(np.flatnonzero(labels == label)) for label in range(len(manifest.classes))]
        rows = self.predict(images[indices])
        return [{"truth": name, **row} for name, row in zip(manifest.classes, rows, strict=True)]

    def _load_champion(self) -> Release:
        with self._lock:
            version = require_champion(self._store).version
            if self._release is None or self._release.manifest.version != version:
                self._release = open_release(self._store, version)
            return self._release


def encode_picture(image: np.ndarray) -> str:
    """An image, uint8 (H, W) or (H, W, 3), as a PNG in a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
