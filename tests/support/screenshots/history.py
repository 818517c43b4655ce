"""Twelve weeks of the pipeline: new images every week, a batch with wrong labels, a rejected run, and a rollback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tasks.data.declaration import read_declaration
from fmnist_tasks.data.sources import load_base
from fmnist_tasks.registry.champion import list_entries
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.serving.release import require_champion
from fmnist_tasks.settings import DAG_ID, INCLUDE, PROJECT, Settings, name_dag
from tests.support.airflow_home import AirflowInstallation
from tests.support.own_datasets import write_digits
from tests.support.synthetic import encode_idx

WEEKS = 12
FIRST_IMAGES = 12_000  # of the training images; the others arrive in weekly batches
BATCH_IMAGES = 4_350
FIRST_POLICY = {  # while there are few images
    "accuracy": {"min": 0.88},
    "calibration": {"max_error": 0.03},
    "ood": {"families": {name: {"max_fpr99": 0.06} for name in ("photo textures", "digits", "upside down")}},
}
RAISED_WEEK = 8  # from this week on, the thresholds are those of the policy file
WRONG_LABELS_WEEK, ROLLBACK_WEEK = 4, 9
LONGER_WEEK = 10  # trained with `standard`; the last week's model, with `quick`, does not replace it
WEEK = "tests.support.screenshots.week"
REASON = "support reports coats classified as pullovers since Monday"


@dataclass(frozen=True)
class Images:
    """The real dataset."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def read_images() -> Images:
    """Read the real dataset from where `make run` finds it."""
    declaration = read_declaration(INCLUDE / "datasets" / "fashion_mnist.toml")
    arrays, _ = load_base(declaration, Settings.from_environment())
    return Images((arrays["train_images"], arrays["train_labels"]), (arrays["test_images"], arrays["test_labels"]))


def write_first_dataset(folder: Path, images: Images, count: int = FIRST_IMAGES) -> None:
    """Write the test split, the first `count` training images, and their declaration, as `dataset.toml`."""
    declared = (INCLUDE / "datasets" / "fashion_mnist.toml").read_text()
    head = declared[: declared.index("[files.")].splitlines()
    lines = [line for line in head if not line.startswith(("url =", "debian_package =", "images ="))]
    folder.mkdir(parents=True)
    for role, array in (
        ("train_images", images.train[0][:count]),
        ("train_labels", images.train[1][:count]),
        ("test_images", images.test[0]),
        ("test_labels", images.test[1]),
    ):
        content = encode_idx(array)
        (folder / role).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        lines += [f"[files.{role}]", f'name = "{role}"', f"bytes = {len(content)}", f'sha256 = "{digest}"']
    (folder / "dataset.toml").write_text("\n".join(lines))


def write_batch(incoming: Path, images: Images, week: int) -> None:
    """Put the images of a week into `incoming/`; in one week, shirts and coats are confused."""
    first = FIRST_IMAGES + (week - 1) * BATCH_IMAGES
    pixels, labels = (array[first : first + BATCH_IMAGES].copy() for array in images.train)
    if week == WRONG_LABELS_WEEK:
        labels = np.where(labels == 4, 6, np.where(labels == 6, 4, labels)).astype(np.uint8)
    incoming.mkdir(exist_ok=True)
    np.savez(incoming / f"shop-week-{week:02}.npz", images=pixels, labels=labels)


def list_mondays() -> list[datetime]:
    """The times of the runs, the newest last: Mondays at 02:00 UTC, all past."""
    now = datetime.now(UTC)
    last = (now - timedelta(days=now.weekday())).replace(hour=2, minute=0, second=0, microsecond=0)
    last = last if last < now else last - timedelta(weeks=1)
    return [last - timedelta(weeks=weeks) for weeks in reversed(range(WEEKS))]


def write_history(airflow: AirflowInstallation, images: Images) -> None:
    """Run every week, and the rollback, at their times."""
    store = airflow.pipeline.store
    write_first_dataset(airflow.pipeline.data, images)
    for week, monday in enumerate(list_mondays()):
        began, wall_clock = time.monotonic(), time.time()
        if week:
            write_batch(store.root / "incoming", images, week)
        conf: dict[str, Any] = {"profile": "standard" if week == LONGER_WEEK else "quick", "seed": week}
        if week < RAISED_WEEK:
            conf["policy"] = FIRST_POLICY
        try:
            _run_at(airflow, monday, "run", DAG_ID, monday.isoformat(), json.dumps(conf))
        except RuntimeError:
            records = read_records(store, f"scheduled__{monday.isoformat()}")
            if not any(record.status == "rejected" for record in records.values()):
                raise
        if week == ROLLBACK_WEEK:
            current = require_champion(store).version
            earlier = next(entry.version for entry in reversed(list_entries(store)) if entry.version != current)
            _run_at(airflow, monday + timedelta(days=2, hours=7), "fmnist", "rollback", earlier, "--reason", REASON)
        for path in (store.root / "quarantine").rglob("*.*"):
            if path.stat().st_mtime > wall_clock:
                os.utime(path, times=2 * (monday.timestamp() + 60,))
        entries = [f"{entry.action} {entry.version}" for entry in list_entries(store)]
        print(f"{monday:%d %b}: {time.monotonic() - began:.0f} s; {entries[-1:]}", flush=True)


def write_own_dataset(airflow: AirflowInstallation) -> None:
    """Create the dataset `digits` from scikit-learn's digits, and run its DAG once, on the last Monday."""
    name, monday = "digits", list_mondays()[-1]
    options = ("--title", "Handwritten digits", "--ood-label", "not a digit")
    _run_at(airflow, monday, "fmnist", "dataset", "new", name, str(write_digits(airflow.home)), *options)
    _run_at(airflow, monday, "run", name_dag(name), monday.isoformat(), json.dumps({"profile": "quick"}))


def _run_at(airflow: AirflowInstallation, moment: datetime, *command: str) -> None:
    """Run a command of `week` with a clock that begins at a moment; raises RuntimeError if it fails."""
    offset = moment - datetime.now(UTC)
    ended = subprocess.run(
        ["faketime", "-f", f"{offset.total_seconds():+.0f}s", sys.executable, "-m", WEEK, *command],
        env=airflow.environment | {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'dags'}", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    log = ended.stdout + ended.stderr
    (airflow.home / f"{moment:%Y%m%dT%H%M}.log").write_text(log)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {ended.returncode}\n{log[-3000:]}")
