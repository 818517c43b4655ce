"""Saved models: their bytes, their compatibility with Keras, and files that are refused."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from fmnist_tasks.errors import ModelError
from fmnist_tasks.model import h5
from fmnist_tasks.model.cnn import build_classifier, build_network
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.settings import PROFILES
from tests.support import synthetic
from tests.support.model_files import make_configuration, make_file, make_input, make_layer
from tests.support.pipeline import Pipeline

# The keys that Keras 3.8.0 writes into the configuration of each class, beyond those of every layer.
KEYS_OF_KERAS_3_8 = {
    "Add": "",
    "Average": "",
    "BatchNormalization": (
        "axis beta_constraint beta_initializer beta_regularizer center epsilon gamma_constraint gamma_initializer "
        "gamma_regularizer momentum moving_mean_initializer moving_variance_initializer scale synchronized"
    ),
    "Concatenate": "axis",
    "Conv2D": (
        "activation activity_regularizer bias_constraint bias_initializer bias_regularizer data_format dilation_rate "
        "filters groups kernel_constraint kernel_initializer kernel_regularizer kernel_size padding strides use_bias"
    ),
    "DTypePolicy": "",
    "Dense": (
        "activation bias_constraint bias_initializer bias_regularizer kernel_constraint kernel_initializer "
        "kernel_regularizer units use_bias"
    ),
    "Dropout": "noise_shape rate seed",
    "Functional": "input_layers layers output_layers",
    "GlobalMaxPooling2D": "data_format keepdims",
    "GlorotUniform": "seed",
    "HeNormal": "seed",
    "InputLayer": "batch_shape sparse",
    "MaxPooling2D": "data_format padding pool_size strides",
    "Ones": "",
    "ReLU": "max_value negative_slope threshold",
    "Rescaling": "offset scale",
    "Reshape": "target_shape",
    "Softmax": "axis",
    "Zeros": "",
    "__keras_tensor__": "keras_history shape",
}
KEYS_OF_EVERY_LAYER = {"name", "trainable", "dtype"}


def find_unknown_keys(config: Any) -> set[str]:
    """The keys of a configuration that Keras 3.8.0 does not write, each with its class."""
    if isinstance(config, list):
        return set().union(*map(find_unknown_keys, config))
    if not isinstance(config, dict):
        return set()
    unknown = find_unknown_keys(list(config.values()))
    if "class_name" in config:
        known = {*KEYS_OF_KERAS_3_8[config["class_name"]].split(), *KEYS_OF_EVERY_LAYER}
        unknown |= {f"{config['class_name']}.{key}" for key in config["config"].keys() - known}
    return unknown


def read_configuration(data: bytes) -> Any:
    with h5py.File(io.BytesIO(data)) as file:
        return json.loads(file.attrs["model_config"])


def test_a_saved_model_loads_and_predicts_the_same_bits(saved_model: bytes) -> None:
    images = np.random.default_rng(1).integers(0, 256, (700, 28, 28), dtype=np.uint8)
    first, second = (h5.predict(h5.load_model(saved_model, "m"), images) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


def check_same_model(data: bytes, folder: Path) -> None:
    """Assert that the loaded model equals the one that Keras loads, bit by bit, in predictions too."""
    (folder / "model.h5").write_bytes(data)
    expected, loaded = keras.saving.load_model(folder / "model.h5", compile=False), h5.load_model(data, "m")
    assert loaded.get_config() == expected.get_config()
    for a, b in zip(loaded.weights, expected.weights, strict=True):
        assert (a.path, a.trainable) == (b.path, b.trainable)
        assert a.numpy().tobytes() == b.numpy().tobytes()
    images = np.random.default_rng(1).integers(0, 256, (600, 28, 28), dtype=np.uint8)
    for a, b in zip(h5.predict_outputs(loaded, images), h5.predict_outputs(expected, images), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_are_refused(saved_model: bytes, value: float) -> None:
    model = h5.load_model(saved_model, "m")
    model.set_weights([np.full_like(weight, value) for weight in model.get_weights()])
    with pytest.raises(ModelError, match="predictions for 2 of 2 images are not finite numbers"):
        h5.classify(model, np.zeros((2, 28, 28), np.uint8))


def test_a_model_equals_the_one_that_keras_loads(saved_model: bytes, tmp_path: Path) -> None:
    check_same_model(saved_model, tmp_path)


@pytest.mark.integration
def test_a_release_equals_the_model_that_keras_loads(finished_pipeline: Pipeline, tmp_path: Path) -> None:
    store = finished_pipeline.store
    release = open_release(store, require_champion(store).version)
    check_same_model(release.files["model.h5"], tmp_path)


def test_a_saved_model_has_no_key_that_keras_3_8_does_not_write(saved_model: bytes) -> None:
    assert find_unknown_keys(read_configuration(saved_model)) == set()
    thorough = build_classifier(
        PROFILES["thorough"], 10, synthetic.FORMAT, build_network(PROFILES["thorough"], 10, synthetic.FORMAT)
    )
    assert find_unknown_keys(read_configuration(h5.encode_model(thorough))) == set()


def test_a_newer_key_with_an_effect_is_kept() -> None:
    image = keras.Input((2, 2, 1))
    renormalised = keras.Model(image, keras.layers.BatchNormalization(renorm=True)(image))
    assert "BatchNormalization.renorm" in find_unknown_keys(read_configuration(h5.encode_model(renormalised)))


def test_the_same_model_is_saved_as_the_same_bytes(saved_model: bytes) -> None:
    assert h5.encode_model(h5.load_model(saved_model, "m")) == h5.encode_model(h5.load_model(saved_model, "m"))
    assert b"quantization_config" not in saved_model  # not even as remains of a replaced attribute


def test_a_model_that_keras_itself_saved_loads(saved_model: bytes, tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    model = h5.load_model(saved_model, "m")
    keras.saving.save_model(model, tmp_path / "earlier.h5", include_optimizer=False)
    earlier = (tmp_path / "earlier.h5").read_bytes()
    assert find_unknown_keys(read_configuration(earlier))
    for a, b in zip(h5.predict(h5.load_model(earlier, "m"), images), h5.predict(model, images), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.integration
def test_plain_keras_loads_a_model_without_this_project(saved_model: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(saved_model)
    program = (
        "import keras, numpy, sys\n"
        "model = keras.models.load_model('model.h5', compile=False)\n"
        "probabilities, ood_score = model.predict(numpy.zeros((3, 28, 28, 1), 'uint8'), verbose=0)\n"
        "assert probabilities.shape == (3, 10) and ood_score.shape == (3, 1)\n"
        "assert not any(name.startswith('fmnist') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": ""})


@pytest.mark.parametrize("data", [b"", b"\0" * 4096, pickle.dumps({"a": 1})])
def test_a_file_that_is_not_a_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"m: is not a Keras .h5 model"):
        h5.load_model(data, "m")


def test_a_truncated_model_is_refused(saved_model: bytes) -> None:
    for length in (100, 5000, len(saved_model) // 2, len(saved_model) - 1):
        with pytest.raises(ModelError, match=r"^m: "):
            h5.load_model(saved_model[:length], "m")


@pytest.mark.parametrize(
    "weights", [{}, {"x": [(1, 16)]}, {"x": [(16,), (1, 16)]}, {"x": [(1, 16), (16,)], "image": [(4,)]}]
)
def test_weights_that_do_not_fit_are_refused(weights: dict[str, list[tuple[int, ...]]]) -> None:
    configuration = make_configuration([make_input(28, 28, 1), make_layer("Dense", "x", "image")])
    arrays = {layer: [np.ones(shape) for shape in shapes] for layer, shapes in weights.items()}
    with pytest.raises(ModelError, match=r"has weights of shapes .*, but its configuration needs"):
        h5.load_model(make_file(configuration, arrays), "m")


def test_keras_2_is_refused(saved_model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    with pytest.raises(ModelError, match=r"TF_USE_LEGACY_KERAS is set"):
        h5.load_model(saved_model, "m")


def test_an_error_of_keras_is_reported_without_control_characters(
    saved_model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message may contain names from the file."""

    def refuse(configuration: object) -> None:
        raise ValueError("layer \x1b[31m\n\u202ename")

    monkeypatch.setattr(keras.Model, "from_config", refuse)
    with pytest.raises(ModelError, match=r"^m: Keras cannot build it \(layer \[31m name\)$"):
        h5.load_model(saved_model, "m")
