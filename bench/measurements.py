"""Measurements, each in a separate process: `python -m bench.measurements NAME [ARGUMENT]` prints one as JSON.

Each function imports its modules before its clock starts; imports at the top would count towards the memory of all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fmnist_tasks.memory import read_peak_memory

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


def parse_dag_file() -> float:
    """Seconds to parse `fmnist_retrain.py` in a process that has imported Airflow, like the dag-processor."""
    import runpy
    import sys

    import airflow.sdk  # noqa: F401 - the dag-processor has imported it

    sys.path.append("dags")  # as in the dag-processor
    seconds, _ = _measure_seconds(lambda: runpy.run_path("dags/fmnist_retrain.py"))
    return seconds


def ingest_and_check() -> dict[str, float]:
    """Time and peak memory of `ingest` and `validate_data` in a new run."""
    from fmnist_tasks.settings import Parameters
    from fmnist_tasks.steps import Run, run_step

    run = Run("bench", "2026-01-01T00:00:00+00:00", Parameters())
    ingest_seconds, _ = _measure_seconds(lambda: run_step("ingest", run))
    peak = read_peak_memory()  # each step resets it
    validate_seconds, _ = _measure_seconds(lambda: run_step("validate_data", run))
    return {"seconds": ingest_seconds + validate_seconds, "peak memory, MiB": max(peak, read_peak_memory())}


def release_candidate(run_id: str) -> dict[str, float]:
    """Seconds of the last three steps of a run with a candidate, and of loading its model, which two of them do."""
    import fmnist_tasks.evaluation.report  # noqa: F401 - `publish` renders the report
    from fmnist_tasks.model import h5, h5_process
    from fmnist_tasks.registry.blobs import get_verified
    from fmnist_tasks.registry.runs import read_record
    from fmnist_tasks.registry.stores import open_store
    from fmnist_tasks.schemas.runs import TunedModelResult, parse_result
    from fmnist_tasks.settings import Parameters, Settings
    from fmnist_tasks.steps import Run, run_step

    store = open_store(Settings.from_environment().store)
    ingestion, tuned = (read_record(store, run_id, name) for name in ("ingest", "fine_tune"))
    run = Run(run_id, ingestion.created, Parameters.from_mapping(ingestion.parameters))
    model = get_verified(store, parse_result(TunedModelResult, tuned, "fine_tune").candidate.model)
    seconds = {"model load": _measure_seconds(lambda: h5.load_model(model, "candidate"))[0]}
    h5_process.read_model.cache_clear()  # a task runs in a new process, without cached models
    for step in ("publish", "verify_release", "promote"):
        seconds[step], _ = _measure_seconds(partial(run_step, step, run))
    return seconds


def predict_with_and_without_ood() -> dict[str, float]:
    """Median milliseconds of the champion on one image and on 10,000, with and without OOD detection.

    The first tenth of the calls is a warm-up.
    """
    import numpy as np

    from fmnist_tasks.model import cnn, h5
    from fmnist_tasks.model.libraries import keras
    from fmnist_tasks.registry.stores import open_store
    from fmnist_tasks.serving.release import open_release, require_champion
    from fmnist_tasks.settings import Settings

    store = open_store(Settings.from_environment().store)
    with_ood = open_release(store, require_champion(store).version).model
    without_ood = keras.Model(with_ood.input, with_ood.get_layer(cnn.PROBABILITIES).output)
    images = np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), "uint8")

    def measure(count: int, images: np.ndarray) -> list[float]:
        milliseconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(count):
            # Alternately, since the speed of the machine may change.
            for model, times in zip((without_ood, with_ood), milliseconds, strict=True):
                times.append(_measure_seconds(partial(h5.predict_outputs, model, images))[0] * 1e3)
        return [statistics.median(times[count // 10 :]) for times in milliseconds]

    one, many = measure(2_000, images[:1]), measure(10, images)
    return {
        "one image without OOD detection, milliseconds": one[0],
        "one image with OOD detection, milliseconds": one[1],
        "10,000 images without OOD detection, milliseconds": many[0],
        "10,000 images with OOD detection, milliseconds": many[1],
    }


def load_page() -> dict[str, float]:
    """Milliseconds of the Releases page with 200 releases. First publishes 199 copies of the champion's release."""
    from fastapi.testclient import TestClient

    from fmnist_tasks.page.activity import Schedule
    from fmnist_tasks.page.app import Access, create_app
    from fmnist_tasks.registry import releases
    from fmnist_tasks.registry.stores import open_store
    from fmnist_tasks.schemas.releases import ReleaseFacts
    from fmnist_tasks.serving.release import open_release, require_champion
    from fmnist_tasks.settings import Settings

    store = open_store(Settings.from_environment().store)
    release = open_release(store, require_champion(store).version)
    facts = ReleaseFacts(**{name: getattr(release.manifest, name) for name in ReleaseFacts.model_fields})
    for number in range(1, 200):
        releases.publish_release(store, f"{release.manifest.version}-{number}", {"model.h5": b"a model"}, facts)
    schedule = Schedule(last_run_id=release.manifest.run_id, last_run_state="success")
    app = create_app(Access(lambda: None, lambda: "bench", lambda _: schedule))
    page = TestClient(app, headers={"accept": "text/html"})
    ahead, _ = _measure_seconds(app.state.read_ahead)
    first, *others = (_measure_seconds(lambda: page.get("/").raise_for_status()) for _ in range(21))
    return {
        "Releases page, 200 releases on MinIO, reading ahead, milliseconds": ahead * 1e3,
        "Releases page, 200 releases on MinIO, first response, milliseconds": first[0] * 1e3,
        "Releases page, 200 releases on MinIO, later responses, milliseconds": statistics.median(
            seconds * 1e3 for seconds, _ in others
        ),
        "Releases page, 200 releases, kB": len(first[1].content) / 1e3,
    }


def load_review() -> dict[str, float]:
    """Milliseconds of the Review view while 10,000 images wait. First accepts 100 batches with 100 of them each."""
    import numpy as np
    from fastapi.testclient import TestClient

    from fmnist_tasks.data.accepted_batches import accept_batch
    from fmnist_tasks.data.dataset import save_images
    from fmnist_tasks.data.image_checks import ImageFinding, KnownImage
    from fmnist_tasks.data.review import save_review_shards
    from fmnist_tasks.page.activity import Schedule
    from fmnist_tasks.page.app import Access, create_app
    from fmnist_tasks.registry.stores import open_store
    from fmnist_tasks.settings import Settings

    store = open_store(Settings.from_environment().store)
    random = np.random.default_rng(0)
    for number in range(100):
        images, labels = random.integers(0, 256, (100, 28, 28), np.uint8), random.integers(0, 10, 100)
        image_set = save_images(store, "train", f"incoming/{number}.npz", images, labels)
        findings = [
            ImageFinding(
                row, ("doubtful label: Shirt 97.1%, Coat 0.4%",), 6, KnownImage("training image 1", pixels, False)
            )
            for row, pixels in enumerate(images)
        ]
        accept_batch(store, image_set, image_set.blob.sha256, save_review_shards(store, images, labels, findings))
    app = create_app(Access(lambda: None, lambda: "bench", lambda _: Schedule()))
    app.state.read_ahead()
    page = TestClient(app)
    first, *others = (_measure_seconds(lambda: page.get("/review").raise_for_status()) for _ in range(21))
    assert "10,000 images waiting" in first[1].text
    return {
        "Review, 10,000 images wait in 100 batches on MinIO, first response, milliseconds": first[0] * 1e3,
        "Review, 10,000 images wait in 100 batches on MinIO, later responses, milliseconds": statistics.median(
            seconds * 1e3 for seconds, _ in others
        ),
        "Review, 10,000 images wait in 100 batches on MinIO, slowest later response, milliseconds": max(
            seconds * 1e3 for seconds, _ in others
        ),
    }


def find_champion() -> float:
    """Seconds to open the store and find the champion."""
    # Opening a store on a server imports these.
    import fmnist_tasks.registry.s3
    import fmnist_tasks.registry.s3_address  # noqa: F401
    from fmnist_tasks.registry.stores import open_store
    from fmnist_tasks.serving.release import require_champion
    from fmnist_tasks.settings import Settings

    seconds, _ = _measure_seconds(lambda: require_champion(open_store(Settings.from_environment().store)))
    return seconds


def train_one_epoch(dataset: str) -> dict[str, float]:
    """Speed and peak memory of one epoch and of fitting the OOD head; `dataset` is the path of a JSON description."""
    from dataclasses import replace

    from fmnist_tasks.data.dataset import load_splits
    from fmnist_tasks.model import cnn, training
    from fmnist_tasks.model.ood import detector
    from fmnist_tasks.registry.checkpoints import Checkpoints
    from fmnist_tasks.registry.stores import open_store
    from fmnist_tasks.schemas.data import Dataset
    from fmnist_tasks.settings import PROFILES, Settings

    store = open_store(Settings.from_environment().store)
    description = Dataset.model_validate_json(Path(dataset).read_text())
    clock = time.monotonic()
    arrays, quick, image_format = load_splits(store, description), PROFILES["quick"], description.image_format
    profile = replace(quick, base=replace(quick.base, epochs=1))
    fit = training.train_model(arrays, 10, image_format, profile, 0, Checkpoints(store, "bench", "base", {}))
    epoch = fit.curves.seconds[0]
    classifier = cnn.build_classifier(profile, 10, image_format, fit.model)
    exported = cnn.export_for_inference(profile, 10, image_format, classifier, 1.0)
    detector.add_ood_head(exported, arrays.training, description)
    return {
        "images": len(arrays.training),
        "windows": len(arrays.training.window_sizes),
        "epoch_seconds": epoch,
        "images_per_second": len(arrays.training) / epoch,
        "validation_accuracy": fit.curves.val_accuracy[0],
        "seconds": time.monotonic() - clock,
        "peak_mib": read_peak_memory(),
    }


def _measure_seconds(action: Callable[[], T]) -> tuple[float, T]:
    """Seconds that an action takes, and its result."""
    clock = time.perf_counter()
    result = action()
    return time.perf_counter() - clock, result


_MEASUREMENTS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        parse_dag_file,
        ingest_and_check,
        release_candidate,
        predict_with_and_without_ood,
        load_page,
        find_champion,
        load_review,
        train_one_epoch,
    )
}


def main() -> None:
    """Run one measurement, and print it."""
    parser = argparse.ArgumentParser(prog="python -m bench.measurements", description=__doc__)
    parser.add_argument("measurement", choices=_MEASUREMENTS)
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    print(json.dumps(_MEASUREMENTS[options.measurement](*options.arguments)))


if __name__ == "__main__":
    main()
