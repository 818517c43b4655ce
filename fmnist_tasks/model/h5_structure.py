"""The program of the child process that reads an `.h5` file: what is in the file, as plain JSON and arrays.

HDF5 is a large parser in C that a crafted file can take over. So it runs alone: this file imports nothing of the
project, and before it looks at the first byte, the process gives up opening files and sockets, starting processes, more
memory and time than a model needs, and, where the kernel has Landlock, everything that it may do to other processes of
its user. Its answer is untrusted too.

Standard input is the file. Standard output is 8 bytes, little-endian, the length of a JSON header; the header:
`{"configuration": text, "weights": [[layer, [shape, …]], …]}`, or `{"fault": text}` for a file that is not a model of
ours; then the weights in the same order, as little-endian float32 without padding.
"""

from __future__ import annotations

import ctypes
import encodings.ascii  # noqa: F401 - h5py asks for it by name, when no module can be read any more
import json
import os
import resource
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import h5py

MAX_FILE = 32 << 20  # bytes; three times what the gates let through
MAX_ANSWER = MAX_FILE + (2 << 20)  # bytes
MAX_MEMORY = 192 << 20  # bytes of address space; Python and h5py take 110 MiB of them
MAX_CPU = 5  # seconds
MAX_OBJECTS = 2_000  # groups, arrays, and names in a list

_ATTRIBUTES = frozenset({"backend", "keras_version", "layer_names", "model_config", "weight_names"})
_LIMITS = {
    resource.RLIMIT_AS: MAX_MEMORY,
    resource.RLIMIT_CPU: MAX_CPU,
    resource.RLIMIT_FSIZE: MAX_ANSWER,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: 0,
    resource.RLIMIT_NOFILE: 0,  # those that are open stay so
}
# Landlock's calls, which have these numbers on every architecture, and how many rights to files each version knows
# (linux/landlock.h). All are given up; since version 6 also TCP, and signals and sockets of processes outside.
_CREATE_RULESET, _RESTRICT_SELF, _GET_VERSION = 444, 446, 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_RIGHTS_NOW = 16
_NO_NEW_PRIVILEGES = 38  # linux/prctl.h


def main() -> None:
    """Answer for the file on standard input."""
    leave_others_alone()
    for limit, value in _LIMITS.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    header, arrays = describe(sys.stdin.buffer, os.fstat(0).st_size)
    encoded = json.dumps(header).encode()
    sys.stdout.buffer.write(len(encoded).to_bytes(8, "little") + encoded)
    for array in arrays:
        sys.stdout.buffer.write(array[()].astype("<f4", copy=False).data)


def leave_others_alone() -> None:
    """Give up files and other processes for good, as far as the kernel can enforce it; one without Landlock cannot.

    A process under Landlock cannot trace those outside or read their memory, not even as root.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    version = libc.syscall(_CREATE_RULESET, None, 0, _GET_VERSION)
    if version < 1:
        return
    files = (1 << _FILE_RIGHTS.get(version, _FILE_RIGHTS_NOW)) - 1
    rules = struct.pack("=QQQ", files, 0b11, 0b11) if version >= 6 else struct.pack("=Q", files)
    ruleset = libc.syscall(_CREATE_RULESET, rules, len(rules), 0)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if libc.syscall(_RESTRICT_SELF, ruleset, 0):
        raise OSError("Landlock is there, but refuses to restrict this process")
    os.close(ruleset)


def describe(stream: BinaryIO, size: int) -> tuple[dict[str, Any], list[h5py.Dataset]]:
    """The header of the answer for a file of that many bytes, and the arrays that follow it."""
    try:
        file = h5py.File(stream, "r")
        require_plain(file, size)
        weights = find_weights(file["model_weights"])
        shapes = [[layer, [array.shape for array in arrays]] for layer, arrays in weights]
        header = {"configuration": _text(file.attrs["model_config"]), "weights": shapes}
        return header, [array for _, arrays in weights for array in arrays]
    except MemoryError:
        return {"fault": f"cannot be read within {MAX_MEMORY >> 20} MiB of memory"}, []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        return {"fault": f"is not a Keras .h5 model ({error})"}, []


def require_plain(file: h5py.File, size: int) -> None:
    """Raise :class:`ValueError` if a file of that many bytes has more in it than groups, float32 arrays and names."""
    waiting: list[Any] = [file]
    seen, declared = 0, 0
    while waiting:
        here = waiting.pop()
        _require_known_attributes(here)
        if isinstance(here, h5py.Dataset):
            _require_plain_array(here)
            declared += here.nbytes
            if declared > size:
                raise ValueError(f"declares {declared:,} bytes of arrays, more than the file has")
            continue
        for key in here:
            seen += 1
            if seen > MAX_OBJECTS:
                raise ValueError(f"has more than {MAX_OBJECTS:,} objects")
            link = here.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{here.name} has a link to elsewhere ({type(link).__name__}), which is not allowed")
            if here.get(key, getclass=True) not in {h5py.Group, h5py.Dataset}:
                raise ValueError(f"{here.name} has an object that is neither a group nor an array")
            waiting.append(here[key])


def find_weights(group: h5py.Group) -> list[tuple[str, list[h5py.Dataset]]]:
    """The arrays of each layer that has any, both in the order of the file's lists of names."""
    return [
        (layer, [group[layer][name] for name in names])
        for layer in _texts(group.attrs["layer_names"])
        if (names := list(_texts(group[layer].attrs["weight_names"])))
    ]


def _require_known_attributes(here: h5py.Group | h5py.Dataset) -> None:
    for key in here.attrs:
        if key not in _ATTRIBUTES:
            raise ValueError(f"{here.name} has an attribute that is not allowed: {key[:40]}")
        if here.attrs.get_id(key).get_space().get_simple_extent_npoints() > MAX_OBJECTS:
            raise ValueError(f"{here.name} has an attribute {key} that is too large")


def _require_plain_array(array: h5py.Dataset) -> None:
    if array.is_virtual or array.external:
        raise ValueError(f"{array.name} lies in other files, which is not allowed")
    if array.dtype != "float32":
        raise ValueError(f"{array.name} is {array.dtype}, not float32")
    if array.id.get_create_plist().get_nfilters():
        raise ValueError(f"{array.name} is filtered, which is not allowed")


def _texts(names: Any) -> Iterator[str]:
    return map(_text, names)


def _text(value: Any) -> str:
    """A text, which h5py gives as bytes or not, depending on who wrote it."""
    return value.decode() if isinstance(value, bytes) else value


if __name__ == "__main__":
    main()
