"""The services of docker-compose.yaml as processes of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fmnist_tasks.settings import PROJECT
from tests.support.airflow_api import AirflowApi
from tests.support.cluster.declaration import Service, read_services, read_settings
from tests.support.cluster.programs import Place, Program, write_program
from tests.support.cluster.supervision import ClusterError
from tests.support.requirements import MINIO, POSTGRES, REDIS, find_missing

PORTS = (
    ("postgres", 5432),
    ("redis", 6379),
    ("minio", 9000),
    ("minio", 9001),
    ("api-server", 8080),
    ("scheduler", 8974),
    ("triggerer", 8794),
    ("worker", 8793),
)
DAG_ID = "fmnist_retrain"


@dataclass(frozen=True)
class Cluster:
    """A cluster below a folder."""

    folder: Path

    def settings(self) -> dict[str, str]:
        """What .env holds; the first call makes it, secrets and all."""
        file = self.folder / ".env"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o711)  # Postgres, another user, has to pass
            shutil.copy(PROJECT / ".env.example", file)
            subprocess.run([PROJECT / "include" / "cluster" / "secrets", file], check=True, stdout=subprocess.DEVNULL)
        return read_settings(file)

    def services(self, place: Place) -> dict[str, Service]:
        """What docker-compose.yaml declares, with this cluster's settings; those of the environment go before."""
        settings = self.settings()
        given = {name: os.environ[name] for name in settings if os.environ.get(name)}
        url = f"http://{place.address}:{place.port('api-server', 8080)}"
        return read_services(PROJECT / "docker-compose.yaml", {**settings, **given, "AIRFLOW_URL": url})

    def programs(self, place: Place, changes: Mapping[str, str]) -> list[Program]:
        """The programs of all services but the workers, each after those that it needs."""
        services = self.services(place)
        return [
            write_program(service, place, changes=changes) for name, service in services.items() if name != "worker"
        ]

    def worker(self, place: Place, name: str, changes: Mapping[str, str]) -> Program:
        """The program of one worker."""
        return write_program(self.services(place)["worker"], place, name, changes)

    def api(self, address: str) -> AirflowApi:
        """Airflow's API for the administrator."""
        return AirflowApi(address, "admin", self.settings()["ADMIN_PASSWORD"])


def require_stores() -> None:
    """Check that Postgres, Redis and MinIO are on this machine; raises :class:`ClusterError` with what to do."""
    if missing := find_missing(POSTGRES, REDIS, MINIO):
        raise ClusterError(missing)
