"""Measurements that need a process of their own: `python -m bench.probes NAME [ARGUMENT]` prints one as JSON.

Each function imports what it needs before its clock starts; imports at the top would count towards the memory of each.
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
    """Seconds to parse the DAG file in a process that has imported Airflow, as the dag-processor has."""
    import runpy
    import sys

    import airflow.sdk  # noqa: F401 - the dag-processor has it

    sys.path.append("dags")  # as the dag-processor has it
    seconds, _ = _measure_seconds(lambda: runpy.run_path("dags/fmnist_retrain.py"))
    return seconds


def ingest_and_check() -> dict[str, float]:
    """Time and peak memory of the steps `ingest` and `validate_data` of a new run."""
    from fmnist_tasks import steps
    from fmnist_tasks.settings import Parameters

    run = steps.Run("bench", "2026-01-01T00:00:00+00:00", Parameters())
    ingesting, ingested = _measure_seconds(lambda: steps.ingest(run))
    peak = read_peak_memory()  # which each step begins anew
    validating, _ = _measure_seconds(lambda: steps.validate_data(run, ingested))
    return {"seconds": ingesting + validating, "peak memory, MiB": max(peak, read_peak_memory())}


def release_candidate(run_id: str) -> dict[str, float]:
    """Seconds of the last three steps of a run that has a candidate, and of loading a model, which two of them do."""
    import fmnist_tasks.evaluation.report  # noqa: F401 - every step renders a report
    from fmnist_tasks.model import h5, h5_process
    from fmnist_tasks.registry.blobs import get_verified
    from fmnist_tasks.registry.runs import read_record
    from fmnist_tasks.registry.store import open_store
    from fmnist_tasks.settings import Parameters, Settings
    from fmnist_tasks.steps import Run, run_again

    store = open_store(Settings.from_environment().store)
    begun, tuned = (read_record(store, run_id, name) for name in ("ingest", "fine_tune"))
    run = Run(run_id, begun["created"], Parameters.from_mapping(begun["parameters"]))
    model = get_verified(store, tuned["result"]["candidate"]["model"])
    seconds = {"model load": _measure_seconds(lambda: h5.load(model, "candidate"))[0]}
    h5_process.read.cache_clear()  # a task, which has a process of its own, remembers no model
    for step in ("publish", "verify_release", "promote"):
        seconds[step], _ = _measure_seconds(partial(run_again, step, run))
    return seconds


def predict_with_and_without_ood() -> dict[str, float]:
    """Median milliseconds of the champion on one image and on 10,000, with and without out-of-distribution detection.

    The first tenth of the calls warms up.
    """
    import keras
    import numpy as np

    from fmnist_tasks import service
    from fmnist_tasks.model import cnn, h5
    from fmnist_tasks.registry.store import open_store
    from fmnist_tasks.settings import Settings

    store = open_store(Settings.from_environment().store)
    detecting = service.open_release(store, service.in_service(store).version).model
    alone = keras.Model(detecting.input, detecting.get_layer(cnn.PROBABILITIES).output)
    images = np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), "uint8")

    def measure(count: int, images: np.ndarray) -> list[float]:
        milliseconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(count):
            for model, taken in zip((alone, detecting), milliseconds, strict=True):  # by turns: speed may change
                taken.append(_measure_seconds(partial(h5.outputs, model, images))[0] * 1e3)
        return [statistics.median(taken[count // 10 :]) for taken in milliseconds]

    one, many = measure(2_000, images[:1]), measure(10, images)
    return {
        "one image without OOD detection, milliseconds": one[0],
        "one image with OOD detection, milliseconds": one[1],
        "10,000 images without OOD detection, milliseconds": many[0],
        "10,000 images with OOD detection, milliseconds": many[1],
    }


def load_page() -> dict[str, float]:
    """Milliseconds of the registry page with 200 releases, published beside the champion first."""
    from fastapi.testclient import TestClient

    from fmnist_tasks import service
    from fmnist_tasks.page.app import create_app
    from fmnist_tasks.registry import releases
    from fmnist_tasks.registry.store import open_store
    from fmnist_tasks.settings import Settings

    store = open_store(Settings.from_environment().store)
    release = service.open_release(store, service.in_service(store).version)
    facts = {name: value for name, value in release.manifest.items() if name not in {"files", "version"}}
    for number in range(1, 200):
        releases.publish(store, f"{release.manifest['version']}-{number}", {"model_card.md": b"a card"}, facts)
    app = create_app(signed_in=lambda: None, may_edit=lambda: "bench")
    page = TestClient(app, headers={"accept": "text/html"})
    ahead, _ = _measure_seconds(app.state.read_ahead)
    first, *others = (_measure_seconds(lambda: page.get("/").raise_for_status()) for _ in range(21))
    return {
        "page with 200 releases on MinIO, read ahead, milliseconds": ahead * 1e3,
        "page with 200 releases on MinIO, first answer, milliseconds": first[0] * 1e3,
        "page with 200 releases on MinIO, later answers, milliseconds": statistics.median(
            seconds * 1e3 for seconds, _ in others
        ),
        "page with 200 releases, kB": len(first[1].content) / 1e3,
    }


def find_champion() -> float:
    """Seconds to find the champion, from opening the store on."""
    # A store opens with these only when it is one on a server.
    import fmnist_tasks.registry.access
    import fmnist_tasks.registry.s3  # noqa: F401
    from fmnist_tasks import service
    from fmnist_tasks.registry.store import open_store
    from fmnist_tasks.settings import Settings

    seconds, _ = _measure_seconds(lambda: service.in_service(open_store(Settings.from_environment().store)))
    return seconds


def train_one_epoch(dataset: str) -> dict[str, float]:
    """Speed and peak memory of one epoch, and of fitting the OOD head, on a dataset described by a JSON file."""
    from dataclasses import replace

    from fmnist_tasks.data.dataset import load
    from fmnist_tasks.model import cnn, novelty, training
    from fmnist_tasks.registry.checkpoints import Checkpoints
    from fmnist_tasks.registry.store import open_store
    from fmnist_tasks.settings import PROFILES, Settings

    store, described = open_store(Settings.from_environment().store), json.loads(Path(dataset).read_text())
    clock = time.monotonic()
    arrays, quick = load(store, described), PROFILES["quick"]
    profile = replace(quick, base=replace(quick.base, epochs=1))
    fit = training.train(arrays, 10, profile, 0, Checkpoints(store, "bench", "base", {}))
    epoch = fit.curves["seconds"][0]
    classifier = cnn.trained(profile, 10, fit.model)
    novelty.publishable(cnn.published(profile, 10, classifier, 1.0), arrays.training)
    return {
        "images": len(arrays.training),
        "windows": len(arrays.training.sizes),
        "epoch_seconds": epoch,
        "images_per_second": len(arrays.training) / epoch,
        "validation_accuracy": fit.curves["val_accuracy"][0],
        "seconds": time.monotonic() - clock,
        "peak_mib": read_peak_memory(),
    }


def _measure_seconds(action: Callable[[], T]) -> tuple[float, T]:
    """Seconds that an action takes, and its result."""
    clock = time.perf_counter()
    result = action()
    return time.perf_counter() - clock, result


_PROBES: dict[str, Callable[..., Any]] = {
    probe.__name__: probe
    for probe in (
        parse_dag_file,
        ingest_and_check,
        release_candidate,
        predict_with_and_without_ood,
        load_page,
        find_champion,
        train_one_epoch,
    )
}


def main() -> None:
    """Measure once, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.probes", description=__doc__)
    parser.add_argument("probe", choices=_PROBES)
    parser.add_argument("arguments", nargs="*")
    chosen = parser.parse_args()
    print(json.dumps(_PROBES[chosen.probe](*chosen.arguments)))


if __name__ == "__main__":
    main()
