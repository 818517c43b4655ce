"""The services of docker-compose.yaml as programs of one machine: a script each, and one that tells whether it is well.

A script holds the whole environment of its program, secrets among it, and only its owner may read it; with arguments it
runs these instead: `programs/worker-1 fmnist champion`. What a container would find by a service's name is replaced by
an address.
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

_PORTS = {  # ports that Airflow listens on are told by the environment
    "AIRFLOW__API__PORT": ("api-server", 8080),
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": ("scheduler", 8974),
    "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": ("triggerer", 8794),
    "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": ("worker", 8793),
}
# What programs have of the environment in which the cluster is started: no more, for it may hold other secrets.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "MINIO", "DOCKER_HOST")
_KEPT_PREFIXES = ("COVERAGE_", "OMP_", "TF_")  # of tests
_ADDRESS = re.compile(r"\b(postgres|redis|minio|versity|api-server|scheduler|triggerer|worker):(\d{4,5})\b")


@dataclass(frozen=True)
class Program:
    """A script that becomes a service, and one that ends with 0 when it is of use."""

    name: str
    script: Path
    health: Path | None  # None for a job
    needs: tuple[str, ...]
    stop_signal: str


@dataclass(frozen=True)
class Location:
    """Where programs run: folder, address, and the port that stands for each port of the declaration."""

    folder: Path
    address: str = "127.0.0.1"
    ports: Mapping[tuple[str, int], int] | None = None  # None: those of the declaration

    def find_port(self, service: str, port: int) -> int:
        """The port on which a service listens here."""
        return self.ports[service, port] if self.ports else port

    def resolve(self, text: str) -> str:
        """A text with the address of each service in place of its name, and our own files where they are."""
        text = _ADDRESS.sub(lambda found: f"{self.address}:{self.find_port(found[1], int(found[2]))}", text)
        text = text.removeprefix("/opt/fmnist/")  # where the image has the project
        return str(PROJECT / text) if text.startswith(("include/", "tests/")) else text


def write_program(
    service: Service, location: Location, name: str = "", changes: Mapping[str, str] | None = None
) -> Program:
    """Write the scripts of a service; one of several workers has a name of its own. Changes are of its environment."""
    name = name or service.name
    environment = {key: location.resolve(value) for key, value in service.environment.items()}
    if service.runs_airflow:
        environment |= _make_image_environment(location, name) | dict(changes or {})
    (location.folder / "programs").mkdir(parents=True, exist_ok=True)
    script = _write_script(location, name, environment, service.command)
    health = _write_script(location, f"{name}.health", environment, service.health) if service.health else None
    return Program(name, script, health, service.needs, service.stop_signal)


def select_environment() -> dict[str, str]:
    """The part of this process's environment that programs have too."""
    return {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}


def _make_image_environment(location: Location, name: str) -> dict[str, str]:
    """What airflow.Dockerfile and the container itself say there."""
    return {
        # Of each program alone, as of each container: Airflow writes keys into it that another may lack.
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
    kept = select_environment()
    kept["FMNIST_HOME"] = str(PROJECT / "var")  # where include/minio keeps the server that it has built
    exports = [f"export {key}={shlex.quote(value)}" for key, value in {**kept, **environment}.items()]
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
