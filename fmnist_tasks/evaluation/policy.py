"""The policy: what the gates ask, read from `include/gates.toml` and checked, with what a run asks otherwise."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.settings import INCLUDE
from fmnist_tasks.verdict import Otherwise

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Bound = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Significance = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Accuracy(_Section):
    """Share of the test images that are classified rightly."""

    at_least: Share
    otherwise: Otherwise


class Champion(_Section):
    """The candidate against the champion in service."""

    significance: Significance
    worse: Otherwise
    undecided: Otherwise


class Classes(_Section):
    """Each class by itself."""

    recall_at_least: Share
    significance: Significance
    otherwise: Otherwise


class Calibration(_Section):
    """How far the stated probabilities lie from the shares that are right."""

    error_at_most: Share
    otherwise: Otherwise


class Family(_Section):
    """One family of images that are no clothing."""

    auroc_at_least: Share
    fpr99_at_most: Share  # false positives at 99 % true positives


class Novelty(_Section):
    """All families that are judged; others are reported only."""

    families: dict[str, Family] = Field(min_length=1)
    otherwise: Otherwise


class Speed(_Section):
    """The published model in use."""

    single_ms_at_most: Bound
    load_seconds_at_most: Bound
    bytes_at_most: Annotated[int, Field(gt=0)]
    otherwise: Otherwise


class Policy(_Section):
    """All bounds, and what a check does that fails."""

    accuracy: Accuracy
    champion: Champion
    classes: Classes
    calibration: Calibration
    novelty: Novelty
    speed: Speed


def read_policy(changes: Mapping[str, Any]) -> Policy:
    """The policy of the project with a run's changes; raises :class:`SettingsError` naming each fault."""
    text = (INCLUDE / "gates.toml").read_text()
    try:
        return Policy.model_validate(_merged(tomllib.loads(text), changes))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"include/gates.toml: {error}") from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise SettingsError(f"policy (include/gates.toml, and the run's parameter): {'; '.join(faults)}") from error


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The old mapping with the values of the new one, section by section."""
    merged = dict(old)
    for name, value in new.items():
        sections = isinstance(value, Mapping) and isinstance(old.get(name), Mapping)
        merged[name] = _merged(old[name], value) if sections else value
    return merged
