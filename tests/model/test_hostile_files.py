"""Files that would run a program, read other files or exhaust the memory if Keras loaded them."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import keras
import numpy as np
import pytest

from fmnist_tasks.errors import ModelError
from fmnist_tasks.model import h5
from fmnist_tasks.model.graph_shapes import infer_weight_shapes
from fmnist_tasks.model.h5_structure import LIMITS, MAX_FILE, read_structure
from tests.support.model_files import generate_configuration, make_configuration, make_file, make_input, make_layer

MAX_LOAD_MEMORY, MAX_LOAD_SECONDS = 500_000_000, 5  # of loading a file: bytes, and CPU time
LOGITS = "model_weights/logits/logits/kernel"


def change_file(saved_model: bytes, change: Callable[[h5py.File], None]) -> bytes:
    buffer = io.BytesIO(saved_model)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def change_configuration(saved_model: bytes, change: Callable[[dict[str, dict[str, Any]]], None]) -> bytes:
    """The model with another configuration; `change` receives the layers by name."""

    def apply(file: h5py.File) -> None:
        model = json.loads(file.attrs["model_config"])
        change({layer["config"]["name"]: layer for layer in model["config"]["layers"]})
        file.attrs["model_config"] = json.dumps(model)

    return change_file(saved_model, apply)


def replace_kernel(saved_model: bytes, create: Callable[[h5py.Group], None]) -> bytes:
    """The model with another object instead of the kernel of its last layer; `create` adds it to the group."""

    def apply(file: h5py.File) -> None:
        del file[LOGITS]
        create(file["model_weights/logits/logits"])

    return change_file(saved_model, apply)


def make_virtual_kernel(group: h5py.Group) -> None:
    layout = h5py.VirtualLayout(shape=(64, 10), dtype="float32")
    layout[:] = h5py.VirtualSource("/etc/passwd", "kernel", shape=(64, 10))
    group.create_virtual_dataset("kernel", layout)


def make_lambda_model(canary: Path) -> bytes:
    """A model with a Lambda layer that creates the canary's folder when it is called."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        image, target = keras.Input((28, 28, 1)), str(canary)
        program = keras.layers.Lambda(lambda x: (__import__("os").mkdir(target), x)[1], output_shape=(28, 28, 1))
        keras.Model(image, program(image)).save(path)
        keras.saving.load_model(path, safe_mode=False)(np.zeros((1, 28, 28, 1)))  # without safe mode, the layer runs
        canary.rmdir()
        return path.read_bytes()


def make_hostile_files(saved_model: bytes, canary: Path) -> dict[str, tuple[bytes, str]]:
    """By name: a file, and the reason for its refusal."""

    def set_class(name: str) -> Callable[[dict[str, Any]], None]:
        return lambda layers: layers["dropout"].update(class_name=name)

    def set_config(layer: str, **values: Any) -> Callable[[dict[str, Any]], None]:
        return lambda layers: layers[layer]["config"].update(values)

    def enlarge_layers(layers: dict[str, Any]) -> None:
        for name in ("logits", "probe", "flip"):
            layers[name]["config"]["units"] = 4096
        layers["image"]["config"]["batch_shape"] = [None, 4096, 4096, 1]
        for name, layer in layers.items():
            if name.endswith("_convolution"):
                layer["config"]["filters"] = 4096

    evil = {"module": "os", "class_name": "system", "config": {"command": f"touch {canary}"}, "registered_name": None}
    registered = {
        "module": None,
        "class_name": "Zeros",
        "config": {},
        "registered_name": "bias_initializer.module is None",
    }
    external = [(str(canary.parent / "elsewhere"), 0, 64 * 10 * 4)]
    return {
        "a Lambda layer": (make_lambda_model(canary), "layers that are not allowed: Lambda"),
        "a saved graph": (
            change_configuration(saved_model, set_class("TFSMLayer")),
            "layers that are not allowed: TFSMLayer",
        ),
        "a foreign module": (
            change_configuration(saved_model, set_config("logits", kernel_initializer=evil)),
            "kernel_initializer.module is 'os'",
        ),
        "a registered class": (
            change_configuration(saved_model, set_config("logits", bias_initializer=registered)),
            "bias_initializer.module is None",
        ),
        "an initializer by name": (
            change_configuration(saved_model, set_config("logits", kernel_initializer="mine>evil")),
            "logits.kernel_initializer is 'mine>evil'",
        ),
        "an activation by name": (
            change_configuration(saved_model, set_config("logits", activation="mine>evil")),
            "logits.activation is 'mine>evil'",
        ),
        "another precision": (
            change_configuration(saved_model, set_config("logits", dtype="float16")),
            "logits.dtype is 'float16'",
        ),
        "a policy": (
            change_configuration(
                saved_model,
                set_config("logits", dtype={"module": "keras", "class_name": "DTypePolicy", "config": {"name": "x"}}),
            ),
            "logits.dtype.config.name is 'x'",
        ),
        "a layer of 4 TB": (
            change_configuration(saved_model, set_config("logits", units=2**40)),
            "logits.units is 1099511627776",
        ),
        "many large layers": (change_configuration(saved_model, enlarge_layers), "image.batch_shape.1 is 4096"),
        "a large kernel": (
            change_configuration(saved_model, set_config("stage2_convolution", kernel_size=[2048, 2048])),
            "stage2_convolution.kernel_size.0 is 2048",
        ),
        "a NaN": (change_configuration(saved_model, set_config("scaling", scale=float("nan"))), "scaling.scale is nan"),
        "an external link": (
            replace_kernel(saved_model, lambda group: group.update({"kernel": h5py.ExternalLink("/etc/passwd", "/x")})),
            "link that is not allowed (ExternalLink)",
        ),
        "a soft link": (
            replace_kernel(saved_model, lambda group: group.update({"kernel": h5py.SoftLink("/model_weights")})),
            "link that is not allowed (SoftLink)",
        ),
        "a virtual array": (replace_kernel(saved_model, make_virtual_kernel), "is stored in other files"),
        "external storage": (
            replace_kernel(
                saved_model, lambda group: group.create_dataset("kernel", (64, 10), "float32", external=external)
            ),
            "is stored in other files",
        ),
        "a declared petabyte": (
            replace_kernel(
                saved_model, lambda group: group.create_dataset("kernel", (2**24, 2**24), "float32", chunks=(64, 64))
            ),
            "bytes of arrays, more than the file has",
        ),
        "a filter": (
            replace_kernel(
                saved_model, lambda group: group.create_dataset("kernel", (64, 10), "float32", compression="gzip")
            ),
            "is filtered",
        ),
        "integers": (
            replace_kernel(saved_model, lambda group: group.create_dataset("kernel", (64, 10), "i4")),
            "is int32",
        ),
        "a named type": (
            replace_kernel(saved_model, lambda group: group.update({"kernel": np.dtype("f4")})),
            "neither a group nor an",
        ),
        "a training configuration": (
            change_file(saved_model, lambda file: file.attrs.update(training_config="{}")),
            "attribute that is not allowed: training_config",
        ),
        "a huge configuration": (
            change_file(saved_model, lambda file: file.attrs.update(model_config=" " * (2 << 20) + "{}")),
            "its configuration has 2,097,154 characters",
        ),
        "a deep configuration": (
            change_file(saved_model, lambda file: file.attrs.update(model_config="[" * 100_000)),
            "its configuration is nested too deeply",
        ),
        "many names": (
            replace_kernel(saved_model, lambda group: group.attrs.update(weight_names=["x"] * 3000)),
            "attribute weight_names that is too large",
        ),
        "many groups": (
            change_file(saved_model, lambda file: [file.create_group(f"g{number}") for number in range(3000)] and None),
            "more than 2,000 objects",
        ),
        "a large file": (b"\x89HDF\r\n\x1a\n" + bytes(65 << 20), "more than 33,554,432"),
        "a truncated file": (saved_model[: len(saved_model) // 2], "is not a Keras .h5 model"),
        "zero bytes": (bytes(4096), "is not a Keras .h5 model"),
        "an empty file": (b"", "is not a Keras .h5 model"),
        "a pickle": (pickle.dumps({"a": 1}), "is not a Keras .h5 model"),
    }


def make_large_models() -> dict[str, tuple[bytes, str]]:
    """By name: small files whose models would be large, and the reasons for their refusal."""
    image, weights = make_input(28, 28, 1), {"x": [np.zeros((1024, 400)), np.zeros(400)]}
    doubled = [
        make_layer("Concatenate", f"twice{number}", [f"twice{number - 1}" if number else "image"] * 2)
        for number in range(12)
    ]
    chain = [make_layer("ReLU", f"layer{number}", f"layer{number - 1}" if number else "image") for number in range(250)]
    flat, dense = make_layer("Reshape", "flat", "image"), make_layer("Dense", "x", "flat", units=1024)
    graphs = {
        "13.5 GB": ([make_input(1024, 1024, 1), flat, dense], "image.batch_shape.1 is 1024"),
        "4.4 TB": ([make_input(16384, 16384, 1), flat, dense], "image.batch_shape.1 is 16384"),
        "1.8 GB behind small activations": (
            [make_input(96, 96, 3), flat, make_layer("Dense", "x", "flat", units=16_384)],
            "its configuration needs [(27648, 16384), (16384,)]",
        ),
        "doubled twelve times": (
            [image, *doubled, make_layer("Dense", "x", "twice11", units=4096)],
            "twice7 outputs 802,816 bytes for an image",
        ),
        "a deep graph": ([image, *chain], "at most 200 items"),
        "a loop": (
            [image, make_layer("ReLU", "x", "y"), make_layer("ReLU", "y", "x")],
            "no earlier layer produces: 'y'",
        ),
    }
    return {name: (make_file(make_configuration(layers), weights), reason) for name, (layers, reason) in graphs.items()}


class Load(NamedTuple):
    """The outcome of loading a file."""

    refusal: ModelError | None
    memory: int  # bytes, at most: the growth of this process, and the limit of the child
    seconds: float  # CPU time of both processes


def load(data: bytes) -> Load:
    """Load a file, and measure memory and time."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, clock = read_memory("VmRSS"), sum(os.times()[:4])
    refusal = None
    try:
        h5.load_model(data, "m")
    except ModelError as error:
        refusal = error
    return Load(refusal, read_memory("VmHWM") - before + LIMITS.memory, sum(os.times()[:4]) - clock)


def read_memory(name: str) -> int:
    """A value of this process in `/proc/self/status`, in bytes."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) << 10


def test_hostile_files_are_refused_with_the_reason_in_bounded_memory(saved_model: bytes, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name, (data, reason) in {**make_hostile_files(saved_model, canary), **make_large_models()}.items():
        refusal, memory, _ = load(data)
        assert str(refusal).startswith("m: "), name
        assert reason in str(refusal), name
        assert len(str(refusal)) < 1000, name
        assert memory < MAX_LOAD_MEMORY, name
    assert not canary.exists()
    h5.load_model(saved_model, "m")


def test_the_child_reports_the_fault_of_a_file(saved_model: bytes, tmp_path: Path) -> None:
    refused = []
    for name, (data, reason) in make_hostile_files(saved_model, tmp_path / "canary").items():
        header, arrays = read_structure(io.BytesIO(data), len(data))
        if "fault" in header and len(data) <= MAX_FILE:
            refused.append(name)
            assert arrays == []
            assert reason in header["fault"], name
    assert {"an external link", "a virtual array", "a declared petabyte", "a filter", "a pickle"} <= set(refused)


def test_the_largest_file_loads_in_bounded_memory() -> None:
    flat, dense = make_layer("Reshape", "flat", "image"), make_layer("Dense", "x", "flat", units=10_000)
    weights = {"x": [np.ones((784, 10_000)), np.ones(10_000)]}
    data = make_file(make_configuration([make_input(28, 28, 1), flat, dense]), weights)
    assert MAX_FILE * 0.9 < len(data) < MAX_FILE
    refusal, memory, _ = load(data)
    assert refusal is None
    assert memory < MAX_LOAD_MEMORY


@pytest.mark.parametrize(
    "seeds",
    [pytest.param(range(8), marks=pytest.mark.integration), pytest.param(range(8, 200), marks=pytest.mark.exhaustive)],
    ids=str,
)
def test_generated_models_are_refused_or_loaded_in_bounded_memory_and_time(seeds: range) -> None:
    loaded = 0
    for seed in seeds:
        data, fits = generate_file(seed)
        refusal, memory, seconds = load(data)
        assert (refusal is None) == fits, (seed, refusal)
        assert memory < MAX_LOAD_MEMORY, seed
        assert seconds < MAX_LOAD_SECONDS, seed
        loaded += fits
    assert len(seeds) / 4 < loaded < len(seeds)


def generate_file(seed: int) -> tuple[bytes, bool]:
    """A random model, and whether it is valid and has the weights that it needs."""
    configuration = generate_configuration(seed)
    try:
        shapes = infer_weight_shapes(configuration)
    except ValueError:
        return make_file(configuration, {"layer1": [np.ones((64, 64))]}), False
    if sum(4 * math.prod(shape) for layer in shapes.values() for shape in layer) > MAX_FILE * 0.9:
        return make_file(configuration, {}), False
    return make_file(configuration, {name: [np.ones(shape) for shape in layer] for name, layer in shapes.items()}), True


@pytest.mark.parametrize(
    "seeds",
    [pytest.param(range(8), marks=pytest.mark.integration), pytest.param(range(8, 400), marks=pytest.mark.exhaustive)],
    ids=str,
)
def test_a_file_with_changed_bytes_is_refused_or_loaded(seeds: range, saved_model: bytes) -> None:
    loaded = 0
    positions = find_metadata(saved_model)
    for seed in seeds:
        refusal, memory, seconds = load(damage(saved_model, positions, seed))
        assert memory < MAX_LOAD_MEMORY, seed
        assert seconds < MAX_LOAD_SECONDS, seed
        loaded += refusal is None
    assert 0 < loaded < len(seeds)


def find_metadata(data: bytes) -> np.ndarray:
    """The positions of all bytes in a file except the values of arrays."""
    metadata = np.ones(len(data), bool)
    with h5py.File(io.BytesIO(data)) as file:

        def omit(_: str, node: h5py.Group | h5py.Dataset) -> None:
            if isinstance(node, h5py.Dataset):
                metadata[node.id.get_offset() :][: node.nbytes] = False

        file.visititems(omit)
    return np.flatnonzero(metadata)


def damage(data: bytes, positions: np.ndarray, seed: int) -> bytes:
    """The file with up to eight bytes changed at one of these positions, or truncated."""
    random = np.random.default_rng(seed)
    if seed % 10 == 5:
        return data[: random.integers(len(data))]
    changed = np.frombuffer(data, np.uint8).copy()
    start, length = random.choice(positions), random.choice([1, 1, 2, 4, 8])
    changed[start : start + length] = random.choice([0, 255, random.integers(256)])
    return changed.tobytes()
