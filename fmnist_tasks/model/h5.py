"""Writing, loading and running `.h5` models; no other module writes or loads one.

A model file can contain a program. The caller checks the digest first. Then a child process without secrets reads the
file. Its output is validated, with the shapes of all weights and activations. Only then does Keras build the model,
uncompiled, and receive the weights.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fmnist_tasks.errors import ModelError
from fmnist_tasks.model.cnn import PROBABILITIES
from fmnist_tasks.model.graph_shapes import Shape, infer_weight_shapes
from fmnist_tasks.model.h5_process import Weights, read_model
from fmnist_tasks.model.libraries import keras
from fmnist_tasks.model.mini_batches import make_prediction_batches
from fmnist_tasks.text import make_printable

# Keys of a configuration that Keras 3.8 does not know or may refuse, each with the value that has no effect.
_NEWER_KEYS = {
    "input_axes": None,
    "optional": False,
    "output_axes": None,
    "quantization_config": None,
    "ragged": False,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
}


def encode_model(model: keras.Model) -> bytes:
    """The bytes of an `.h5` file with the model, for Keras 3.8 and newer."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        keras.saving.save_model(model, path, include_optimizer=False)
        # Copied, since replacing an attribute leaves its old text in the file.
        with h5py.File(path, "r") as saved, h5py.File(buffer, "w") as file:
            for name in saved:
                saved.copy(name, file)
            for name, value in saved.attrs.items():
                file.attrs[name] = json.dumps(_omit_newer_keys(json.loads(value))) if name == "model_config" else value
    return buffer.getvalue()


def load_model(data: bytes, name: str) -> keras.Model:
    """Load a model from the bytes of an `.h5` file; raises :class:`ModelError` if it is invalid or unsafe."""
    if os.environ.get("TF_USE_LEGACY_KERAS", "0") not in {"", "0"}:
        raise ModelError("TF_USE_LEGACY_KERAS is set: Keras 2 runs code from model files; unset the variable")
    try:
        configuration, weights = read_model(data)
        _require_shapes(infer_weight_shapes(configuration), weights)
    except (ModelError, ValueError) as error:
        raise ModelError(f"{name}: {error}; it is not opened") from error
    try:
        model = keras.Model.from_config(json.loads(configuration)["config"])
        for layer, arrays in weights.items():
            model.get_layer(layer).set_weights(arrays)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{name}: Keras cannot build it ({make_printable(str(error))})") from error
    return model


def classify(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Class probabilities (N, classes), float32, of images, uint8 (N, …).

    Raises :class:`ModelError` if one is not a finite number.
    """
    classifier = keras.Model(model.input, model.get_layer(PROBABILITIES).output)
    (probabilities,) = _require_finite(predict_outputs(classifier, images))
    return probabilities


def predict(model: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities (N, classes), float32, and OOD scores (N,), float32, of images (N, H, W), uint8.

    Only candidates and releases have both outputs. Raises like :func:`classify`.
    """
    probabilities, ood_scores = _require_finite(predict_outputs(model, images))
    return probabilities, ood_scores[:, 0]


def predict_outputs(model: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    """All outputs of a model, each (N, …), float32, for images (N, H, W), uint8."""
    # Keras's `predict` builds an input pipeline for each call, which takes longer than one image.
    outputs = [model.predict_on_batch(batch) for batch in make_prediction_batches(images)]
    if isinstance(outputs[0], list):
        return [np.concatenate(batches) for batches in zip(*outputs, strict=True)]
    return [np.concatenate(outputs)]


def measure_latency(model: keras.Model, images: np.ndarray) -> float:
    """Latency of one image in ms, the 95th percentile over up to 500 images (N, H, W), uint8."""
    seconds = []
    predict(model, images[:1])  # the first call also traces the graph
    for number in range(min(500, len(images))):
        clock = time.monotonic()
        predict(model, images[number : number + 1])
        seconds.append(time.monotonic() - clock)
    return float(np.quantile(seconds, 0.95)) * 1e3


def _require_finite(outputs: list[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs (N, …); raises :class:`ModelError` if a value is NaN or infinite."""
    invalid = np.any([~np.isfinite(output).all(axis=1) for output in outputs], axis=0)
    if invalid.any():
        raise ModelError(
            f"the model's predictions for {invalid.sum():,} of {len(invalid):,} images are not finite numbers, so it "
            "is not used; train it again"
        )
    return outputs


def _require_shapes(required: dict[str, list[Shape]], weights: Weights) -> None:
    """Raise :class:`ModelError` unless the weights have exactly the required shapes."""
    for layer in required.keys() | weights.keys():
        shapes = [array.shape for array in weights.get(layer, [])]
        if shapes != required.get(layer, []):
            raise ModelError(
                f"{layer:.100} has weights of shapes {shapes}, but its configuration needs {required.get(layer, [])}"
            )


def _omit_newer_keys(config: Any) -> Any:
    """A configuration, or a value in it, without the newer keys that have no effect."""
    if isinstance(config, dict):
        omitted = {key for key, value in _NEWER_KEYS.items() if key in config and config[key] == value}
        return {key: _omit_newer_keys(value) for key, value in config.items() if key not in omitted}
    if isinstance(config, list):
        return [_omit_newer_keys(value) for value in config]
    return config
