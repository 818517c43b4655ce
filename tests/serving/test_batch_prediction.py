"""Batch prediction: every image below a prefix gets a row, in shards, with one champion."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from fmnist_tasks.errors import MissingError, RejectedError, SettingsError, StoreError
from fmnist_tasks.registry import releases
from fmnist_tasks.registry.documents import read_document
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.store import Stat, encode_name
from fmnist_tasks.serving import batch_prediction
from fmnist_tasks.serving.release import require_champion
from tests.support import synthetic
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.integration

IMAGES, LABELS = synthetic.make_images(40, 5)


def put_images(pipeline: Pipeline, count: int) -> None:
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(IMAGES[number]).save(buffer, "png")
        pipeline.store.put(f"inbox/{number:03d}.png", buffer.getvalue())


def read_rows(pipeline: Pipeline, key: str) -> list[dict[str, str]]:
    return list(csv.DictReader(pipeline.store.get(key).decode().splitlines()))


def test_image_files_and_arrays_are_classified_in_shards(finished_pipeline: Pipeline) -> None:
    put_images(finished_pipeline, 7)
    noise = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    finished_pipeline.store.put("inbox/many.npz", synthetic.encode_npz(images=np.concatenate([IMAGES[7:], noise])))
    finished_pipeline.store.put("inbox/notes.txt", b"not an image")
    finished_pipeline.store.put("inboxes/other.png", b"under another prefix")
    shards = batch_prediction.plan_shards(finished_pipeline.store, "inbox/", files=4)
    version = require_champion(finished_pipeline.store).version
    assert [(shard["files"], shard["release"]) for shard in shards] == [(4, version), (4, version), (1, version)]
    results = [batch_prediction.predict_shard(finished_pipeline.store, "r", shard) for shard in shards]
    totals = batch_prediction.write_summary(finished_pipeline.store, "r", shards, results)
    assert (totals["images"], totals["out_of_distribution"] >= 3, totals["unreadable"]) == (43, True, 1)

    summary = read_document(finished_pipeline.store, "predictions/r/summary.json")
    table = [row for key in summary["files"] for row in read_rows(finished_pipeline, key)]
    assert len(table) == 44
    by_image = {row["image"]: row for row in table}
    assert "is not a readable image" in by_image["inbox/notes.txt"]["error"]
    classified = [by_image[f"inbox/{number:03d}.png"] for number in range(7)]
    classified += [by_image[f"inbox/many.npz#{number}"] for number in range(33)]
    assert [row["class"] for row in classified] == [f"pattern {label}" for label in LABELS]
    for row in classified:
        assert row["release"] == version
        assert sum(float(row[f"pattern {label}"]) for label in range(10)) == pytest.approx(1, abs=0.01)
    noise_rows = [by_image[f"inbox/many.npz#{33 + number}"] for number in range(3)]
    assert {row["answer"] for row in noise_rows} == {"not a pattern"}
    threshold = releases.read_manifest(finished_pipeline.store, version).ood_threshold
    assert all(float(row["ood_score"]) > threshold for row in noise_rows)


def test_a_shard_that_runs_again_writes_the_same_file(finished_pipeline: Pipeline) -> None:
    put_images(finished_pipeline, 3)
    (shard,) = batch_prediction.plan_shards(finished_pipeline.store, "inbox/", files=10)
    key = batch_prediction.predict_shard(finished_pipeline.store, "r", shard)["key"]
    before = finished_pipeline.store.get(key)
    batch_prediction.predict_shard(finished_pipeline.store, "r", shard)
    assert finished_pipeline.store.get(key) == before


def test_arrays_that_are_not_images_get_rows_with_the_reason(finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put("inbox/floats.npz", synthetic.encode_npz(images=IMAGES / 255))
    finished_pipeline.store.put("inbox/nothing.npz", synthetic.encode_npz(labels=LABELS))
    (shard,) = batch_prediction.plan_shards(finished_pipeline.store, "inbox/", files=10)
    result = batch_prediction.predict_shard(finished_pipeline.store, "r", shard)
    assert (result["images"], result["unreadable"]) == (0, 2)
    errors = [row["error"] for row in read_rows(finished_pipeline, result["key"])]
    assert "images are float64; save the original pixels as uint8" in errors[0]
    assert "expected an .npz file with the arrays images" in errors[1]


def test_unreadable_files_get_error_rows_and_the_others_are_classified(finished_pipeline: Pipeline) -> None:
    put_images(finished_pipeline, 2)
    store, folder = finished_pipeline.store, finished_pipeline.store.root / "inbox"
    bomb = io.BytesIO()
    np.savez_compressed(bomb, images=IMAGES)
    broken = bytearray(bomb.getvalue())
    broken[3000] ^= 0x55
    png = (folder / "000.png").read_bytes()
    unreadable = {
        "a none.npz": (synthetic.encode_npz(images=IMAGES[:0]), "has no images"),
        "b flipped.npz": (bytes(broken), "is damaged or truncated"),
        "c empty.png": (b"", "is not a readable image"),
        "d cut.png": (png[: len(png) // 2], "is not a readable image"),
        "e narrow\u202fspace.txt": (b"x", "is not a readable image"),
        "f\nline\\.npz": (b"x", "no zip directory"),
    }
    for name, (data, _) in unreadable.items():
        (folder / name).write_bytes(data)
    (folder / "g link.png").symlink_to(finished_pipeline.home)
    os.mkfifo(folder / "h pipe.png")
    store.put("inbox/flat.npz", synthetic.encode_npz(images=IMAGES.reshape(40, 784)))
    store.put("inbox/last.NPZ", synthetic.encode_npz(images=np.asfortranarray(IMAGES[..., None])))
    (shard,) = batch_prediction.plan_shards(store, "inbox", files=100)
    result = batch_prediction.predict_shard(store, "r", shard)
    assert (result["images"], result["unreadable"]) == (2 + 40 + 40, len(unreadable) + 2)
    by_image = {row["image"]: row for row in read_rows(finished_pipeline, result["key"])}
    for name, (_, reason) in unreadable.items():
        assert reason in by_image[f"inbox/{encode_name(name.encode())}"]["error"]
    assert "is a symbolic link" in by_image["inbox/g link.png"]["error"]
    assert "is a pipe" in by_image["inbox/h pipe.png"]["error"]
    classes = [by_image[f"inbox/{name}#{number}"]["class"] for name in ("flat.npz", "last.NPZ") for number in range(40)]
    assert classes == 2 * [f"pattern {label}" for label in LABELS]


def test_a_file_that_cannot_be_opened_gets_an_error_row(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_images(finished_pipeline, 2)
    open_object = FolderStore.open

    def refuse(self: FolderStore, key: str, max_bytes: int | None = None) -> BinaryIO:
        if key == "inbox/000.png":
            raise StoreError("cannot read inbox/000.png: Resource temporarily unavailable")
        return open_object(self, key, max_bytes)

    monkeypatch.setattr(FolderStore, "open", refuse)
    (shard,) = batch_prediction.plan_shards(finished_pipeline.store, "inbox", 10)
    result = batch_prediction.predict_shard(finished_pipeline.store, "r", shard)
    assert (result["images"], result["unreadable"]) == (1, 1)
    assert [row["error"] for row in read_rows(finished_pipeline, result["key"])] == [
        "cannot read inbox/000.png: Resource temporarily unavailable",
        "",
    ]


def test_a_run_without_a_readable_file_fails_after_writing_its_table(finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put("inbox/a.png", b"x")
    shards = batch_prediction.plan_shards(finished_pipeline.store, "inbox/", files=10)
    results = [batch_prediction.predict_shard(finished_pipeline.store, "r", shard) for shard in shards]
    with pytest.raises(RejectedError, match=r"none of the 1 files below inbox/ is a readable image.*shard-00000.csv"):
        batch_prediction.write_summary(finished_pipeline.store, "r", shards, results)
    assert read_document(finished_pipeline.store, "predictions/r/summary.json")["unreadable"] == 1


def test_a_prefix_is_a_folder_that_the_pipeline_does_not_use(finished_pipeline: Pipeline) -> None:
    for key in ("inbox/a.png", "inbox-old/b.png", "inbox.png"):
        finished_pipeline.store.put(key, b"x")
    (shard,) = batch_prediction.plan_shards(finished_pipeline.store, "inbox", files=10)
    assert (shard["prefix"], shard["files"], shard["last"]) == ("inbox/", 1, "inbox/a.png")
    for prefix in ("blobs", "runs/", "incoming", "Champion/", "%69ncoming/", "batches/x/"):
        with pytest.raises(SettingsError, match="the pipeline uses the folder"):
            batch_prediction.plan_shards(finished_pipeline.store, prefix, files=10)
    folders = {stat.key.partition("/")[0] for stat in finished_pipeline.store.list("") if "/" in stat.key}
    for prefix in folders - {"inbox", "inbox-old"} | {"working"}:  # every folder that a run creates
        with pytest.raises(SettingsError, match="the pipeline uses the folder"):
            batch_prediction.plan_shards(finished_pipeline.store, prefix, files=10)
    for prefix in ("/", "/etc/", "../", ""):
        with pytest.raises(SettingsError, match="leads out of the store"):
            batch_prediction.plan_shards(finished_pipeline.store, prefix, files=10)


def test_shards_grow_if_there_would_be_too_many(finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    listings: list[str] = []
    objects = [Stat(f"inbox/{number:05d}", 1, datetime.now(UTC)) for number in range(10_001)]
    list_objects = FolderStore.list

    def list_many(self: FolderStore, prefix: str, after: str = "") -> Iterator[Stat]:
        listings.append(prefix)
        return iter(objects) if prefix == "inbox/" else list_objects(self, prefix, after)

    monkeypatch.setattr(FolderStore, "list", list_many)
    shards = batch_prediction.plan_shards(finished_pipeline.store, "inbox/", files=5)
    assert listings.count("inbox/") == 1
    assert (len(shards), {shard["files"] for shard in shards[:-1]}) == (1001, {10})
    assert sum(shard["files"] for shard in shards) == 10_001
    assert all(shard["last"] == next_shard["after"] for shard, next_shard in pairwise(shards))


def test_a_file_added_after_planning_does_not_move_others_between_shards(finished_pipeline: Pipeline) -> None:
    put_images(finished_pipeline, 4)
    shards = batch_prediction.plan_shards(finished_pipeline.store, "inbox/", files=2)
    finished_pipeline.store.put("inbox/000a.png", finished_pipeline.store.get("inbox/000.png"))
    results = [batch_prediction.predict_shard(finished_pipeline.store, "r", shard) for shard in shards]
    assert [result["images"] for result in results] == [3, 2]


def test_an_empty_folder_is_rejected(finished_pipeline: Pipeline) -> None:
    with pytest.raises(RejectedError, match=r"the folder inbox/ of the store has no images"):
        batch_prediction.plan_shards(finished_pipeline.store, "inbox/", files=10)


def test_planning_requires_a_champion(pipeline: Pipeline) -> None:
    pipeline.store.put("inbox/a.png", b"")
    with pytest.raises(MissingError, match=r"there is no champion yet"):
        batch_prediction.plan_shards(pipeline.store, "inbox/", files=10)
