"""What docker-compose.yaml declares, as far as it can be done without containers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

# What stands for the command of an image that is not ours.
STORE_COMMANDS = {
    "postgres": ["tests/support/cluster/postgres", "postgres:5432"],
    "redis": ["tests/support/cluster/redis", "redis:6379"],
    "minio": ["include/minio", "server", "minio:9000", "minio:9001", "minio"],
    "versity": ["include/versity", "server", "versity:9000", "versity"],
}
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])([^}]*))?\})")


class DeclarationError(ValueError):
    """The declaration asks for a variable that is not set."""


@dataclass(frozen=True)
class Service:
    """One service. Addresses in it are still `service:port`."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    health: tuple[str, ...]  # ends with 0 once the service is of use; empty for a job, which ends by itself
    needs: tuple[str, ...]  # what has to be healthy, or done, before
    stop_signal: str
    runs_airflow: bool  # whether it runs Airflow with this project


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """`${NAME}`, `${NAME:-default}`, `${NAME:?why}` and `$$` replaced, as Compose does; :class:`DeclarationError`."""

    def find_value(found: re.Match[str]) -> str:
        name, kind, text = found.groups()
        if name is None:
            return "$"
        if variables.get(name):
            return variables[name]
        if kind == "?":
            raise DeclarationError(f"{name} is not set: {text}")
        return text or ""

    return _VARIABLE.sub(find_value, text)


def read_settings(file: Path) -> dict[str, str]:
    """The lines `NAME=value` of a file, without comments; a value may name those before it."""
    settings: dict[str, str] = {}
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            name, value = line.split("=", 1)
            settings[name] = interpolate(value, settings)
    return settings


def read_services(file: Path, variables: Mapping[str, str]) -> dict[str, Service]:
    """The services of a compose file that are to run, each after those that it needs."""
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
