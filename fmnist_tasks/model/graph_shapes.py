"""The shapes of all weights and activations of a model, inferred from its configuration without building it.

Keras builds anything that a configuration names, at any size. So a configuration may have only the keys and values that
:func:`fmnist_tasks.model.h5.encode_model` writes, for layers that this project uses or has used, and the shapes are
inferred layer by layer. Shapes omit the batch axis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from fmnist_tasks.schemas.data import MAX_SIDE
from fmnist_tasks.text import make_printable

Shape = tuple[int, ...]
_Validated = TypeVar("_Validated", bound=BaseModel)

# Our models have up to 33 layers, 57 calls of layers, and for one image of 28 x 28 pixels activations of 98 KiB, 1.1
# MiB in all. Activations grow with the pixels of an image, and as many fewer images are predicted at once.
MAX_LAYERS, MAX_CALLS, MAX_OUTPUTS = 200, 400, 16
_USUAL_PIXELS = 28 * 28
MAX_ACTIVATION, MAX_ACTIVATIONS = 512 << 10, 4 << 20  # bytes for an image of so many pixels: of one call, of all calls
MAX_CONFIGURATION = 256 << 10  # characters; ours have 27 thousand

_Size = Annotated[int, Field(ge=1, le=16_384)]
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]  # of an image
_Sides = Annotated[list[Annotated[int, Field(ge=1, le=16)]], Field(min_length=2, max_length=2)]
_KernelSides = Annotated[list[Annotated[int, Field(ge=1, le=3)]], Field(min_length=2, max_length=2)]
_Name = Annotated[str, Field(min_length=1, max_length=100)]
_Reference = Annotated[tuple[_Name, Annotated[int, Field(ge=0)], Literal[0]], Strict(False)]  # layer, call, tensor
# Keras writes a single reference without a list.
_References = Annotated[
    list[_Reference],
    BeforeValidator(
        lambda value: [value] if isinstance(value, list) and value and isinstance(value[0], str) else value
    ),
]


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Random(_StrictModel):
    seed: int | None = None  # of the two random initializers
    input_axes: None = None
    output_axes: None = None


class _Initializer(_StrictModel):
    module: Literal["keras.initializers"]
    class_name: Literal["GlorotUniform", "HeNormal", "Ones", "Zeros"]
    config: _Random
    registered_name: None


class _Precision(_StrictModel):
    name: Literal["float32"]


class _Policy(_StrictModel):
    module: Literal["keras"]
    class_name: Literal["DTypePolicy"]
    config: _Precision
    registered_name: None


class _Layer(_StrictModel):
    """A layer whose output has the shape of its only input, and the keys that every layer has.

    Here and below, only newer versions of Keras write the keys with a default.
    """

    name: _Name
    trainable: bool
    dtype: _Policy

    def output(self, inputs: list[Shape]) -> Shape:
        """The output's shape; raises :class:`ValueError` if the inputs do not fit."""
        return _require_single(inputs)

    def weights(self, inputs: list[Shape]) -> list[Shape]:
        """The shapes of its weights, in the order of the file, for valid inputs."""
        return []


class _InputLayer(_StrictModel):
    name: _Name
    dtype: Literal["float32"]
    batch_shape: Annotated[tuple[None, _Side, _Side, Literal[1, 3]], Strict(False)]  # images (N, H, W, C)
    sparse: Literal[False]
    ragged: Literal[False] = False
    optional: Literal[False] = False


class _Rescaling(_Layer):
    scale: float
    offset: float


class _ReLU(_Layer):
    max_value: float | None
    negative_slope: float
    threshold: float


class _Softmax(_Layer):
    axis: Literal[-1]


class _Dropout(_Layer):
    rate: Annotated[float, Field(ge=0, lt=1)]
    seed: int | None
    noise_shape: None


class _BatchNormalization(_Layer):
    axis: Literal[-1]
    momentum: float
    epsilon: float
    center: bool
    scale: bool
    beta_initializer: _Initializer
    gamma_initializer: _Initializer
    moving_mean_initializer: _Initializer
    moving_variance_initializer: _Initializer
    beta_regularizer: None
    gamma_regularizer: None
    beta_constraint: None
    gamma_constraint: None
    synchronized: Literal[False]
    renorm: Literal[False] = False
    renorm_clipping: None = None
    renorm_momentum: float = 0.99

    def weights(self, inputs: list[Shape]) -> list[Shape]:
        return [inputs[0][-1:]] * (2 + self.scale + self.center)


class _Kernel(_Layer):
    """A layer with a kernel and an optional bias."""

    activation: Literal["linear"]
    use_bias: bool
    kernel_initializer: _Initializer
    bias_initializer: _Initializer
    kernel_regularizer: None
    bias_regularizer: None
    kernel_constraint: None
    bias_constraint: None
    quantization_config: None = None


class _Dense(_Kernel):
    units: _Size

    def output(self, inputs: list[Shape]) -> Shape:
        return (*_require_single(inputs)[:-1], self.units)

    def weights(self, inputs: list[Shape]) -> list[Shape]:
        return [(inputs[0][-1], self.units), *[(self.units,)] * self.use_bias]


class _Conv2D(_Kernel):
    filters: _Size
    kernel_size: _KernelSides
    strides: _Sides
    padding: Literal["same", "valid"]
    data_format: Literal["channels_last"]
    dilation_rate: Annotated[list[Literal[1]], Field(min_length=2, max_length=2)]
    groups: Literal[1]
    activity_regularizer: None

    def output(self, inputs: list[Shape]) -> Shape:
        return (*_count_positions(_require_single(inputs), self.kernel_size, self.strides, self.padding), self.filters)

    def weights(self, inputs: list[Shape]) -> list[Shape]:
        return [(*self.kernel_size, inputs[0][-1], self.filters), *[(self.filters,)] * self.use_bias]


class _Pooling2D(_Layer):
    pool_size: _Sides
    strides: _Sides
    padding: Literal["same", "valid"]
    data_format: Literal["channels_last"]

    def output(self, inputs: list[Shape]) -> Shape:
        image = _require_single(inputs)
        return (*_count_positions(image, self.pool_size, self.strides, self.padding), image[-1])


class _GlobalPooling2D(_Layer):
    data_format: Literal["channels_last"]
    keepdims: Literal[False]

    def output(self, inputs: list[Shape]) -> Shape:
        _require(len(_require_single(inputs)) == 3, f"pools over the image of an input of shape {inputs[0]}")
        return inputs[0][-1:]


class _Reshape(_Layer):
    target_shape: Annotated[
        list[Annotated[int, Field(ge=-1)]], Field(min_length=1, max_length=3)
    ]  # -1: the remaining size

    def output(self, inputs: list[Shape]) -> Shape:
        values, target = math.prod(_require_single(inputs)), self.target_shape
        if target.count(-1) == 1 and 0 not in target:
            target = [values // -math.prod(target) if side == -1 else side for side in target]
        _require(math.prod(target) == values and min(target) > 0, f"cannot reshape {inputs[0]} to {self.target_shape}")
        return tuple(target)


class _Merge(_Layer):
    """A layer that combines inputs of one shape element by element."""

    def output(self, inputs: list[Shape]) -> Shape:
        _require(len(inputs) > 1 and len(set(inputs)) == 1, f"needs two or more inputs of one shape, but has {inputs}")
        return inputs[0]


class _Concatenate(_Layer):
    axis: Literal[-1]

    def output(self, inputs: list[Shape]) -> Shape:
        _require(
            len(inputs) > 1 and len({shape[:-1] for shape in inputs}) == 1,
            f"cannot concatenate inputs of shapes {inputs}",
        )
        return (*inputs[0][:-1], sum(shape[-1] for shape in inputs))


_LAYERS: dict[str, type[_Layer]] = {
    "Add": _Merge,
    "Average": _Merge,
    "AveragePooling2D": _Pooling2D,
    "BatchNormalization": _BatchNormalization,
    "Concatenate": _Concatenate,
    "Conv2D": _Conv2D,
    "Dense": _Dense,
    "Dropout": _Dropout,
    "GlobalMaxPooling2D": _GlobalPooling2D,
    "MaxPooling2D": _Pooling2D,
    "ReLU": _ReLU,
    "Rescaling": _Rescaling,
    "Reshape": _Reshape,
    "Softmax": _Softmax,
}


class _History(_StrictModel):
    shape: list[int | None]
    dtype: Literal["float32"]
    keras_history: _Reference


class _Tensor(_StrictModel):
    class_name: Literal["__keras_tensor__"]
    config: _History


class _Call(_StrictModel):
    args: Annotated[list[_Tensor | list[_Tensor]], Field(min_length=1, max_length=1)]
    kwargs: dict[Literal["mask", "training"], Literal[False] | None]

    @property
    def inputs(self) -> list[tuple[str, int, int]]:
        """The inputs of the call: one tensor or a list of tensors."""
        (tensors,) = self.args
        return [tensor.config.keras_history for tensor in (tensors if isinstance(tensors, list) else [tensors])]


class _Node(_StrictModel):
    class_name: str
    config: dict[str, Any]
    name: _Name
    inbound_nodes: list[_Call]


class _Graph(_StrictModel):
    name: _Name
    trainable: bool
    layers: Annotated[list[_Node], Field(min_length=1, max_length=MAX_LAYERS)]
    inputs: Annotated[_References, Field(alias="input_layers")]
    # Few, since all outputs of all images stay in memory.
    outputs: Annotated[_References, Field(alias="output_layers", max_length=MAX_OUTPUTS)]


class _Model(_StrictModel):
    class_name: Literal["Functional"]
    config: _Graph


def infer_weight_shapes(configuration: str) -> dict[str, list[Shape]]:
    """The shapes of the weights that Keras would create for a configuration (JSON), by layer, for layers with weights.

    Raises :class:`ValueError` with the reason if this project does not write such a configuration, or if it exceeds the
    limits above.
    """
    length = len(configuration)
    _require(
        length <= MAX_CONFIGURATION, f"its configuration has {length:,} characters, more than {MAX_CONFIGURATION:,}"
    )
    try:
        model = json.loads(configuration)
    except RecursionError as error:
        raise ValueError("its configuration is nested too deeply") from error
    graph = _validate(_Model, model, "its configuration").config
    shapes: dict[tuple[str, int], Shape] = {}  # of the output of each call of each layer
    weights: dict[str, list[Shape]] = {}
    activations = 0
    for node in graph.layers:
        _require((node.name, 0) not in shapes, f"has two layers named {node.name!r}")
        for number, (output, required) in enumerate(_infer_call_shapes(node, shapes)):
            _require(
                weights.setdefault(node.name, required) == required,
                f"{node.name} needs weights of different shapes in different calls",
            )
            shapes[node.name, number] = output
            activations += (size := 4 * math.prod(output))
            _require(len(shapes) <= MAX_CALLS, f"has more than {MAX_CALLS} calls of layers")
            factor = max(1, math.prod(shapes[graph.layers[0].name, 0][:2]) / _USUAL_PIXELS)
            limit, total_limit = int(factor * MAX_ACTIVATION), int(factor * MAX_ACTIVATIONS)
            _require(size <= limit, f"{node.name} outputs {size:,} bytes for an image, more than {limit:,}")
            _require(activations <= total_limit, f"its layers output more than {total_limit:,} bytes for an image")
    _require(graph.inputs == [(graph.layers[0].name, 0, 0)], f"its input is {graph.inputs}, not its first layer")
    for layer, number, _ in graph.outputs:
        _require((layer, number) in shapes, f"its output {layer!r}, {number} is missing")
    return {layer: required for layer, required in weights.items() if required}


def _infer_call_shapes(node: _Node, shapes: dict[tuple[str, int], Shape]) -> Iterator[tuple[Shape, list[Shape]]]:
    """The shapes of output and weights for each call of a layer, from the output shapes of earlier calls."""
    _require(node.config.get("name") == node.name, f"{node.name} has another name in its configuration")
    if node.class_name == "InputLayer":
        _require(not shapes and not node.inbound_nodes, "has more than one input")
        yield _validate(_InputLayer, node.config, node.name).batch_shape[1:], []
        return
    _require(node.class_name in _LAYERS, f"has layers that are not allowed: {node.class_name:.40}")
    _require(bool(node.inbound_nodes), f"{node.name} is never called")
    layer = _validate(_LAYERS[node.class_name], node.config, node.name)
    for call in node.inbound_nodes:
        inputs = []
        for other, number, _ in call.inputs:
            _require(
                (other, number) in shapes,
                f"{node.name} has an input that no earlier layer produces: {other!r}, call {number}",
            )
            inputs.append(shapes[other, number])
        try:
            yield layer.output(inputs), layer.weights(inputs)
        except ValueError as error:
            raise ValueError(f"{node.name} {error}") from error


def _require_single(inputs: list[Shape]) -> Shape:
    _require(len(inputs) == 1, f"takes {len(inputs)} inputs, not one")
    return inputs[0]


def _count_positions(image: Shape, window: list[int], strides: list[int], padding: str) -> Shape:
    """How many positions a window has in an image of shape (H, W, C), as (H, W)."""
    _require(len(image) == 3, f"slides over an input of shape {image}, not (H, W, C)")
    sides = [
        -(-(side - (size - 1 if padding == "valid" else 0)) // stride)
        for side, size, stride in zip(image, window, strides, strict=False)
    ]
    _require(min(sides) > 0, f"has a window of {window}, larger than its input of shape {image}")
    return tuple(sides)


def _validate(model: type[_Validated], value: Any, where: str) -> _Validated:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *map(str, first["loc"])])
        raise ValueError(make_printable(f"{key} is {first['input']!r:.60}: {first['msg']}")[:300]) from error


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(make_printable(text)[:300])
