"""Read docker-compose.yaml: everything about a service that also applies without containers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

# Commands that replace those of the stores' images. Airflow's services use the commands in the Compose file.
STORE_COMMANDS = {
    "postgres": ["tests/support/cluster/postgres", "postgres:5432"],
    "redis": ["tests/support/cluster/redis", "redis:6379"],
    "minio": ["include/minio", "server", "minio:9000", "minio:9001", "minio"],
    "versity": ["include/versity", "server", "versity:9000", "versity"],
}
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])([^}]*))?\})")


class DeclarationError(ValueError):
    """The Compose file requires a variable that is not set."""


@dataclass(frozen=True)
class Service:
    """One service. Its addresses have the form `service:port`."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    health: tuple[str, ...]  # command that exits with 0 if the service is healthy; empty for a job, which ends
    needs: tuple[str, ...]  # services that must be healthy, and jobs that must have ended, before it starts
    stop_signal: str
    runs_airflow: bool  # whether it runs Airflow with this project


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Replace `${NAME}`, `${NAME:-default}`, `${NAME:?error}` and `$$`, as Compose does.

    Raises :class:`DeclarationError` if a required variable is not set.
    """

    def find_value(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if name is None:
            return "$"
        if variables.get(name):
            return variables[name]
        if kind == "?":
            raise DeclarationError(f"{name} is not set: {text}")
        return text or ""

    return _VARIABLE.sub(find_value, text)


def read_settings(file: Path) -> dict[str, str]:
    """Read the lines `NAME=value` of a file. A value may refer to earlier ones."""
    settings: dict[str, str] = {}
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            name, value = line.split("=", 1)
            settings[name] = interpolate(value, settings)
    return settings


def read_services(file: Path, variables: Mapping[str, str]) -> dict[str, Service]:
    """Read the services of a Compose file that the profiles in `variables` select, each after those that it needs."""
    profiles = set(variables.get("COMPOSE_PROFILES", "").split(","))
    declared = {
        name: content
        for name, content in yaml.safe_load(file.read_text())["services"].items()
        if profiles.intersection(content.get("profiles", profiles))
    }
    services = {name: _read_service(name, content, file.parent, variables) for name, content in declared.items()}
    services = {
        name: replace(service, needs=tuple(need for need in service.needs if need in services))
        for name, service in services.items()
    }
    order = TopologicalSorter({name: service.needs for name, service in services.items()}).static_order()
    return {name: services[name] for name in order}


def _read_service(name: str, content: Mapping[str, Any], folder: Path, variables: Mapping[str, str]) -> Service:
    environment: dict[str, str] = {}
    for file in content.get("env_file", ()):
        environment |= read_settings(folder / file)
    environment |= {key: interpolate(str(value), variables) for key, value in content["environment"].items()}
    return Service(
        name,
        _interpolate_words(STORE_COMMANDS.get(name) or content["command"], variables),
        environment,
        _read_health_check(content.get("healthcheck", {}).get("test", ()), variables),
        tuple(content.get("depends_on", ())),
        content.get("stop_signal", "SIGTERM").removeprefix("SIG"),
        "env_file" in content,
    )


def _interpolate_words(command: list[str], variables: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(interpolate(word, variables) for word in command)


def _read_health_check(test: list[str], variables: Mapping[str, str]) -> tuple[str, ...]:
    if not test:
        return ()
    return (
        ("sh", "-c", *_interpolate_words(test[1:], variables))
        if test[0] == "CMD-SHELL"
        else _interpolate_words(test[1:], variables)
    )
