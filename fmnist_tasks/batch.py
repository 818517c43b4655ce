"""Batch prediction: the images in a folder of the store, in shards, by the champion of the moment it was planned.

Images are pictures (PNG, JPEG, …), or `.npz` files with an array `images`, uint8 (N, 28, 28), (N, 28, 28, 1) or
(N, 784). Each shard writes one CSV file to `predictions/<run id>/`, a row an image: class, probabilities, familiarity
and the release that answered. Whatever its bytes and its name, a file that cannot be read is one row with the reason.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from itertools import takewhile
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from fmnist_tasks import service
from fmnist_tasks.errors import AccessError, DataError, MissingError, RejectedError, SettingsError, StoreError
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.store import FILE, Stat, Store, decode_key, decode_prefix, require_answer

if TYPE_CHECKING:
    import numpy as np

    from fmnist_tasks.data.npz import Header

log = logging.getLogger(__name__)

Shard = dict[str, Any]

MAX_BYTES = 1 << 30  # of a file, and of the images in it
MAX_SHARDS = 1024  # that Airflow maps over by default
_CHUNK = 10_000  # images that are answered at once
_OWN = {
    "alerts",
    "batches",
    "blobs",
    "champion",
    "champion-receipts",
    "checkpoints",
    "incoming",
    "predictions",
    "quarantine",
    "releases",
    "runs",
    "working",
}


def plan(store: Store, prefix: str, files: int, most: int = MAX_SHARDS) -> list[Shard]:
    """Shards of that many files each: where each begins and ends, and the champion that answers all of them.

    The prefix is a folder. Where there would be more than `most` shards, each has more files. Raises
    :class:`SettingsError` for a folder that is the pipeline's own, and :class:`RejectedError` for an empty one.
    """
    version = service.in_service(store).version
    folder = prefix if prefix.endswith("/") else f"{prefix}/"
    if decode_prefix(folder).decode(errors="replace").partition("/")[0].casefold() in _OWN:
        raise SettingsError(f"{folder} is the pipeline's own; put the images into another folder of the store")
    keys = [stat.key for stat in store.list(folder)]
    if not keys:
        raise RejectedError(f"there are no images under {folder} in the store; put some there, or name another prefix")
    files = max(files, -(-len(keys) // most))
    shards = [
        {"number": number, "prefix": folder, "after": keys[start - 1] if start else "", "last": group[-1]}
        | {"files": len(group), "release": version}
        for number, start in enumerate(range(0, len(keys), files))
        if (group := keys[start : start + files])
    ]
    log.info("%d shards of at most %d files under %s, answered by %s", len(shards), files, folder, version)
    return shards


def predict(store: Store, run_id: str, shard: Shard) -> dict[str, Any]:
    """Answer all images of a shard and write its file; what cannot be read as an image is a row that says why."""
    log.info(
        "shard %s begins: %s files under %s, by %s", *(shard[key] for key in ("number", "files", "prefix", "release"))
    )
    release = service.open_release(store, shard["release"])
    classes = release.manifest["classes"]
    columns = ["image", "answer", "class", "probability", "familiarity", "release", *classes, "error"]
    counts = {"images": 0, "not_clothing": 0, "unreadable": 0}
    key = f"predictions/{run_id}/shard-{shard['number']:05d}.csv"
    with TemporaryFile() as file, io.TextIOWrapper(cast(BinaryIO, file), "utf-8", newline="") as text:
        table = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
        table.writeheader()
        last = decode_key(shard["last"])
        stats = store.list(shard["prefix"], after=shard["after"])
        for stat in takewhile(lambda stat: decode_key(stat.key) <= last, stats):
            try:
                names, images = _read(store, stat)
            except (DataError, AccessError, MissingError, StoreError) as error:
                if isinstance(error, StoreError):
                    require_answer(store)
                table.writerow({"image": stat.key, "release": shard["release"], "error": str(error)})
                counts["unreadable"] += 1
                continue
            for name, row in zip(names, _answers(release, images), strict=True):
                table.writerow({"image": name, **row, **row["probabilities"]})
                counts["images"] += 1
                counts["not_clothing"] += row["answer"] not in classes
        text.flush()
        store.put(key, cast(BinaryIO, file))
    log.info("shard %s done: %s in %s", shard["number"], counts, key)
    return {"key": key, **counts}


def summarise(store: Store, run_id: str, shards: list[Shard], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Write, last, what all shards found; a reader who sees it sees all of them.

    Raises :class:`RejectedError`, once all is written, if not one image could be read.
    """
    sums = {name: sum(result[name] for result in results) for name in ("images", "not_clothing", "unreadable")}
    found = {"run_id": run_id, "release": shards[0]["release"], "prefix": shards[0]["prefix"], **sums}
    store.put(f"predictions/{run_id}/summary.json", seal({**found, "files": [result["key"] for result in results]}))
    log.info("all shards done: %s", found)
    if not sums["images"]:
        raise RejectedError(
            f"none of the {sums['unreadable']:,} files under {found['prefix']} is an image that can be read; the "
            f"reasons are in {store.location(results[0]['key'])}"
        )
    return {**found, "location": store.location(f"predictions/{run_id}/summary.json")}


def _answers(release: service.Release, images: np.ndarray) -> Iterator[dict[str, Any]]:
    for start in range(0, len(images), _CHUNK):
        yield from service.answers(release, images[start : start + _CHUNK])


def _read(store: Store, stat: Stat) -> tuple[list[str], np.ndarray]:
    """Names and pixels, uint8 (N, 28, 28), of the images in a file; raises :class:`DataError` if it has none."""
    import numpy as np

    from fmnist_tasks.data.declaration import SIDE
    from fmnist_tasks.data.npz import unpack
    from fmnist_tasks.data.pictures import read_picture

    key = stat.key
    if stat.kind != FILE:
        raise DataError(f"{key}: is a {stat.kind}, which is not followed or read")
    if stat.bytes > MAX_BYTES:
        raise DataError(f"{key}: has {stat.bytes:,} bytes, more than the {MAX_BYTES:,} that are read")

    def check(images: Header) -> None:
        if images.dtype != np.uint8 or images.shape[1:] not in {(SIDE, SIDE), (SIDE, SIDE, 1), (SIDE * SIDE,)}:
            raise DataError(f"{key}: images are {images.dtype} {images.shape}, expected uint8 (N, {SIDE}, {SIDE})")
        if not images.shape[0]:
            raise DataError(f"{key}: has no images")

    with store.open(key) as file:
        if not key.lower().endswith(".npz"):
            return [key], read_picture(file, key)[None]
        (images,) = unpack(file, key, "images", limit=MAX_BYTES, check=check)
    return [f"{key}#{number}" for number in range(len(images))], images.reshape(len(images), SIDE, SIDE)
