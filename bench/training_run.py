"""One training for `make bench-training`, in a process of its own: `python -m bench.training_run RECIPE SEED`.

Prints JSON. RECIPE is a profile, or `reference`: the usual Keras recipe for this dataset. The clock runs while a recipe
fits: training, validation and whatever it does between epochs; test images are looked at while it stands still.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from fmnist_tasks.data.dataset import Arrays, split
from fmnist_tasks.data.declaration import read_declaration
from fmnist_tasks.data.shards import Training
from fmnist_tasks.data.sources import load_base
from fmnist_tasks.evaluation.metrics import accuracy
from fmnist_tasks.model import cnn, h5, novelty, training, tuning
from fmnist_tasks.model.muon import Muon
from fmnist_tasks.model.state import unpack
from fmnist_tasks.model.temperature import best_temperature
from fmnist_tasks.provenance import machine_facts
from fmnist_tasks.settings import PROFILES, Profile, Settings


@dataclass
class Recorder:
    """In place of checkpoints: the state after every epoch, and the seconds of fitting that it took."""

    states: list[bytes] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def save(self, number: int, state: bytes) -> None:
        """Record the state after an epoch."""
        self.seconds.append(time.monotonic() - self.started)
        self.states.append(state)

    def go_on(self) -> None:
        """Leave what happened since the last state out of the time."""
        self.started = time.monotonic() - self.seconds[-1]

    def latest(self) -> None:
        """No state to resume from: every training starts at its beginning."""


def arrays() -> Arrays:
    """The dataset as a run sees it."""
    settings = Settings.from_environment()
    base, _ = load_base(read_declaration(settings.dataset), settings)
    images, labels = base["train_images"], base["train_labels"]
    train, validation = split(labels)
    return Arrays(
        Training.of(images[train], labels[train]),
        *(images[validation], labels[validation]),
        base["test_images"],
        base["test_labels"],
    )


def reference(data: Arrays, seed: int) -> dict[str, Any]:
    """Two convolutions, Adam, early stopping with patience 5; fed arrays, as is usual."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    started, seconds, weights, losses = time.monotonic(), [], [], []

    def keep(epoch: int, logs: dict[str, float]) -> None:
        seconds.append(time.monotonic() - started)
        losses.append(logs["val_loss"])
        weights.append(model.get_weights())

    images, labels = next(data.training.windows(seed, 0))
    model.fit(
        images[..., None],
        labels,
        batch_size=64,
        epochs=100,
        validation_data=(data.validation_images[..., None], data.validation_labels),
        verbose=0,
        callbacks=[keras.callbacks.EarlyStopping(patience=5), keras.callbacks.LambdaCallback(on_epoch_end=keep)],
    )
    best = [int(np.argmin(losses[: epoch + 1])) for epoch in range(len(weights))]  # as after each epoch
    accuracies = {}
    for epoch in set(best):
        model.set_weights(weights[epoch])
        accuracies[epoch] = accuracy(data.test_labels, h5.outputs(model, data.test_images)[0])
    tests = [accuracies[epoch] for epoch in best]
    return {"seconds": seconds, "test_accuracy": tests, "epochs": len(seconds)}


def ours(data: Arrays, profile: Profile, seed: int) -> dict[str, Any]:
    """Base model, fine-tuning, and the choice between them, as `train` and `fine_tune` do it."""
    recorder = Recorder()
    base = cnn.trained(profile, 10, training.train(data, 10, profile, seed, recorder).model)
    base_epochs = len(recorder.states)
    recorder.go_on()
    tuned = cnn.trained(profile, 10, tuning.tune(base, data, 10, profile, seed, recorder).model)
    seconds = recorder.seconds[-1]
    of_base, of_tuned = (_on_validation(data, model) for model in (base, tuned))
    network, optimizer, tests = cnn.build(profile, 10), Muon(0.0), []
    optimizer.build(network.trainable_variables)
    model = cnn.trained(profile, 10, network)  # one for all, since the first prediction of each takes seconds
    for state in recorder.states:
        network.set_weights(unpack(state, network, optimizer).best_weights)
        cnn.take_weights(model, network)
        tests.append(accuracy(data.test_labels, h5.classify(model, data.test_images)))
    better = tuned
    if of_base["loss"] <= of_tuned["loss"]:  # fine-tuning was for nothing, and the base model is what counts
        better, tests[-1] = base, tests[base_epochs - 1]
    few = Training.of(data.validation_images[:1000], data.validation_labels[:1000])  # the probe is there to be timed
    published = novelty.publishable(cnn.published(profile, 10, better, temperature=1.0), few)
    work = _operations(cnn.build(profile, 10)) * len(recorder.states)
    return {
        "seconds": recorder.seconds,
        "test_accuracy": tests,
        "epochs": len(recorder.states),
        "base_epochs": base_epochs,
        "validation": {"base": of_base, "tuned": of_tuned},
        "gigaflops": work * 1e-9 / seconds,
        "bytes": len(h5.save(published)),
        **_predicting(published, data.test_images),
    }


def matmul_peak() -> float:
    """Gigaflops of the fastest of some products of two float32 matrices of 4096 x 4096."""
    size = 4096
    a, b = tf.random.normal((size, size)), tf.random.normal((size, size))
    seconds = []
    for _ in range(10):
        clock = time.monotonic()
        tf.matmul(a, b).numpy()
        seconds.append(time.monotonic() - clock)
    return 2 * size**3 / min(seconds) * 1e-9


def _on_validation(data: Arrays, model: keras.Model) -> dict[str, float]:
    """Accuracy, and the loss at the best temperature that the pipeline chooses by."""
    probabilities = h5.classify(model, data.validation_images)
    _, loss = best_temperature(data.validation_labels, probabilities)
    return {"accuracy": accuracy(data.validation_labels, probabilities), "loss": loss}


def _operations(network: keras.Model) -> float:
    """Additions and multiplications of one epoch over 48,000 training and 12,000 validation images."""
    forward = backward = 0
    for layer in network.layers:
        if isinstance(layer, layers.Conv2D | layers.Dense):
            places = np.prod(layer.output.shape[1:-1], dtype=int)
            cost = 2 * int(np.prod(layer.kernel.shape)) * int(places)
            first = isinstance(layer, layers.Conv2D) and layer.kernel.shape[2] == 1
            forward += cost
            backward += cost if first else 2 * cost  # nothing comes before the first layer
    return 48_000 * (forward + backward) + 12_000 * forward


def _predicting(model: keras.Model, images: np.ndarray) -> dict[str, float]:
    """Milliseconds of one image (95th percentile) and seconds of 10,000 (least of 3)."""
    single, many = h5.single_milliseconds(model, images), []
    h5.predict(model, images)
    for _ in range(3):
        clock = time.monotonic()
        h5.predict(model, images)
        many.append(time.monotonic() - clock)
    return {"single_ms": single, "many_seconds": min(many)}


def main(recipe: str, seed: int) -> None:
    """Train and print."""
    data, peak = arrays(), matmul_peak()
    result = reference(data, seed) if recipe == "reference" else ours(data, PROFILES[recipe], seed)
    devices = tf.config.list_physical_devices("GPU")
    gpus = [tf.config.experimental.get_device_details(device).get("device_name", device.name) for device in devices]
    threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))
    facts = {**machine_facts(), "gpus": gpus, "threads": threads, "matmul_gigaflops": (peak + matmul_peak()) / 2}
    print(json.dumps({"recipe": recipe, "seed": seed, **result, "machine": facts}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
