"""Files in `incoming/`: each joins the dataset, goes to quarantine with a reason, or waits."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import logging
import os
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fmnist_tasks.data import accepted_batches, batch_files, incoming
from fmnist_tasks.data.batch_files import BatchContent
from fmnist_tasks.data.incoming import IncomingBatch, make_display_name, to_incoming_file
from fmnist_tasks.errors import AccessError, RejectedError, StoreError
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.store import Stat, encode_name, read_clock
from fmnist_tasks.run_report import read_run, render_run
from fmnist_tasks.schemas.data import IncomingFile
from fmnist_tasks.schemas.runs import ValidationResult
from fmnist_tasks.steps import Run, run_step
from fmnist_tasks.steps import data as data_steps
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN, encode_npz

IMAGES, LABELS = synthetic.make_images(200, 9)
GOOD_BATCH = encode_npz(images=IMAGES, labels=LABELS)


def ingest_and_validate(run: Run = RUN) -> ValidationResult:
    run_step("ingest", run)
    result: ValidationResult = run_step("validate_data", run)
    return result


def count_training_images(result: ValidationResult) -> int:
    return sum(image_set.images for image_set in result.dataset.image_sets if image_set.split == "train")


def list_keys(store: FolderStore, prefix: str) -> list[str]:
    return [stat.key for stat in store.list(prefix)]


@pytest.mark.parametrize("packed", [True, False])
def test_an_idx_pair_is_one_batch(pipeline: Pipeline, packed: bool) -> None:
    wrap, suffix = (gzip.compress, ".gz") if packed else (bytes, "")
    pipeline.store.put(f"incoming/week-12-images-idx3-ubyte{suffix}", wrap(synthetic.encode_idx(IMAGES)))
    pipeline.store.put(f"incoming/week-12-labels-idx1-ubyte{suffix}", wrap(synthetic.encode_idx(LABELS)))
    assert count_training_images(ingest_and_validate()) == 1800
    assert list_keys(pipeline.store, "incoming/") == []


def test_a_good_batch_joins_this_run_and_all_later_ones(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/week 12.npz", GOOD_BATCH)
    first = ingest_and_validate()
    assert count_training_images(first) == 1800
    assert list_keys(pipeline.store, "incoming/") == []
    again = ingest_and_validate(Run("run-2", RUN.created, RUN.parameters))
    assert again.dataset.fingerprint == first.dataset.fingerprint


def test_the_same_batch_twice_counts_once(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", GOOD_BATCH)
    pipeline.store.put("incoming/b.npz", GOOD_BATCH)
    first = ingest_and_validate()
    pipeline.store.put("incoming/c.npz", GOOD_BATCH)
    assert count_training_images(first) == count_training_images(ingest_and_validate()) == 1800


def test_two_simultaneous_runs_share_a_batch(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/good.npz", GOOD_BATCH)
    pipeline.store.put("incoming/notes.txt", b"hello")
    other = Run("run-2", RUN.created, RUN.parameters)
    for run in (RUN, other):
        run_step("ingest", run)
    first, second = (run_step("validate_data", run) for run in (RUN, other))
    assert first.dataset.fingerprint == second.dataset.fingerprint
    assert count_training_images(first) == count_training_images(second) == 1800
    assert list_keys(pipeline.store, "incoming/") == []
    assert pipeline.store.get(f"quarantine/{RUN.id}/notes.txt") == b"hello"


def test_half_a_pair_waits_for_the_other_half(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/w-images-idx3-ubyte", synthetic.encode_idx(IMAGES))
    ingestion = run_step("ingest", RUN)
    (waiting,) = ingestion.waiting
    assert (waiting.key, waiting.needs_attention) == ("incoming/w-images-idx3-ubyte", False)
    assert count_training_images(run_step("validate_data", RUN)) == 1600
    assert list_keys(pipeline.store, "incoming/") == ["incoming/w-images-idx3-ubyte"]


def encode_npy(header: str, data: bytes = b"") -> bytes:
    """Return an .npy file of version 1.0 with that header."""
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def encode_zip(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """Return an .npz file with these .npy files, valid or not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def mark_encrypted(data: bytes) -> bytes:
    """Set the encryption flag of every member of the archive."""
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := data.find(signature, start + 1)) >= 0:
            flag = start + offset
            data = data[:flag] + bytes([data[flag] | 1]) + data[flag + 1 :]
    return data


def compress_and_change_a_byte() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=IMAGES, labels=LABELS)
    data = bytearray(buffer.getvalue())
    data[3000] ^= 0x55
    return bytes(data)


TERABYTES = encode_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 28, 28), }")
LABELS_FILE = encode_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (200,), }", LABELS.tobytes())
LONG_NAME = "x" * 245 + ".npz"
BAD_FILES = {
    "notes.txt": (b"hello", "is not a batch; submit an .npz, .csv or .parquet"),
    "fashion-mnist_train.csv": (b"label,pixel1\n", "has no images"),
    "empty.npz": (b"", "no zip directory"),
    "cut.npz": (GOOD_BATCH[:-100], "is not an .npz file"),
    "flipped.npz": (GOOD_BATCH[:5000] + bytes([GOOD_BATCH[5000] ^ 1]) + GOOD_BATCH[5001:], "Bad CRC-32"),
    "compressed.npz": (compress_and_change_a_byte(), "is damaged or truncated"),
    "encrypted.npz": (mark_encrypted(GOOD_BATCH), "is encrypted; save it without a password"),
    "lzma.npz": (
        encode_zip(zipfile.ZIP_LZMA, images=LABELS_FILE, labels=LABELS_FILE),
        "has an unsupported compression",
    ),
    "claims.npz": (
        encode_zip(images=TERABYTES, labels=LABELS_FILE),
        "declares uint8 (4294967296, 28, 28), but has 0 bytes",
    ),
    "alone.npz": (encode_zip(images=TERABYTES), "images and labels; it contains 'images'"),
    "negative.npz": (
        encode_zip(
            images=encode_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -28, 28), }", bytes(2 * 28 * 28)),
            labels=LABELS_FILE,
        ),
        "declares uint8 (-2, -28, 28)",
    ),
    "objects.npz": (encode_npz(images=np.array([{"a": 1}], object), labels=LABELS), "has Python objects"),
    "names.npz": (encode_npz(pictures=IMAGES, labels=LABELS), "images and labels; it contains 'pictures', 'labels'"),
    "splits.npz": (
        encode_npz(x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS),
        "has arrays of a test or validation split; a batch extends only the training split",
    ),
    "short.npz": (encode_npz(images=IMAGES, labels=LABELS[:-1]), "200 images but 199 labels"),
    "none.npz": (encode_npz(images=IMAGES[:0], labels=LABELS[:0]), "there are no images"),
    "scaled.npz": (
        encode_npz(images=IMAGES / 255, labels=LABELS),
        "images are float64; save the original pixels as uint8",
    ),
    "small.npz": (
        encode_npz(images=IMAGES[:, :14, :14], labels=LABELS),
        "images have the shape (200, 14, 14), expected",
    ),
    "colours.npz": (
        encode_npz(images=np.stack([IMAGES] * 3, -1), labels=LABELS),
        "images have the shape (200, 28, 28, 3), expected",
    ),
    "one.npz": (encode_npz(images=IMAGES[0], labels=LABELS[0]), "images have the shape (28, 28), expected"),
    "floats.npz": (
        encode_npz(images=IMAGES, labels=LABELS.astype(float)),
        "labels are float64, expected whole numbers",
    ),
    "text.npz": (
        encode_npz(images=IMAGES, labels=np.char.add("class ", LABELS.astype(str))),
        "labels name unknown classes: 'class 0', 'class 1', 'class 2'; the classes are pattern 0",
    ),
    "two-hot.npz": (encode_npz(images=IMAGES, labels=np.ones((200, 10), int)), "not exactly one 1 in each row"),
    "structured.npz": (encode_npz(images=np.zeros(9, "u1,f4"), labels=LABELS), "images are [('f0', 'u1')"),
    "<img src=y>eleven.npz": (
        encode_npz(images=IMAGES, labels=LABELS + 1),
        "one of the declared classes: failed for 20 of 200",
    ),
    "huge labels.npz": (encode_npz(images=IMAGES, labels=LABELS + np.uint64(2**63)), "larger than any class index"),
    LONG_NAME: (b"hello", "no zip directory"),
    "b 9.41\u202fPM.npz": (b"hello", "no zip directory"),
    "<img src=x onerror=alert(1)>.npz": (b"hello", "no zip directory"),
    "a\nb\\c.npz": (b"hello", "no zip directory"),
}


def test_bad_batches_go_to_quarantine_with_their_reasons_and_the_run_continues(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pipeline.store.root / "incoming"
    folder.mkdir(parents=True)
    for name, (data, _) in BAD_FILES.items():
        (folder / name).write_bytes(data)
    pipeline.store.put("incoming/sub/good.npz", GOOD_BATCH)
    with caplog.at_level(logging.WARNING):
        result = ingest_and_validate()
    assert count_training_images(result) == 1800
    assert list_keys(pipeline.store, "incoming/") == []
    reasons = {batch.name: "; ".join(batch.reasons) for batch in result.quarantined}
    assert len(reasons) == len(BAD_FILES)
    for name, (data, reason) in BAD_FILES.items():
        display_name = make_display_name(f"incoming/{encode_name(name.encode())}")
        assert reason in reasons[display_name]
        assert pipeline.store.get(f"quarantine/{RUN.id}/{display_name}") == data
        text = pipeline.store.get(f"quarantine/{RUN.id}/{display_name}.reason.txt").decode()
        assert reason in text
        assert f"incoming/{encode_name(name.encode())} was moved" in text
    assert (
        f"ALERT batch quarantined in fmnist_retrain, run {RUN.id}: {len(BAD_FILES)} batches are quarantined."
        in caplog.text
    )
    assert "The report of the run lists 20 more" in caplog.text
    pages = {stat.key: pipeline.store.get(stat.key) for stat in pipeline.store.list(f"runs/{RUN.id}/")}
    assert any(f"batch {make_display_name('incoming/<img src=y>eleven.npz')} images" in page for page in pages)
    assert not any(b"<img src=y" in page for key, page in pages.items() if key.endswith(".html"))


def test_each_of_a_few_bad_batches_has_its_own_alert(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", "b.txt"):
        pipeline.store.put(f"incoming/{name}", b"hello")
    with caplog.at_level(logging.WARNING):
        ingest_and_validate()
    for name in ("a.txt", "b.txt"):
        path = pipeline.store.root / "quarantine" / RUN.id / f"{name}.reason.txt"
        assert f"run {RUN.id}: Batch {name} is quarantined: incoming/{name} is not a batch" in caplog.text
        assert f"The reason is also in {path}, beside the files" in caplog.text


def read_content(store: FolderStore, *keys: str) -> tuple[np.ndarray, np.ndarray] | str:
    """Return images and labels of a batch, or the reason why it cannot be read."""
    files = [to_incoming_file(stat) for key in keys if (stat := store.stat(key))]
    content, _ = incoming.read_batch(store, IncomingBatch("b", files), synthetic.PROPERTIES)
    return content if isinstance(content, str) else (content.images, content.labels)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES[..., None], LABELS[:, None]),
        (IMAGES.reshape(200, 784), LABELS.astype(">i8")),
        (np.asfortranarray(IMAGES), np.asfortranarray(LABELS[:, None].astype(np.uint64))),
        (IMAGES.astype(">u1"), LABELS.astype(np.int16)),
        (IMAGES.astype(np.int64), np.eye(10, dtype=int)[LABELS]),
        (IMAGES, np.array([f"pattern {label}" for label in LABELS])),
    ],
)
def test_other_shapes_and_dtypes_give_the_same_content(
    store: FolderStore, images: np.ndarray, labels: np.ndarray
) -> None:
    store.put("incoming/a.npz", encode_npz(images=images, labels=labels))
    arrays, expected_arrays = read_content(store, "incoming/a.npz"), (IMAGES, LABELS)
    for array, expected in zip(arrays, expected_arrays, strict=True):
        np.testing.assert_array_equal(array, expected)
        assert (array.dtype, array.flags.c_contiguous) == (np.uint8, True)


def encode_csv(*, names: bool = False) -> bytes:
    header = ",".join(["label", *(f"pixel{number}" for number in range(784))])
    rows = (
        ",".join(map(str, [f"pattern {label}" if names else label, *image.ravel()]))
        for image, label in zip(IMAGES, LABELS, strict=True)
    )
    return "\n".join([header, *rows, ""]).encode()


def encode_pictures(folder: str = "") -> dict[str, bytes]:
    """Return PNG files by path, in a folder for each class, and in the order of the classes."""
    files = {}
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        files[f"{folder}pattern {label}/{number:03}.png"] = buffer.getvalue()
    return files


def encode_picture_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


ORDERED = np.argsort(LABELS, kind="stable")
FORMS = {
    "a.csv": (encode_csv(), np.arange(200)),
    "a.csv.gz": (gzip.compress(encode_csv(names=True)), np.arange(200)),
    "train.npz": (encode_npz(x_train=IMAGES, y_train=LABELS), np.arange(200)),
    "a.zip": (encode_picture_zip(encode_pictures()), ORDERED),
    "nested.zip": (encode_picture_zip(encode_pictures("week 12/")), ORDERED),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_batch_gives_the_same_images(store: FolderStore, name: str) -> None:
    data, order = FORMS[name]
    store.put(f"incoming/{name}", data)
    images, labels = read_content(store, f"incoming/{name}")
    np.testing.assert_array_equal(images, IMAGES[order])
    np.testing.assert_array_equal(labels, LABELS[order])


def test_a_folder_of_images_is_one_batch(pipeline: Pipeline) -> None:
    for name, data in encode_pictures("week 12/").items():
        pipeline.store.put(f"incoming/{name}", data)
    result = ingest_and_validate()
    assert count_training_images(result) == 1800
    (added,) = result.accepted
    assert (added.name, len(added.files)) == ("week 12", 200)
    assert list_keys(pipeline.store, "incoming/") == []


def test_images_that_cannot_be_read_are_left_out_and_converted_ones_are_counted(store: FolderStore) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(buffer, "jpeg")
    files = {"pattern 1/a.png": b"hello", "pattern 1/b.jpg": buffer.getvalue(), **encode_pictures()}
    store.put("incoming/a.zip", encode_picture_zip(files))
    listed = [to_incoming_file(stat) for stat in store.list("incoming/")]
    content, _ = incoming.read_batch(store, IncomingBatch("a", listed), synthetic.PROPERTIES)
    assert (len(content.images), content.converted) == (201, 1)
    assert content.unreadable == 1
    (reason,) = content.reasons
    assert reason.startswith("pattern 1/a.png is not a readable image")


BAD_PICTURES = {
    "unknown.zip": (
        encode_picture_zip({"cat/1.png": b""}),
        "unknown classes: 'cat'; the classes of synthetic are pattern 0,",
    ),
    "flat.zip": (encode_picture_zip({"1.png": b""}), "'1.png' is not in the folder of a class"),
    "splits.zip": (
        encode_picture_zip({"train/pattern 1/1.png": b"", "test/pattern 1/1.png": b""}),
        "folders for splits",
    ),
    "none.zip": (encode_picture_zip({"pattern 1/1.png": b"hello"}), "none of its 1 images can be read"),
    "empty.zip": (encode_picture_zip({}), "has no files in folders of classes"),
    "cut.zip": (encode_picture_zip(encode_pictures())[:-50], "is not a zip file, or is truncated"),
    "lonely.png": (encode_pictures()["pattern 0/000.png"] if LABELS[0] == 0 else b"", "is an image without a class"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_images_without_a_known_class_are_refused(store: FolderStore, name: str) -> None:
    data, reason = BAD_PICTURES[name]
    store.put(f"incoming/{name}", data)
    assert reason in read_content(store, f"incoming/{name}")


def test_a_run_reads_a_limited_number_of_files(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of a run name each file, and have a limited size."""
    monkeypatch.setattr(incoming, "MAX_FILES", 3)
    for folder, count in (("large", 4), ("one", 2), ("two", 2)):
        for number in range(count):
            pipeline.store.put(f"incoming/{folder}/pattern 1/{number}.png", encode_png(IMAGES[number]))
    result = run_step("ingest", RUN)
    assert [batch.name for batch in result.batches] == ["one"]
    assert {file.key: file.reason.partition(";")[0] for file in result.waiting} == {
        "incoming/large/": "has 4 files",
        "incoming/two/": "this run has reached its limit of 200 new batches, 3 files, 4 GiB or an hour of reading",
    }


def test_the_key_of_a_folder_stands_for_its_files(pipeline: Pipeline) -> None:
    """Every later run lists the keys of all accepted batches."""
    for number, (image, label) in enumerate(zip(*synthetic.make_images(60, 3), strict=True)):
        pipeline.store.put(f"incoming/week/pattern {label}/{number}.png", encode_png(image))
    result = ingest_and_validate()
    (batch,) = result.dataset.batches
    assert (batch.keys, batch.images) == (["incoming/week/"], 60)
    assert [batch.name for batch in accepted_batches.list_accepted(pipeline.store)] == ["week"]
    assert list(pipeline.store.list("incoming/")) == []


def test_files_of_operating_systems_are_no_batches(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/week/pattern 1/1.png", encode_png(IMAGES[0]))
    for name in (".DS_Store", "Thumbs.db", "week/.DS_Store", "week/pattern 1/Thumbs.db"):
        pipeline.store.put(f"incoming/{name}", b"")
    result = run_step("ingest", RUN)
    assert ([batch.name for batch in result.batches], result.unreadable, result.waiting) == (["week"], [], [])


def test_many_unreadable_images_are_counted(pipeline: Pipeline) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pattern 1/good.png", encode_png(IMAGES[0]))
        for number in range(60_000):  # the reasons would exceed the limit of a record
            archive.writestr(f"pattern 1/{number}.png", b"")
    pipeline.store.put("incoming/week.zip", buffer.getvalue())
    (batch,) = run_step("ingest", RUN).batches
    assert (batch.unreadable, len(batch.reasons)) == (60_000, 20)


def test_the_pixels_of_a_batch_are_limited(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "_MAX_DECODED_PIXELS", 1000)
    for number in (1, 2):
        store.put(f"incoming/week/pattern 1/{number}.png", encode_png(IMAGES[number]))
    keys = [f"incoming/week/pattern 1/{number}.png" for number in (1, 2)]
    assert "its images have more than 1,000 pixels" in read_content(store, *keys)


def test_images_that_cannot_be_decoded_count_towards_the_pixels(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take as long as others, and a truncated one has few bytes."""
    monkeypatch.setattr(batch_files, "_MAX_DECODED_PIXELS", 1000)
    for number in (1, 2):
        store.put(f"incoming/week/pattern 1/{number}.png", encode_png(IMAGES[number])[:-40])
    keys = [f"incoming/week/pattern 1/{number}.png" for number in (1, 2)]
    assert "its images have more than 1,000 pixels" in str(read_content(store, *keys))


def test_a_run_does_not_read_for_longer_than_its_limit(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.count(step=1800)
    monkeypatch.setattr(data_steps, "monotonic", lambda: next(times))
    for number in range(4):
        pipeline.store.put(f"incoming/{number}.npz", encode_npz(images=IMAGES[number:], labels=LABELS[number:]))
    result = run_step("ingest", RUN)
    assert [batch.name for batch in result.batches] == ["0.npz", "1.npz"]
    assert all("4 GiB or an hour of reading; the next run takes it" in file.reason for file in result.waiting)


def test_unreadable_batches_count_towards_the_limit(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_steps, "_MAX_NEW_BATCHES", 2)
    for number in range(3):
        pipeline.store.put(f"incoming/{number}.zip", b"damaged")
    result = run_step("ingest", RUN)
    assert (len(result.unreadable), len(result.waiting)) == (2, 1)


def make_zip(count: int = 20) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(count):
            archive.writestr(f"pattern 1/{number}.png", encode_png(IMAGES[number]))
    return buffer.getvalue()


def replace_byte(content: bytes, position: int, value: int) -> bytes:
    return content[:position] + bytes([value]) + content[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: replace_byte(content, content.rfind(b"PK\1\2") + 2, 9),
        lambda content: content[:2000] + content[3000:],
        lambda content: replace_byte(content, content.rfind(b"PK\1\2") + 6, 200),  # a later version of the format
        lambda content: replace_byte(content, content.find(b"PK\1\2") + 9, 32),  # a flag of encrypted directories
    ],
)
def test_a_damaged_zip_file_does_not_stop_the_run(pipeline: Pipeline, damage: Callable[[bytes], bytes]) -> None:
    pipeline.store.put("incoming/damaged.zip", damage(make_zip()))
    pipeline.store.put("incoming/good.npz", GOOD_BATCH)
    result = ingest_and_validate()
    assert [batch.name for batch in result.accepted] == ["good.npz"]
    assert [batch.name for batch in result.quarantined] == ["damaged.zip"]
    assert list_keys(pipeline.store, "incoming/") == []


def test_text_that_is_no_unicode_does_not_stop_the_run(pipeline: Pipeline) -> None:
    labels = np.frombuffer(np.full(200, 0x110000, "<u4").tobytes(), "<U1")
    pipeline.store.put("incoming/evil.npz", encode_npz(images=IMAGES, labels=labels))
    (batch,) = ingest_and_validate().quarantined
    assert batch.reasons[0].startswith("incoming/evil.npz cannot be read (")


def test_the_same_content_in_two_files_counts_once(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", GOOD_BATCH)
    pipeline.store.put("incoming/b.npz", GOOD_BATCH)
    result = ingest_and_validate()
    assert ([batch.name for batch in result.accepted], result.quarantined) == (["a.npz", "b.npz"], [])
    assert (count_training_images(result), list_keys(pipeline.store, "incoming/")) == (1800, [])


def test_the_same_bad_content_in_two_files_is_rejected_twice(pipeline: Pipeline) -> None:
    content = encode_npz(images=255 - IMAGES, labels=LABELS)
    for name in ("a", "b"):
        pipeline.store.put(f"incoming/{name}.npz", content)
    result = ingest_and_validate()
    assert ([batch.name for batch in result.quarantined], result.accepted) == (["a.npz", "b.npz"], [])
    assert result.quarantined[0].reasons == result.quarantined[1].reasons


@pytest.mark.parametrize("name", ["50%", "no break\xa0space", "back\\slash", "röbin"])
def test_a_folder_may_have_a_class_with_any_name(store: FolderStore, name: str) -> None:
    key = f"incoming/week/{encode_name(name.encode())}/1.png"
    store.put(key, encode_png(IMAGES[1]))
    dataset = synthetic.PROPERTIES.model_copy(update={"classes": [name, "other"]})
    content, _ = incoming.read_batch(store, IncomingBatch("week", [to_incoming_file(store.stat(key))]), dataset)
    assert isinstance(content, BatchContent), content
    assert content.labels.tolist() == [0]


def test_a_rejected_folder_keeps_its_structure_in_quarantine(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/week/cat/1.png", b"hello")
    pipeline.store.put("incoming/week/cat/2.png", b"hello")
    result = ingest_and_validate()
    (batch,) = result.quarantined
    assert "unknown classes: 'cat'" in batch.reasons[0]
    assert list_keys(pipeline.store, "quarantine/") == [
        f"quarantine/{RUN.id}/week.reason.txt",
        f"quarantine/{RUN.id}/week/cat/1.png",
        f"quarantine/{RUN.id}/week/cat/2.png",
    ]


def test_a_folder_that_is_still_being_copied_waits_as_a_whole() -> None:
    files = [
        make_stat("week/a/1.png", HOUR),
        make_stat("week/a/2.png", MINUTE / 2),
        make_stat("week/a/3.png", 0 * MINUTE),
    ]
    assert sort_files(*files) == ([], {"week/a/2.png": False, "week/": False})
    assert sort_files(make_stat("week/a/1.png", HOUR), make_stat("week/a/2.png.part", HOUR)) == (
        [],
        {"week/": False, "week/a/2.png.part": False},
    )
    assert sort_files(make_stat("week/a/1.png", HOUR), make_stat("week/b/1.JPG", HOUR)) == (["week"], {})


def test_a_small_file_that_declares_large_arrays_needs_little_memory(store: FolderStore) -> None:
    """Each file would exceed the limit below if it were read before its size is checked."""
    zeros = bytes(64 << 20)
    bombs = {
        "header.npz": encode_zip(
            zipfile.ZIP_DEFLATED, images=b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + zeros, labels=LABELS_FILE
        ),
        "floats.npz": encode_zip(
            zipfile.ZIP_DEFLATED,
            images=encode_npy("{'descr': '<f8', 'fortran_order': False, 'shape': (8388608,), }", zeros),
            labels=LABELS_FILE,
        ),
        "directory.npz": encode_zip(**{f"{number:06d}": b"" for number in range(20_000)}),
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
            assert isinstance(read_content(store, *keys), str)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_file_above_the_limit_is_not_opened(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("incoming/a.npz", GOOD_BATCH)
    monkeypatch.setattr(incoming, "MAX_BYTES", 1000)
    monkeypatch.setattr(FolderStore, "open", None)
    assert read_content(store, "incoming/a.npz").startswith("incoming/a.npz has 157,510 bytes; the limit is 1,000")


def test_arrays_above_the_limit_are_not_read(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.zeros_like(IMAGES), labels=LABELS)
    store.put("incoming/a.npz", buffer.getvalue())
    monkeypatch.setattr(batch_files, "MAX_BYTES", IMAGES.size)
    assert "its arrays have more than 156,800 bytes; split it" in read_content(store, "incoming/a.npz")


def make_stat(key: str, age: timedelta, kind: str = "file", *, folder: bool = True) -> Stat:
    return Stat(f"incoming/{key}", 1, NOW - age, "v", NOW - age if folder else None, kind)


MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOW = datetime(2026, 11, 30, 2, tzinfo=UTC)


def sort_files(*stats: Stat) -> tuple[list[str], dict[str, bool]]:
    """Return the names of the batches, and whether each waiting file needs attention."""
    batches, waiting = incoming.find_batches(stats, NOW, MINUTE)
    return [batch.name for batch in batches], {
        file.key.removeprefix("incoming/"): file.needs_attention for file in waiting
    }


def test_a_file_that_changed_in_the_last_minute_waits(pipeline: Pipeline) -> None:
    files = [
        make_stat("old", HOUR),
        make_stat("recent", MINUTE / 2),
        make_stat("ahead", -MINUTE / 2),
        make_stat("far ahead", -DAY),
    ]
    assert sort_files(*files) == (["old", "far ahead"], {"recent": False, "ahead": False})
    assert sort_files(make_stat("object", MINUTE / 2, folder=False)) == (["object"], {})


@pytest.mark.parametrize(
    "name",
    [".b.npz.Ab12Cd", "b.npz.part", "b.npz.filepart", "b.crdownload", "b.TMP", "b~", ".sync/b.npz", "sub/.b.npz"],
)
def test_a_file_with_a_temporary_name_waits_for_a_week(name: str, store: FolderStore) -> None:
    assert sort_files(make_stat(name, HOUR)) == ([], {name: False})
    assert sort_files(make_stat(name, 8 * DAY))[1] == {}
    store.put(f"incoming/{name}", GOOD_BATCH)
    assert "its name has marked it as an incomplete copy for more than a week" in read_content(
        store, f"incoming/{name}"
    )


def test_half_a_pair_needs_attention_after_a_week() -> None:
    assert sort_files(make_stat("w-images-idx3-ubyte", DAY)) == ([], {"w-images-idx3-ubyte": False})
    assert sort_files(make_stat("w-labels-idx1-ubyte.gz", 8 * DAY)) == ([], {"w-labels-idx1-ubyte.gz": True})
    halves = [
        make_stat(f"w-{kind}-ubyte{suffix}", 8 * DAY)
        for kind in ("images-idx3", "labels-idx1")
        for suffix in ("", ".gz")
    ]
    assert sort_files(*halves) == (["w", "w-2"], {})
    assert sort_files(*halves[:3]) == (["w"], {"w-images-idx3-ubyte.gz": True})
    assert sort_files(make_stat("train-images.idx3-ubyte", DAY), make_stat("train-labels.idx1-ubyte", DAY)) == (
        ["train"],
        {},
    )


def test_files_and_folders_without_read_access_need_attention() -> None:
    files = [make_stat("sub", DAY, "unreadable folder"), make_stat("a", DAY, "unreadable file")]
    assert sort_files(*files) == ([], {"sub": True, "a": True})


def test_display_names_are_plain_short_and_unique() -> None:
    names = ["week 12.npz", "Week 12.npz", "a/b.npz", "a_b.npz", "ü.npz", "x" * 300, "<b>.npz", "a%0Ab.npz"]
    display_names, _ = sort_files(*(make_stat(name, DAY) for name in [*names, make_display_name("incoming/ü.npz")]))
    assert display_names[:2] == ["week 12.npz", "Week 12.npz-2"]
    assert len({name.casefold() for name in display_names}) == len(names) + 1
    assert all(re.fullmatch(r"[A-Za-z0-9 _.-]{1,102}", name) for name in display_names)
    assert [name[-4:] for name in display_names[2:5]] == [".npz"] * 3


def test_a_batch_that_is_still_being_written_waits_and_no_byte_is_lost(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_SETTLE_SECONDS", "60")
    path = pipeline.store.root / "incoming" / "b.npz"
    path.parent.mkdir(parents=True)
    with path.open("wb") as writer:
        writer.write(GOOD_BATCH[: len(GOOD_BATCH) // 2])
        writer.flush()
        os.utime(path, (0, 0))  # like copy tools that preserve times
        ingestion = run_step("ingest", RUN)
        assert "it changed in the last 60 seconds and may be incomplete" in ingestion.waiting[0].reason
        assert ", 1 waiting" in ingestion.summary
        assert count_training_images(run_step("validate_data", RUN)) == 1600
        writer.write(GOOD_BATCH[len(GOOD_BATCH) // 2 :])
    assert path.read_bytes() == GOOD_BATCH
    report = render_run(pipeline.store, RUN.id, read_run(pipeline.store, RUN.id)).decode()
    assert "incoming/b.npz waits for the next run: it changed in the last 60 seconds" in report


def test_a_batch_that_grows_after_it_was_read_waits_unchanged(pipeline: Pipeline) -> None:
    path = pipeline.store.root / "incoming" / "b.npz"
    pipeline.store.put("incoming/b.npz", GOOD_BATCH[:1000])
    run_step("ingest", RUN)
    with path.open("ab") as writer:
        writer.write(GOOD_BATCH[1000:])
    result = run_step("validate_data", RUN)
    assert (result.quarantined, [file.key for file in result.waiting]) == ([], ["incoming/b.npz"])
    assert list_keys(pipeline.store, "quarantine/") == []
    assert path.read_bytes() == GOOD_BATCH


def test_a_batch_that_changes_while_it_is_read_waits(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.store.put("incoming/b.npz", GOOD_BATCH)
    read_files = incoming.read_files

    def read_files_late(*arguments: Any) -> BatchContent:
        pipeline.store.put("incoming/b.npz", GOOD_BATCH + b"more")
        return read_files(*arguments)

    monkeypatch.setattr(incoming, "read_files", read_files_late)
    ingestion = run_step("ingest", RUN)
    assert (ingestion.batches, ingestion.waiting[0].reason) == ([], "it changed while it was read")


def test_links_and_pipes_are_removed_with_a_reason_and_not_followed(pipeline: Pipeline) -> None:
    secret = pipeline.home / "secret.npz"
    secret.write_bytes(GOOD_BATCH)
    folder = pipeline.store.root / "incoming"
    folder.mkdir(parents=True)
    (folder / "link.npz").symlink_to(secret)
    (folder / "folder").symlink_to(pipeline.home)
    os.mkfifo(folder / "pipe.npz")
    result = ingest_and_validate()
    assert count_training_images(result) == 1600
    reasons = {batch.name: batch.reasons[0].partition(" ")[2] for batch in result.quarantined}
    assert reasons == {
        "folder": "is a symbolic link, which is not read; submit a regular file",
        "link.npz": "is a symbolic link, which is not read; submit a regular file",
        "pipe.npz": "is a pipe, which is not read; submit a regular file",
    }
    assert list_keys(pipeline.store, "incoming/") == []
    assert len(list_keys(pipeline.store, "quarantine/")) == 3  # the reasons
    assert "link.npz was removed" in pipeline.store.get(f"quarantine/{RUN.id}/link.npz.reason.txt").decode()
    assert secret.read_bytes() == GOOD_BATCH


def refuse_operation(
    monkeypatch: pytest.MonkeyPatch, operation: str, error: Exception, key: str = "incoming/bad.npz"
) -> None:
    """Let the store raise an error in an operation on one key."""
    original = getattr(FolderStore, operation)

    def refuse(self: FolderStore, target: object, *arguments: object) -> object:
        if key in str(target):
            raise error
        return original(self, target, *arguments)

    monkeypatch.setattr(FolderStore, operation, refuse)


@pytest.mark.parametrize("error", [AccessError("Permission denied"), StoreError("Input/output error")])
def test_a_file_that_cannot_be_read_waits_with_an_alert_and_the_run_continues(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    for name in ("bad", "good"):
        pipeline.store.put(f"incoming/{name}.npz", GOOD_BATCH)
    refuse_operation(monkeypatch, "open", error)
    with caplog.at_level(logging.WARNING):
        ingestion = run_step("ingest", RUN)
    assert [batch.name for batch in ingestion.batches] == ["good.npz"]
    assert [(file.key, file.needs_attention) for file in ingestion.waiting] == [("incoming/bad.npz", True)]
    assert (
        f"ALERT batch waiting in fmnist_retrain, run {RUN.id}: These files need attention: incoming/bad.npz"
        in caplog.text
    )
    assert str(error) in caplog.text


def test_an_unresponsive_store_is_not_blamed_on_a_file(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.store.put("incoming/bad.npz", GOOD_BATCH)

    def fail(self: FolderStore, *_: object) -> None:
        monkeypatch.setattr(FolderStore, "put", fail)
        raise StoreError("no response")

    monkeypatch.setattr(FolderStore, "open", fail)
    with pytest.raises(StoreError, match="no response"):
        run_step("ingest", RUN)


@pytest.mark.parametrize("error", [AccessError("Permission denied"), StoreError("Device or resource busy")])
def test_a_file_that_cannot_be_removed_waits_with_an_alert(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    pipeline.store.put("incoming/bad.npz", GOOD_BATCH)
    pipeline.store.put("incoming/a.txt", b"hello")
    refuse_operation(monkeypatch, "remove_if_unchanged", error)
    with caplog.at_level(logging.WARNING):
        result = ingest_and_validate()
    assert count_training_images(result) == 1800  # it is in the dataset once, although its file remains
    (waiting,) = result.waiting
    assert waiting.reason == f"its content is in the dataset, but it cannot be removed: {error}"
    assert "ALERT batch waiting" in caplog.text
    assert "ALERT batch quarantined" in caplog.text


def test_a_batch_quarantined_before_the_store_failed_has_its_alert(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.store.put("incoming/a.txt", b"hello")
    pipeline.store.put("incoming/good.npz", GOOD_BATCH)
    run_step("ingest", RUN)

    def fail(*_: object) -> None:
        raise StoreError("no response")

    monkeypatch.setattr(accepted_batches, "accept_batch", fail)
    with caplog.at_level(logging.WARNING), pytest.raises(StoreError, match="no response"):
        run_step("validate_data", RUN)
    assert "ALERT batch quarantined" in caplog.text


@pytest.mark.parametrize(("limit", "value"), [("_MAX_NEW_BYTES", 1000), ("_MAX_NEW_BATCHES", 1)])
def test_batches_beyond_the_limit_of_a_run_wait_for_the_next(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    for name in ("a", "b", "c"):
        start = ord(name) - ord("a")
        content = encode_npz(images=IMAGES[start : start + 150], labels=LABELS[start : start + 150])
        pipeline.store.put(f"incoming/{name}.npz", content)
    monkeypatch.setattr(data_steps, limit, value)
    refuse_operation(monkeypatch, "remove_if_unchanged", AccessError("Permission denied"), "incoming/a.npz")
    assert [batch.name for batch in run_step("ingest", RUN).batches] == ["a.npz"]
    ingest_and_validate()
    ingestion = run_step("ingest", replace(RUN, id="run-2"))  # `a` is in the dataset, and its file remains
    assert [batch.name for batch in ingestion.batches] == ["a.npz", "b.npz"]
    assert [(file.key, file.needs_attention) for file in ingestion.waiting] == [("incoming/c.npz", True)]


def test_an_incoming_folder_that_cannot_be_listed_does_not_stop_the_run(pipeline: Pipeline) -> None:
    pipeline.store.root.mkdir(parents=True)
    (pipeline.store.root / "incoming").symlink_to(pipeline.home)
    assert run_step("ingest", RUN).waiting[0].needs_attention


def test_batches_stay_where_they_are_if_the_base_dataset_fails(pipeline: Pipeline) -> None:
    synthetic.write_dataset(pipeline.data, train_images=255 - synthetic.make_images(1600, 1)[0])
    pipeline.store.put("incoming/good.npz", GOOD_BATCH)
    pipeline.store.put("incoming/notes.txt", b"hello")
    with pytest.raises(RejectedError, match="the data checks failed, so training does not start"):
        ingest_and_validate()
    assert list_keys(pipeline.store, "incoming/") == ["incoming/good.npz", "incoming/notes.txt"]
    assert list_keys(pipeline.store, "batches/") == list_keys(pipeline.store, "quarantine/") == []


def test_an_error_in_a_check_quarantines_the_batch(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from fmnist_tasks.data.label_errors import ConfusedClasses, LabelErrorDetector

    find_confused_classes = LabelErrorDetector.find_confused_classes

    def fail_for_200_images(
        detector: LabelErrorDetector, images: np.ndarray, labels: np.ndarray
    ) -> list[ConfusedClasses]:
        if len(images) == 200:
            raise ZeroDivisionError("float division by zero")
        return find_confused_classes(detector, images, labels)

    monkeypatch.setattr(LabelErrorDetector, "find_confused_classes", fail_for_200_images)
    pipeline.store.put("incoming/a.npz", GOOD_BATCH)
    pipeline.store.put("incoming/b.npz", encode_npz(images=IMAGES[:150], labels=LABELS[:150]))
    result = ingest_and_validate()
    assert count_training_images(result) == 1750
    (batch,) = result.quarantined
    assert batch.reasons == ["the checks run without an error: ZeroDivisionError: float division by zero"]


@pytest.mark.parametrize("name", [".taken.0123456789abcdef..", ".taken.0123456789abcdef...", ". .npz"])
def test_a_file_with_an_impossible_name_goes_to_quarantine(pipeline: Pipeline, name: str) -> None:
    file = pipeline.store.root / "incoming" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"hello")
    now = read_clock(pipeline.store) + 8 * DAY
    ((batch,), _) = incoming.find_batches(pipeline.store.list("incoming/"), now, MINUTE)
    assert incoming.move_to_quarantine(pipeline.store, "r", batch, ["because"])[1] == []
    assert b"hello" in [pipeline.store.get(stat.key) for stat in pipeline.store.list("quarantine/r/")]


def test_a_file_in_place_of_the_folder_is_reported(pipeline: Pipeline) -> None:
    """`cp batch.npz store/incoming` creates one if the folder does not exist."""
    pipeline.store.put("incoming", GOOD_BATCH)
    (waiting,) = run_step("ingest", RUN).waiting
    assert (waiting.key, waiting.needs_attention) == ("incoming", True)


def describe_file(pipeline: Pipeline, name: str, data: bytes) -> IncomingFile:
    """Return the stored file with the digest of its data, as after reading it."""
    stat = pipeline.store.stat(f"incoming/{name}")
    assert stat
    return to_incoming_file(stat).model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})


def test_a_file_named_like_the_reason_of_another_is_not_overwritten(pipeline: Pipeline) -> None:
    for name, data in (("x.npz.reason.txt", b"mine"), ("x.npz", b"other")):
        pipeline.store.put(f"incoming/{name}", data)
        file = describe_file(pipeline, name, data)
        incoming.move_to_quarantine(pipeline.store, "r", IncomingBatch(name, [file]), ["because"])
    contents = [pipeline.store.get(stat.key) for stat in pipeline.store.list("quarantine/r/")]
    assert (len(contents), b"mine" in contents, b"other" in contents) == (4, True, True)


def test_a_second_file_with_the_same_name_does_not_overwrite_the_first_in_quarantine(pipeline: Pipeline) -> None:
    for data in (b"first", b"second"):
        pipeline.store.put("incoming/notes.txt", data)
        file = describe_file(pipeline, "notes.txt", data)
        for _ in range(2):  # the second call repeats the first, as after an interruption
            moved, waiting = incoming.move_to_quarantine(
                pipeline.store, "r", IncomingBatch("notes.txt", [file]), [data.decode()]
            )
            assert moved
            assert (moved.reasons, waiting) == ([data.decode()], [])
    contents = [pipeline.store.get(stat.key) for stat in pipeline.store.list("quarantine/r/")]
    assert sorted(data.partition(b"\n")[0] for data in contents) == [b"first", b"first", b"second", b"second"]


def test_a_batch_replaced_while_it_was_checked_waits_for_the_next_run(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", GOOD_BATCH)
    run_step("ingest", RUN)
    newer = encode_npz(images=IMAGES[:50], labels=LABELS[:50])
    pipeline.store.put("incoming/a.npz", newer)
    assert count_training_images(run_step("validate_data", RUN)) == 1800
    assert pipeline.store.get("incoming/a.npz") == newer


def test_an_interrupted_quarantine_is_completed(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/notes.txt", b"hello")
    (batch,) = run_step("ingest", RUN).unreadable
    incoming.move_to_quarantine(pipeline.store, RUN.id, IncomingBatch(batch.name, batch.files), ["because"])
    assert len(run_step("validate_data", RUN).quarantined) == 1
    assert pipeline.store.get(f"quarantine/{RUN.id}/notes.txt") == b"hello"


def test_batches_never_extend_the_test_split(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", GOOD_BATCH)
    dataset = ingest_and_validate().dataset
    assert [image_set.images for image_set in dataset.image_sets if image_set.split == "test"] == [600]
    assert dataset.test.images == 600


def test_a_batch_with_another_label_dtype_is_accepted(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", encode_npz(images=IMAGES, labels=LABELS.astype(np.int64)))
    assert count_training_images(ingest_and_validate()) == 1800
