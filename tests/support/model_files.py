"""`.h5` files with any configuration and weights, as an attacker could write them, and random ones."""

from __future__ import annotations

import io
import json
from random import Random
from typing import Any

import h5py
import numpy as np

Weights = dict[str, list[np.ndarray]]
Layer = dict[str, Any]

_POLICY = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
_IMAGE = {"data_format": "channels_last"}


def _initial(name: str) -> dict[str, Any]:
    config = {"seed": None} if name in {"GlorotUniform", "HeNormal"} else {}
    return {"module": "keras.initializers", "class_name": name, "config": config, "registered_name": None}


_KERNEL = {
    "activation": "linear",
    "use_bias": True,
    "kernel_initializer": _initial("GlorotUniform"),
    "bias_initializer": _initial("Zeros"),
    "kernel_regularizer": None,
    "bias_regularizer": None,
    "kernel_constraint": None,
    "bias_constraint": None,
}
_POOLING = {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid", **_IMAGE}
DEFAULTS: dict[str, dict[str, Any]] = {  # of each class that a file may have
    "Add": {},
    "Average": {},
    "AveragePooling2D": _POOLING,
    "BatchNormalization": {
        "axis": -1,
        "momentum": 0.9,
        "epsilon": 0.001,
        "center": True,
        "scale": True,
        **{f"{name}_initializer": _initial("Zeros") for name in ("beta", "moving_mean")},
        **{f"{name}_initializer": _initial("Ones") for name in ("gamma", "moving_variance")},
        **{f"{name}_{kind}": None for name in ("beta", "gamma") for kind in ("regularizer", "constraint")},
        "synchronized": False,
    },
    "Concatenate": {"axis": -1},
    "Conv2D": {
        **_KERNEL,
        "filters": 8,
        "kernel_size": [3, 3],
        "strides": [1, 1],
        "padding": "same",
        "dilation_rate": [1, 1],
        "groups": 1,
        "activity_regularizer": None,
        **_IMAGE,
    },
    "Dense": {**_KERNEL, "units": 16},
    "Dropout": {"rate": 0.1, "seed": None, "noise_shape": None},
    "GlobalMaxPooling2D": {"keepdims": False, **_IMAGE},
    "MaxPooling2D": _POOLING,
    "ReLU": {"max_value": None, "negative_slope": 0.0, "threshold": 0.0},
    "Rescaling": {"scale": 1 / 255, "offset": 0.0},
    "Reshape": {"target_shape": [-1]},
    "Softmax": {"axis": -1},
}


def make_input(*shape: int) -> Layer:
    """The input layer `image` of this shape, (H, W, C)."""
    config = {"batch_shape": [None, *shape], "dtype": "float32", "sparse": False, "name": "image"}
    return {"class_name": "InputLayer", "config": config, "name": "image", "inbound_nodes": []}


def make_layer(kind: str, name: str, *calls: str | list[str], **config: Any) -> Layer:
    """A layer with these calls, each on the first output of a layer, or of several layers."""
    return {
        "class_name": kind,
        "config": {"name": name, "trainable": True, "dtype": _POLICY, **DEFAULTS.get(kind, {}), **config},
        "name": name,
        "inbound_nodes": [
            {"args": [_tensor(call) if isinstance(call, str) else [*map(_tensor, call)]], "kwargs": {}}
            for call in calls
        ],
    }


def _tensor(name: str) -> dict[str, Any]:
    """An input of a call; `name` is that of a layer, with `:1` for the output of its second call."""
    layer, _, number = name.partition(":")
    history = [layer, int(number or 0), 0]
    return {"class_name": "__keras_tensor__", "config": {"shape": [None], "dtype": "float32", "keras_history": history}}


def make_configuration(layers: list[Layer], *outputs: str) -> str:
    """The configuration (JSON) of a model with these layers; the output is the last one unless outputs are named."""
    references = [[name, 0, 0] for name in outputs or (layers[-1]["name"],)]
    graph = {
        "name": "m",
        "trainable": True,
        "layers": layers,
        "input_layers": [["image", 0, 0]],
        "output_layers": references,
    }
    return json.dumps({"class_name": "Functional", "config": graph})


def make_file(configuration: str, weights: Weights) -> bytes:
    """The bytes of an `.h5` file with this configuration and these weights."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["model_config"] = configuration
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [*weights] or np.zeros(0)
        for layer, arrays in weights.items():
            subgroup = group.create_group(layer)
            subgroup.attrs["weight_names"] = [str(number) for number in range(len(arrays))]
            for number, array in enumerate(arrays):
                subgroup[str(number)] = array.astype("float32")
    return buffer.getvalue()


_RANKS = {"Conv2D": 3, "MaxPooling2D": 3, "AveragePooling2D": 3, "GlobalMaxPooling2D": 3}


def generate_configuration(seed: int) -> str:
    """A random graph of allowed layers, of valid and invalid sizes; about half of them can be built."""
    random = Random(seed)  # noqa: S311 - not for cryptography
    layers = [make_input(*random.choice([(28, 28, 1)] * 30 + [(1024, 1024, 1), (16_384, 16_384, 1), (0, 1, 1)]))]
    ranks = {"image": 3}
    for number in range(random.randint(1, 14)):
        source, name = random.choice([*ranks]), f"layer{number}"
        kinds = [kind for kind in DEFAULTS if _RANKS.get(kind, ranks[source]) == ranks[source]]
        kind = random.choice(kinds if random.random() < 0.99 else [*DEFAULTS])
        call: str | list[str] = source
        if kind in {"Add", "Average", "Concatenate"}:
            call = [source] * random.randint(2, 3)
        if random.random() < 0.01:
            calls: list[str | list[str]] = [name, "layer9", "nowhere", [source, "image"]]
            call = random.choice(calls)
        changes: dict[str, Any] = {}
        for key, (valid, invalid) in _VALUES.items():
            if key in DEFAULTS[kind] and (kind, key) != ("BatchNormalization", "scale"):
                changes[key] = random.choice(valid if random.random() < 0.99 else invalid)
        layers.append(make_layer(kind, name, *[call] * random.choice([1, 1, 1, 2]), **changes))
        shape = changes.get("target_shape")
        ranks[name] = 1 if kind.startswith("Global") else len(shape) if isinstance(shape, list) else ranks[source]
    return make_configuration(layers, *[name for name in ranks if name != "image"])


_VALUES: dict[str, tuple[list[Any], list[Any]]] = {  # of a key: valid values, and invalid ones
    "units": ([1, 10, 64, 1024, 4096], [0, -1, 2**31, 2**63, 1e9, True, "10", None]),
    "filters": ([1, 8, 64], [0, -3, 16_384, 2**40, [8]]),
    "kernel_size": ([[1, 1], [3, 3], [1, 3]], [[0, 0], [2048, 2048], [3], 3, [-1, -1]]),
    "strides": ([[1, 1], [2, 2], [1, 2]], [[0, 0], [-1, 1], [10**9, 10**9], [1], None]),
    "pool_size": ([[2, 2], [1, 3]], [[0, 0], [10**6, 10**6], [64, 64], []]),
    "padding": (["same", "valid"], ["causal", "", None]),
    "dilation_rate": ([[1, 1]], [[2, 2], [10**9, 10**9], [0, 0]]),
    "groups": ([1], [0, 2, 10**6]),
    "target_shape": ([[-1], [-1, 1], [1, 1, -1]], [[0], [-1, -1], [-2], [2**40], [1, 1, 1, 1, 784], []]),
    "axis": ([-1], [0, 1, 99, [-1], None]),
    "rate": ([0.1, 0], [1, -1, float("nan"), 10**400]),
    "scale": ([1.0 / 255], [float("inf"), [1.0] * 1000, "x"]),
    "noise_shape": ([None], [[2**31, 2**31]]),
    "use_bias": ([True, False], [None, 2]),
    "max_value": ([None, 6.0], ["x", float("nan")]),
    "keepdims": ([False], [True]),
    "data_format": (["channels_last"], ["channels_first", None]),
}
