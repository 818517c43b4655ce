"""The services of docker-compose.yaml as programs on one machine: a script for each, and one for its health check.

A script contains the whole environment of its program, secrets included, so only its owner can read it. With arguments
it runs another command in this environment: `programs/worker-1 fmnist champion`. Addresses on this machine replace the
names of services.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmnist_tasks.settings import PROJECT
from tests.support.cluster.declaration import Service

_PORTS = {  # environment variables for the ports on which Airflow listens
    "AIRFLOW__API__PORT": ("api-server", 8080),
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": ("scheduler", 8974),
    "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": ("triggerer", 8794),
    "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": ("worker", 8793),
}
# The variables that programs inherit from the caller. Others may contain secrets.
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "MINIO", "DOCKER_HOST")
_INHERITED_PREFIXES = ("COVERAGE_", "OMP_", "TF_")  # for tests
_ADDRESS = re.compile(r"\b(postgres|redis|minio|versity|api-server|scheduler|triggerer|worker):(\d{4,5})\b")


@dataclass(frozen=True)
class Program:
    """The scripts of a service."""

    name: str
    script: Path
    health: Path | None  # exits with 0 if the service is healthy; None for a job
    needs: tuple[str, ...]
    stop_signal: str


@dataclass(frozen=True)
class Location:
    """Where programs run: folder, IP address and ports."""

    folder: Path
    address: str = "127.0.0.1"
    ports: Mapping[tuple[str, int], int] | None = None  # by service and port of the Compose file; None: the same ports

    def find_port(self, service: str, port: int) -> int:
        """The port on which a service listens, given its port in the Compose file."""
        return self.ports[service, port] if self.ports else port

    def resolve(self, text: str) -> str:
        """Replace `service:port` by addresses, and paths of the project in the image by those on this machine."""
        text = _ADDRESS.sub(lambda match: f"{self.address}:{self.find_port(match[1], int(match[2]))}", text)
        text = text.removeprefix("/opt/fmnist/")  # the project's folder in the image
        return str(PROJECT / text) if text.startswith(("include/", "tests/")) else text


def write_program(
    service: Service, location: Location, name: str = "", changes: Mapping[str, str] | None = None
) -> Program:
    """Write the scripts of a service, optionally under another name and with a changed environment."""
    name = name or service.name
    environment = {key: location.resolve(value) for key, value in service.environment.items()}
    if service.runs_airflow:
        environment |= _make_image_environment(location, name) | dict(changes or {})
    (location.folder / "programs").mkdir(parents=True, exist_ok=True)
    script = _write_script(location, name, environment, service.command)
    health = _write_script(location, f"{name}.health", environment, service.health) if service.health else None
    return Program(name, script, health, service.needs, service.stop_signal)


def select_environment() -> dict[str, str]:
    """The variables of this process's environment that programs inherit."""
    return {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }


def _make_image_environment(location: Location, name: str) -> dict[str, str]:
    """The variables that airflow.Dockerfile and Docker set in a container."""
    return {
        # A separate home for each program, as in a container: Airflow writes generated keys to it.
        "AIRFLOW_HOME": str(location.folder / "airflow" / name),
        "FMNIST_HOME": str(location.folder / "fmnist"),
        "TMPDIR": tempfile.gettempdir(),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__API__HOST": location.address,
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST": location.address,
        "HOSTNAME": name,
        **{variable: str(location.find_port(*port)) for variable, port in _PORTS.items()},
    }


def _write_script(location: Location, name: str, environment: Mapping[str, str], command: Sequence[str]) -> Path:
    inherited = select_environment()
    inherited["FMNIST_HOME"] = str(PROJECT / "var")  # where include/minio caches the server that it has built
    exports = [f"export {key}={shlex.quote(value)}" for key, value in {**inherited, **environment}.items()]
    words = shlex.join([location.resolve(word) for word in command])
    script = location.folder / "programs" / name
    script.touch(0o700)
    script.write_text(
        "\n".join(
            [
                "#!/bin/sh",
                f"cd {shlex.quote(str(location.folder))} || exit",
                *exports,
                '[ $# = 0 ] || exec "$@"',
                f"exec {words}",
                "",
            ]
        )
    )
    return script
