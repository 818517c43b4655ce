"""Train one model for `make bench-training`, in a separate process: `python -m bench.training_run RECIPE SEED`.

Prints JSON. RECIPE is a profile, or `reference`: the baseline, a plain Keras CNN. The training time covers training,
validation and all work between epochs, but not the evaluation on test images.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmnist_tasks.data.dataset import Arrays, split_indices
from fmnist_tasks.data.declaration import read_declaration
from fmnist_tasks.data.shards import ShardedImages
from fmnist_tasks.data.sources import load_base
from fmnist_tasks.evaluation.metrics import measure_accuracy
from fmnist_tasks.model import cnn, h5, training, tuning
from fmnist_tasks.model.libraries import keras, tf
from fmnist_tasks.model.muon import Muon
from fmnist_tasks.model.ood import detector
from fmnist_tasks.model.state import unpack
from fmnist_tasks.model.temperature import fit_temperature
from fmnist_tasks.provenance import describe_machine
from fmnist_tasks.settings import PROFILES, Profile, Settings


@dataclass
class Recorder:
    """Replaces checkpoints: records the state after each epoch, and the training time so far, in seconds."""

    states: list[bytes] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def save(self, number: int, state: bytes) -> None:
        """Record the state after an epoch."""
        self.seconds.append(time.monotonic() - self.started)
        self.states.append(state)

    def resume_clock(self) -> None:
        """Exclude the time since the last state."""
        self.started = time.monotonic() - self.seconds[-1]

    def load_latest(self) -> None:
        """None: training always starts from the beginning."""


DATASET = read_declaration(Settings.from_environment().dataset)
FORMAT = DATASET.image_format


def load_arrays() -> Arrays:
    """The splits of the dataset, as in a run."""
    base, _ = load_base(DATASET, Settings.from_environment())
    images, labels = base["train_images"], base["train_labels"]
    train, validation = split_indices(labels)
    return Arrays(
        ShardedImages.from_arrays(images[train], labels[train]),
        *(images[validation], labels[validation]),
        base["test_images"],
        base["test_labels"],
    )


def train_baseline(data: Arrays, seed: int) -> dict[str, Any]:
    """Train the baseline: two convolutions, Adam, early stopping with patience 5."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Dropout(0.25),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    started, seconds, weights, losses = time.monotonic(), [], [], []

    def record_epoch(epoch: int, logs: dict[str, float]) -> None:
        seconds.append(time.monotonic() - started)
        losses.append(logs["val_loss"])
        weights.append(model.get_weights())

    images, labels = next(data.training.iterate_windows(seed, 0))
    model.fit(
        images[..., None],
        labels,
        batch_size=64,
        epochs=100,
        validation_data=(data.validation_images[..., None], data.validation_labels),
        verbose=0,
        callbacks=[
            keras.callbacks.EarlyStopping(patience=5),
            keras.callbacks.LambdaCallback(on_epoch_end=record_epoch),
        ],
    )
    best = [int(np.argmin(losses[: epoch + 1])) for epoch in range(len(weights))]  # the best epoch so far
    accuracies = {}
    for epoch in set(best):
        model.set_weights(weights[epoch])
        accuracies[epoch] = measure_accuracy(data.test_labels, h5.predict_outputs(model, data.test_images)[0])
    tests = [accuracies[epoch] for epoch in best]
    return {"seconds": seconds, "test_accuracy": tests, "epochs": len(seconds)}


def train_profile(data: Arrays, profile: Profile, seed: int) -> dict[str, Any]:
    """Train and fine-tune with a profile, and choose a candidate, like the steps `train` and `fine_tune`."""
    recorder = Recorder()
    base = cnn.build_classifier(
        profile, 10, FORMAT, training.train_model(data, 10, FORMAT, profile, seed, recorder).model
    )
    base_epochs = len(recorder.states)
    recorder.resume_clock()
    tuned = cnn.build_classifier(
        profile, 10, FORMAT, tuning.fine_tune_model(base, data, 10, FORMAT, profile, seed, recorder).model
    )
    seconds = recorder.seconds[-1]
    base_metrics, tuned_metrics = (_evaluate_on_validation(data, model) for model in (base, tuned))
    network, optimizer, tests = cnn.build_network(profile, 10, FORMAT), Muon(0.0), []
    optimizer.build(network.trainable_variables)
    # One model for all states, since the first prediction of a model takes seconds.
    model = cnn.build_classifier(profile, 10, FORMAT, network)
    for state in recorder.states:
        network.set_weights(unpack(state, network, optimizer).best_weights)
        cnn.copy_weights(model, network)
        tests.append(measure_accuracy(data.test_labels, h5.classify(model, data.test_images)))
    candidate = tuned
    if base_metrics["loss"] <= tuned_metrics["loss"]:  # the base model is the candidate
        candidate, tests[-1] = base, tests[base_epochs - 1]
    # A few images are enough: only the time and size of the released model are measured.
    few = ShardedImages.from_arrays(data.validation_images[:1000], data.validation_labels[:1000])
    released = detector.add_ood_head(
        cnn.export_for_inference(profile, 10, FORMAT, candidate, temperature=1.0), few, DATASET
    )
    operations = _count_operations(cnn.build_network(profile, 10, FORMAT)) * len(recorder.states)
    return {
        "seconds": recorder.seconds,
        "test_accuracy": tests,
        "epochs": len(recorder.states),
        "base_epochs": base_epochs,
        "validation": {"base": base_metrics, "tuned": tuned_metrics},
        "gigaflops": operations * 1e-9 / seconds,
        "bytes": len(h5.encode_model(released)),
        **_measure_predictions(released, data.test_images),
    }


def measure_matmul_peak() -> float:
    """GFLOP/s of the fastest of ten products of two float32 matrices (4096, 4096)."""
    size = 4096
    a, b = tf.random.normal((size, size)), tf.random.normal((size, size))
    seconds = []
    for _ in range(10):
        clock = time.monotonic()
        tf.matmul(a, b).numpy()
        seconds.append(time.monotonic() - clock)
    return 2 * size**3 / min(seconds) * 1e-9


def _evaluate_on_validation(data: Arrays, model: keras.Model) -> dict[str, float]:
    """Validation accuracy, and the loss after temperature scaling, by which the pipeline chooses."""
    probabilities = h5.classify(model, data.validation_images)
    _, loss = fit_temperature(data.validation_labels, probabilities)
    return {"accuracy": measure_accuracy(data.validation_labels, probabilities), "loss": loss}


def _count_operations(network: keras.Model) -> float:
    """Number of additions and multiplications in an epoch with 48,000 training and 12,000 validation images."""
    forward = backward = 0
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            positions = np.prod(layer.output.shape[1:-1], dtype=int)
            cost = 2 * int(np.prod(layer.kernel.shape)) * int(positions)
            is_first = isinstance(layer, keras.layers.Conv2D) and layer.kernel.shape[2] == 1
            forward += cost
            backward += cost if is_first else 2 * cost  # the first layer needs no gradient of its input
    return 48_000 * (forward + backward) + 12_000 * forward


def _measure_predictions(model: keras.Model, images: np.ndarray) -> dict[str, float]:
    """Latency of one image in ms (95th percentile), and seconds for all images (fastest of 3)."""
    single, many = h5.measure_latency(model, images), []
    h5.predict(model, images)
    for _ in range(3):
        clock = time.monotonic()
        h5.predict(model, images)
        many.append(time.monotonic() - clock)
    return {"single_ms": single, "many_seconds": min(many)}


def main(recipe: str, seed: int) -> None:
    """Run the training, and print the result as JSON."""
    data, peak = load_arrays(), measure_matmul_peak()
    result = train_baseline(data, seed) if recipe == "reference" else train_profile(data, PROFILES[recipe], seed)
    devices = tf.config.list_physical_devices("GPU")
    gpus = [tf.config.experimental.get_device_details(device).get("device_name", device.name) for device in devices]
    threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))
    machine = {
        **describe_machine().to_json(),
        "gpus": gpus,
        "threads": threads,
        "matmul_gigaflops": (peak + measure_matmul_peak()) / 2,
    }
    print(json.dumps({"recipe": recipe, "seed": seed, **result, "machine": machine}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
