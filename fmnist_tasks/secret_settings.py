"""Secrets from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fmnist_tasks.errors import SettingsError


def read_secret(name: str, environment: Mapping[str, str]) -> str | None:
    """PLACEHOLDER until merge."""
    if value := environment.get(name):
        return value
    if path := environment.get(f"{name}_FILE"):
        try:
            return Path(path).read_text()
        except OSError as error:
            raise SettingsError(f"{name}_FILE: cannot read {path}: {error.strerror}") from error
    return None
