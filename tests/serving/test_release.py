"""Fetching a release: what is saved, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmnist_tasks.errors import AccessError, ConflictError, IntegrityError
from fmnist_tasks.registry import releases
from fmnist_tasks.registry.store import Store
from fmnist_tasks.serving.release import fetch_release
from tests.support.documents import make_facts
from tests.support.pipeline import Pipeline


def publish(store: Store, name: str = "figures/one.png") -> None:
    releases.publish_release(store, "v1", {"model.h5": b"a model", name: b"a figure"}, make_facts())


def test_a_release_is_saved_with_its_manifest(pipeline: Pipeline, tmp_path: Path) -> None:
    publish(pipeline.store)
    target = fetch_release(pipeline.store, "v1", tmp_path / "models")
    files = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    manifest = files.pop("manifest.json")
    assert files == {"model.h5": b"a model", "figures/one.png": b"a figure"}
    assert json.loads(manifest)["version"] == "v1"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["v1"]
    with pytest.raises(ConflictError, match="v1 exists already"):
        fetch_release(pipeline.store, "v1", tmp_path / "models")


def test_nothing_is_saved_of_a_damaged_release(pipeline: Pipeline, tmp_path: Path) -> None:
    publish(pipeline.store)
    pipeline.store.put("releases/v1/figures/one.png", b"another figure")
    with pytest.raises(IntegrityError, match=r"figures/one\.png"):
        fetch_release(pipeline.store, "v1", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_folder_that_cannot_be_written_is_named(pipeline: Pipeline, tmp_path: Path) -> None:
    publish(pipeline.store)
    (tmp_path / "file").touch()
    with pytest.raises(AccessError, match="file/v1 cannot be written"):
        fetch_release(pipeline.store, "v1", tmp_path / "file")
