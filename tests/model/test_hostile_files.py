"""Files that would run a program, read other files or fill the memory if they were simply loaded."""

from __future__ import annotations

import io
import json
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from fmnist_tasks.errors import ModelError
from fmnist_tasks.model import h5
from fmnist_tasks.model.inspection import inspect

LOGITS = "model_weights/logits/logits/kernel"


def changed(saved_model: bytes, change: Callable[[h5py.File], None]) -> bytes:
    buffer = io.BytesIO(saved_model)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def configured(saved_model: bytes, change: Callable[[dict[str, dict[str, Any]]], None]) -> bytes:
    """The model with another configuration; `change` gets the layers by name."""

    def apply(file: h5py.File) -> None:
        model = json.loads(file.attrs["model_config"])
        change({layer["config"]["name"]: layer for layer in model["config"]["layers"]})
        file.attrs["model_config"] = json.dumps(model)

    return changed(saved_model, apply)


def replaced(saved_model: bytes, make: Callable[[h5py.Group], None]) -> bytes:
    """The model with something else where the kernel of its last layer was; `make` gets the group."""

    def apply(file: h5py.File) -> None:
        del file[LOGITS]
        make(file["model_weights/logits/logits"])

    return changed(saved_model, apply)


def virtual(group: h5py.Group) -> None:
    layout = h5py.VirtualLayout(shape=(64, 10), dtype="float32")
    layout[:] = h5py.VirtualSource("/etc/passwd", "kernel", shape=(64, 10))
    group.create_virtual_dataset("kernel", layout)


def with_program(canary: Path) -> bytes:
    """A model with a Lambda layer that makes the canary's folder when it is called."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        image, at = keras.Input((2,)), str(canary)
        program = keras.layers.Lambda(lambda x: (__import__("os").mkdir(at), x)[1], output_shape=(2,))
        keras.Model(image, program(image)).save(path)
        keras.saving.load_model(path, safe_mode=False)(np.zeros((1, 2)))  # it does run where nothing holds it back
        canary.rmdir()
        return path.read_bytes()


def hostile(saved_model: bytes, canary: Path) -> dict[str, tuple[bytes, str]]:
    """By name: a file, and what its refusal says."""

    def set_class(name: str) -> Callable[[dict[str, Any]], None]:
        return lambda layers: layers["dropout"].update(class_name=name)

    def set_config(layer: str, **values: Any) -> Callable[[dict[str, Any]], None]:
        return lambda layers: layers[layer]["config"].update(values)

    def units(layers: dict[str, Any]) -> None:
        for name in ("logits", "probe", "mirror"):
            layers[name]["config"]["units"] = 4096
        layers["image"]["config"]["batch_shape"] = [None, 4096, 4096, 1]
        for name, layer in layers.items():
            if name.endswith("_convolution"):
                layer["config"]["filters"] = 4096

    evil = {"module": "os", "class_name": "system", "config": {"command": f"touch {canary}"}, "registered_name": None}
    registered = {"module": None, "class_name": "Zeros", "config": {}, "registered_name": "mine>Zeros"}
    external = [(str(canary.parent / "elsewhere"), 0, 64 * 10 * 4)]
    return {
        "a Lambda layer": (with_program(canary), "layers that are not allowed: Lambda"),
        "a saved graph": (configured(saved_model, set_class("TFSMLayer")), "layers that are not allowed: TFSMLayer"),
        "a module of its own": (configured(saved_model, set_config("logits", kernel_initializer=evil)), "os system"),
        "a registered class": (
            configured(saved_model, set_config("logits", bias_initializer=registered)),
            "mine>Zeros",
        ),
        "an initializer by name": (
            configured(saved_model, set_config("logits", kernel_initializer="mine>evil")),
            "kernel_initializer mine>evil",
        ),
        "an activation by name": (
            configured(saved_model, set_config("logits", activation="mine>evil")),
            "activation mine",
        ),
        "another precision": (configured(saved_model, set_config("logits", dtype="float16")), "computes in float16"),
        "a policy": (
            configured(
                saved_model,
                set_config("logits", dtype={"module": "keras", "class_name": "DTypePolicy", "config": {"name": "x"}}),
            ),
            "computes in",
        ),
        "a layer of 4 TB": (configured(saved_model, set_config("logits", units=2**40)), "has units 1099511627776"),
        "many large layers": (configured(saved_model, units), "filters, more than is allowed"),
        "a large kernel": (
            configured(saved_model, set_config("stage2_convolution", kernel_size=[2048, 2048])),
            "has kernel_size 2048, more than 3",
        ),
        "no number": (configured(saved_model, set_config("scaling", scale=float("nan"))), "has scale nan"),
        "an external link": (
            replaced(saved_model, lambda group: group.update({"kernel": h5py.ExternalLink("/etc/passwd", "/x")})),
            "link to elsewhere (ExternalLink)",
        ),
        "a soft link": (
            replaced(saved_model, lambda group: group.update({"kernel": h5py.SoftLink("/model_weights")})),
            "link to elsewhere (SoftLink)",
        ),
        "a virtual array": (replaced(saved_model, virtual), "lies in other files"),
        "external storage": (
            replaced(saved_model, lambda group: group.create_dataset("kernel", (64, 10), "float32", external=external)),
            "lies in other files",
        ),
        "a declared petabyte": (
            replaced(
                saved_model, lambda group: group.create_dataset("kernel", (2**24, 2**24), "float32", chunks=(64, 64))
            ),
            "bytes of arrays, more than the file has",
        ),
        "a filter": (
            replaced(
                saved_model, lambda group: group.create_dataset("kernel", (64, 10), "float32", compression="gzip")
            ),
            "is filtered",
        ),
        "whole numbers": (
            replaced(saved_model, lambda group: group.create_dataset("kernel", (64, 10), "i4")),
            "is int32",
        ),
        "a type": (
            replaced(saved_model, lambda group: group.update({"kernel": np.dtype("f4")})),
            "neither a group nor an",
        ),
        "a program beside the model": (
            changed(saved_model, lambda file: file.attrs.update(training_config="{}")),
            "attribute that is not allowed: training_config",
        ),
        "a huge configuration": (
            changed(saved_model, lambda file: file.attrs.update(model_config=" " * (2 << 20) + "{}")),
            "its configuration has 2,097,154 characters",
        ),
        "a deep configuration": (
            changed(saved_model, lambda file: file.attrs.update(model_config="[" * 500_000)),
            "is no Keras .h5 model",
        ),
        "many names": (
            replaced(saved_model, lambda group: group.attrs.update(weight_names=["x"] * 3000)),
            "attribute weight_names that is too large",
        ),
        "many groups": (
            changed(saved_model, lambda file: [file.create_group(f"g{number}") for number in range(3000)] and None),
            "more than 2,000 objects",
        ),
        "a large file": (b"\x89HDF\r\n\x1a\n" + bytes(65 << 20), "more than 67,108,864"),
        "a file cut short": (saved_model[: len(saved_model) // 2], "is no Keras .h5 model"),
        "zero bytes": (bytes(4096), "is no Keras .h5 model"),
        "nothing": (b"", "is no Keras .h5 model"),
        "a pickle": (pickle.dumps({"a": 1}), "is no Keras .h5 model"),
    }


def test_hostile_files_are_refused_with_the_reason(saved_model: bytes, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name, (data, reason) in hostile(saved_model, canary).items():
        with pytest.raises(ModelError) as refusal:
            h5.load(data, "m")
        assert str(refusal.value).startswith("m: "), name
        assert reason in str(refusal.value), name
        assert len(str(refusal.value)) < 1000, name
    assert not canary.exists()
    h5.load(saved_model, "m")


def test_they_are_refused_in_bounded_memory(saved_model: bytes, tmp_path: Path) -> None:
    for number, (data, _) in enumerate(hostile(saved_model, tmp_path / "canary").values()):
        (tmp_path / f"{number:02d}.h5").write_bytes(data)
    limit = 1 << 30
    program = (
        "import pathlib, sys\n"
        "from fmnist_tasks.errors import ModelError\n"
        "from fmnist_tasks.model.inspection import inspect\n"
        "assert 'keras' not in sys.modules\n"
        "for path in sorted(pathlib.Path().glob('*.h5')):\n"
        "    try:\n"
        "        inspect(path.read_bytes(), path.name)\n"
        "    except ModelError as error:\n"
        "        print(error)\n"
    )
    refused = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert len(refused.stdout.splitlines()) == len(list(tmp_path.glob("*.h5")))


def test_a_model_of_ours_passes(saved_model: bytes) -> None:
    inspect(saved_model, "m")
