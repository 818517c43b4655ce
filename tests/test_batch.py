"""Batch prediction: every image under a prefix gets a row, in shards, by one champion."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image

from fmnist_tasks import batch, service
from fmnist_tasks.errors import MissingError, RejectedError
from fmnist_tasks.registry.documents import read_document
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


def test_nothing_to_do_is_said(finished_pipeline: Pipeline) -> None:
    with pytest.raises(RejectedError, match=r"there are no images under inbox/"):
        batch.plan(finished_pipeline.store, "inbox/", files=10)


def test_without_a_champion_nothing_is_planned(pipeline: Pipeline) -> None:
    pipeline.store.put("inbox/a.png", b"")
    with pytest.raises(MissingError, match=r"there is no champion yet"):
        batch.plan(pipeline.store, "inbox/", files=10)
