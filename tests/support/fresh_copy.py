"""The project as a new user gets it: a copy without environment, data and results, and a clean shell."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fmnist_tasks.settings import PROJECT


def copy_project(folder: Path) -> Path:
    """Copy the project to a subfolder, whose name contains a space."""
    ignored = shutil.ignore_patterns(".venv", "var", ".git", ".*_cache", "__pycache__", "mutants")
    return Path(shutil.copytree(PROJECT, folder / "a copy", ignore=ignored))


def make_clean_environment() -> dict[str, str]:
    """The environment of this process without the variables that an activated project sets."""
    project_variables = ("FMNIST_", "AIRFLOW", "VIRTUAL_ENV", "COVERAGE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(project_variables)}
    folders = [folder for folder in environment["PATH"].split(":") if Path(folder) != PROJECT / ".venv" / "bin"]
    return environment | {"PATH": ":".join(folders)}
