"""One finished run on the synthetic images, made once and copied by every test that starts from one."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fmnist_tasks.provenance import machine_facts
from fmnist_tasks.settings import INCLUDE, PROJECT
from fmnist_tasks.turns import one_at_a_time
from tests.support import synthetic
from tests.support.pipeline import Pipeline

CACHE = PROJECT / "var" / "cache" / "tests"
_SUPPORT = Path(__file__).parent
_KEPT_SECONDS = 24 * 3600  # seconds


def provide_finished_run() -> Path:
    """Find or make a pipeline's home in which one run has gone all the way to a champion. Copy it, do not change it.

    It is kept by the digest of everything that it follows from, the processor included: another one gives other
    weights.
    """
    sources = [*(PROJECT / "fmnist_tasks").rglob("*.py"), *(path for path in INCLUDE.rglob("*") if path.is_file())]
    sources += [_SUPPORT / name for name in ("synthetic.py", "pipeline.py")]
    return _provide_home("finished", sources, str(machine_facts()["processor"]), _make_finished_run)


def provide_migrated_database() -> Path:
    """Find or make an Airflow home with an empty database. Copy it, do not change it."""
    return _provide_home("airflow", [], "", _migrate_database)


def _make_finished_run(home: Path) -> None:
    pipeline = Pipeline(home)
    synthetic.write_dataset(pipeline.data)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pipeline.environment.items():
            patch.setenv(name, value)
        pipeline.run_until("promote")


def _migrate_database(home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    ended = subprocess.run(
        ["airflow", "db", "migrate"], env=environment | {"AIRFLOW_HOME": str(home)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for generated in home.glob("*.cfg"):  # would name this folder
        generated.unlink()


def _provide_home(kind: str, sources: list[Path], machine: str, make: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256(f"{machine} {platform.python_version()}".encode())
    for source in sorted([*sources, PROJECT / "requirements.txt"]):
        digest.update(source.read_bytes())
    home = CACHE / f"{kind}-{digest.hexdigest()[:16]}"
    with one_at_a_time(CACHE / f"{kind}.lock"):
        if not home.exists():
            for outdated in CACHE.glob(f"{kind}-*"):
                if time.time() - outdated.stat().st_mtime > _KEPT_SECONDS:  # a younger one may be in use
                    shutil.rmtree(outdated)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                make(Path(folder) / "home")
                (Path(folder) / "home").rename(home)
    return home
