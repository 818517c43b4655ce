"""A cluster on this machine: the services of docker-compose.yaml without containers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minio import Minio
from minio.credentials.providers import StaticProvider

from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.s3_address import Bucket
from fmnist_tasks.settings import PROJECT
from tests.support.airflow_api import AirflowApi
from tests.support.cluster.declaration import Service, read_services, read_settings
from tests.support.cluster.programs import Location, Program, write_program
from tests.support.cluster.supervision import ClusterError
from tests.support.requirements import MINIO, POSTGRES, REDIS, find_missing

PORTS = (
    ("postgres", 5432),
    ("redis", 6379),
    ("minio", 9000),
    ("minio", 9001),
    ("versity", 9000),
    ("api-server", 8080),
    ("scheduler", 8974),
    ("triggerer", 8794),
    ("worker", 8793),
)


@dataclass(frozen=True)
class Cluster:
    """A cluster whose files are in a folder."""

    folder: Path

    def provide_settings(self) -> dict[str, str]:
        """Return the settings in .env; creates the file, and adds missing lines and secrets to it."""
        file = self.folder / ".env"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o711)  # Postgres runs as another user and has to traverse it
            shutil.copy(PROJECT / ".env.example", file)
        subprocess.run([PROJECT / "include" / "cluster" / "secrets", file], check=True, stdout=subprocess.DEVNULL)
        return read_settings(file)

    def read_declared_services(self, location: Location) -> dict[str, Service]:
        """The services of docker-compose.yaml with the cluster's settings; environment variables take precedence."""
        settings = self.provide_settings()
        overrides = {name: os.environ[name] for name in settings if os.environ.get(name)}
        url = f"http://{location.address}:{location.find_port('api-server', 8080)}"
        return read_services(PROJECT / "docker-compose.yaml", {**settings, **overrides, "AIRFLOW_URL": url})

    def write_programs(self, location: Location, changes: Mapping[str, str]) -> list[Program]:
        """Write the programs of all services except workers; each comes after those that it needs.

        `changes` apply to the environment of Airflow's services.
        """
        services = self.read_declared_services(location)
        return [
            write_program(service, location, changes=changes) for name, service in services.items() if name != "worker"
        ]

    def write_worker(self, location: Location, name: str, changes: Mapping[str, str]) -> Program:
        """Write the program of one worker, with these changes to its environment."""
        return write_program(self.read_declared_services(location)["worker"], location, name, changes)

    def open_store(self, location: Location) -> S3Store:
        """The object store, with the rights of its administrator."""
        settings = self.provide_settings()
        root = StaticProvider(settings["MINIO_ROOT_USER"], settings["MINIO_ROOT_PASSWORD"])
        authority = f"{location.address}:{location.find_port(settings['STORE'], 9000)}"
        return S3Store(Bucket("fmnist", f"http://{authority}", Minio(authority, secure=False, credentials=root)))

    def open_api(self, address: str) -> AirflowApi:
        """Airflow's API, as the user admin."""
        return AirflowApi(address, "admin", self.provide_settings()["ADMIN_PASSWORD"])


def require_stores() -> None:
    """Raise :class:`ClusterError` with the remedy if this machine lacks Postgres, Redis or MinIO."""
    if missing := find_missing(POSTGRES, REDIS, MINIO):
        raise ClusterError(missing)
