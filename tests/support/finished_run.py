"""A finished run on synthetic images, created once; each test that needs it gets a copy."""

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

from fmnist_tasks.machine_lock import hold_machine_lock
from fmnist_tasks.provenance import describe_machine
from fmnist_tasks.settings import INCLUDE, PROJECT
from tests.support import synthetic
from tests.support.outbox import mark_alerts_delivered
from tests.support.pipeline import Pipeline

CACHE = PROJECT / "var" / "cache" / "tests"
_SUPPORT = Path(__file__).parent
_MAX_AGE_SECONDS = 24 * 3600  # since the last use
_FILES = "files.json"  # beside a home: the digest of each of its files
_NUMERIC_VARIABLES = (
    "OMP_NUM_THREADS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_NUM_INTRAOP_THREADS",
)  # affect TensorFlow's rounding

Maker = Callable[[Path], None]  # creates a home at a path that does not exist

log = logging.getLogger(__name__)


class ChangedSourcesError(Exception):
    """The sources changed while a home was created from them, so its origin is unknown."""


def read_finished_key() -> str:
    """The digest of everything that a finished run depends on; weights depend on the processor too."""
    sources = [*(PROJECT / "fmnist_tasks").rglob("*.py"), *(path for path in INCLUDE.rglob("*") if path.is_file())]
    sources += [_SUPPORT / name for name in ("finished_run.py", "synthetic.py", "pipeline.py")]
    return _digest(sources, describe_machine().processor, *map(os.environ.get, _NUMERIC_VARIABLES))


def read_database_key() -> str:
    """The digest of everything that Airflow's empty database depends on."""
    return _digest([])


def _digest(sources: list[Path], *facts: str | None) -> str:
    sources = sorted([*sources, PROJECT / "requirements.txt"])
    contents = [(str(path.relative_to(PROJECT)), _digest_file(path)) for path in sources]
    return hashlib.sha256(json.dumps([platform.python_version(), facts, contents]).encode()).hexdigest()[:16]


def _digest_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Computed on import: if a module is edited later, this process does not run the edited one.
FINISHED_KEY = read_finished_key()
DATABASE_KEY = read_database_key()


def provide_finished_run() -> Path:
    """Find or create a home in which a run has promoted a champion. Copy it, do not change it."""
    return provide_home(CACHE, "finished", FINISHED_KEY, read_finished_key, _create_finished_run)


def provide_migrated_database() -> Path:
    """Find or create an Airflow home with an empty database. Copy it, do not change it."""
    return provide_home(CACHE, "airflow", DATABASE_KEY, read_database_key, _migrate_database)


def _create_finished_run(home: Path) -> None:
    """Create it in another process: alerts import Airflow, whose logging would keep pytest's streams open."""
    pipeline = Pipeline(home)
    synthetic.write_dataset(pipeline.data)
    program = f"from tests.support.pipeline import Pipeline; Pipeline(Path({str(home)!r})).run_until('promote')"
    result = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path; {program}"],
        cwd=PROJECT,
        env=os.environ | pipeline.environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    mark_alerts_delivered(pipeline.store)  # a pending alert would be in each copy, where tests count alerts


def _migrate_database(home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    result = subprocess.run(
        ["airflow", "db", "migrate"], env=environment | {"AIRFLOW_HOME": str(home)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for configuration in home.glob("*.cfg"):  # contains the path of this folder
        configuration.unlink()


def provide_home(cache: Path, kind: str, key: str, read_key: Callable[[], str], make: Maker) -> Path:
    """Find the home of this kind and key in the cache, or create it if it is missing or damaged.

    Raises :class:`ChangedSourcesError`, and caches nothing, if the key changes meanwhile.
    """
    entry, temporary = cache / f"{kind}-{key}", cache / f"{kind}.making"
    with hold_machine_lock(cache / f"{kind}.lock"):
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
        if not _is_intact(entry):
            if entry.exists():
                log.warning("%s is damaged, creating it again", entry)
                shutil.rmtree(entry)
            for outdated in cache.glob(f"{kind}-*"):
                if time.time() - outdated.stat().st_mtime > _MAX_AGE_SECONDS:  # a younger one may be in use
                    shutil.rmtree(outdated)
            temporary.mkdir()
            make(temporary / "home")
            if read_key() != key:
                raise ChangedSourcesError(
                    f"files changed while the tests created {entry.name} from them; run the tests again"
                )
            (temporary / _FILES).write_text(json.dumps(_digest_files(temporary / "home")))
            temporary.rename(entry)
        os.utime(entry)  # its last use
    return entry / "home"


def _is_intact(entry: Path) -> bool:
    try:
        digests: dict[str, str] = json.loads((entry / _FILES).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return digests.items() <= _digest_files(entry / "home").items()


def _digest_files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): _digest_file(path) for path in folder.rglob("*") if path.is_file()}
