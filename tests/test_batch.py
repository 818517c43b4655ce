"""Batch prediction: every image under a prefix gets a row, in shards, by one champion."""

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

from fmnist_tasks import batch, service
from fmnist_tasks.errors import MissingError, RejectedError, SettingsError, StoreError
from fmnist_tasks.registry.documents import read_document
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.store import Stat, encode_name
from tests.support import synthetic
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.integration

IMAGES, LABELS = synthetic.make_images(40, 5)


def put_pictures(pipeline: Pipeline, count: int) -> None:
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(IMAGES[number]).save(buffer, "png")
        pipeline.store.put(f"inbox/{number:03d}.png", buffer.getvalue())


def rows(pipeline: Pipeline, key: str) -> list[dict[str, str]]:
    return list(csv.DictReader(pipeline.store.get(key).decode().splitlines()))


def test_pictures_and_arrays_are_answered_in_shards(finished_pipeline: Pipeline) -> None:
    put_pictures(finished_pipeline, 7)
    noise = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    finished_pipeline.store.put("inbox/many.npz", synthetic.encode_npz(images=np.concatenate([IMAGES[7:], noise])))
    finished_pipeline.store.put("inbox/notes.txt", b"no image")
    finished_pipeline.store.put("inboxes/other.png", b"under another prefix")
    shards = batch.plan(finished_pipeline.store, "inbox/", files=4)
    version = service.in_service(finished_pipeline.store).version
    assert [(shard["files"], shard["release"]) for shard in shards] == [(4, version), (4, version), (1, version)]
    results = [batch.predict(finished_pipeline.store, "r", shard) for shard in shards]
    found = batch.summarise(finished_pipeline.store, "r", shards, results)
    assert (found["images"], found["not_clothing"] >= 3, found["unreadable"]) == (43, True, 1)

    summary = read_document(finished_pipeline.store, "predictions/r/summary.json")
    table = [row for key in summary["files"] for row in rows(finished_pipeline, key)]
    assert len(table) == 44
    by_image = {row["image"]: row for row in table}
    assert "is no picture that can be read" in by_image["inbox/notes.txt"]["error"]
    answered = [by_image[f"inbox/{number:03d}.png"] for number in range(7)]
    answered += [by_image[f"inbox/many.npz#{number}"] for number in range(33)]
    assert [row["class"] for row in answered] == [f"pattern {label}" for label in LABELS]
    for row in answered:
        assert row["release"] == version
        assert sum(float(row[f"pattern {label}"]) for label in range(10)) == pytest.approx(1, abs=0.01)
    assert {by_image[f"inbox/many.npz#{33 + number}"]["answer"] for number in range(3)} == {"not clothing"}


def test_a_shard_that_runs_again_writes_the_same(finished_pipeline: Pipeline) -> None:
    put_pictures(finished_pipeline, 3)
    (shard,) = batch.plan(finished_pipeline.store, "inbox/", files=10)
    key = batch.predict(finished_pipeline.store, "r", shard)["key"]
    before = finished_pipeline.store.get(key)
    batch.predict(finished_pipeline.store, "r", shard)
    assert finished_pipeline.store.get(key) == before


def test_arrays_that_are_no_images_are_rows_that_say_so(finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put("inbox/floats.npz", synthetic.encode_npz(images=IMAGES / 255))
    finished_pipeline.store.put("inbox/nothing.npz", synthetic.encode_npz(labels=LABELS))
    (shard,) = batch.plan(finished_pipeline.store, "inbox/", files=10)
    result = batch.predict(finished_pipeline.store, "r", shard)
    assert (result["images"], result["unreadable"]) == (0, 2)
    errors = [row["error"] for row in rows(finished_pipeline, result["key"])]
    assert "images are float64 (40, 28, 28), expected uint8" in errors[0]
    assert "the arrays images is expected" in errors[1]


def test_whatever_is_no_image_is_a_row_and_the_others_are_answered(finished_pipeline: Pipeline) -> None:
    put_pictures(finished_pipeline, 2)
    store, folder = finished_pipeline.store, finished_pipeline.store.root / "inbox"
    bomb = io.BytesIO()
    np.savez_compressed(bomb, images=IMAGES)
    broken = bytearray(bomb.getvalue())
    broken[3000] ^= 0x55
    png = (folder / "000.png").read_bytes()
    bad = {
        "a none.npz": (synthetic.encode_npz(images=IMAGES[:0]), "has no images"),
        "b flipped.npz": (bytes(broken), "is damaged or cut short"),
        "c empty.png": (b"", "is no picture that can be read"),
        "d cut.png": (png[: len(png) // 2], "is no picture that can be read"),
        "e narrow\u202fspace.txt": (b"x", "is no picture that can be read"),
        "f\nline\\.npz": (b"x", "no zip directory"),
    }
    for name, (data, _) in bad.items():
        (folder / name).write_bytes(data)
    (folder / "g link.png").symlink_to(finished_pipeline.home)
    os.mkfifo(folder / "h pipe.png")
    store.put("inbox/flat.npz", synthetic.encode_npz(images=IMAGES.reshape(40, 784)))
    store.put("inbox/last.NPZ", synthetic.encode_npz(images=np.asfortranarray(IMAGES[..., None])))
    (shard,) = batch.plan(store, "inbox", files=100)
    result = batch.predict(store, "r", shard)
    assert (result["images"], result["unreadable"]) == (2 + 40 + 40, len(bad) + 2)
    by_image = {row["image"]: row for row in rows(finished_pipeline, result["key"])}
    for name, (_, reason) in bad.items():
        assert reason in by_image[f"inbox/{encode_name(name.encode())}"]["error"]
    assert "is a symbolic link" in by_image["inbox/g link.png"]["error"]
    assert "is a pipe" in by_image["inbox/h pipe.png"]["error"]
    answered = [
        by_image[f"inbox/{name}#{number}"]["class"] for name in ("flat.npz", "last.NPZ") for number in range(40)
    ]
    assert answered == 2 * [f"pattern {label}" for label in LABELS]


def test_a_file_that_cannot_be_opened_just_now_is_a_row(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_pictures(finished_pipeline, 2)
    open_object = FolderStore.open

    def refuse(self: FolderStore, key: str, at_most: int | None = None) -> BinaryIO:
        if key == "inbox/000.png":
            raise StoreError("cannot read inbox/000.png: Resource temporarily unavailable")
        return open_object(self, key, at_most)

    monkeypatch.setattr(FolderStore, "open", refuse)
    (shard,) = batch.plan(finished_pipeline.store, "inbox", 10)
    done = batch.predict(finished_pipeline.store, "r", shard)
    assert (done["images"], done["unreadable"]) == (1, 1)
    assert [row["error"] for row in rows(finished_pipeline, done["key"])] == [
        "cannot read inbox/000.png: Resource temporarily unavailable",
        "",
    ]


def test_a_run_in_which_no_file_can_be_read_fails_and_has_its_table(finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put("inbox/a.png", b"x")
    shards = batch.plan(finished_pipeline.store, "inbox/", files=10)
    results = [batch.predict(finished_pipeline.store, "r", shard) for shard in shards]
    with pytest.raises(RejectedError, match=r"none of the 1 files under inbox/ is an image .*shard-00000.csv"):
        batch.summarise(finished_pipeline.store, "r", shards, results)
    assert read_document(finished_pipeline.store, "predictions/r/summary.json")["unreadable"] == 1


def test_a_prefix_is_a_folder_and_none_of_the_pipelines_own(finished_pipeline: Pipeline) -> None:
    for key in ("inbox/a.png", "inbox-old/b.png", "inbox.png"):
        finished_pipeline.store.put(key, b"x")
    (shard,) = batch.plan(finished_pipeline.store, "inbox", files=10)
    assert (shard["prefix"], shard["files"], shard["last"]) == ("inbox/", 1, "inbox/a.png")
    for prefix in ("blobs", "runs/", "incoming", "Champion/", "%69ncoming/", "batches/x/"):
        with pytest.raises(SettingsError, match="is the pipeline's own"):
            batch.plan(finished_pipeline.store, prefix, files=10)
    folders = {stat.key.partition("/")[0] for stat in finished_pipeline.store.list("") if "/" in stat.key}
    for prefix in folders - {"inbox", "inbox-old"} | {"working"}:  # whatever a run has left
        with pytest.raises(SettingsError, match="is the pipeline's own"):
            batch.plan(finished_pipeline.store, prefix, files=10)
    for prefix in ("/", "/etc/", "../", ""):
        with pytest.raises(SettingsError, match="leads out of the store"):
            batch.plan(finished_pipeline.store, prefix, files=10)


def test_shards_grow_where_there_would_be_too_many(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings: list[str] = []
    listed = [Stat(f"inbox/{number:05d}", 1, datetime.now(UTC)) for number in range(10_001)]
    real = FolderStore.list

    def list_many(self: FolderStore, prefix: str, after: str = "") -> Iterator[Stat]:
        listings.append(prefix)
        return iter(listed) if prefix == "inbox/" else real(self, prefix, after)

    monkeypatch.setattr(FolderStore, "list", list_many)
    shards = batch.plan(finished_pipeline.store, "inbox/", files=5)
    assert listings.count("inbox/") == 1
    assert (len(shards), {shard["files"] for shard in shards[:-1]}) == (1001, {10})
    assert sum(shard["files"] for shard in shards) == 10_001
    assert all(one["last"] == other["after"] for one, other in pairwise(shards))


def test_a_file_that_comes_after_planning_moves_no_other_out_of_its_shard(finished_pipeline: Pipeline) -> None:
    put_pictures(finished_pipeline, 4)
    shards = batch.plan(finished_pipeline.store, "inbox/", files=2)
    finished_pipeline.store.put("inbox/000a.png", finished_pipeline.store.get("inbox/000.png"))
    results = [batch.predict(finished_pipeline.store, "r", shard) for shard in shards]
    assert [result["images"] for result in results] == [3, 2]


def test_nothing_to_do_is_said(finished_pipeline: Pipeline) -> None:
    with pytest.raises(RejectedError, match=r"there are no images under inbox/"):
        batch.plan(finished_pipeline.store, "inbox/", files=10)


def test_without_a_champion_nothing_is_planned(pipeline: Pipeline) -> None:
    pipeline.store.put("inbox/a.png", b"")
    with pytest.raises(MissingError, match=r"there is no champion yet"):
        batch.plan(pipeline.store, "inbox/", files=10)
