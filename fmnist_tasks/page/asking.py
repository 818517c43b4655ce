"""The champion, asked about single images from the page."""

from __future__ import annotations

import base64
import io
from threading import Lock
from typing import TYPE_CHECKING, Any

from fmnist_tasks import service
from fmnist_tasks.registry.store import Store

if TYPE_CHECKING:
    import numpy as np


class Oracle:
    """Keeps the champion's model open, so that only the first question after a promotion waits for it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._release: service.Release | None = None
        self._asking = Lock()

    def answers(self, images: np.ndarray) -> list[dict[str, Any]]:
        """What the champion says of images, uint8 (N, 28, 28), each with the picture that it was shown."""
        release = self._champion()
        threshold = release.manifest["novelty_threshold"]
        return [
            {**row, "threshold": threshold, "picture": picture(image)}
            for row, image in zip(service.answers(release, images), images, strict=True)
        ]

    def samples(self) -> list[dict[str, Any]]:
        """A test image of each class, by chance, with what it shows and what the champion says."""
        import numpy as np

        from fmnist_tasks.data.dataset import load_test

        manifest = self._champion().manifest
        images, labels = load_test(self._store, manifest["data"])
        random = np.random.default_rng()
        chosen = [random.choice(np.flatnonzero(labels == label)) for label in range(len(manifest["classes"]))]
        rows = self.answers(images[chosen])
        return [{"truth": name, **row} for name, row in zip(manifest["classes"], rows, strict=True)]

    def _champion(self) -> service.Release:
        with self._asking:
            version = service.in_service(self._store).version
            if self._release is None or self._release.manifest["version"] != version:
                self._release = service.open_release(self._store, version)
            return self._release


def picture(image: np.ndarray) -> str:
    """The image, uint8 (28, 28), as a PNG in a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
