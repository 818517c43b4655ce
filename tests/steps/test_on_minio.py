"""A finished run on MinIO: the rights of each user, changed bytes, and a consumer without this project."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import minio as client
import pytest
from PIL import Image
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from fmnist_tasks.data.dataset import load_splits
from fmnist_tasks.errors import AccessError, IntegrityError
from fmnist_tasks.registry import champion, pruning, releases
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.store import Store, read_clock
from fmnist_tasks.registry.stores import open_store
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.settings import Settings
from fmnist_tasks.steps import run_step
from tests.support import synthetic
from tests.support.minio_server import MinioServer
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration


def act_as(monkeypatch: pytest.MonkeyPatch, user: dict[str, str]) -> Store:
    """Use the credentials of this user from now on; return the store."""
    for name, value in user.items():
        monkeypatch.setenv(name, value)
    return open_store(Settings.from_environment().store)


def run_fmnist(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_reader_can_only_read(
    minio_server: MinioServer, finished_minio_store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = require_champion(finished_minio_store).version
    store = act_as(monkeypatch, minio_server.create_user("reader", finished_minio_store.bucket))
    picture = tmp_path / "garment.png"
    Image.fromarray(synthetic.make_images(1, 5)[0][0]).save(picture)
    assert version in run_fmnist("champion")
    assert version in run_fmnist("history")
    assert version in run_fmnist("history", "--at", "2999-01-01")
    assert version in run_fmnist("releases")
    assert json.loads(run_fmnist("predict", str(picture), "--json"))[0]["release"] == version
    assert json.loads(run_fmnist("verify", version, "--json"))["intact"] is True
    writes = (
        lambda: store.put("incoming/x.npz", b"x"),
        lambda: store.put_if_absent("champion/00000002.json", b"x"),
        lambda: store.delete("champion/00000001.json"),
    )
    for write in writes:
        with pytest.raises(AccessError, match="does not allow it"):
            write()


def test_a_publisher_can_run_the_pipeline_and_cannot_delete_releases(
    minio_server: MinioServer, finished_minio_store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = require_champion(finished_minio_store).version
    for stat in list(finished_minio_store.list("releases/")) + list(finished_minio_store.list("champion")):
        finished_minio_store.delete(stat.key)
    finished_minio_store.put("incoming/bad.npz", b"not a batch")
    store = act_as(monkeypatch, minio_server.create_user("publisher", finished_minio_store.bucket))
    for step in ("ingest", "validate_data", "publish", "verify_release", "promote"):
        run_step(step, RUN)
    assert require_champion(store).version == version
    assert [stat.key for stat in store.list("incoming/")] == []
    assert store.stat(f"quarantine/{RUN.id}/bad.npz")
    for key in (f"releases/{version}/manifest.json", "champion/00000001.json"):
        with pytest.raises(AccessError, match="does not allow it"):
            store.delete(key)


def test_a_pruner_can_delete_old_objects_and_write_only_its_marker(
    minio_server: MinioServer,
    finished_minio_store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = ["releases/20200101T000000Z-0ld/model.h5", "predictions/old/summary.json", "alerts/delivered/old.json"]
    old += [f"blobs/sha256/{'0' * 64}", "checkpoints/old/base-0/000001", "runs/old/report.html"]
    for key in old:
        finished_minio_store.put(key, b"old")
    act_as(monkeypatch, minio_server.create_user("pruner", finished_minio_store.bucket))
    options = ["prune", "--keep", "1", "--older-than", "30"]
    assert "nothing to delete" in run_fmnist(*options)
    # Objects have the server's time; instead of changing it, set the store's clock ahead.
    monkeypatch.setattr(pruning, "read_clock", lambda store: read_clock(store) + timedelta(days=60))
    keys = [stat.key for stat in finished_minio_store.list("") if not stat.key.startswith("alerts/delivered/")]
    expected = {key for key in keys if key not in old}
    assert "were deleted" in run_fmnist(*options)
    assert {stat.key for stat in finished_minio_store.list("")} == expected
    assert "earlier versions are not kept" not in caplog.text
    store = open_store(Settings.from_environment().store)
    for write in (
        lambda: store.put("blobs/x", b""),
        lambda: store.put("runs/x/ingest.json", b""),
        lambda: store.delete("champion/00000001.json"),
        lambda: store.delete("incoming/x.npz"),
        lambda: store.delete("alerts/mail/x.json"),
    ):
        with pytest.raises(AccessError, match="does not allow it"):
            write()


@pytest.mark.parametrize("name", ["model", "manifest", "dataset", "log entry"])
def test_every_changed_byte_is_refused_before_keras_loads_the_model(
    finished_minio_store: S3Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """50 changes of each object, 200 in all."""
    version = require_champion(finished_minio_store).version
    manifest = releases.read_manifest(finished_minio_store, version)
    key = {
        "model": manifest.files["model.h5"].uri,
        "manifest": f"releases/{version}/manifest.json",
        "dataset": manifest.dataset.base.blob.uri,
        "log entry": "champion/00000001.json",
    }[name]
    loaded: list[object] = []
    monkeypatch.setattr("fmnist_tasks.model.h5.load_model", lambda *arguments: loaded.append(arguments))
    intact = finished_minio_store.get(key)
    generator = random.Random(name)  # noqa: S311
    for _ in range(50):
        position, change = generator.randrange(len(intact)), generator.randrange(1, 256)
        changed = intact[:position] + bytes([intact[position] ^ change]) + intact[position + 1 :]
        finished_minio_store.put(key, changed)
        with pytest.raises(IntegrityError, match=key):
            read_all(finished_minio_store)
    assert loaded == []
    finished_minio_store.put(key, intact)
    read_all(finished_minio_store)
    assert len(loaded) == 1


def read_all(store: Store) -> None:
    """Read what training or a prediction reads: log, manifest, dataset, and last the model."""
    entry = champion.find_champion(store)
    assert entry
    manifest = releases.read_manifest(store, entry.version)
    load_splits(store, manifest.dataset)
    open_release(store, entry.version)


def test_a_consumer_without_this_project_needs_a_client_and_keras(
    minio_server: MinioServer, finished_minio_store: S3Store, tmp_path: Path
) -> None:
    entry = require_champion(finished_minio_store)
    reader = minio_server.create_user("reader", finished_minio_store.bucket)
    path = tmp_path / "model.h5"
    minio_client = client.Minio(f"127.0.0.1:{minio_server.port}", *reader.values(), secure=False)
    minio_client.fget_object(finished_minio_store.bucket, f"releases/{entry.version}/model.h5", str(path))
    program = """
import sys, keras, numpy
model = keras.models.load_model(sys.argv[1], compile=False)
probabilities, ood_score = model.predict(numpy.zeros((2, 28, 28, 1), "uint8"), verbose=0)
assert not any(name.startswith("fmnist") for name in sys.modules)
print(probabilities.shape)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "(2, 10)"
