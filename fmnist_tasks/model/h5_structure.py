"""The program of the child process that reads an `.h5` file and writes its content as plain JSON and arrays.

HDF5 is a large parser in C that a crafted file can take over, so it runs in isolation, and confines itself before it
reads the first byte. Its output is untrusted too.

Standard input is the file. Standard output has three parts:

1. the length of the header, 8 bytes, little-endian;
2. the header, JSON: `{"configuration": text, "weights": [[layer, [shape, …]], …]}`, or `{"fault": text}` for a file
   that is not a model of this project;
3. the weights in the same order, as little-endian float32 without padding.
"""

from __future__ import annotations

import encodings.ascii  # noqa: F401 - h5py imports it by name later, when the process cannot open files
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py

sys.path.append(str(Path(__file__).parents[2]))  # Python runs this file in isolated mode
from fmnist_tasks.confinement import Limits, confine

MAX_FILE = 32 << 20  # bytes; three times the limit of the gates
LIMITS = Limits(memory=192 << 20, cpu=5, output=MAX_FILE + (2 << 20))  # Python and h5py use 110 MiB
MAX_OBJECTS = 2_000  # groups, arrays, and names in a list

_ATTRIBUTES = frozenset({"backend", "keras_version", "layer_names", "model_config", "weight_names"})


def main() -> None:  # pragma: no cover - may open no file, so its coverage cannot be saved
    """Read the file on standard input, and write its structure to standard output."""
    confine(LIMITS)
    header, arrays = read_structure(sys.stdin.buffer, os.fstat(0).st_size)
    encoded = json.dumps(header).encode()
    sys.stdout.buffer.write(len(encoded).to_bytes(8, "little") + encoded)
    for array in arrays:
        sys.stdout.buffer.write(array[()].astype("<f4", copy=False).data)


def read_structure(stream: BinaryIO, size: int) -> tuple[dict[str, Any], list[h5py.Dataset]]:
    """The header for a file of `size` bytes, and the arrays that follow it."""
    try:
        file = h5py.File(stream, "r")
        require_plain(file, size)
        weights = find_weights(file["model_weights"])
        shapes = [[layer, [array.shape for array in arrays]] for layer, arrays in weights]
        header = {"configuration": _decode_text(file.attrs["model_config"]), "weights": shapes}
        return header, [array for _, arrays in weights for array in arrays]
    except MemoryError:
        return {"fault": f"cannot be read within {LIMITS.memory >> 20} MiB of memory"}, []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        return {"fault": f"is not a Keras .h5 model ({error})"}, []


def require_plain(file: h5py.File, size: int) -> None:
    """Raise :class:`ValueError` unless a file of `size` bytes has only groups, float32 arrays and lists of names."""
    pending: list[Any] = [file]
    seen, declared = 0, 0
    while pending:
        node = pending.pop()
        _require_known_attributes(node)
        if isinstance(node, h5py.Dataset):
            _require_plain_array(node)
            declared += node.nbytes
            if declared > size:
                raise ValueError(f"declares {declared:,} bytes of arrays, more than the file has")
            continue
        for key in node:
            seen += 1
            if seen > MAX_OBJECTS:
                raise ValueError(f"has more than {MAX_OBJECTS:,} objects")
            link = node.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{node.name} has a link that is not allowed ({type(link).__name__})")
            if node.get(key, getclass=True) not in {h5py.Group, h5py.Dataset}:
                raise ValueError(f"{node.name} has an object that is neither a group nor an array")
            pending.append(node[key])


def find_weights(group: h5py.Group) -> list[tuple[str, list[h5py.Dataset]]]:
    """The arrays of each layer with weights; layers and arrays are in the order of the file's lists of names."""
    return [
        (layer, [group[layer][name] for name in names])
        for layer in _decode_texts(group.attrs["layer_names"])
        if (names := list(_decode_texts(group[layer].attrs["weight_names"])))
    ]


def _require_known_attributes(node: h5py.Group | h5py.Dataset) -> None:
    for key in node.attrs:
        if key not in _ATTRIBUTES:
            raise ValueError(f"{node.name} has an attribute that is not allowed: {key[:40]}")
        if node.attrs.get_id(key).get_space().get_simple_extent_npoints() > MAX_OBJECTS:
            raise ValueError(f"{node.name} has an attribute {key} that is too large")


def _require_plain_array(array: h5py.Dataset) -> None:
    if array.is_virtual or array.external:
        raise ValueError(f"{array.name} is stored in other files, which is not allowed")
    if array.dtype != "float32":
        raise ValueError(f"{array.name} is {array.dtype}, not float32")
    if array.id.get_create_plist().get_nfilters():
        raise ValueError(f"{array.name} is filtered, which is not allowed")


def _decode_texts(names: Any) -> Iterator[str]:
    return map(_decode_text, names)


def _decode_text(value: Any) -> str:
    """An attribute as text; h5py returns bytes or text, depending on the writer."""
    return value.decode() if isinstance(value, bytes) else value


if __name__ == "__main__":
    main()
