"""Submitting batches, from a shell and on the page, and images that look inverted."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from fmnist_tasks.data import submission
from fmnist_tasks.data.image_files import looks_inverted
from fmnist_tasks.data.incoming import find_batches
from fmnist_tasks.data.submission import submit_paths
from fmnist_tasks.errors import ConflictError, DataError, SettingsError
from fmnist_tasks.page.activity import Schedule
from fmnist_tasks.page.app import Access, create_app
from fmnist_tasks.registry.store import read_clock
from fmnist_tasks.schemas.data import ImageFormat
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.synthetic import PROPERTIES, encode_idx, encode_npz

IMAGES, LABELS = synthetic.make_images(60, 5)
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}
OTHER_SITE = {"sec-fetch-site": "cross-site"}


def write_folder(folder: Path) -> Path:
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = folder / f"pattern {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def write_batches(folder: Path) -> list[Path]:
    (folder / "week.npz").write_bytes(encode_npz(images=IMAGES, labels=LABELS))
    (folder / "b-images-idx3-ubyte").write_bytes(encode_idx(IMAGES))
    (folder / "b-labels-idx1-ubyte").write_bytes(encode_idx(LABELS))
    write_folder(folder / "pictures")
    return [folder / name for name in ("b-labels-idx1-ubyte", "week.npz", "pictures", "b-images-idx3-ubyte")]


def test_files_pairs_and_folders_are_submitted(pipeline: Pipeline, tmp_path: Path) -> None:
    paths = write_batches(tmp_path)
    result = CliRunner().invoke(app, ["submit", *map(str, paths), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    batches = json.loads(result.stdout)
    assert [batch["keys"] for batch in batches] == [
        ["incoming/b-images-idx3-ubyte", "incoming/b-labels-idx1-ubyte"],
        ["incoming/pictures.zip"],
        ["incoming/week.npz"],
    ]
    assert all(batch["images"] == dict.fromkeys(PROPERTIES.classes, 6) for batch in batches)
    with zipfile.ZipFile(io.BytesIO(pipeline.store.get("incoming/pictures.zip"))) as archive:
        assert len(archive.namelist()) == 60


def test_nothing_is_submitted_unless_everything_can_be_read(pipeline: Pipeline, tmp_path: Path) -> None:
    paths = write_batches(tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"bad\.npz is not an \.npz file"):
        submit_paths(pipeline.store, PROPERTIES, [*paths, tmp_path / "bad.npz"])
    assert list(pipeline.store.list("incoming/")) == []
    (tmp_path / "bad-labels-idx1-ubyte").write_bytes(encode_idx(LABELS))
    with pytest.raises(DataError, match=r"^bad-labels-idx1-ubyte: an IDX pair is one file of images"):
        submit_paths(pipeline.store, PROPERTIES, [*paths, tmp_path / "bad-labels-idx1-ubyte"])
    (tmp_path / "bad.npz").write_bytes(encode_npz(images=IMAGES, labels=LABELS.astype(int) + 1))
    with pytest.raises(DataError, match=r"^bad\.npz: labels range from 1 to 10, expected 0 to 9"):
        submit_paths(pipeline.store, PROPERTIES, [*paths, tmp_path / "bad.npz"])
    assert list(pipeline.store.list("incoming/")) == []
    with pytest.raises(DataError, match="there is no such file or folder"):
        submit_paths(pipeline.store, PROPERTIES, [tmp_path / "gone.npz"])
    (tmp_path / ".hidden.npz").write_bytes((tmp_path / "week.npz").read_bytes())
    with pytest.raises(SettingsError, match=r"^'\.hidden\.npz' is not a valid name for a batch"):
        submit_paths(pipeline.store, PROPERTIES, [tmp_path / ".hidden.npz"])


def test_a_file_of_a_folder_that_cannot_be_read_is_named(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "new")
    (folder / "pattern 0" / "gone.png").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"new: pattern 0/gone\.png cannot be read"):
        submit_paths(pipeline.store, PROPERTIES, [folder])
    (folder / "pattern 0" / "gone.png").unlink()
    latin = os.fsencode(folder / "pattern 0") + b"/gr\xfcn.png"
    Path(os.fsdecode(latin)).write_bytes(b"x")
    (batch,) = submit_paths(pipeline.store, PROPERTIES, [folder])
    assert (sum(batch.images.values()), batch.unreadable) == (60, 1)


def test_a_batch_that_a_run_would_refuse_for_its_size_is_not_submitted(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "MAX_BYTES", 10_000)
    folder = write_folder(tmp_path / "new")
    write_batches(tmp_path)
    for path, subject in ((folder, "new: its images have"), (tmp_path / "week.npz", r"week\.npz has")):
        with pytest.raises(
            DataError, match=rf"{subject} more than the 10,000 bytes allowed; split the batch into several files"
        ):
            submit_paths(pipeline.store, PROPERTIES, [path])
    assert list(pipeline.store.list("incoming/")) == []


def test_three_files_are_no_idx_pair(pipeline: Pipeline, tmp_path: Path) -> None:
    paths = write_batches(tmp_path)[1:3]
    paths.append(tmp_path / "b-images-idx3-ubyte.gz")
    paths[-1].write_bytes(gzip.compress(paths[0].read_bytes()))
    with pytest.raises(DataError, match="an IDX pair is one file of images and one of labels"):
        submit_paths(pipeline.store, PROPERTIES, paths)


def test_an_idx_pair_of_colour_images_is_a_batch(pipeline: Pipeline, tmp_path: Path) -> None:
    image_format = PROPERTIES.image_format.model_copy(update={"channels": 3})
    dataset = PROPERTIES.model_copy(update={"image_format": image_format})
    paths = [tmp_path / "week-images-idx4-ubyte", tmp_path / "week-labels-idx1-ubyte"]
    for path, array in zip(paths, (np.stack([IMAGES] * 3, axis=3), LABELS), strict=True):
        path.write_bytes(encode_idx(array))
    (batch,) = submit_paths(pipeline.store, dataset, paths)
    assert batch.keys == [f"incoming/{path.name}" for path in paths]
    stats = pipeline.store.list("incoming/")
    (waiting,), _ = find_batches(stats, read_clock(pipeline.store), timedelta(0))
    assert waiting.keys == batch.keys


def test_a_file_that_waits_is_not_replaced(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "week.npz"
    path.write_bytes(encode_npz(images=IMAGES, labels=LABELS))
    submit_paths(pipeline.store, PROPERTIES, [path])
    with pytest.raises(
        ConflictError, match=r"^incoming/week\.npz is already waiting for the next run; rename your file"
    ):
        submit_paths(pipeline.store, PROPERTIES, [path])


def make_page(may_edit: object = lambda: "ann") -> TestClient:
    return TestClient(create_app(Access(lambda: None, may_edit, lambda _: Schedule())))  # type: ignore[arg-type]


def test_editors_upload_a_batch_on_the_page(pipeline: Pipeline) -> None:
    page, data = make_page(), encode_npz(images=IMAGES, labels=LABELS)
    assert "pattern 0, pattern 1" in page.get("/submit").text
    response = page.post("/submit?name=week 1.npz", content=data, headers=SAME_ORIGIN)
    assert response.json() == {"key": "incoming/week 1.npz"}
    assert pipeline.store.get("incoming/week 1.npz") == data
    assert page.post("/submit?name=week 1.npz", content=data, headers=SAME_ORIGIN).status_code == 409


@pytest.mark.parametrize("name", ["../week.npz", ".week.npz", "week.exe", "a/b.npz", "a\n.npz", "x" * 200 + ".npz"])
def test_other_names_are_refused(pipeline: Pipeline, name: str) -> None:
    response = make_page().post("/submit", params={"name": name}, content=b"x", headers=SAME_ORIGIN)
    assert response.status_code == 400
    assert "is not a valid name for a batch" in response.json()["detail"]
    assert list(pipeline.store.list("")) == []


def test_of_two_simultaneous_uploads_of_one_name_one_is_refused(pipeline: Pipeline) -> None:
    page = make_page()
    with ThreadPoolExecutor(2) as users:
        responses = list(
            users.map(
                lambda text: page.post("/submit?name=a.npz", content=text * 10**7, headers=SAME_ORIGIN), (b"a", b"b")
            )
        )
    assert sorted(response.status_code for response in responses) == [200, 409]
    accepted = next(text for text, response in zip((b"a", b"b"), responses, strict=True) if response.status_code == 200)
    assert pipeline.store.get("incoming/a.npz", 1 << 30) == accepted * 10**7


def test_viewers_and_other_sites_cannot_upload(pipeline: Pipeline) -> None:
    def refuse() -> None:
        raise HTTPException(403)

    assert make_page(refuse).post("/submit?name=a.npz", content=b"x", headers=SAME_ORIGIN).status_code == 403
    assert make_page().post("/submit?name=a.npz", content=b"x", headers=OTHER_SITE).status_code == 403
    assert list(pipeline.store.list("")) == []


def test_an_upload_has_a_size_limit(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from fmnist_tasks.page import security

    monkeypatch.setitem(security._MAX_BYTES, "submit", 100)
    assert make_page().post("/submit?name=a.npz", content=b"x" * 101, headers=SAME_ORIGIN).status_code == 413
    assert list(pipeline.store.list("")) == []


@pytest.mark.parametrize(("background", "inverted"), [(0, [False, True]), (255, [True, False]), (None, [False, False])])
def test_an_image_with_edges_unlike_the_background_looks_inverted(background: int | None, inverted: list[bool]) -> None:
    image = np.zeros((12, 12), np.uint8)
    image[3:9, 3:9] = 200
    image_format = ImageFormat(
        height=12, width=12, channels=1, horizontal_flip=True, upright=True, background=background
    )
    assert [looks_inverted(pixels, image_format) for pixels in (image, 255 - image)] == inverted


@pytest.mark.parametrize(
    ("seconds", "subject"), [("0", "The next run"), ("60", "A run that starts at least 60 seconds from now")]
)
def test_the_command_says_which_run_checks_the_batch(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: str, subject: str
) -> None:
    monkeypatch.setenv("FMNIST_SETTLE_SECONDS", seconds)
    images, labels = synthetic.make_images(20, 3)
    (tmp_path / "week.npz").write_bytes(synthetic.encode_npz(images=images, labels=labels))
    result = CliRunner().invoke(app, ["submit", str(tmp_path / "week.npz")])
    assert f"{subject} checks these batches: the scheduled one, or make run." in result.stdout
