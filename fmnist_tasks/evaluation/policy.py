"""The policy of the gates: `include/gates.toml` or another file, with the overrides of a run, validated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.schemas.base import describe_faults
from fmnist_tasks.schemas.policy import Policy
from fmnist_tasks.settings import INCLUDE
from fmnist_tasks.toml_files import read_toml


def read_policy(overrides: Mapping[str, Any], path: Path = INCLUDE / "gates.toml") -> Policy:
    """The policy in a file, with the overrides of a run; raises :class:`SettingsError` that names each fault."""
    values = read_toml(path, "FMNIST_GATES")
    try:
        return Policy.model_validate(_merge(values, overrides))
    except ValidationError as error:
        raise SettingsError(
            f"policy ({path}, and the run's parameter): {describe_faults(error)}; docs/gates.md lists all keys"
        ) from error


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The old mapping, with the values of the new one in each section."""
    merged = dict(old)
    for name, value in new.items():
        sections = isinstance(value, Mapping) and isinstance(old.get(name), Mapping)
        merged[name] = _merge(old[name], value) if sections else value
    return merged
