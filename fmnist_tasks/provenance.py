"""Provenance of a result: the digest of the code, the versions of libraries, and the machine."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from fmnist_tasks.schemas.releases import Code, Machine
from fmnist_tasks.settings import INCLUDE, Settings

# Libraries whose version can change a model.
_MODEL_LIBRARIES = ("h5py", "keras", "numpy", "scikit-learn", "scipy", "tensorflow")
_NOT_HASHED = {  # modules and packages that cannot change a model or its evaluation
    "alerts",
    "batch_prediction.py",
    "broker.py",
    "bucket_lifecycle.py",
    "cli.py",
    "connections.py",
    "machine_lock.py",
    "memory.py",
    "plugin.py",
    "page",
    "provision.py",
    "pruning.py",
    "pruning_markers.py",
    "rollback.py",
    "run_report.py",
    "run_view.py",
    "stores.py",
    "tables.py",
    "templates.py",
    "withdrawal.py",
}


def describe_code(package: Path = Path(__file__).parent, include: Path = INCLUDE, gates: Path | None = None) -> Code:
    """The code digest, over modules, suites and gates that shape or evaluate a model, and the versions of libraries."""
    files = [path for path in package.rglob("*.py") if not _NOT_HASHED & set(path.relative_to(package).parts)]
    named = {path.relative_to(package).as_posix(): path for path in files}
    named |= {f"include/expectations/{path.name}": path for path in (include / "expectations").glob("*.json")}
    named["gates"] = gates or Settings.from_environment().gates
    lines = sorted(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in named.items())
    versions = {name: version(name) for name in _MODEL_LIBRARIES}
    digest = hashlib.sha256("\n".join([*lines, repr(sorted(versions.items()))]).encode()).hexdigest()
    return Code(digest=digest, versions=versions)


def describe_machine() -> Machine:
    """The machine and the Python version that a step runs on."""
    cpuinfo = Path("/proc/cpuinfo")  # on Linux
    return Machine(
        host=platform.node(),
        system=platform.platform(),
        processor=find_processor(cpuinfo.read_text() if cpuinfo.exists() else "") or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        python=platform.python_version(),
    )


def find_processor(cpuinfo: str) -> str:
    """The processor's name with family and model, since several share a name; empty if `cpuinfo` has no name."""
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    name, family, model = (facts.get(key) for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})" if name else ""
