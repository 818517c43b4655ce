"""One finished run on the synthetic images, made once and copied by every test that starts from one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fmnist_tasks.provenance import machine_facts
from fmnist_tasks.settings import INCLUDE, PROJECT
from fmnist_tasks.turns import one_at_a_time
from tests.support import synthetic
from tests.support.outbox import close_alerts
from tests.support.pipeline import Pipeline

CACHE = PROJECT / "var" / "cache" / "tests"
_SUPPORT = Path(__file__).parent
_KEPT_SECONDS = 24 * 3600  # since the last use
_FILES = "files.json"  # beside a home: the digest of each of its files
_NUMERIC_VARIABLES = ("OMP_NUM_THREADS", "TF_ENABLE_ONEDNN_OPTS", "TF_NUM_INTRAOP_THREADS")  # change TensorFlow's sums

Maker = Callable[[Path], None]  # makes the home at a path where nothing is

log = logging.getLogger(__name__)


class ChangedSourcesError(Exception):
    """The sources changed while something was made from them, so that nobody knows which ones it follows from."""


def read_finished_key() -> str:
    """Digest of all that a finished run follows from. Another processor gives other weights."""
    sources = [*(PROJECT / "fmnist_tasks").rglob("*.py"), *(path for path in INCLUDE.rglob("*") if path.is_file())]
    sources += [_SUPPORT / name for name in ("finished_run.py", "synthetic.py", "pipeline.py")]
    return _digest(sources, str(machine_facts()["processor"]), *map(os.environ.get, _NUMERIC_VARIABLES))


def read_database_key() -> str:
    """Digest of all that Airflow's empty database follows from."""
    return _digest([])


def _digest(sources: list[Path], *facts: str | None) -> str:
    sources = sorted([*sources, PROJECT / "requirements.txt"])
    contents = [(str(path.relative_to(PROJECT)), _digest_file(path)) for path in sources]
    return hashlib.sha256(json.dumps([platform.python_version(), facts, contents]).encode()).hexdigest()[:16]


def _digest_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Read with the code: a module that is edited later is not the one that this process runs.
FINISHED_KEY = read_finished_key()
DATABASE_KEY = read_database_key()


def provide_finished_run() -> Path:
    """Find or make a pipeline's home in which one run has gone all the way to a champion. Copy it, do not change it."""
    return provide_home(CACHE, "finished", FINISHED_KEY, read_finished_key, _make_finished_run)


def provide_migrated_database() -> Path:
    """Find or make an Airflow home with an empty database. Copy it, do not change it."""
    return provide_home(CACHE, "airflow", DATABASE_KEY, read_database_key, _migrate_database)


def _make_finished_run(home: Path) -> None:
    """In a process of its own: the alerts of a run import Airflow, whose logging would hold on to pytest's streams."""
    pipeline = Pipeline(home)
    synthetic.write_dataset(pipeline.data)
    program = f"from tests.support.pipeline import Pipeline; Pipeline(Path({str(home)!r})).run_until('promote')"
    ended = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path; {program}"],
        cwd=PROJECT,
        env=os.environ | pipeline.environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    close_alerts(pipeline.store)  # or its alert would wait in every copy, and tests count their own


def _migrate_database(home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    ended = subprocess.run(
        ["airflow", "db", "migrate"], env=environment | {"AIRFLOW_HOME": str(home)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for generated in home.glob("*.cfg"):  # would name this folder
        generated.unlink()


def provide_home(cache: Path, kind: str, key: str, read_key: Callable[[], str], make: Maker) -> Path:
    """Find the home of this kind and key in the cache if all its files are as they were made, or else make it anew.

    Raises :class:`ChangedSourcesError`, and keeps nothing, if the key has become another one.
    """
    entry, making = cache / f"{kind}-{key}", cache / f"{kind}.making"
    with one_at_a_time(cache / f"{kind}.lock"):
        shutil.rmtree(making, ignore_errors=True)  # left by a process that was killed
        if not _is_whole(entry):
            if entry.exists():
                log.warning("%s is damaged and made anew", entry)
                shutil.rmtree(entry)
            for outdated in cache.glob(f"{kind}-*"):
                if time.time() - outdated.stat().st_mtime > _KEPT_SECONDS:  # a younger one may be in use
                    shutil.rmtree(outdated)
            making.mkdir()
            make(making / "home")
            if read_key() != key:
                raise ChangedSourcesError(f"files changed while tests made {entry.name} from them; run the tests again")
            (making / _FILES).write_text(json.dumps(_digest_files(making / "home")))
            making.rename(entry)
        os.utime(entry)  # its last use
    return entry / "home"


def _is_whole(entry: Path) -> bool:
    try:
        made: dict[str, str] = json.loads((entry / _FILES).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return made.items() <= _digest_files(entry / "home").items()


def _digest_files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): _digest_file(path) for path in folder.rglob("*") if path.is_file()}
