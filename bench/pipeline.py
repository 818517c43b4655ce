"""`make bench`: time and memory of the pipeline on this machine, printed as a table.

Each value is measured in a separate process, in a temporary home. Runs of the whole DAG use the real images.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench.processes import run_command, run_module
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.runs import read_record, read_records
from fmnist_tasks.registry.stores import open_store
from fmnist_tasks.schemas.releases import Entry, Manifest
from fmnist_tasks.schemas.runs import BaseModelResult, StepRecord, TunedModelResult, ValidationResult, parse_result
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.settings import INCLUDE, PROJECT, Parameters, Settings
from tests.support import synthetic
from tests.support.finished_run import provide_finished_run
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline

MODULE = "bench.measurements"
_IMAGE_COUNTS = (70_000, 350_000, 700_000)  # a seventh of them are test images
_CHUNK_IMAGES = 10_000
_BATCH_COUNTS = (1, 10, 63)  # new ones, of `_CHUNK_IMAGES` images each
_DATASETS = 20  # declarations in one Airflow
_ENTRY_COUNTS = (1_000, 10_000, 100_000)  # of the champion log


def measure_run(seed: int, profile: str, minio_server: MinioServer) -> Iterator[tuple[str, float]]:
    """Yield measurements of a run of the DAG on the real images, in a temporary home with the project's dataset cache.

    Its records and blobs are copied to MinIO, and its candidate is published, verified and promoted there again.
    """
    with tempfile.TemporaryDirectory() as folder:
        project = Settings.from_environment()
        home = {"FMNIST_HOME": folder, "AIRFLOW_HOME": f"{folder}/airflow", "FMNIST_STORE": ""}
        home["FMNIST_DATA_DIR"] = str(project.cache / "fashion-mnist")
        run_command("airflow", "db", "migrate", **home)
        conf = {"profile": profile, "seed": seed}
        seconds, _ = run_command(str(PROJECT / "include" / "run"), json.dumps(conf), **home)
        store = open_store(Settings.from_environment(home).store)
        manifest = open_release(store, require_champion(store).version).manifest
        records = read_records(store, manifest.run_id)
        minio = minio_server.open_store(f"run-{seed}")
        for stat in (*store.list("runs/"), *store.list("blobs/")):
            minio.put(stat.key, store.get(stat.key))
        home["FMNIST_STORE"] = minio_server.build_uri(minio.bucket)
        home |= minio_server.credentials
        yield from _describe_run(manifest, records, seconds).items()
        release = run_module(MODULE, "release_candidate", manifest.run_id, **home)
        release_seconds = sum(release.values()) - 2 * release["model load"]
        yield "release on MinIO (publish, verify, promote), seconds", release_seconds
        for measurement in ("predict_with_and_without_ood", "load_page"):
            yield from run_module(MODULE, measurement, **home).items()


def _describe_run(manifest: Manifest, records: dict[str, StepRecord], seconds: float) -> dict[str, float]:
    """Return time and memory of the steps, and the metrics of the candidate."""
    base = parse_result(BaseModelResult, records["choose_base"], "choose_base")
    tuned = parse_result(TunedModelResult, records["fine_tune"], "fine_tune")
    training_seconds = sum(base.curves.seconds) + sum(tuned.curves.seconds)
    metrics = manifest.metrics
    return {
        "whole run, seconds": seconds,
        "training, seconds": training_seconds,
        "everything else, seconds": seconds - training_seconds,
        "peak memory, MiB": max(record.peak_memory_mb for record in records.values()),
        "validation accuracy, base": metrics.validation_accuracy.base,
        "validation accuracy, tuned": metrics.validation_accuracy.tuned,
        "test accuracy, base": metrics.base_test_accuracy,
        "test accuracy, candidate": metrics.test.accuracy,
        "temperature": manifest.temperature,
        "expected calibration error": metrics.calibration.error,
        "coverage at 99% accuracy, test images": metrics.selective_prediction.coverage,
        "share of test images accepted as in distribution": metrics.ood.accepted,
        **{
            f"{family}, {name}": getattr(row, key)
            for family, row in metrics.ood.families.items()
            for name, key in (("AUROC", "auroc"), ("FPR at 99% TPR", "fpr99"))
        },
    }


def measure_parsing(datasets: int) -> list[float]:
    """Measure the seconds to parse the file of `fmnist_retrain` with so many declarations in `FMNIST_DATASETS`."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(datasets):
            shutil.copy(INCLUDE / "datasets" / "fashion_mnist.toml", Path(folder) / f"dataset-{number}.toml")
        return [run_module(MODULE, "parse_dag_file", FMNIST_DATASETS=folder) for _ in range(5)]


def measure_synthetic_images(count: int) -> dict[str, float]:
    """Measure `ingest` and `validate_data` on `count` synthetic images."""
    with tempfile.TemporaryDirectory() as folder:
        chunks = [synthetic.make_images(_CHUNK_IMAGES, seed) for seed in range(count // _CHUNK_IMAGES)]
        images, labels = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
        test = count // 7
        declaration = synthetic.write_dataset(
            Path(folder),
            train_images=images[test:],
            train_labels=labels[test:],
            test_images=images[:test],
            test_labels=labels[:test],
        )
        home = {"FMNIST_HOME": folder, "FMNIST_STORE": "", "FMNIST_DATASET": str(declaration)}
        metrics: dict[str, float] = run_module(MODULE, "ingest_and_check", **home, FMNIST_DATA_DIR=folder)
    return metrics


def measure_new_batches(count: int) -> dict[str, float]:
    """Measure `ingest` and `validate_data` on so many new batches of synthetic images, which a champion checks."""
    with tempfile.TemporaryDirectory() as folder:
        home = shutil.copytree(provide_finished_run(), Path(folder) / "home")
        pipeline = Pipeline(home)
        for number in range(count):
            images, labels = synthetic.make_images(_CHUNK_IMAGES, 100 + number)
            pipeline.store.put(f"incoming/{number}.npz", synthetic.encode_npz(images=images, labels=labels))
        metrics: dict[str, float] = run_module(MODULE, "ingest_and_check", **pipeline.environment)
        validation = parse_result(
            ValidationResult, read_record(pipeline.store, "bench", "validate_data"), "validate_data"
        )
        if len(validation.accepted) != count:
            sys.exit(f"{validation.summary}: {validation.quarantined[:1] or validation.waiting[:1]}")
    return metrics


def measure_champion_log(minio_server: MinioServer) -> Iterator[tuple[int, list[float]]]:
    """Yield numbers of log entries, each with the seconds that it takes to find the champion on MinIO."""
    store = minio_server.open_store("champions")

    def write(number: int) -> None:
        entry = Entry(
            sequence=number,
            version=f"v{number}",
            action="promote",
            reason="bench",
            write_id=str(number),
            time="2026-01-01T00:00:00+00:00",
            actor="bench",
        )
        store.put(f"champion/{number:08d}.json", seal(entry.to_json()))

    home = {"FMNIST_STORE": minio_server.build_uri(store.bucket), **minio_server.credentials}
    written = 0
    for entries in _ENTRY_COUNTS:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(write, range(written + 1, entries + 1)))
        written = entries
        yield entries, [run_module(MODULE, "find_champion", **home) for _ in range(5)]


def main(
    runs: Annotated[int, typer.Option(min=1, help="Runs of the whole DAG, with seeds from 0.")] = 3,
    profile: Annotated[str, typer.Option(help="Profile of these runs.")] = Parameters().profile,
) -> None:
    """Measure and print the table; values are also printed as they are measured, since a later one may fail."""
    console = Console(width=110)
    versions = ", ".join(f"{name} {version(name)}" for name in ("apache-airflow", "tensorflow", "numpy"))
    console.print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {versions}")
    table = Table("measurement", "mean", "standard deviation", "lowest", "highest", "runs", box=None, pad_edge=False)

    def add_row(name: str, values: list[float]) -> None:
        is_share = max(values) <= 1 and "seconds" not in name
        digits = 4 if is_share else 3 if max(values) < 1 else 2 if max(values) < 100 else 0
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        cells = [f"{value:.{digits}f}" for value in (statistics.mean(values), spread, min(values), max(values))]
        table.add_row(name, *cells, str(len(values)))
        console.print(f"{name}: {', '.join(f'{value:.{digits}f}' for value in values)}")

    add_row("`make setup` with nothing to do, seconds", [run_command("include/setup")[0] for _ in range(5)])
    for datasets in (0, _DATASETS):
        seconds = measure_parsing(datasets)
        add_row(f"parsing the file of `fmnist_retrain` with {datasets} datasets besides the default, seconds", seconds)
    for count in _IMAGE_COUNTS:
        for name, value in measure_synthetic_images(count).items():
            add_row(f"`ingest` and `validate_data`, {count:,} images, {name}", [value])
    for count in _BATCH_COUNTS:
        for name, value in measure_new_batches(count).items():
            add_row(f"the same, {count} new batches of {_CHUNK_IMAGES:,} images, {name}", [value])
    with tempfile.TemporaryDirectory() as folder:
        minio_server = MinioServer(Path(folder) / "minio")
        minio_server.start()
        os.environ |= minio_server.credentials
        results: dict[str, list[float]] = {}
        try:
            for entries, seconds in measure_champion_log(minio_server):
                add_row(f"`fmnist champion` on MinIO with {entries:,} log entries, seconds", seconds)
            review = {"FMNIST_STORE": minio_server.build_uri("review"), "FMNIST_DATASET": ""}
            for name, value in run_module(MODULE, "load_review", **review, **minio_server.credentials).items():
                add_row(name, [value])
            for seed in range(runs):
                for name, value in measure_run(seed, profile, minio_server):
                    results.setdefault(name, []).append(value)
                    console.print(f"seed {seed}, {name}: {value}")
        finally:
            minio_server.stop()
    for name, values in results.items():
        add_row(f"{profile}: {name}", values)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
