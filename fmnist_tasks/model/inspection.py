"""What is in an `.h5` file, looked at without building or running any of it.

Keras builds whatever a file's configuration names, at whatever size it says, and HDF5 follows links and reads other
files where its structure says so. So everything is held against what :func:`fmnist_tasks.model.h5.save` writes, and
refused otherwise: first the structure, then the configuration.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from typing import Any

import h5py

from fmnist_tasks.errors import ModelError

ALLOWED_LAYERS = frozenset(
    {
        "Add",
        "Average",
        "BatchNormalization",
        "Concatenate",
        "Conv2D",
        "Dense",
        "Dropout",
        "GlobalMaxPooling2D",
        "InputLayer",
        "MaxPooling2D",
        "ReLU",
        "Rescaling",
        "Reshape",
        "Softmax",
        # Of earlier releases alone, which must stay within reach:
        "AveragePooling2D",
        "GlobalAveragePooling2D",
        "GlobalMaxPooling1D",
        "UnitNormalization",
    }
)
_PARTS = frozenset({"DTypePolicy", "GlorotUniform", "HeNormal", "Ones", "Zeros", "__keras_tensor__"})  # of layers
_MODULES = frozenset({None, "keras", "keras.initializers", "keras.layers"})
_CALLABLE = ("activation", "_initializer", "_regularizer", "_constraint")  # ends of keys whose text Keras looks up
_ATTRIBUTES = frozenset({"backend", "keras_version", "layer_names", "model_config", "weight_names"})

_LARGEST_FILE = 64 << 20  # bytes
_LARGEST_CONFIGURATION = 1 << 20  # bytes
_LARGEST_NUMBER = 16_384  # in the configuration
_LARGEST_KERNEL = 3  # pixels
_MOST_UNITS, _MOST_FILTERS = 4_096, 1_024  # of all layers; with the above they bound what Keras makes by 900 MB
_MOST_OBJECTS = 2_000  # groups, arrays and names in a list


def inspect(data: bytes, name: str) -> None:
    """Raise :class:`ModelError`, saying what is wrong with the named file, unless it holds a model of ours."""
    if len(data) > _LARGEST_FILE:
        raise ModelError(f"{name}: has {len(data):,} bytes, more than {_LARGEST_FILE:,}; it is not opened")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            faults = list(_structure(file, len(data)))
            configuration = "" if faults else file.attrs["model_config"]
        faults = faults or list(_configuration(configuration))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ModelError(f"{name}: is no Keras .h5 model ({error})") from error
    if faults:
        raise ModelError(f"{name}: {'; '.join(sorted(set(faults)))}; it is not opened")


def _structure(file: h5py.File, size: int) -> Iterator[str]:
    """What a file of that many bytes has in it beyond groups, plain float32 arrays and their names."""
    waiting: list[Any] = [file]
    seen, bytes_declared = 0, 0
    while waiting:
        here = waiting.pop()
        yield from _attributes(here, size)
        if isinstance(here, h5py.Dataset):
            bytes_declared += here.nbytes
            yield from _array(here)
            continue
        for key in here:
            seen += 1
            if seen > _MOST_OBJECTS:
                yield f"has more than {_MOST_OBJECTS:,} objects"
                return
            link = here.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                yield f"{here.name} has a link to elsewhere ({type(link).__name__}), which is not allowed"
            elif here.get(key, getclass=True) not in {h5py.Group, h5py.Dataset}:
                yield f"{here.name} has an object that is neither a group nor an array"
            else:
                waiting.append(here[key])
    if bytes_declared > size:
        yield f"declares {bytes_declared:,} bytes of arrays, more than the file has"


def _attributes(here: h5py.Group | h5py.Dataset, size: int) -> Iterator[str]:
    for key in here.attrs:
        kept = here.attrs.get_id(key)
        count = math.prod(kept.shape or ())
        each = size if kept.dtype.kind == "O" else kept.dtype.itemsize  # texts may all be the same part of the file
        if key not in _ATTRIBUTES:
            yield f"{here.name} has an attribute that is not allowed: {key[:40]}"
        elif count > _MOST_OBJECTS or count * each > 16 * _LARGEST_FILE:
            yield f"{here.name} has an attribute {key} that is too large"


def _array(array: h5py.Dataset) -> Iterator[str]:
    if array.is_virtual or array.external:
        yield f"{array.name} lies in other files, which is not allowed"
    if array.dtype != "float32":
        yield f"{array.name} is {array.dtype}, not float32"
    if array.id.get_create_plist().get_nfilters():
        yield f"{array.name} is filtered, which is not allowed"


def _configuration(text: str) -> Iterator[str]:
    """What a model's configuration names beyond what we build, or larger than we build it."""
    if len(text) > _LARGEST_CONFIGURATION:
        yield f"its configuration has {len(text):,} characters, more than {_LARGEST_CONFIGURATION:,}"
        return
    model = json.loads(text)
    if model["class_name"] != "Functional":
        yield f"is no functional model but {model['class_name']!s:.40}"
        return
    layers = model["config"]["layers"]
    foreign = sorted({str(layer["class_name"])[:40] for layer in layers} - ALLOWED_LAYERS)
    if foreign:
        yield f"has layers that are not allowed: {', '.join(foreign)}"
    sizes: dict[str, float] = {"units": 0, "filters": 0}
    waiting: list[tuple[str, Any]] = [("", layer) for layer in layers]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.items())
            yield from _named(value)
        elif isinstance(value, list):
            waiting.extend((key, part) for part in value)
        elif isinstance(value, str):
            if key == "dtype" and value != "float32":
                yield f"computes in {value:.40}, not float32"
            if key.endswith(_CALLABLE) and value != "linear":
                yield f"has {key:.40} {value:.40}, which is not allowed"
        elif isinstance(value, int | float):
            most = _LARGEST_KERNEL if key == "kernel_size" else _LARGEST_NUMBER
            if not abs(value) <= most:  # NaN is not either
                yield f"has {key:.40} {value}, more than {most:,}"
            if key in sizes:
                sizes[key] += value
    if sizes["units"] > _MOST_UNITS or sizes["filters"] > _MOST_FILTERS:
        yield f"has {sizes['units']:,} units and {sizes['filters']:,} filters, more than is allowed"


def _named(part: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a part of the configuration that names a class."""
    if "class_name" not in part:
        return
    known = ALLOWED_LAYERS | _PARTS
    if part["class_name"] not in known or part.get("module") not in _MODULES or part.get("registered_name"):
        names = " ".join(str(part.get(key))[:40] for key in ("module", "class_name", "registered_name"))
        yield f"names a class that is not allowed: {names}"
    if part["class_name"] == "DTypePolicy" and part["config"] != {"name": "float32"}:
        yield f"computes in {part['config']!s:.60}, not float32"
