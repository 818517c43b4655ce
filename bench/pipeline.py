"""`make bench`: time and memory of the line on this machine, printed as a table. Nothing here is a test.

Every figure is measured in processes of its own, on a temporary home; runs of the whole DAG use the real images.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from fmnist_tasks import service
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import PROJECT, Parameters, Settings
from tests.support import synthetic
from tests.support.minio_server import Server

_SYNTHETIC = (70_000, 350_000, 700_000)  # images, a seventh of them for testing
_CHUNK = 10_000
_ENTRIES = (1_000, 10_000, 100_000)  # of the champion log

# What the processes below do; each prints its measurements as one JSON document on the last line.
_PARSE = """
import json, runpy, sys, time
import airflow.sdk  # the dag-processor has it already
sys.path.append("dags")  # as that has it
clock = time.monotonic()
runpy.run_path("dags/fmnist_retrain.py")
print(json.dumps(time.monotonic() - clock))
"""
_INGEST_AND_CHECK = r"""
import json, re, time
from pathlib import Path
from fmnist_tasks import steps
from fmnist_tasks.settings import Parameters
clock = time.monotonic()
run = steps.Run("bench", "2026-01-01T00:00:00+00:00", Parameters())
steps.validate_data(run, steps.ingest(run))
seconds = time.monotonic() - clock
# Not the resource usage, which begins with what the process had that started this one.
kilobytes = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({"seconds": seconds, "peak memory, MiB": kilobytes / 1024}))
"""
_RELEASE = """
import json, time
from fmnist_tasks.cli import _run
from fmnist_tasks.evaluation import report
from fmnist_tasks.model import h5
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import Settings
from fmnist_tasks.steps import run_again
from fmnist_tasks.steps.step import result_of
store = open_store(Settings.from_environment().store)
run = _run(store, None)
seconds = {}
def timed(name, action):
    clock = time.monotonic()
    result = action()
    seconds[name] = time.monotonic() - clock
    return result
data = get_verified(store, result_of(store, run, "fine_tune")["candidate"]["model"])
timed("model load", lambda: h5.load(data, "candidate"))
for step in ("publish", "verify_release", "promote"):
    timed(step, lambda: run_again(step, run))
print(json.dumps(seconds))
"""
_DETECTION = """
import json, statistics, time
import keras, numpy
from fmnist_tasks import service
from fmnist_tasks.model import cnn, h5
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import Settings
store = open_store(Settings.from_environment().store)
whole = service.open_release(store, service.in_service(store).version).model
models = (keras.Model(whole.input, whole.get_layer(cnn.PROBABILITIES).output), whole)
images = numpy.random.default_rng(0).integers(0, 256, (10_000, 28, 28), "uint8")
def milliseconds(times, images):
    taken = ([], [])
    for _ in range(times):
        for model, kept in zip(models, taken):  # by turns: the machine's speed may change
            clock = time.perf_counter()
            h5.outputs(model, images)
            kept.append((time.perf_counter() - clock) * 1e3)
    return [statistics.median(kept[times // 10:]) for kept in taken]
alone, detecting = milliseconds(2_000, images[:1])
batches, detecting_batches = milliseconds(10, images)
print(json.dumps({
    "one image without detection, milliseconds": alone,
    "one image with detection, milliseconds": detecting,
    "10,000 images without detection, milliseconds": batches,
    "10,000 images with detection, milliseconds": detecting_batches,
}))
"""
_PAGE = """
import json, statistics, time
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
clock = time.perf_counter()
app.state.read_ahead()
ahead = (time.perf_counter() - clock) * 1e3
milliseconds = []
for _ in range(21):
    clock = time.perf_counter()
    answer = page.get("/")
    milliseconds.append((time.perf_counter() - clock) * 1e3)
    assert answer.status_code == 200
first, *others = milliseconds
print(json.dumps({
    "page with 200 releases on MinIO, read ahead, milliseconds": ahead,
    "page with 200 releases on MinIO, first answer, milliseconds": first,
    "page with 200 releases on MinIO, later answers, milliseconds": statistics.median(others),
    "page with 200 releases, kB": len(answer.content) / 1e3,
}))
"""
_CHAMPION = """
import json, time
from fmnist_tasks import service
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import Settings
import fmnist_tasks.registry.s3, fmnist_tasks.registry.access
clock = time.monotonic()
service.in_service(open_store(Settings.from_environment().store))
print(json.dumps(time.monotonic() - clock))
"""


def measured(*command: str, **environment: str) -> tuple[float, str]:
    """Seconds and standard output of a command that must succeed."""
    clock = time.monotonic()
    process = subprocess.Popen(
        command, cwd=PROJECT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed:\n{output[-3000:]}\n{errors[-3000:]}")
    return time.monotonic() - clock, output


def whole_run(seed: int, profile: str, server: Server) -> dict[str, float]:
    """One run of the DAG on the real images, in a home of its own but with the project's dataset cache.

    What it left is copied to MinIO, where its candidate is published, verified and promoted once more.
    """
    with tempfile.TemporaryDirectory() as folder:
        project = Settings.from_environment()
        home = {"FMNIST_HOME": folder, "AIRFLOW_HOME": f"{folder}/airflow", "FMNIST_STORE": ""}
        home["FMNIST_DATA_DIR"] = str(project.cache / "fashion-mnist")
        measured("airflow", "db", "migrate", **home)
        conf = {"profile": profile, "seed": seed}
        seconds, _ = measured(str(PROJECT / "include" / "run"), json.dumps(conf), **home)
        store = open_store(Settings.from_environment(home).store)
        manifest = service.open_release(store, service.in_service(store).version).manifest
        records = read_records(store, manifest["run_id"])
        minio = server.store(f"run-{seed}")
        for stat in (*store.list("runs/"), *store.list("blobs/")):
            minio.put(stat.key, store.get(stat.key))
        home["FMNIST_STORE"] = server.uri(minio.bucket)
        release, detection, page = (
            _printed(measured(sys.executable, "-c", program, **home, **server.credentials)[1])
            for program in (_RELEASE, _DETECTION, _PAGE)
        )
    figures = manifest["figures"]
    fitting = sum(sum(records[name]["result"]["curves"]["seconds"]) for name in ("choose_base", "fine_tune"))
    return {
        "whole run, seconds": seconds,
        "fitting, seconds": fitting,
        "everything else, seconds": seconds - fitting,
        "peak memory, MiB": max(record["peak_memory_mb"] for record in records.values()),
        "release on MinIO (publish, verify, promote), seconds": sum(release.values()) - 2 * release["model load"],
        **detection,
        **page,
        "validation accuracy, base": figures["validation_accuracy"]["base"],
        "validation accuracy, tuned": figures["validation_accuracy"]["tuned"],
        "test accuracy, base": figures["base_test_accuracy"],
        "test accuracy, candidate": figures["test"]["accuracy"],
        "temperature": figures["calibration"]["temperature"],
        "expected calibration error": figures["calibration"]["error"],
        "share of test images answered at 99 % accuracy": figures["abstention"]["coverage"],
        "share of test images let through as clothing": figures["novelty"]["real_let_through"],
        **{
            f"{family}, {name}": row[key]
            for family, row in figures["novelty"]["families"].items()
            for name, key in (("AUROC", "auroc"), ("FPR95", "fpr95"))
        },
    }


def synthetic(count: int) -> dict[str, float]:
    """Ingest and checks of that many made images."""
    with tempfile.TemporaryDirectory() as folder:
        chunks = [synthetic.images(_CHUNK, seed) for seed in range(count // _CHUNK)]
        images, labels = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
        test = count // 7
        arrays = {"train_images": images[test:], "train_labels": labels[test:]}
        arrays |= {"test_images": images[:test], "test_labels": labels[:test]}
        declaration = synthetic.declare(Path(folder), **arrays)
        home = {"FMNIST_HOME": folder, "FMNIST_STORE": "", "FMNIST_DATASET": str(declaration)}
        _, output = measured(sys.executable, "-c", _INGEST_AND_CHECK, **home, FMNIST_DATA_DIR=folder)
    figures: dict[str, float] = _printed(output)
    return figures


def champion_log(server: Server) -> dict[int, list[float]]:
    """Seconds to find the champion in MinIO, by the number of entries in the log."""
    store = server.store("champions")

    def write(number: int) -> None:
        entry = champion.Entry(number, f"v{number}", "promote", "bench", str(number), "2026-01-01T00:00:00+00:00")
        store.put(f"champion/{number:08d}.json", seal(entry.as_json()))

    home = {"FMNIST_STORE": server.uri(store.bucket), **server.credentials}
    seconds, written = {}, 0
    for entries in _ENTRIES:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(write, range(written + 1, entries + 1)))
        written = entries
        seconds[entries] = [_printed(measured(sys.executable, "-c", _CHAMPION, **home)[1]) for _ in range(5)]
    return seconds


def main(
    runs: Annotated[int, typer.Option(min=1, help="Runs of the whole DAG, each with a seed of its own.")] = 3,
    profile: Annotated[str, typer.Option(help="Their profile.")] = Parameters().profile,
) -> None:
    """Measure and print."""
    console = Console(width=110)
    versions = ", ".join(f"{name} {version(name)}" for name in ("apache-airflow", "tensorflow", "numpy"))
    console.print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {versions}")
    table = Table("what", "mean", "standard deviation", "least", "most", "runs", box=None, pad_edge=False)

    def row(what: str, values: list[float]) -> None:
        share = max(values) <= 1 and "seconds" not in what
        digits = 4 if share else 3 if max(values) < 1 else 2 if max(values) < 100 else 0
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        figures = [f"{value:.{digits}f}" for value in (statistics.mean(values), spread, min(values), max(values))]
        table.add_row(what, *figures, str(len(values)))

    row("set-up when all is done, seconds", [measured("include/setup")[0] for _ in range(5)])
    row("parsing the DAG file, seconds", [_printed(measured(sys.executable, "-c", _PARSE)[1]) for _ in range(5)])
    for count in _SYNTHETIC:
        for what, value in synthetic(count).items():
            row(f"ingest and checks of {count:,} images, {what}", [value])
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "minio")
        server.start()
        os.environ |= server.credentials
        try:
            for entries, seconds in champion_log(server).items():
                row(f"`fmnist champion` on MinIO with {entries:,} entries, seconds", seconds)
            results = [whole_run(seed, profile, server) for seed in range(runs)]
        finally:
            server.stop()
    for what in results[0]:
        row(f"{profile}: {what}", [result[what] for result in results])
    console.print(table)


def _printed(output: str) -> Any:
    return json.loads(output.splitlines()[-1])


if __name__ == "__main__":
    typer.run(main)
