"""Real S3 servers for the tests: processes on free loopback ports, with users of the documented policies."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import urllib3
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from fmnist_tasks.registry.provision import User, add_user
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.s3_address import open_bucket
from fmnist_tasks.settings import INCLUDE, PROJECT
from tests.support.ports import accepts_connections, reserve_port


@dataclass
class MinioServer:
    """A MinIO server on a folder, or one that is already running."""

    kind: ClassVar[str] = "minio"
    health: ClassVar[str] = "/minio/health/cluster"  # /minio/health/live succeeds before the server is ready

    folder: Path
    root: str = field(default_factory=lambda: uuid4().hex[:20])
    secret: str = field(default_factory=lambda: uuid4().hex)
    port: int = field(default_factory=reserve_port)
    certificate: Path | None = None  # with its key beside it; turns on TLS
    external_endpoint: str = ""  # of a server that is already running; credentials come from the environment
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return self.external_endpoint or f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    @property
    def credentials(self) -> dict[str, str]:
        if self.external_endpoint:
            return {name: os.environ[name] for name in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")}
        return {"MINIO_ACCESS_KEY": self.root, "MINIO_SECRET_KEY": self.secret}

    @property
    def command(self) -> list[str]:
        arguments = [f"127.0.0.1:{self.port}", f"127.0.0.1:{reserve_port()}", str(self.folder)]
        certificate = ["--certs-dir", str(self.certificate.parent)] if self.certificate else []
        return [str(INCLUDE / "minio"), "server", *arguments, *certificate]

    @property
    def settings(self) -> dict[str, str]:
        return {"MINIO_ROOT_USER": self.root, "MINIO_ROOT_PASSWORD": self.secret}

    def start(self) -> None:
        log = self.folder.with_suffix(".log")
        # Built servers are stored below FMNIST_HOME.
        environment = {**os.environ, **self.settings, "FMNIST_HOME": str(PROJECT / "var")}
        with log.open("ab") as output:
            self.process = subprocess.Popen(self.command, env=environment, stdout=output, stderr=output)
        while not self.is_healthy():
            if self.process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)

    def is_healthy(self) -> bool:
        if not accepts_connections(self.port):
            return False
        authority = str(self.certificate) if self.certificate else None
        with urllib3.PoolManager(retries=False, ca_certs=authority) as pool:
            return pool.request("GET", f"{self.endpoint}{self.health}").status == 200

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()

    def build_uri(self, bucket: str, endpoint: str | None = None) -> str:
        return f"s3://{bucket}?endpoint={endpoint or self.endpoint}"

    def open_store(self, bucket: str) -> S3Store:
        return S3Store(open_bucket(self.build_uri(bucket)))

    def create_user(self, role: str, bucket: str) -> dict[str, str]:
        """Create a user with a policy of include/policies; return its credentials as environment variables."""
        root = StaticProvider(self.root, self.secret)
        user = User(role, bucket, access_key=uuid4().hex[:20], secret=uuid4().hex)
        add_user(
            MinioAdmin(endpoint=f"127.0.0.1:{self.port}", credentials=root, secure=False), user, f"{role}-{bucket}"
        )
        return {"MINIO_ACCESS_KEY": user.access_key, "MINIO_SECRET_KEY": user.secret}


@dataclass
class VersityServer(MinioServer):
    """A Versity S3 Gateway on a folder."""

    kind: ClassVar[str] = "versity"
    health: ClassVar[str] = "/health"

    @property
    def command(self) -> list[str]:
        return [str(INCLUDE / "versity"), "server", f"127.0.0.1:{self.port}", str(self.folder)]

    @property
    def settings(self) -> dict[str, str]:
        return {"ROOT_ACCESS_KEY": self.root, "ROOT_SECRET_KEY": self.secret}
