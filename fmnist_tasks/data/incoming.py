"""New labelled batches: found under `incoming/`, then either accepted for good or moved to `quarantine/`.

A batch is `NAME.npz` (arrays `images`, `labels`) or a pair `NAME-images-idx3-ubyte` and `NAME-labels-idx1-ubyte`,
each plain or `.gz`. An accepted batch is one sealed document `batches/SHA256.json` that refers to its blob: the same
content counts once, whatever its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from fmnist_tasks.data.dataset import Part, unpack
from fmnist_tasks.data.idx import gunzip, parse_idx
from fmnist_tasks.errors import DataError
from fmnist_tasks.registry.blobs import Reference, describe
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.store import Store

_IDX = re.compile(r"incoming/(?P<name>.+)-(?P<kind>images-idx3|labels-idx1)-ubyte(\.gz)?")
_LARGEST = 4 << 30  # bytes of one batch after gunzip


def find_batches(store: Store) -> tuple[dict[str, list[str]], list[str]]:
    """Keys by batch name, and the halves of IDX pairs that still wait for the other half."""
    batches: dict[str, list[str]] = {}
    halves: dict[str, dict[str, str]] = {}
    for stat in store.list("incoming/"):
        if match := _IDX.fullmatch(stat.key):
            halves.setdefault(match["name"], {})[match["kind"]] = stat.key
        else:
            batches[stat.key.removeprefix("incoming/")] = [stat.key]
    waiting: list[str] = []
    for name, files in halves.items():
        if len(files) == 2:
            batches[name] = [files["images-idx3"], files["labels-idx1"]]
        else:
            waiting.extend(files.values())
    return batches, waiting


def read_batch(store: Store, name: str, keys: list[str]) -> tuple[np.ndarray, np.ndarray, list[Reference]]:
    """Images, labels and references to the files as they were read; raises :class:`DataError` if unreadable."""
    with ExitStack() as stack:
        files = {key: stack.enter_context(store.open(key)) for key in keys}
        as_read = [describe(key, file) for key, file in files.items()]
        for file in files.values():
            file.seek(0)
        if len(keys) == 2:
            images, labels = (parse_idx(gunzip(file.read(), key, _LARGEST), key) for key, file in files.items())
        elif name.endswith(".npz"):
            images, labels = unpack(files[keys[0]], keys[0], "images", "labels")
        else:
            raise DataError(f"{keys[0]}: is neither an .npz nor one of a pair of IDX files")
    return images, labels, as_read


def accepted(store: Store) -> Iterator[Part]:
    """The parts of all batches that were accepted by this or earlier runs."""
    for stat in store.list("batches/"):
        yield read_document(store, stat.key)


def accept(store: Store, part: Part, files: list[Reference]) -> Part:
    """Add a batch to the dataset for good and empty its place under `incoming/`."""
    store.put_if_absent(f"batches/{part['blob']['sha256']}.json", seal(part))
    _clear(store, files)
    return part


def quarantine(store: Store, run_id: str, name: str, keys: list[str], reasons: list[str]) -> dict[str, Any]:
    """Move the batch's files to `quarantine/RUN/` with the reasons beside them."""
    moved = []
    for key in filter(store.stat, keys):  # what an interrupted call moved already is gone
        with store.open(key) as file:
            moved.append(describe(key, file))
            store.put(f"quarantine/{run_id}/{key.removeprefix('incoming/')}", file)
    reason_key = f"quarantine/{run_id}/{name}.reason.txt"
    store.put(reason_key, ("\n".join(reasons) + "\n").encode())
    _clear(store, moved)
    return {"batch": name, "reasons": reasons, "location": store.location(reason_key)}


def _clear(store: Store, files: list[Reference]) -> None:
    """Delete the files, except one that was replaced by other content in the meantime: the next run reads that."""
    for as_read in files:
        if store.stat(as_read["uri"]):
            with store.open(as_read["uri"]) as file:
                unchanged = describe(as_read["uri"], file) == as_read
            if unchanged:
                store.delete(as_read["uri"])
