"""Batch prediction: classify the images in a folder of the store, in shards, all with the champion of planning time.

Inputs are image files (PNG, JPEG, …), or `.npz` files with an array `images`, uint8 (N, H, W), (N, H, W, C) or flat.
Each shard writes one CSV file to `predictions/<run id>/` with one row per image: class, probabilities, OOD
score and release. A file that cannot be read is one row with the reason, whatever its content and name.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from itertools import takewhile
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from fmnist_tasks.errors import AccessError, DataError, MissingError, RejectedError, SettingsError, StoreError
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.store import FILE, Stat, Store, decode_key, decode_prefix, require_response
from fmnist_tasks.schemas.data import PREDICTION_COLUMNS, ImageFormat
from fmnist_tasks.serving.release import Release, classify_images, open_release, require_champion

if TYPE_CHECKING:
    import numpy as np

    from fmnist_tasks.data.npz import Header

log = logging.getLogger(__name__)

Shard = dict[str, Any]

MAX_BYTES = 1 << 30  # of a file, and of the images in it
MAX_SHARDS = 1024  # Airflow's default limit for mapped tasks
_CHUNK_SIZE = 10_000  # images per prediction
_RESERVED_FOLDERS = {  # of the store, used by the pipeline
    "alerts",
    "batches",
    "blobs",
    "champion",
    "champion-receipts",
    "checkpoints",
    "datasets",
    "incoming",
    "predictions",
    "quarantine",
    "releases",
    "reviews",
    "runs",
    "working",
}


def plan_shards(store: Store, prefix: str, files: int, max_shards: int = MAX_SHARDS) -> list[Shard]:
    """Divide the files of a folder into shards of `files` each, all for the current champion.

    A shard names its first and last key. If there would be more than `max_shards` shards, each gets more files. Raises
    :class:`SettingsError` for a folder that the pipeline uses, and :class:`RejectedError` for an empty one.
    """
    version = require_champion(store).version
    folder = prefix if prefix.endswith("/") else f"{prefix}/"
    if decode_prefix(folder).decode(errors="replace").partition("/")[0].casefold() in _RESERVED_FOLDERS:
        raise SettingsError(f"the pipeline uses the folder {folder}; put the images into another folder of the store")
    keys = [stat.key for stat in store.list(folder)]
    if not keys:
        raise RejectedError(f"the folder {folder} of the store has no images; put some there, or name another folder")
    files = max(files, -(-len(keys) // max_shards))
    shards = [
        {"number": number, "prefix": folder, "after": keys[start - 1] if start else "", "last": group[-1]}
        | {"files": len(group), "release": version}
        for number, start in enumerate(range(0, len(keys), files))
        if (group := keys[start : start + files])
    ]
    log.info("%d shards of at most %d files below %s, release %s", len(shards), files, folder, version)
    return shards


def predict_shard(store: Store, run_id: str, shard: Shard) -> dict[str, Any]:
    """Classify all images of a shard and write its CSV file; return its key and the counts."""
    log.info(
        "shard %s begins: %s files below %s, release %s",
        *(shard[key] for key in ("number", "files", "prefix", "release")),
    )
    release = open_release(store, shard["release"])
    classes = release.manifest.classes
    columns = [*PREDICTION_COLUMNS, *classes, "error"]
    counts = {"images": 0, "out_of_distribution": 0, "unreadable": 0}
    key = f"predictions/{run_id}/shard-{shard['number']:05d}.csv"
    with TemporaryFile() as file, io.TextIOWrapper(cast(BinaryIO, file), "utf-8", newline="") as text:
        table = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
        table.writeheader()
        last = decode_key(shard["last"])
        stats = store.list(shard["prefix"], after=shard["after"])
        for stat in takewhile(lambda stat: decode_key(stat.key) <= last, stats):
            try:
                names, images = _read(store, stat, release.manifest.dataset.image_format)
            except (DataError, AccessError, MissingError, StoreError) as error:
                if isinstance(error, StoreError):
                    require_response(store)
                table.writerow({"image": stat.key, "release": shard["release"], "error": str(error)})
                counts["unreadable"] += 1
                continue
            for name, row in zip(names, _classify(release, images), strict=True):
                table.writerow({"image": name, **row, **row["probabilities"]})
                counts["images"] += 1
                counts["out_of_distribution"] += row["answer"] not in classes
        text.flush()
        store.put(key, cast(BinaryIO, file))
    log.info("shard %s done: %s in %s", shard["number"], counts, key)
    return {"key": key, **counts}


def write_summary(store: Store, run_id: str, shards: list[Shard], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Write `summary.json` with the sums and files of all shards. It is written last, so it implies all of them.

    Raises :class:`RejectedError`, after writing it, if no image could be read.
    """
    sums = {name: sum(result[name] for result in results) for name in ("images", "out_of_distribution", "unreadable")}
    summary = {"run_id": run_id, "release": shards[0]["release"], "prefix": shards[0]["prefix"], **sums}
    store.put(f"predictions/{run_id}/summary.json", seal({**summary, "files": [result["key"] for result in results]}))
    log.info("all shards done: %s", summary)
    if not sums["images"]:
        raise RejectedError(
            f"none of the {sums['unreadable']:,} files below {summary['prefix']} is a readable image; the reasons are "
            f"in {store.location(results[0]['key'])}"
        )
    return {**summary, "location": store.location(f"predictions/{run_id}/summary.json")}


def _classify(release: Release, images: np.ndarray) -> Iterator[dict[str, Any]]:
    for start in range(0, len(images), _CHUNK_SIZE):
        yield from classify_images(release, images[start : start + _CHUNK_SIZE])


def _read(store: Store, stat: Stat, image_format: ImageFormat) -> tuple[list[str], np.ndarray]:
    """Names and pixels, uint8 (N, …), of the images in a file. Raises :class:`DataError` if it has none."""
    from fmnist_tasks.data.array_layouts import convert_images, describe_fault
    from fmnist_tasks.data.image_files import read_image_file
    from fmnist_tasks.data.npz import read_npz

    key = stat.key
    if stat.kind != FILE:
        raise DataError(f"{key} is a {stat.kind}, not a regular file")
    if stat.bytes > MAX_BYTES:
        raise DataError(f"{key} has {stat.bytes:,} bytes, more than the limit of {MAX_BYTES:,}")

    def check(images: Header) -> None:
        if fault := describe_fault(images.shape, images.dtype, image_format.shape):
            raise DataError(f"{key}: {fault}")
        if not images.shape[0]:
            raise DataError(f"{key} has no images")

    with store.open(key) as file:
        if not key.lower().endswith(".npz"):
            return [key], read_image_file(file, key, image_format)[None]
        (images,) = read_npz(file, key, "images", max_bytes=MAX_BYTES, check=check)
    return [f"{key}#{number}" for number in range(len(images))], convert_images(images, image_format.shape)
