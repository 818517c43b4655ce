"""Batch prediction: the images under a prefix of the store, in shards, by the champion of the moment it was planned.

Images are pictures (PNG, JPEG, …), or `.npz` files with an array `images`, uint8 (N, 28, 28). Each shard writes one CSV
file to `predictions/<run id>/`, a row an image: class, probabilities, novelty and the release that answered.
"""

from __future__ import annotations

import csv
import io
import logging
from itertools import islice
from typing import TYPE_CHECKING, Any

from fmnist_tasks import service
from fmnist_tasks.errors import DataError, RejectedError
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.store import Store

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

Shard = dict[str, Any]


def plan(store: Store, prefix: str, files: int) -> list[Shard]:
    """Shards of that many files each: where each begins, and the champion that answers all of them."""
    version = service.in_service(store).version
    shards: list[Shard] = []
    after = ""
    while keys := [stat.key for stat in islice(store.list(prefix, after=after), files)]:
        shards.append({"number": len(shards), "prefix": prefix, "after": after, "files": len(keys), "release": version})
        after = keys[-1]
    if not shards:
        raise RejectedError(f"there are no images under {prefix} in the store; put some there, or name another prefix")
    log.info("%d shards of at most %d files under %s, answered by %s", len(shards), files, prefix, version)
    return shards


def predict(store: Store, run_id: str, shard: Shard) -> dict[str, Any]:
    """Answer all images of a shard and write its file; what cannot be read as an image is a row that says why."""
    log.info(
        "shard %s begins: %s files under %s, by %s", *(shard[key] for key in ("number", "files", "prefix", "release"))
    )
    release = service.open_release(store, shard["release"])
    classes = release.manifest["classes"]
    columns = ["image", "answer", "class", "probability", "familiarity", "release", *classes, "error"]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
    table.writeheader()
    counts = {"images": 0, "not_clothing": 0, "unreadable": 0}
    for stat in islice(store.list(shard["prefix"], after=shard["after"]), shard["files"]):
        try:
            names, images = _read(store, stat.key)
        except DataError as error:
            table.writerow({"image": stat.key, "release": shard["release"], "error": str(error)})
            counts["unreadable"] += 1
            continue
        for name, row in zip(names, service.answers(release, images), strict=True):
            table.writerow({"image": name, **row, **row["probabilities"]})
            counts["images"] += 1
            counts["not_clothing"] += row["answer"] not in classes
    key = f"predictions/{run_id}/shard-{shard['number']:05d}.csv"
    store.put(key, text.getvalue().encode())
    log.info("shard %s done: %s in %s", shard["number"], counts, key)
    return {"key": key, **counts}


def summarise(store: Store, run_id: str, shards: list[Shard], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Write, last, what all shards found; a reader who sees it sees all of them."""
    sums = {name: sum(result[name] for result in results) for name in ("images", "not_clothing", "unreadable")}
    found = {"run_id": run_id, "release": shards[0]["release"], "prefix": shards[0]["prefix"], **sums}
    store.put(f"predictions/{run_id}/summary.json", seal({**found, "files": [result["key"] for result in results]}))
    log.info("all shards done: %s", found)
    return {**found, "location": store.location(f"predictions/{run_id}/summary.json")}


def _read(store: Store, key: str) -> tuple[list[str], np.ndarray]:
    """Names and pixels, uint8 (N, 28, 28), of the images in a file."""
    import numpy as np

    from fmnist_tasks.data.dataset import unpack
    from fmnist_tasks.data.declaration import SIDE
    from fmnist_tasks.data.pictures import read_picture

    with store.open(key) as file:
        if not key.endswith(".npz"):
            return [key], read_picture(file, key)[None]
        (images,) = unpack(file, key, "images")
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{key}: images are {images.dtype} {images.shape}, expected uint8 (N, {SIDE}, {SIDE})")
    return [f"{key}#{number}" for number in range(len(images))], images
