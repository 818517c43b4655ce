"""Train a small network in a process that is killed (SIGKILL) at a given moment.

Moments are the steps of training and, for each checkpoint, three more: before it is written, when half of it is in a
temporary file, and after.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

from fmnist_tasks.data.dataset import Arrays
from fmnist_tasks.data.shards import Chunk, ShardedImages
from fmnist_tasks.model import mini_batches, training
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.settings import PROFILES, Stage
from tests.support import synthetic

EPOCHS, BATCHES = 30, 4
MOMENTS = BATCHES + 3  # of one epoch
STAGE = replace(PROFILES["quick"].base, batch_size=16, shift=1, cutmix=0.5)


def train_until_killed(folder: Path, moment: int, epochs: int) -> None:
    """Train until the moment, counted from 1, or to the end if it is 0, with checkpoints in a store in the folder.

    Prints the first epoch, the memory in MiB after each checkpoint, and at the end a digest of the weights.
    """
    moments, has_begun = 0, False

    def pass_moment() -> None:
        nonlocal moments
        moments += 1
        if moments == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    put = FolderStore.put

    def put_with_moments(self: FolderStore, key: str, data: bytes) -> None:
        pass_moment()
        (self.root / ".scratch").mkdir(parents=True, exist_ok=True)
        (self.root / ".scratch" / "half").write_bytes(data[: len(data) // 2])
        pass_moment()
        put(self, key, data)
        pass_moment()
        print("memory", int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) >> 10)

    def make_batches_with_moments(
        images: ShardedImages, stage: Stage, classes: int, seed: int, epoch: int, *, flip: bool
    ) -> Iterator[training.Batch]:
        nonlocal has_begun
        if not has_begun:
            print("begins with epoch", epoch, flush=True)
            has_begun = True
        for batch in mini_batches.make_training_batches(images, stage, classes, seed, epoch, flip=flip):
            pass_moment()
            yield batch

    images, labels = synthetic.make_images(16 * BATCHES, 1)
    chunks = [(images[start : start + 16], labels[start : start + 16]) for start in range(0, len(labels), 16)]
    # A small window, so an epoch has several.
    shards = ShardedImages((28, 28), [(16, partial(read_chunk, chunk)) for chunk in chunks], window_size=32)
    arrays = Arrays(shards, *synthetic.make_images(40, 2), *synthetic.make_images(40, 2))
    checkpoints = Checkpoints(FolderStore(folder), "run", "base-0", {})
    stage = replace(STAGE, epochs=epochs, patience=epochs)
    profile = replace(PROFILES["quick"], base=stage, dropout=0.5)
    with (
        patch.object(FolderStore, "put", put_with_moments),
        patch.object(training, "make_training_batches", make_batches_with_moments),
    ):
        fit = training.train_model(arrays, 10, synthetic.FORMAT, profile, 0, checkpoints)
    weights = b"".join(weight.tobytes() for weight in fit.model.get_weights())
    print(len(fit.curves.loss), fit.best_epoch, hashlib.sha256(weights).hexdigest())


def read_chunk(chunk: Chunk) -> Iterator[Chunk]:
    """Yield one chunk of images and labels."""
    yield chunk
