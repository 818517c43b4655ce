from __future__ import annotations

import gzip
import logging

import numpy as np
import pytest

from fmnist_tasks import steps
from fmnist_tasks.data import incoming
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.steps import Run
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN, encode_npz

IMAGES, LABELS = synthetic.make_images(200, 9)
GOOD = encode_npz(images=IMAGES, labels=LABELS)


def validated(pipeline: Pipeline, run: Run = RUN) -> dict:
    return steps.validate_data(run, steps.ingest(run))


def training_images(result: dict) -> int:
    return sum(part["images"] for part in result["dataset"]["parts"] if part["split"] == "train")


def left(store: FolderStore, prefix: str) -> list[str]:
    return [stat.key for stat in store.list(prefix)]


@pytest.mark.parametrize("packed", [True, False])
def test_an_idx_pair_is_one_batch(pipeline: Pipeline, packed: bool) -> None:
    wrap, suffix = (gzip.compress, ".gz") if packed else (bytes, "")
    pipeline.store.put(f"incoming/week-12-images-idx3-ubyte{suffix}", wrap(synthetic.encode_idx(IMAGES)))
    pipeline.store.put(f"incoming/week-12-labels-idx1-ubyte{suffix}", wrap(synthetic.encode_idx(LABELS)))
    assert training_images(validated(pipeline)) == 1800
    assert left(pipeline.store, "incoming/") == []


def test_a_good_batch_joins_this_run_and_all_later_ones(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/week 12.npz", GOOD)
    first = validated(pipeline)
    assert training_images(first) == 1800
    assert left(pipeline.store, "incoming/") == []
    again = validated(pipeline, Run("run-2", RUN.created, RUN.parameters))
    assert again["dataset"]["fingerprint"] == first["dataset"]["fingerprint"]


def test_the_same_batch_twice_counts_once(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", GOOD)
    pipeline.store.put("incoming/b.npz", GOOD)
    first = validated(pipeline)
    pipeline.store.put("incoming/c.npz", GOOD)
    assert training_images(first) == training_images(validated(pipeline)) == 1800


def test_two_runs_at_the_same_time_share_a_batch(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/good.npz", GOOD)
    pipeline.store.put("incoming/notes.txt", b"hello")
    other = Run("run-2", RUN.created, RUN.parameters)
    begun = [(run, steps.ingest(run)) for run in (RUN, other)]
    first, second = (steps.validate_data(run, ingested)["dataset"] for run, ingested in begun)
    assert first["fingerprint"] == second["fingerprint"]
    assert sum(part["images"] for part in second["parts"] if part["split"] == "train") == 1800
    assert left(pipeline.store, "incoming/") == []
    assert pipeline.store.get(f"quarantine/{RUN.id}/notes.txt") == b"hello"


def test_half_a_pair_waits_for_the_other_half(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/w-images-idx3-ubyte", synthetic.encode_idx(IMAGES))
    ingested = steps.ingest(RUN)
    assert ingested["waiting"] == ["incoming/w-images-idx3-ubyte"]
    assert training_images(steps.validate_data(RUN, ingested)) == 1600
    assert left(pipeline.store, "incoming/") == ["incoming/w-images-idx3-ubyte"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("notes.txt", b"hello", "is neither an .npz nor one of a pair"),
        ("cut.npz", GOOD[:-100], "is no .npz"),
        ("flipped.npz", GOOD[:5000] + bytes([GOOD[5000] ^ 1]) + GOOD[5001:], "Bad CRC-32"),
        ("short.npz", encode_npz(images=IMAGES, labels=LABELS[:-1]), "200 images but 199 labels"),
        ("scaled.npz", encode_npz(images=IMAGES / 255, labels=LABELS), "pixels are unsigned bytes: not so for 200"),
        ("small.npz", encode_npz(images=IMAGES[:, :14, :14], labels=LABELS), "28 rows of pixels"),
        ("labels.npz", encode_npz(images=IMAGES, labels=LABELS + 1), "one of the declared classes"),
    ],
)
def test_a_bad_batch_goes_to_quarantine_with_its_reason_and_a_person_is_told(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture, name: str, data: bytes, reason: str
) -> None:
    pipeline.store.put(f"incoming/{name}", data)
    pipeline.store.put("incoming/good.npz", GOOD)
    with caplog.at_level(logging.WARNING):
        result = validated(pipeline)
    assert training_images(result) == 1800
    assert left(pipeline.store, "incoming/") == []
    assert pipeline.store.get(f"quarantine/{RUN.id}/{name}") == data
    assert reason in pipeline.store.get(f"quarantine/{RUN.id}/{name}.reason.txt").decode()
    assert f"ALERT batch quarantined in fmnist_retrain, run {RUN.id}: batch {name} is not used" in caplog.text
    assert reason in caplog.text


def test_a_batch_replaced_while_it_was_checked_is_kept_for_the_next_run(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", GOOD)
    ingested = steps.ingest(RUN)
    newer = encode_npz(images=IMAGES[:50], labels=LABELS[:50])
    pipeline.store.put("incoming/a.npz", newer)
    assert training_images(steps.validate_data(RUN, ingested)) == 1800
    assert pipeline.store.get("incoming/a.npz") == newer


def test_a_quarantine_that_was_interrupted_is_completed(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/notes.txt", b"hello")
    ingested = steps.ingest(RUN)
    incoming.quarantine(pipeline.store, RUN.id, "notes.txt", ["incoming/notes.txt"], ["because"])
    assert len(steps.validate_data(RUN, ingested)["quarantined"]) == 1
    assert pipeline.store.get(f"quarantine/{RUN.id}/notes.txt") == b"hello"


def test_the_test_set_is_never_extended(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", GOOD)
    parts = validated(pipeline)["dataset"]["parts"]
    assert [part["images"] for part in parts if part["split"] == "test"] == [600]


def test_a_batch_of_other_label_dtype_trains_like_any(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", encode_npz(images=IMAGES, labels=LABELS.astype(np.int64)))
    assert training_images(validated(pipeline)) == 1800
