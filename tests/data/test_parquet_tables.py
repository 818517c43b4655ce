"""Parquet files with encoded images, and how damaged and hostile ones are refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fmnist_tasks.data import parquet_structure
from fmnist_tasks.data.batch_files import read_files
from fmnist_tasks.data.labelled_sources import read_source
from fmnist_tasks.data.parquet_tables import read_parquet
from fmnist_tasks.errors import DataError
from tests.support import synthetic
from tests.support.synthetic import PROPERTIES

IMAGES, LABELS = synthetic.make_images(100, 6)


def encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def encode_parquet(images: pa.Array, labels: pa.Array, names: list[str] | None = None, column: str = "image") -> bytes:
    table = pa.table({column: images, "label": labels})
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


PICTURES = pa.array([{"bytes": encode_png(image), "path": None} for image in IMAGES])
INDICES = pa.array(LABELS.astype(np.int64))
HUGGING_FACE = encode_parquet(PICTURES, INDICES, PROPERTIES.classes)
FORMS = {
    "indices": HUGGING_FACE,
    "names": encode_parquet(PICTURES, pa.array([PROPERTIES.classes[label] for label in LABELS])),
    "plain bytes": encode_parquet(
        pa.array([encode_png(image) for image in IMAGES]), INDICES, PROPERTIES.classes, column="img"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form: str) -> None:
    content = read_files({"week.parquet": io.BytesIO(FORMS[form])}, PROPERTIES)
    np.testing.assert_array_equal(content.images, IMAGES)
    np.testing.assert_array_equal(content.labels, LABELS)


def test_a_folder_has_a_file_for_each_split(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        (tmp_path / name).write_bytes(HUGGING_FACE)
    source = read_source(tmp_path)
    assert {split: len(part.images) for split, part in source.splits.items()} == {"train": 100, "test": 100}
    assert source.classes == PROPERTIES.classes
    (tmp_path / "other.parquet").write_bytes(HUGGING_FACE)
    with pytest.raises(DataError, match="some Parquet files are not named after a split"):
        read_source(tmp_path)


def test_a_row_without_an_image_is_left_out() -> None:
    data = encode_parquet(pa.array([{"bytes": None, "path": "gone.png"}, *PICTURES.to_pylist()[1:]]), INDICES)
    images = read_parquet(io.BytesIO(data), "a.parquet")
    assert (images[0].name, images[0].read(), len(images[1].read()) > 0) == ("a.parquet, row 1", b"", True)


BAD_FILES = {
    "empty": (b"", "is not a Parquet file"),
    "text": (b"hello" * 100, "is not a Parquet file"),
    "truncated": (HUGGING_FACE[:-20], "is not a Parquet file"),
    "other columns": (encode_parquet(PICTURES, INDICES, column="picture"), "none of them 'image'"),
    "no rows": (encode_parquet(PICTURES[:0], INDICES[:0]), "has no rows"),
    "no label": (encode_parquet(PICTURES, pa.array([None] * 100, pa.int64())), "has a row without a label"),
    "many names": (encode_parquet(PICTURES, INDICES, [str(n) for n in range(300)]), "it names 300 classes; the limit"),
    "negative": (encode_parquet(PICTURES, pa.array([-1] * 100)), "has the label -1; class indices must start at 0"),
    "wrong label": (
        encode_parquet(PICTURES, pa.array([70] * 100), PROPERTIES.classes),
        "has the label 70, but names 10",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_other_files_are_refused_with_a_reason(name: str) -> None:
    data, reason = BAD_FILES[name]
    with pytest.raises(DataError, match=r"^a\.parquet:? ") as refusal:
        read_files({"a.parquet": io.BytesIO(data)}, PROPERTIES)
    assert reason in str(refusal.value)


def test_a_damaged_image_is_left_out() -> None:
    """Parquet files usually have no checksums; those of the PNG files remain."""
    data = HUGGING_FACE[:2000] + bytes(500) + HUGGING_FACE[2500:]
    content = read_files({"a.parquet": io.BytesIO(data)}, PROPERTIES)
    assert content.unreadable
    assert len(content.images) == 100 - content.unreadable


def test_a_small_file_with_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_structure, "MAX_OUTPUT", 1 << 20)
    zeros = encode_parquet(pa.array([bytes(1 << 18)] * 8), pa.array([0] * 8))
    assert len(zeros) < 1 << 19
    header, images = parquet_structure.read_structure(io.BytesIO(zeros))
    assert "has more than 1,048,576 bytes of images" in header["fault"]
    assert images == []
