"""The project as a new user has it: a copy without environment, data and results, and a shell that knows none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fmnist_tasks.settings import PROJECT


def copy_project(folder: Path) -> Path:
    """Copy the project to a subfolder, whose name has a space."""
    left_out = shutil.ignore_patterns(".venv", "var", ".git", ".*_cache", "__pycache__", "mutants")
    return Path(shutil.copytree(PROJECT, folder / "a copy", ignore=left_out))


def make_clean_environment() -> dict[str, str]:
    """The environment as if no project had been activated in it."""
    own = ("FMNIST_", "AIRFLOW", "VIRTUAL_ENV", "COVERAGE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    folders = [folder for folder in kept["PATH"].split(":") if Path(folder) != PROJECT / ".venv" / "bin"]
    return kept | {"PATH": ":".join(folders)}
