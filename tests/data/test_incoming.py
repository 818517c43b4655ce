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
from tests.support.pipeline import Line
from tests.support.synthetic import RUN, npz

IMAGES, LABELS = synthetic.images(200, 9)
GOOD = npz(images=IMAGES, labels=LABELS)


def validated(line: Line, run: Run = RUN) -> dict:
    return steps.validate_data(run, steps.ingest(run))


def training_images(result: dict) -> int:
    return sum(part["images"] for part in result["dataset"]["parts"] if part["split"] == "train")


def left(store: FolderStore, prefix: str) -> list[str]:
    return [stat.key for stat in store.list(prefix)]


@pytest.mark.parametrize("packed", [True, False])
def test_an_idx_pair_is_one_batch(line: Line, packed: bool) -> None:
    wrap, suffix = (gzip.compress, ".gz") if packed else (bytes, "")
    line.store.put(f"incoming/week-12-images-idx3-ubyte{suffix}", wrap(synthetic.idx(IMAGES)))
    line.store.put(f"incoming/week-12-labels-idx1-ubyte{suffix}", wrap(synthetic.idx(LABELS)))
    assert training_images(validated(line)) == 1800
    assert left(line.store, "incoming/") == []


def test_a_good_batch_joins_this_run_and_all_later_ones(line: Line) -> None:
    line.store.put("incoming/week 12.npz", GOOD)
    first = validated(line)
    assert training_images(first) == 1800
    assert left(line.store, "incoming/") == []
    again = validated(line, Run("run-2", RUN.created, RUN.parameters))
    assert again["dataset"]["fingerprint"] == first["dataset"]["fingerprint"]


def test_the_same_batch_twice_counts_once(line: Line) -> None:
    line.store.put("incoming/a.npz", GOOD)
    line.store.put("incoming/b.npz", GOOD)
    first = validated(line)
    line.store.put("incoming/c.npz", GOOD)
    assert training_images(first) == training_images(validated(line)) == 1800


def test_two_runs_at_the_same_time_share_a_batch(line: Line) -> None:
    line.store.put("incoming/good.npz", GOOD)
    line.store.put("incoming/notes.txt", b"hello")
    other = Run("run-2", RUN.created, RUN.parameters)
    begun = [(run, steps.ingest(run)) for run in (RUN, other)]
    first, second = (steps.validate_data(run, ingested)["dataset"] for run, ingested in begun)
    assert first["fingerprint"] == second["fingerprint"]
    assert sum(part["images"] for part in second["parts"] if part["split"] == "train") == 1800
    assert left(line.store, "incoming/") == []
    assert line.store.get(f"quarantine/{RUN.id}/notes.txt") == b"hello"


def test_half_a_pair_waits_for_the_other_half(line: Line) -> None:
    line.store.put("incoming/w-images-idx3-ubyte", synthetic.idx(IMAGES))
    ingested = steps.ingest(RUN)
    assert ingested["waiting"] == ["incoming/w-images-idx3-ubyte"]
    assert training_images(steps.validate_data(RUN, ingested)) == 1600
    assert left(line.store, "incoming/") == ["incoming/w-images-idx3-ubyte"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("notes.txt", b"hello", "is neither an .npz nor one of a pair"),
        ("cut.npz", GOOD[:-100], "is no .npz"),
        ("flipped.npz", GOOD[:5000] + bytes([GOOD[5000] ^ 1]) + GOOD[5001:], "Bad CRC-32"),
        ("short.npz", npz(images=IMAGES, labels=LABELS[:-1]), "200 images but 199 labels"),
        ("scaled.npz", npz(images=IMAGES / 255, labels=LABELS), "pixels are unsigned bytes: not so for 200"),
        ("small.npz", npz(images=IMAGES[:, :14, :14], labels=LABELS), "28 rows of pixels"),
        ("labels.npz", npz(images=IMAGES, labels=LABELS + 1), "one of the declared classes"),
    ],
)
def test_a_bad_batch_goes_to_quarantine_with_its_reason_and_a_person_is_told(
    line: Line, caplog: pytest.LogCaptureFixture, name: str, data: bytes, reason: str
) -> None:
    line.store.put(f"incoming/{name}", data)
    line.store.put("incoming/good.npz", GOOD)
    with caplog.at_level(logging.WARNING):
        result = validated(line)
    assert training_images(result) == 1800
    assert left(line.store, "incoming/") == []
    assert line.store.get(f"quarantine/{RUN.id}/{name}") == data
    assert reason in line.store.get(f"quarantine/{RUN.id}/{name}.reason.txt").decode()
    assert f"ALERT batch quarantined in fmnist_retrain, run {RUN.id}: batch {name} is not used" in caplog.text
    assert reason in caplog.text


def test_a_batch_replaced_while_it_was_checked_is_kept_for_the_next_run(line: Line) -> None:
    line.store.put("incoming/a.npz", GOOD)
    ingested = steps.ingest(RUN)
    newer = npz(images=IMAGES[:50], labels=LABELS[:50])
    line.store.put("incoming/a.npz", newer)
    assert training_images(steps.validate_data(RUN, ingested)) == 1800
    assert line.store.get("incoming/a.npz") == newer


def test_a_quarantine_that_was_interrupted_is_completed(line: Line) -> None:
    line.store.put("incoming/notes.txt", b"hello")
    ingested = steps.ingest(RUN)
    incoming.quarantine(line.store, RUN.id, "notes.txt", ["incoming/notes.txt"], ["because"])
    assert len(steps.validate_data(RUN, ingested)["quarantined"]) == 1
    assert line.store.get(f"quarantine/{RUN.id}/notes.txt") == b"hello"


def test_the_test_set_is_never_extended(line: Line) -> None:
    line.store.put("incoming/a.npz", GOOD)
    parts = validated(line)["dataset"]["parts"]
    assert [part["images"] for part in parts if part["split"] == "test"] == [600]


def test_a_batch_of_other_label_dtype_trains_like_any(line: Line) -> None:
    line.store.put("incoming/a.npz", npz(images=IMAGES, labels=LABELS.astype(np.int64)))
    assert training_images(validated(line)) == 1800
