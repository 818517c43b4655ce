"""What a model's configuration would build, without building it: the shape of every weight and of every activation.

Keras builds whatever a configuration names, at whatever size it says. So a configuration may hold only the keys and
values that :func:`fmnist_tasks.model.h5.save` writes, for layers that this project uses or has used, and shapes are
followed from layer to layer. Shapes leave out the batch axis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from fmnist_tasks.text import make_printable

Shape = tuple[int, ...]
_Validated = TypeVar("_Validated", bound=BaseModel)

# What we build has up to 33 layers, 57 calls of them, and activations of 98 KiB, together 1.1 MiB for one image.
MAX_LAYERS, MAX_CALLS, MAX_OUTPUTS = 200, 400, 16
MAX_ACTIVATION, MAX_ACTIVATIONS = 512 << 10, 4 << 20  # bytes for one image: of one call, of all calls
MAX_CONFIGURATION = 256 << 10  # characters; ours have 27 thousand

_Size = Annotated[int, Field(ge=1, le=16_384)]
_Sides = Annotated[list[Annotated[int, Field(ge=1, le=16)]], Field(min_length=2, max_length=2)]
_KernelSides = Annotated[list[Annotated[int, Field(ge=1, le=3)]], Field(min_length=2, max_length=2)]
_Name = Annotated[str, Field(min_length=1, max_length=100)]
_Reference = Annotated[tuple[_Name, Annotated[int, Field(ge=0)], Literal[0]], Strict(False)]  # layer, call, tensor
# Keras writes one that is alone without a list.
_References = Annotated[
    list[_Reference],
    BeforeValidator(lambda one: [one] if isinstance(one, list) and one and isinstance(one[0], str) else one),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Random(_Part):
    seed: int | None = None  # of the two that are random
    input_axes: None = None
    output_axes: None = None


class _Initializer(_Part):
    module: Literal["keras.initializers"]
    class_name: Literal["GlorotUniform", "HeNormal", "Ones", "Zeros"]
    config: _Random
    registered_name: None


class _Precision(_Part):
    name: Literal["float32"]


class _Policy(_Part):
    module: Literal["keras"]
    class_name: Literal["DTypePolicy"]
    config: _Precision
    registered_name: None


class _Layer(_Part):
    """A layer that leaves the shape of its one input as it is; the keys that every layer has.

    Here and below, keys with a default are those that only newer versions of Keras write.
    """

    name: _Name
    trainable: bool
    dtype: _Policy

    def output(self, inputs: list[Shape]) -> Shape:
        """The output's shape; raises :class:`ValueError` if the inputs do not fit."""
        return _only(inputs)

    def weights(self, inputs: list[Shape]) -> list[Shape]:
        """The shapes of its weights, in their order in the file, for inputs that fit."""
        return []


class _InputLayer(_Part):
    name: _Name
    dtype: Literal["float32"]
    batch_shape: Annotated[tuple[None, _Size, _Size, _Size], Strict(False)]  # images (N, H, W, C)
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


class _UnitNormalization(_Layer):
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
    """A layer with a kernel and, perhaps, a bias."""

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
        return (*_only(inputs)[:-1], self.units)

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
        return (*_places(_only(inputs), self.kernel_size, self.strides, self.padding), self.filters)

    def weights(self, inputs: list[Shape]) -> list[Shape]:
        return [(*self.kernel_size, inputs[0][-1], self.filters), *[(self.filters,)] * self.use_bias]


class _Pooling2D(_Layer):
    pool_size: _Sides
    strides: _Sides
    padding: Literal["same", "valid"]
    data_format: Literal["channels_last"]

    def output(self, inputs: list[Shape]) -> Shape:
        image = _only(inputs)
        return (*_places(image, self.pool_size, self.strides, self.padding), image[-1])


class _GlobalPooling(_Layer):
    """Pooling over all places."""

    data_format: Literal["channels_last"]
    keepdims: Literal[False]

    def output(self, inputs: list[Shape]) -> Shape:
        return _only(inputs)[-1:]


class _GlobalPooling1D(_GlobalPooling):
    def output(self, inputs: list[Shape]) -> Shape:
        _require(len(_only(inputs)) == 2, f"pools over the places of an input of shape {inputs[0]}")
        return super().output(inputs)


class _GlobalPooling2D(_GlobalPooling):
    def output(self, inputs: list[Shape]) -> Shape:
        _require(len(_only(inputs)) == 3, f"pools over the image of an input of shape {inputs[0]}")
        return super().output(inputs)


class _Reshape(_Layer):
    target_shape: Annotated[list[Annotated[int, Field(ge=-1)]], Field(min_length=1, max_length=3)]  # -1: what is left

    def output(self, inputs: list[Shape]) -> Shape:
        values, target = math.prod(_only(inputs)), self.target_shape
        if target.count(-1) == 1 and 0 not in target:
            target = [values // -math.prod(target) if side == -1 else side for side in target]
        _require(math.prod(target) == values and min(target) > 0, f"cannot reshape {inputs[0]} to {self.target_shape}")
        return tuple(target)


class _Merge(_Layer):
    """A layer that takes inputs of one shape together, value by value."""

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
    # Of earlier releases alone, which must stay within reach:
    "AveragePooling2D": _Pooling2D,
    "GlobalAveragePooling2D": _GlobalPooling2D,
    "GlobalMaxPooling1D": _GlobalPooling1D,
    "UnitNormalization": _UnitNormalization,
}


class _History(_Part):
    shape: list[int | None]
    dtype: Literal["float32"]
    keras_history: _Reference


class _Tensor(_Part):
    class_name: Literal["__keras_tensor__"]
    config: _History


class _Call(_Part):
    args: Annotated[list[_Tensor | list[_Tensor]], Field(min_length=1, max_length=1)]
    kwargs: dict[Literal["mask", "training"], Literal[False] | None]

    @property
    def inputs(self) -> list[tuple[str, int, int]]:
        """What the layer is called on, one tensor or a list of them."""
        (tensors,) = self.args
        return [tensor.config.keras_history for tensor in (tensors if isinstance(tensors, list) else [tensors])]


class _Node(_Part):
    class_name: str
    config: dict[str, Any]
    name: _Name
    inbound_nodes: list[_Call]


class _Graph(_Part):
    name: _Name
    trainable: bool
    layers: Annotated[list[_Node], Field(min_length=1, max_length=MAX_LAYERS)]
    inputs: Annotated[_References, Field(alias="input_layers")]
    outputs: Annotated[_References, Field(alias="output_layers", max_length=MAX_OUTPUTS)]  # each is kept for all images


class _Model(_Part):
    class_name: Literal["Functional"]
    config: _Graph


def infer_weight_shapes(configuration: str) -> dict[str, list[Shape]]:
    """The shapes of the weights that Keras would make for a configuration, as JSON, by layer, for layers that have any.

    Raises :class:`ValueError` with the reason if it is not one that we write, or takes more than the limits above.
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
        _require((node.name, 0) not in shapes, f"has two layers called {node.name!r}")
        for number, (output, needed) in enumerate(_follow(node, shapes)):
            _require(
                weights.setdefault(node.name, needed) == needed,
                f"{node.name} needs weights of different shapes in different calls",
            )
            shapes[node.name, number] = output
            activations += (size := 4 * math.prod(output))
            _require(len(shapes) <= MAX_CALLS, f"has more than {MAX_CALLS} calls of layers")
            _require(
                size <= MAX_ACTIVATION, f"{node.name} gives {size:,} bytes for an image, more than {MAX_ACTIVATION:,}"
            )
            _require(
                activations <= MAX_ACTIVATIONS, f"its layers give more than {MAX_ACTIVATIONS:,} bytes for an image"
            )
    _require(graph.inputs == [(graph.layers[0].name, 0, 0)], f"its input is {graph.inputs}, not its first layer")
    for layer, number, _ in graph.outputs:
        _require((layer, number) in shapes, f"its output {layer!r}, {number} is missing")
    return {layer: needed for layer, needed in weights.items() if needed}


def _follow(node: _Node, shapes: dict[tuple[str, int], Shape]) -> Iterator[tuple[Shape, list[Shape]]]:
    """The shapes of the output and of the weights for each call of a layer, given those of the calls before."""
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


def _only(inputs: list[Shape]) -> Shape:
    _require(len(inputs) == 1, f"takes {len(inputs)} inputs, not one")
    return inputs[0]


def _places(image: Shape, window: list[int], strides: list[int], padding: str) -> Shape:
    """How often a window of that size fits into an image (H, W, C), as (H, W)."""
    _require(len(image) == 3, f"slides over an input of shape {image}, not (H, W, C)")
    sides = [
        -(-(side - (size - 1 if padding == "valid" else 0)) // stride)
        for side, size, stride in zip(image, window, strides, strict=False)
    ]
    _require(min(sides) > 0, f"has a window of {window}, larger than its input of shape {image}")
    return tuple(sides)


def _validate(kind: type[_Validated], part: Any, where: str) -> _Validated:
    try:
        return kind.model_validate(part)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *map(str, first["loc"])])
        raise ValueError(make_printable(f"{place} is {first['input']!r:.60}: {first['msg']}")[:300]) from error


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(make_printable(text)[:300])
