"""What made a result: digests of the code, versions of the libraries, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fmnist_tasks.settings import INCLUDE

_SHAPING = (
    "h5py",
    "keras",
    "numpy",
    "scikit-learn",
    "scipy",
    "tensorflow",
)  # libraries whose version can change a model
_OUTSIDE = {  # modules and rooms that cannot
    "alerts",
    "batch.py",
    "broker.py",
    "cli.py",
    "connections.py",
    "lifecycle.py",
    "memory.py",
    "page",
    "progress.py",
    "provision.py",
    "pruning.py",
    "pruning_flag.py",
    "tables.py",
    "templates.py",
    "turns.py",
}


def code_facts(package: Path = Path(__file__).parent, include: Path = INCLUDE) -> dict[str, Any]:
    """A digest over all code and suites that make or judge a model, and the versions of the libraries that do."""
    files = [path for path in package.rglob("*.py") if not _OUTSIDE & set(path.relative_to(package).parts)]
    named = {path.relative_to(package).as_posix(): path for path in files}
    suites = [*(include / "expectations").glob("*.json"), include / "gates.toml"]
    named |= {f"include/{path.relative_to(include).as_posix()}": path for path in suites}
    lines = sorted(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in named.items())
    versions = {name: version(name) for name in _SHAPING}
    digest = hashlib.sha256("\n".join([*lines, repr(sorted(versions.items()))]).encode()).hexdigest()
    return {"digest": digest, "versions": versions}


def machine_facts() -> dict[str, Any]:
    """The machine and the Python that a step ran on."""
    told = Path("/proc/cpuinfo")  # on Linux
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": processor(told.read_text() if told.exists() else "") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
    }


def processor(cpuinfo: str) -> str:
    """The processor's name with its numbers, since one name is given to several; empty where no name is told."""
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    name, family, model = (known.get(fact) for fact in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})" if name else ""
