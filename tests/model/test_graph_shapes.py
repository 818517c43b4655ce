"""Inferred shapes equal those that Keras creates, and configurations that this project does not write are refused."""

from __future__ import annotations

import io
import json
from typing import Any

import h5py
import keras
import pytest

from fmnist_tasks.model import h5
from fmnist_tasks.model.cnn import build_classifier, build_network
from fmnist_tasks.model.graph_shapes import MAX_CALLS, MAX_LAYERS, MAX_OUTPUTS, infer_weight_shapes
from fmnist_tasks.schemas.data import MAX_SIDE, ImageFormat
from fmnist_tasks.settings import PROFILES
from tests.support import synthetic
from tests.support.model_files import (
    DEFAULTS,
    Layer,
    generate_configuration,
    make_configuration,
    make_input,
    make_layer,
)

IMAGE = make_input(28, 28, 1)


def build_with_keras(configuration: str) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of the weights that Keras creates."""
    model = keras.Model.from_config(json.loads(configuration)["config"])
    return {layer.name: [weight.shape for weight in layer.weights] for layer in model.layers if layer.weights}


def make_every_layer() -> list[Layer]:
    """A graph with a layer of each allowed class; some are called twice."""
    return [
        IMAGE,
        make_layer("Rescaling", "scaling", "image"),
        make_layer("Reshape", "reshaped", "image", target_shape=[28, -1, 1]),
        make_layer("Conv2D", "convolution", "scaling", "reshaped", strides=[1, 2], padding="valid", kernel_size=[3, 2]),
        make_layer("Conv2D", "plain", "convolution", filters=5, use_bias=False, kernel_size=[1, 1]),
        make_layer("BatchNormalization", "normalisation", "convolution", "convolution:1", scale=False),
        make_layer("BatchNormalization", "normalised", "convolution"),
        make_layer("MaxPooling2D", "maximum", "normalisation", "normalisation:1", padding="same", pool_size=[3, 3]),
        make_layer("AveragePooling2D", "average", "maximum", strides=[3, 1]),
        make_layer("Concatenate", "concatenated", ["maximum", "maximum:1"]),
        make_layer("GlobalMaxPooling2D", "global_maximum", "concatenated"),
        make_layer("Average", "mean", ["global_maximum", "global_maximum"]),
        make_layer("Add", "sum", ["mean", "global_maximum", "global_maximum"]),
        make_layer("Dense", "rows", "average"),
        make_layer("Dropout", "dropout", "sum"),
        make_layer("ReLU", "rectified", "dropout"),
        make_layer("Dense", "dense", "rectified", use_bias=False, units=30),
        make_layer("Softmax", "probabilities", "dense"),
    ]


def test_every_layer_needs_the_weights_that_keras_creates() -> None:
    layers = make_every_layer()
    assert {layer["class_name"] for layer in layers} == {"InputLayer", *DEFAULTS}
    configuration = make_configuration(layers, "probabilities", "rows", "plain", "normalised")
    shapes = infer_weight_shapes(configuration)
    assert shapes == build_with_keras(configuration)
    assert shapes["convolution"] == [(3, 2, 1, 8), (8,)]


LARGEST = ImageFormat(height=MAX_SIDE, width=MAX_SIDE, channels=3, horizontal_flip=True, upright=True)


@pytest.mark.parametrize("image_format", [synthetic.FORMAT, LARGEST], ids=["28 x 28", "largest"])
def test_our_networks_need_the_weights_that_keras_creates(image_format: ImageFormat) -> None:
    model = build_classifier(
        PROFILES["thorough"], 10, image_format, build_network(PROFILES["thorough"], 10, image_format)
    )
    with h5py.File(io.BytesIO(h5.encode_model(model))) as file:
        shapes = infer_weight_shapes(file.attrs["model_config"])
    assert shapes == {layer.name: [weight.shape for weight in layer.weights] for layer in model.layers if layer.weights}


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([make_layer("Lambda", "x", "image")], "layers that are not allowed: Lambda"),
        ([make_layer("Dense", "x", "image", units=2**40)], "x.units is 1099511627776"),
        ([{**make_layer("ReLU", "x", "image"), "build_config": {"input_shape": [None, 2**40]}}], "build_config"),
        ([make_layer("Dense", "x", "image", units=True)], "x.units is True"),
        ([make_layer("Dense", "x", "image", lora_rank=4)], "x.lora_rank is 4: Extra inputs are not permitted"),
        ([make_layer("Conv2D", "x", "image", groups=2)], "x.groups is 2"),
        ([make_layer("Conv2D", "x", "image", kernel_size=[2048, 2048])], "x.kernel_size.0 is 2048"),
        ([make_layer("Conv2D", "x", "image", strides=[0, 1])], "x.strides.0 is 0"),
        ([make_layer("Conv2D", "x", "image", dilation_rate=[9, 9])], "x.dilation_rate.0 is 9"),
        ([make_layer("Conv2D", "x", "image", padding="causal")], "x.padding is 'causal'"),
        ([make_layer("Rescaling", "x", "image", scale=float("nan"))], "x.scale is nan"),
        ([make_layer("Rescaling", "x", "image", scale=10**400)], "x.scale"),
        ([make_layer("Reshape", "x", "image", target_shape=[0, -1])], r"x cannot reshape \(.*\) to \[0, -1\]"),
        ([make_layer("Reshape", "x", "image", target_shape=[-1, -1])], r"x cannot reshape \(.*\) to \[-1, -1\]"),
        ([make_layer("Reshape", "x", "image", target_shape=[-1, 3])], r"x cannot reshape \(.*\) to \[-1, 3\]"),
        ([make_layer("Reshape", "x", "image", target_shape=[-2])], "x.target_shape.0 is -2"),
        ([make_layer("Reshape", "x", "image"), make_layer("Conv2D", "y", "x")], r"y slides over .*\(784,\)"),
        ([make_layer("MaxPooling2D", "x", "image", pool_size=[1, 1], strides=[16, 16]),
          make_layer("Conv2D", "y", "x", padding="valid")], "y has a window of"),
        ([make_layer("Add", "x", ["image"])], "x needs two or more inputs of one shape"),
        ([make_layer("GlobalMaxPooling2D", "x", "image"), make_layer("Add", "y", ["x", "image"])], "y needs two"),
        ([make_layer("Dense", "x", ["image", "image"])], "x takes 2 inputs"),
        ([make_layer("Reshape", "x", "image"), make_layer("Dense", "y", "image", "x")], "y needs weights of"),
        ([make_layer("ReLU", "x", "image:1")], "x has an input that no earlier layer produces: 'image', call 1"),
        ([make_layer("ReLU", "x", "x")], "x has an input that no earlier layer produces: 'x', call 0"),
        ([make_layer("ReLU", "x", "y"), make_layer("ReLU", "y", "x")], "x has an input that .*'y', call 0"),
        ([make_layer("ReLU", "x", "image"), make_layer("ReLU", "x", "image")], "two layers named 'x'"),
        ([make_layer("ReLU", "x")], "x is never called"),
        ([{**make_layer("ReLU", "x", "image"), "name": "y"}], "y has another name in its configuration"),
        ([{**make_input(28, 28, 1), "name": "x", "config": {**IMAGE["config"], "name": "x"}}], "more than one input"),
        ([make_layer("ReLU", "layer0", "image")]
         + [make_layer("ReLU", f"layer{number}", f"layer{number - 1}") for number in range(1, MAX_LAYERS)],
         f"at most {MAX_LAYERS} items"),
        ([make_layer("Reshape", "x", *["image"] * MAX_CALLS)], f"more than {MAX_CALLS} calls"),
        ([make_layer("Dense", "x", "image", units=168)], "x outputs 526,848 bytes for an image"),
        ([make_layer("Dense", "x", *["image"] * 9, units=160)], "more than 4,194,304 bytes for an image"),
    ],
)  # fmt: skip
def test_a_configuration_that_we_do_not_write_is_refused(layers: list[Layer], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        infer_weight_shapes(make_configuration([IMAGE, *layers]))
    assert len(str(refusal.value)) <= 300


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"class_name": "Sequential"}, "class_name is 'Sequential'"), ({"config": []}, r"config is \[\]")],
)
def test_another_kind_of_model_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        infer_weight_shapes(json.dumps(json.loads(make_configuration([IMAGE])) | change))


def test_an_output_without_a_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="its output 'x', 0 is missing"):
        infer_weight_shapes(make_configuration([IMAGE], "x"))


def test_generated_graphs_need_the_weights_that_keras_creates() -> None:
    valid_count = 0
    for seed in range(20):
        configuration = generate_configuration(seed)
        try:
            shapes = infer_weight_shapes(configuration)
        except ValueError:
            continue
        valid_count += 1
        assert shapes == build_with_keras(configuration)
    assert 5 < valid_count < 20


def test_too_many_outputs_are_refused() -> None:
    """Each output needs memory for every image, even if it is small."""
    names = [f"scaled-{number}" for number in range(MAX_OUTPUTS + 1)]
    layers = [IMAGE, *(make_layer("Rescaling", name, "image") for name in names)]
    infer_weight_shapes(make_configuration(layers, *names[:-1]))
    with pytest.raises(ValueError, match=r"output_layers .* at most 16 items"):
        infer_weight_shapes(make_configuration(layers, *names))


@pytest.mark.parametrize("references", [3, {}, {"a": 1}, "x", [], [[]], [3], None, True])
def test_outputs_and_inputs_of_other_types_are_refused(references: object) -> None:
    configuration = json.loads(make_configuration([make_layer("ReLU", "x", "image")], "x"))
    for name in ("input_layers", "output_layers"):
        changed = {**configuration, "config": {**configuration["config"], name: references}}
        with pytest.raises(ValueError, match=r"input|output|layers"):
            infer_weight_shapes(json.dumps(changed))
