"""The services of docker-compose.yaml as processes of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minio import Minio
from minio.credentials.providers import StaticProvider

from fmnist_tasks.registry.access import Bucket
from fmnist_tasks.registry.s3 import S3Store
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
    """A cluster below a folder."""

    folder: Path

    def provide_settings(self) -> dict[str, str]:
        """What .env holds, which has all lines of this version's .env.example, with secrets."""
        file = self.folder / ".env"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o711)  # Postgres, another user, has to pass
            shutil.copy(PROJECT / ".env.example", file)
        subprocess.run([PROJECT / "include" / "cluster" / "secrets", file], check=True, stdout=subprocess.DEVNULL)
        return read_settings(file)

    def read_declared_services(self, location: Location) -> dict[str, Service]:
        """What docker-compose.yaml declares, with this cluster's settings; those of the environment go before."""
        settings = self.provide_settings()
        given = {name: os.environ[name] for name in settings if os.environ.get(name)}
        url = f"http://{location.address}:{location.find_port('api-server', 8080)}"
        return read_services(PROJECT / "docker-compose.yaml", {**settings, **given, "AIRFLOW_URL": url})

    def write_programs(self, location: Location, changes: Mapping[str, str]) -> list[Program]:
        """The programs of all services but the workers, each after those that it needs."""
        services = self.read_declared_services(location)
        return [
            write_program(service, location, changes=changes) for name, service in services.items() if name != "worker"
        ]

    def write_worker(self, location: Location, name: str, changes: Mapping[str, str]) -> Program:
        """The program of one worker."""
        return write_program(self.read_declared_services(location)["worker"], location, name, changes)

    def open_store(self, location: Location) -> S3Store:
        """The object store, for its administrator."""
        settings = self.provide_settings()
        root = StaticProvider(settings["MINIO_ROOT_USER"], settings["MINIO_ROOT_PASSWORD"])
        authority = f"{location.address}:{location.find_port(settings['STORE'], 9000)}"
        return S3Store(Bucket("fmnist", f"http://{authority}", Minio(authority, secure=False, credentials=root)))

    def open_api(self, address: str) -> AirflowApi:
        """Airflow's API for the administrator."""
        return AirflowApi(address, "admin", self.provide_settings()["ADMIN_PASSWORD"])


def require_stores() -> None:
    """Check that Postgres, Redis and MinIO are on this machine; raises :class:`ClusterError` with what to do."""
    if missing := find_missing(POSTGRES, REDIS, MINIO):
        raise ClusterError(missing)
