"""`make run` on the 60,000 real images, with its store in MinIO."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.settings import Settings
from tests.support.airflow_home import AirflowInstallation
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.integration

# A consumer without this project, only with NumPy and Keras.
PROGRAM = """
import gzip, json, sys
import keras, numpy
folder, model = sys.argv[1:]
read = lambda name, offset: numpy.frombuffer(gzip.open(f"{folder}/t10k-{name}-ubyte.gz").read(), "uint8", offset=offset)
images, labels = read("images-idx3", 16).reshape(-1, 28, 28, 1), read("labels-idx1", 8)
probabilities, _ = keras.models.load_model(model, compile=False).predict(images, batch_size=500, verbose=0)
assert not any(name.startswith("fmnist") for name in sys.modules)
print((probabilities.argmax(axis=1) == labels).mean())
"""


def test_quick_on_the_real_images_passes_the_gate_and_plain_keras_agrees(
    migrated_home: Path, tmp_path: Path, minio_server: MinioServer, minio_store: S3Store
) -> None:
    cache = Settings.from_environment().cache / "fashion-mnist"
    real = {
        "FMNIST_STORE": minio_server.build_uri(minio_store.bucket),
        "FMNIST_DATASET": "",
        "FMNIST_DATA_DIR": str(cache),
    }
    airflow = AirflowInstallation(migrated_home, Pipeline(tmp_path), real)
    code, output = airflow.run_dag()
    assert code == 0, output
    entry = require_champion(minio_store)
    assert re.search(rf"promote +done .*{entry.version} is the champion \(log entry 1\)", output)
    for row in (
        "validation accuracy, base model +9",
        "validation accuracy, tuned model +9",
        "test accuracy, base model +9",
        "test accuracy, candidate +9",
        "accuracy gate +passed",
        "promotion gate +promote",
        f"model +{minio_server.endpoint}/{minio_store.bucket}/releases/{entry.version}/model.h5",
    ):
        assert re.search(row, output), row
    manifest = open_release(minio_store, entry.version).manifest
    accuracy = manifest.metrics.test.accuracy
    assert manifest.metrics.test.images == 10_000
    assert accuracy >= 0.92
    assert manifest.metrics.base_test_accuracy >= 0.92
    (extra,) = airflow.query_database("select extra from asset_event")[-1]
    assert json.loads(extra)["accuracy"] == accuracy

    model = tmp_path / "model.h5"
    model.write_bytes(minio_store.get(manifest.files["model.h5"].uri))
    arguments = [sys.executable, "-c", PROGRAM, manifest.source, str(model)]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(result.stdout) == pytest.approx(accuracy, abs=1e-9)
