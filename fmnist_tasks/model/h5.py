"""The only place that writes or opens an `.h5` model.

A model file is a program. The caller checks the digest first (a reference does). Then a child process without secrets
reads the file; what it found is validated, with the shape of everything that it would build; and only then Keras builds
the model, uncompiled, and is given the weights.
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
import keras
import numpy as np

from fmnist_tasks.errors import ModelError
from fmnist_tasks.model.batches import prediction_batches
from fmnist_tasks.model.cnn import PROBABILITIES
from fmnist_tasks.model.graph_shapes import Shape, infer_weight_shapes
from fmnist_tasks.model.h5_process import Weights, read
from fmnist_tasks.text import make_printable

# Keys of a configuration that Keras 3.8 does not know or may refuse, each with the value at which it changes nothing.
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


def save(model: keras.Model) -> bytes:
    """The model as the bytes of an `.h5` file, which Keras 3.8 and newer load."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        keras.saving.save_model(model, path, include_optimizer=False)
        # Copied, since an attribute that is replaced leaves its old text in the file.
        with h5py.File(path, "r") as saved, h5py.File(buffer, "w") as file:
            for name in saved:
                saved.copy(name, file)
            for name, value in saved.attrs.items():
                file.attrs[name] = json.dumps(_omit_newer_keys(json.loads(value))) if name == "model_config" else value
    return buffer.getvalue()


def load(data: bytes, name: str) -> keras.Model:
    """The model in the bytes of an `.h5` file; raises :class:`ModelError` naming it if it cannot be trusted."""
    if os.environ.get("TF_USE_LEGACY_KERAS", "0") not in {"", "0"}:
        raise ModelError("TF_USE_LEGACY_KERAS is set: that Keras runs code found in model files; unset it")
    try:
        configuration, weights = read(data)
        _require_fit(infer_weight_shapes(configuration), weights)
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
    """Class probabilities alone, float32 (N, classes), of uint8 images (N, 28, 28)."""
    classifier = keras.Model(model.input, model.get_layer(PROBABILITIES).output)
    (probabilities,) = outputs(classifier, images)
    return probabilities


def predict(model: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities, float32 (N, classes), and familiarity, float32 (N,), of uint8 images (N, 28, 28).

    Only a model that is a candidate or published has both.
    """
    probabilities, familiarity = outputs(model, images)
    return probabilities, familiarity[:, 0]


def outputs(model: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    """All outputs of any network, each float32 (N, …), for uint8 images (N, 28, 28)."""
    # Keras's predict would make a pipeline for every call, which takes longer than an image.
    found = [model.predict_on_batch(batch) for batch in prediction_batches(images)]
    if isinstance(found[0], list):
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return [np.concatenate(found)]


def single_milliseconds(model: keras.Model, images: np.ndarray) -> float:
    """Time that a published model takes for one image, the 95th percentile over up to 500 of uint8 (N, 28, 28)."""
    seconds = []
    predict(model, images[:1])  # builds what later calls use
    for number in range(min(500, len(images))):
        clock = time.monotonic()
        predict(model, images[number : number + 1])
        seconds.append(time.monotonic() - clock)
    return float(np.quantile(seconds, 0.95)) * 1e3


def _require_fit(needed: dict[str, list[Shape]], weights: Weights) -> None:
    """Raise :class:`ModelError` unless the weights have exactly the shapes that the configuration needs."""
    for layer in needed.keys() | weights.keys():
        shapes = [array.shape for array in weights.get(layer, [])]
        if shapes != needed.get(layer, []):
            raise ModelError(
                f"{layer:.100} has weights of shapes {shapes}, its configuration needs {needed.get(layer, [])}"
            )


def _omit_newer_keys(part: Any) -> Any:
    """A part of a configuration without the newer keys, except those whose value means something."""
    if isinstance(part, dict):
        omitted = {key for key, value in _NEWER_KEYS.items() if key in part and part[key] == value}
        return {key: _omit_newer_keys(value) for key, value in part.items() if key not in omitted}
    if isinstance(part, list):
        return [_omit_newer_keys(value) for value in part]
    return part
