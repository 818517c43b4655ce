"""A training of a small network that is killed (SIGKILL) at a given moment.

Moments are the steps of training and, for each checkpoint, before it is written, when half of it lies beside its
place, and after.
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
from fmnist_tasks.data.shards import Chunk, Training
from fmnist_tasks.model import batches, training
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.settings import PROFILES, Stage
from tests.support import synthetic

EPOCHS, BATCHES = 30, 4
MOMENTS = BATCHES + 3  # of one epoch
STAGE = replace(PROFILES["quick"].base, batch_size=16, shift=1, cut_mix=0.5)


def train_until_killed(folder: Path, fatal: int, epochs: int) -> None:
    """Train until that moment, 0 for to the end, with checkpoints in a store in the folder.

    Prints the epoch it begins with, the memory it holds after each checkpoint, in MiB, and, at the end, a digest of the
    weights.
    """
    moments, begun = 0, False

    def pass_moment() -> None:
        nonlocal moments
        moments += 1
        if moments == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    put = FolderStore.put

    def mortal_put(self: FolderStore, key: str, data: bytes) -> None:
        pass_moment()
        (self.root / ".scratch").mkdir(parents=True, exist_ok=True)
        (self.root / ".scratch" / "half").write_bytes(data[: len(data) // 2])
        pass_moment()
        put(self, key, data)
        pass_moment()
        print("holds", int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) >> 10)

    def mortal_batches(images: Training, stage: Stage, classes: int, seed: int, epoch: int) -> Iterator[training.Batch]:
        nonlocal begun
        if not begun:
            print("begins with epoch", epoch, flush=True)
            begun = True
        for batch in batches.training_batches(images, stage, classes, seed, epoch):
            pass_moment()
            yield batch

    images, labels = synthetic.make_images(16 * BATCHES, 1)
    parts = [(images[start : start + 16], labels[start : start + 16]) for start in range(0, len(labels), 16)]
    shards = Training([(16, partial(read_part, part)) for part in parts], window=32)  # so that there are several
    arrays = Arrays(shards, *synthetic.make_images(40, 2), *synthetic.make_images(40, 2))
    checkpoints = Checkpoints(FolderStore(folder), "run", "base-0", {"made": True})
    stage = replace(STAGE, epochs=epochs, patience=epochs)
    profile = replace(PROFILES["quick"], base=stage, dropout=0.5)
    with patch.object(FolderStore, "put", mortal_put), patch.object(training, "training_batches", mortal_batches):
        fit = training.train(arrays, 10, profile, 0, checkpoints)
    weights = b"".join(weight.tobytes() for weight in fit.model.get_weights())
    print(len(fit.curves["loss"]), fit.best_epoch, hashlib.sha256(weights).hexdigest())


def read_part(part: Chunk) -> Iterator[Chunk]:
    """The images and labels of a part of the training images."""
    yield part
