from __future__ import annotations

import gzip
import hashlib
import io
import logging
import os
import re
import struct
import tracemalloc
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from fmnist_tasks import steps
from fmnist_tasks.data import batches, incoming
from fmnist_tasks.data.incoming import Batch, File, display_name
from fmnist_tasks.errors import AccessError, RejectedError, StoreError
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.store import Stat, encode_name, read_clock
from fmnist_tasks.steps import Run
from fmnist_tasks.steps import data as data_steps
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
    assert [(file["key"], file["alert"]) for file in ingested["waiting"]] == [("incoming/w-images-idx3-ubyte", False)]
    assert training_images(steps.validate_data(RUN, ingested)) == 1600
    assert left(pipeline.store, "incoming/") == ["incoming/w-images-idx3-ubyte"]


def header(claim: str, data: bytes = b"") -> bytes:
    """An .npy file of version 1.0 with that header."""
    text = claim.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def archive(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """An .npz with those .npy files, whatever they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def encrypted(data: bytes) -> bytes:
    """The archive with the mark of encryption on every member."""
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data = data[: at + offset] + bytes([data[at + offset] | 1]) + data[at + offset + 1 :]
    return data


def compressed_with_a_changed_byte() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=IMAGES, labels=LABELS)
    data = bytearray(buffer.getvalue())
    data[3000] ^= 0x55
    return bytes(data)


TERABYTES = header("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 28, 28), }")
LABELS_FILE = header("{'descr': '|u1', 'fortran_order': False, 'shape': (200,), }", LABELS.tobytes())
LONG = "x" * 245 + ".npz"
BAD = {
    "notes.txt": (b"hello", "is neither an .npz nor one of a pair of IDX files"),
    "fashion-mnist_train.csv": (b"label,pixel1\n", "is neither an .npz nor one of a pair"),
    "empty.npz": (b"", "no zip directory"),
    "cut.npz": (GOOD[:-100], "is no .npz"),
    "flipped.npz": (GOOD[:5000] + bytes([GOOD[5000] ^ 1]) + GOOD[5001:], "Bad CRC-32"),
    "compressed.npz": (compressed_with_a_changed_byte(), "is damaged or cut short"),
    "encrypted.npz": (encrypted(GOOD), "is encrypted; save it without a password"),
    "lzma.npz": (archive(zipfile.ZIP_LZMA, images=LABELS_FILE, labels=LABELS_FILE), "compressed by another method"),
    "claims.npz": (archive(images=TERABYTES, labels=LABELS_FILE), "claims uint8 (4294967296, 28, 28), but has 0 bytes"),
    "alone.npz": (archive(images=TERABYTES), "labels is not in it, but 'images'"),
    "negative.npz": (
        archive(
            images=header("{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -28, 28), }", bytes(2 * 28 * 28)),
            labels=LABELS_FILE,
        ),
        "claims uint8 (-2, -28, 28)",
    ),
    "objects.npz": (encode_npz(images=np.array([{"a": 1}], object), labels=LABELS), "holds Python objects"),
    "names.npz": (encode_npz(x_train=IMAGES, y_train=LABELS), "labels are not in it, but 'x_train', 'y_train'"),
    "short.npz": (encode_npz(images=IMAGES, labels=LABELS[:-1]), "200 images but 199 labels"),
    "none.npz": (encode_npz(images=IMAGES[:0], labels=LABELS[:0]), "has no images"),
    "scaled.npz": (
        encode_npz(images=IMAGES / 255, labels=LABELS),
        "images are float64 of shape (200, 28, 28), expected",
    ),
    "small.npz": (encode_npz(images=IMAGES[:, :14, :14], labels=LABELS), "uint8 of shape (200, 14, 14), expected"),
    "colours.npz": (encode_npz(images=np.stack([IMAGES] * 3, -1), labels=LABELS), "shape (200, 28, 28, 3), expected"),
    "one.npz": (encode_npz(images=IMAGES[0], labels=LABELS[0]), "labels are uint8 of shape (), expected whole numbers"),
    "floats.npz": (encode_npz(images=IMAGES, labels=LABELS.astype(float)), "labels are float64 of shape (200,)"),
    "text.npz": (encode_npz(images=IMAGES, labels=LABELS.astype(str)), "labels are <U3 of shape (200,), expected"),
    "one-hot.npz": (encode_npz(images=IMAGES, labels=np.eye(10, dtype=int)[LABELS]), "int64 of shape (200, 10)"),
    "structured.npz": (encode_npz(images=np.zeros(9, "u1,f4"), labels=LABELS), "images are [('f0', 'u1')"),
    "<img src=y>eleven.npz": (
        encode_npz(images=IMAGES, labels=LABELS + 1),
        "one of the declared classes: not so for 20 of 200",
    ),
    "huge labels.npz": (encode_npz(images=IMAGES, labels=LABELS + np.uint64(2**63)), "one of the declared classes"),
    LONG: (b"hello", "no zip directory"),
    "b 9.41\u202fPM.npz": (b"hello", "no zip directory"),
    "<img src=x onerror=alert(1)>.npz": (b"hello", "no zip directory"),
    "a\nb\\c.npz": (b"hello", "no zip directory"),
}


def test_bad_batches_go_to_quarantine_with_their_reasons_and_the_run_goes_on(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pipeline.store.root / "incoming"
    folder.mkdir(parents=True)
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    pipeline.store.put("incoming/sub/good.npz", GOOD)
    with caplog.at_level(logging.WARNING):
        result = validated(pipeline)
    assert training_images(result) == 1800
    assert left(pipeline.store, "incoming/") == []
    reasons = {entry["batch"]: "; ".join(entry["reasons"]) for entry in result["quarantined"]}
    assert len(reasons) == len(BAD)
    for name, (data, reason) in BAD.items():
        shown = display_name(f"incoming/{encode_name(name.encode())}")
        assert reason in reasons[shown]
        assert pipeline.store.get(f"quarantine/{RUN.id}/{shown}") == data
        text = pipeline.store.get(f"quarantine/{RUN.id}/{shown}.reason.txt").decode()
        assert reason in text
        assert f"incoming/{encode_name(name.encode())} was moved" in text
    assert f"ALERT batch quarantined in fmnist_retrain, run {RUN.id}: {len(BAD)} batches are not used." in caplog.text
    assert "19 more are in the report of the run" in caplog.text
    pages = {stat.key: pipeline.store.get(stat.key) for stat in pipeline.store.list(f"runs/{RUN.id}/")}
    assert any(f"batch {display_name('incoming/<img src=y>eleven.npz')} images" in page for page in pages)
    assert not any(b"<img src=y" in page for key, page in pages.items() if key.endswith(".html"))


def test_each_of_a_few_bad_batches_has_its_alert(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", "b.txt"):
        pipeline.store.put(f"incoming/{name}", b"hello")
    with caplog.at_level(logging.WARNING):
        validated(pipeline)
    for name in ("a.txt", "b.txt"):
        place = pipeline.store.root / "quarantine" / RUN.id / f"{name}.reason.txt"
        assert f"run {RUN.id}: Batch {name} is not used: incoming/{name}: is neither an .npz" in caplog.text
        assert f"the reason lies beside them, at {place}" in caplog.text


def read(store: FolderStore, *keys: str) -> tuple[np.ndarray, np.ndarray] | str:
    content, _ = incoming.read_batch(store, Batch("b", [File.of(store.stat(key)) for key in keys]))
    return content


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES[..., None], LABELS[:, None]),
        (IMAGES.reshape(200, 784), LABELS.astype(">i8")),
        (np.asfortranarray(IMAGES), np.asfortranarray(LABELS[:, None].astype(np.uint64))),
        (IMAGES.astype(">u1"), LABELS.astype(np.int16)),
    ],
)
def test_another_form_is_the_same_content(store: FolderStore, images: np.ndarray, labels: np.ndarray) -> None:
    store.put("incoming/a.npz", encode_npz(images=images, labels=labels))
    found, expected = read(store, "incoming/a.npz"), (IMAGES, LABELS)
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, other)
        assert (array.dtype, array.flags.c_contiguous) == (np.uint8, True)


def test_a_small_file_that_claims_much_takes_no_memory(store: FolderStore) -> None:
    """Each would take more than the limit below, were it read before it is measured."""
    zeros = bytes(64 << 20)
    bombs = {
        "header.npz": archive(
            zipfile.ZIP_DEFLATED, images=b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + zeros, labels=LABELS_FILE
        ),
        "floats.npz": archive(
            zipfile.ZIP_DEFLATED,
            images=header("{'descr': '<f8', 'fortran_order': False, 'shape': (8388608,), }", zeros),
            labels=LABELS_FILE,
        ),
        "directory.npz": archive(**{f"{number:06d}": b"" for number in range(20_000)}),
        "p-images-idx3-ubyte.gz": gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 10, 28, 28) + zeros),
        "q-images-idx3-ubyte.gz": gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 28, 28) + zeros),
    }
    for name, data in bombs.items():
        store.put(f"incoming/{name}", data)
    store.put("labels", synthetic.encode_idx(LABELS))
    del zeros, bombs
    tracemalloc.start()
    try:
        for stat in list(store.list("incoming/")):
            keys = [stat.key, "labels"] if "idx" in stat.key else [stat.key]
            assert isinstance(read(store, *keys), str)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_what_is_too_large_is_not_opened(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("incoming/a.npz", GOOD)
    monkeypatch.setattr(incoming, "MAX_BYTES", 1000)
    monkeypatch.setattr(FolderStore, "open", None)
    assert read(store, "incoming/a.npz").startswith("incoming/a.npz: has 157,510 bytes, more than")


def test_arrays_above_the_limit_are_not_read(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.zeros_like(IMAGES), labels=LABELS)
    store.put("incoming/a.npz", buffer.getvalue())
    monkeypatch.setattr(incoming, "MAX_BYTES", IMAGES.size)
    assert "its arrays have more than 156,800 bytes; divide it" in read(store, "incoming/a.npz")


def stat(key: str, age: timedelta, kind: str = "file", *, folder: bool = True) -> Stat:
    return Stat(f"incoming/{key}", 1, NOW - age, "v", NOW - age if folder else None, kind)


MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOW = datetime(2026, 11, 30, 2, tzinfo=UTC)


def sorted_out(*stats: Stat) -> tuple[list[str], dict[str, bool]]:
    """Names of the batches, and whether there is an alert for each file that waits."""
    batches, waiting = incoming.find_batches(stats, NOW, MINUTE)
    return [batch.name for batch in batches], {file.key.removeprefix("incoming/"): file.alert for file in waiting}


def test_a_file_that_changed_within_a_minute_waits(pipeline: Pipeline) -> None:
    files = [stat("old", HOUR), stat("young", MINUTE / 2), stat("ahead", -MINUTE / 2), stat("far ahead", -DAY)]
    assert sorted_out(*files) == (["old", "far ahead"], {"young": False, "ahead": False})
    assert sorted_out(stat("object", MINUTE / 2, folder=False)) == (["object"], {})


@pytest.mark.parametrize(
    "name",
    [".b.npz.Ab12Cd", "b.npz.part", "b.npz.filepart", "b.crdownload", "b.TMP", "b~", ".sync/b.npz", "sub/.b.npz"],
)
def test_a_copy_tools_name_waits_for_a_week(name: str, store: FolderStore) -> None:
    assert sorted_out(stat(name, HOUR)) == ([], {name: False})
    assert sorted_out(stat(name, 8 * DAY))[1] == {}
    store.put(f"incoming/{name}", GOOD)
    assert "for more than a week its name has been that of a file" in read(store, f"incoming/{name}")


def test_half_a_pair_waits_and_after_a_week_with_an_alert() -> None:
    assert sorted_out(stat("w-images-idx3-ubyte", DAY)) == ([], {"w-images-idx3-ubyte": False})
    assert sorted_out(stat("w-labels-idx1-ubyte.gz", 8 * DAY)) == ([], {"w-labels-idx1-ubyte.gz": True})
    halves = [
        stat(f"w-{kind}-ubyte{suffix}", 8 * DAY) for kind in ("images-idx3", "labels-idx1") for suffix in ("", ".gz")
    ]
    assert sorted_out(*halves) == (["w", "w-2"], {})
    assert sorted_out(*halves[:3]) == (["w"], {"w-images-idx3-ubyte.gz": True})
    assert sorted_out(stat("train-images.idx3-ubyte", DAY), stat("train-labels.idx1-ubyte", DAY)) == (["train"], {})


def test_what_this_user_may_not_read_waits_with_an_alert() -> None:
    found = sorted_out(stat("sub", DAY, "unreadable folder"), stat("a", DAY, "unreadable file"))
    assert found == ([], {"sub": True, "a": True})


def test_names_that_are_shown_are_plain_short_and_unique() -> None:
    names = ["week 12.npz", "Week 12.npz", "a/b.npz", "a_b.npz", "ü.npz", "x" * 300, "<b>.npz", "a%0Ab.npz"]
    shown, _ = sorted_out(*(stat(name, DAY) for name in [*names, display_name("incoming/ü.npz")]))
    assert shown[:2] == ["week 12.npz", "Week 12.npz-2"]
    assert len({name.casefold() for name in shown}) == len(names) + 1
    assert all(re.fullmatch(r"[A-Za-z0-9 _.-]{1,102}", name) for name in shown)
    assert [name[-4:] for name in shown[2:5]] == [".npz"] * 3


def test_a_batch_that_is_still_being_written_waits_and_no_byte_is_lost(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_SETTLE_SECONDS", "60")
    path = pipeline.store.root / "incoming" / "b.npz"
    path.parent.mkdir(parents=True)
    with path.open("wb") as writer:
        writer.write(GOOD[: len(GOOD) // 2])
        writer.flush()
        os.utime(path, (0, 0))  # as copy tools do that keep times
        ingested = steps.ingest(RUN)
        assert "changed less than 60 seconds before" in ingested["waiting"][0]["reason"]
        assert ", 1 waiting" in ingested["summary"]
        assert training_images(steps.validate_data(RUN, ingested)) == 1600
        writer.write(GOOD[len(GOOD) // 2 :])
    assert path.read_bytes() == GOOD
    report = pipeline.store.get(f"runs/{RUN.id}/report.html").decode()
    assert "incoming/b.npz waits for the next run: it changed less than 60 seconds before" in report


def test_a_batch_that_is_completed_after_it_was_read_waits_whole(pipeline: Pipeline) -> None:
    path = pipeline.store.root / "incoming" / "b.npz"
    pipeline.store.put("incoming/b.npz", GOOD[:1000])
    ingested = steps.ingest(RUN)
    with path.open("ab") as writer:
        writer.write(GOOD[1000:])
    result = steps.validate_data(RUN, ingested)
    assert (result["quarantined"], [file["key"] for file in result["waiting"]]) == ([], ["incoming/b.npz"])
    assert left(pipeline.store, "quarantine/") == []
    assert path.read_bytes() == GOOD


def test_a_batch_that_changes_while_it_is_read_waits(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.store.put("incoming/b.npz", GOOD)
    normalise = incoming._normalise

    def normalise_late(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pipeline.store.put("incoming/b.npz", GOOD + b"more")
        return normalise(*arrays)

    monkeypatch.setattr(incoming, "_normalise", normalise_late)
    ingested = steps.ingest(RUN)
    assert (ingested["batches"], ingested["waiting"][0]["reason"]) == ([], "it changed while it was read")


def test_links_and_pipes_are_removed_with_a_reason_and_not_followed(pipeline: Pipeline) -> None:
    secret = pipeline.home / "secret.npz"
    secret.write_bytes(GOOD)
    folder = pipeline.store.root / "incoming"
    folder.mkdir(parents=True)
    (folder / "link.npz").symlink_to(secret)
    (folder / "folder").symlink_to(pipeline.home)
    os.mkfifo(folder / "pipe.npz")
    result = validated(pipeline)
    assert training_images(result) == 1600
    reasons = {entry["batch"]: entry["reasons"][0].partition(": ")[2] for entry in result["quarantined"]}
    assert reasons == {
        "folder": "is a symbolic link, which is not followed or read",
        "link.npz": "is a symbolic link, which is not followed or read",
        "pipe.npz": "is a pipe, which is not followed or read",
    }
    assert left(pipeline.store, "incoming/") == []
    assert len(left(pipeline.store, "quarantine/")) == 3  # reasons
    assert "link.npz was removed" in pipeline.store.get(f"quarantine/{RUN.id}/link.npz.reason.txt").decode()
    assert secret.read_bytes() == GOOD


def refusing(monkeypatch: pytest.MonkeyPatch, operation: str, error: Exception, key: str = "incoming/bad.npz") -> None:
    """Let the store refuse an operation on one key."""
    before = getattr(FolderStore, operation)

    def refuse(self: FolderStore, what: object, *rest: object) -> object:
        if key in str(what):
            raise error
        return before(self, what, *rest)

    monkeypatch.setattr(FolderStore, operation, refuse)


@pytest.mark.parametrize("error", [AccessError("Permission denied"), StoreError("Input/output error")])
def test_a_file_that_cannot_be_read_waits_with_an_alert_and_the_run_goes_on(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    for name in ("bad", "good"):
        pipeline.store.put(f"incoming/{name}.npz", GOOD)
    refusing(monkeypatch, "open", error)
    with caplog.at_level(logging.WARNING):
        ingested = steps.ingest(RUN)
    assert [batch["name"] for batch in ingested["batches"]] == ["good.npz"]
    assert [(file["key"], file["alert"]) for file in ingested["waiting"]] == [("incoming/bad.npz", True)]
    assert (
        f"ALERT batch waiting in fmnist_retrain, run {RUN.id}: These files need someone: incoming/bad.npz"
        in caplog.text
    )
    assert str(error) in caplog.text


def test_a_store_that_does_not_answer_is_no_fault_of_a_file(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.store.put("incoming/bad.npz", GOOD)

    def fail(self: FolderStore, *_: object) -> None:
        monkeypatch.setattr(FolderStore, "put", fail)
        raise StoreError("no answer")

    monkeypatch.setattr(FolderStore, "open", fail)
    with pytest.raises(StoreError, match="no answer"):
        steps.ingest(RUN)


@pytest.mark.parametrize("error", [AccessError("Permission denied"), StoreError("Device or resource busy")])
def test_a_file_that_cannot_be_removed_waits_with_an_alert(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    pipeline.store.put("incoming/bad.npz", GOOD)
    pipeline.store.put("incoming/a.txt", b"hello")
    refusing(monkeypatch, "take", error)
    with caplog.at_level(logging.WARNING):
        result = validated(pipeline)
    assert training_images(result) == 1800  # it is in the dataset all the same, once, whatever lies there
    (waiting,) = result["waiting"]
    assert waiting["reason"] == f"what was read of it is in the dataset, but it cannot be removed: {error}"
    assert "ALERT batch waiting" in caplog.text
    assert "ALERT batch quarantined" in caplog.text


def test_what_was_quarantined_before_the_store_failed_has_its_alert(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.store.put("incoming/a.txt", b"hello")
    pipeline.store.put("incoming/good.npz", GOOD)
    ingested = steps.ingest(RUN)

    def fail(*_: object) -> None:
        raise StoreError("no answer")

    monkeypatch.setattr(batches, "accept", fail)
    with caplog.at_level(logging.WARNING), pytest.raises(StoreError, match="no answer"):
        steps.validate_data(RUN, ingested)
    assert "ALERT batch quarantined" in caplog.text


@pytest.mark.parametrize(("limit", "value"), [("_MOST_NEW_BYTES", 1000), ("_MOST_NEW_BATCHES", 1)])
def test_what_is_more_than_one_run_takes_waits_for_the_next(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    for name in ("a", "b", "c"):
        start = ord(name) - ord("a")
        content = encode_npz(images=IMAGES[start : start + 150], labels=LABELS[start : start + 150])
        pipeline.store.put(f"incoming/{name}.npz", content)
    monkeypatch.setattr(data_steps, limit, value)
    refusing(monkeypatch, "take", AccessError("Permission denied"), "incoming/a.npz")
    assert [batch["name"] for batch in steps.ingest(RUN)["batches"]] == ["a.npz"]
    validated(pipeline)
    ingested = steps.ingest(replace(RUN, id="run-2"))  # `a` is in the dataset and still there
    assert [batch["name"] for batch in ingested["batches"]] == ["a.npz", "b.npz"]
    assert [(one["key"], one["alert"]) for one in ingested["waiting"]] == [("incoming/c.npz", True)]


def test_a_folder_for_batches_that_cannot_be_listed_does_not_stop_the_run(pipeline: Pipeline) -> None:
    pipeline.store.root.mkdir(parents=True)
    (pipeline.store.root / "incoming").symlink_to(pipeline.home)
    assert steps.ingest(RUN)["waiting"][0]["alert"]


def test_batches_stay_where_they_are_if_the_base_dataset_fails(pipeline: Pipeline) -> None:
    synthetic.write_dataset(pipeline.data, train_images=255 - synthetic.make_images(1600, 1)[0])
    pipeline.store.put("incoming/good.npz", GOOD)
    pipeline.store.put("incoming/notes.txt", b"hello")
    with pytest.raises(RejectedError, match="data rejected"):
        validated(pipeline)
    assert left(pipeline.store, "incoming/") == ["incoming/good.npz", "incoming/notes.txt"]
    assert left(pipeline.store, "batches/") == left(pipeline.store, "quarantine/") == []


def test_an_error_in_a_check_is_the_batchs_reason(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from fmnist_tasks.data.suspicion import Judge

    def fail(*_: object) -> None:
        raise ZeroDivisionError("float division by zero")

    pairs = Judge.pairs
    monkeypatch.setattr(
        Judge, "pairs", lambda self, images, labels: (fail if len(images) == 200 else pairs)(self, images, labels)
    )
    pipeline.store.put("incoming/a.npz", GOOD)
    pipeline.store.put("incoming/b.npz", encode_npz(images=IMAGES[:150], labels=LABELS[:150]))
    result = validated(pipeline)
    assert training_images(result) == 1750
    (entry,) = result["quarantined"]
    assert entry["reasons"] == [
        "every check can be made: the check itself failed: ZeroDivisionError: float division by zero"
    ]


@pytest.mark.parametrize("name", [".taken.0123456789abcdef..", ".taken.0123456789abcdef...", ". .npz"])
def test_a_name_that_no_folder_can_hold_is_put_into_quarantine(pipeline: Pipeline, name: str) -> None:
    file = pipeline.store.root / "incoming" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"hello")
    listed, _ = incoming.find_batches(pipeline.store.list("incoming/"), read_clock(pipeline.store) + 8 * DAY, MINUTE)
    (batch,) = listed
    assert incoming.quarantine(pipeline.store, "r", batch, ["because"])[1] == []
    assert b"hello" in [pipeline.store.get(stat.key) for stat in pipeline.store.list("quarantine/r/")]


def test_a_file_in_the_place_of_the_folder_is_reported(pipeline: Pipeline) -> None:
    """`cp batch.npz store/incoming` makes one, where there is no such folder."""
    pipeline.store.put("incoming", GOOD)
    (waiting,) = steps.ingest(RUN)["waiting"]
    assert (waiting["key"], waiting["alert"]) == ("incoming", True)


def test_a_file_called_like_the_reason_of_another_is_kept(pipeline: Pipeline) -> None:
    for name, data in (("x.npz.reason.txt", b"mine"), ("x.npz", b"other")):
        pipeline.store.put(f"incoming/{name}", data)
        file = replace(File.of(pipeline.store.stat(f"incoming/{name}")), sha256=hashlib.sha256(data).hexdigest())
        incoming.quarantine(pipeline.store, "r", Batch(name, [file]), ["because"])
    kept = [pipeline.store.get(stat.key) for stat in pipeline.store.list("quarantine/r/")]
    assert (len(kept), b"mine" in kept, b"other" in kept) == (4, True, True)


def test_a_second_file_of_the_same_name_does_not_replace_what_lies_in_quarantine(pipeline: Pipeline) -> None:
    for data in (b"first", b"second"):
        pipeline.store.put("incoming/notes.txt", data)
        file = replace(File.of(pipeline.store.stat("incoming/notes.txt")), sha256=hashlib.sha256(data).hexdigest())
        for _ in range(2):  # the second call as after an interruption
            moved, waiting = incoming.quarantine(pipeline.store, "r", Batch("notes.txt", [file]), [data.decode()])
            assert (moved["reasons"], waiting) == ([data.decode()], [])
    kept = {stat.key: pipeline.store.get(stat.key) for stat in pipeline.store.list("quarantine/r/")}
    assert sorted(data.partition(b"\n")[0] for data in kept.values()) == [b"first", b"first", b"second", b"second"]
    assert len(kept) == 4


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
    (batch,) = ingested["unreadable"]
    files = [File(**file) for file in batch["files"]]
    incoming.quarantine(pipeline.store, RUN.id, Batch(batch["name"], files), ["because"])
    assert len(steps.validate_data(RUN, ingested)["quarantined"]) == 1
    assert pipeline.store.get(f"quarantine/{RUN.id}/notes.txt") == b"hello"


def test_the_test_set_is_never_extended(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", GOOD)
    parts = validated(pipeline)["dataset"]["parts"]
    assert [part["images"] for part in parts if part["split"] == "test"] == [600]


def test_a_batch_of_other_label_dtype_trains_like_any(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", encode_npz(images=IMAGES, labels=LABELS.astype(np.int64)))
    assert training_images(validated(pipeline)) == 1800
