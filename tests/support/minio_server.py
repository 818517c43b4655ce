"""A real MinIO server for the tests: an own process on a free loopback port, with users of the documented policies."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import urllib3
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from fmnist_tasks.registry.access import reach
from fmnist_tasks.registry.provision import add_user
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.settings import INCLUDE, PROJECT
from tests.support.ports import accepts_connections, reserve_port

ROOT_USER = "tests-root"


@dataclass
class MinioServer:
    """The server, its folder, and how to reach it."""

    folder: Path
    secret: str = field(default_factory=lambda: uuid4().hex)
    port: int = field(default_factory=reserve_port)
    certificate: Path | None = None  # beside it its key; with these the server speaks TLS
    external_endpoint: str = ""  # of a server that runs already, with the credentials of the environment
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return self.external_endpoint or f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    @property
    def credentials(self) -> dict[str, str]:
        if self.external_endpoint:
            return {name: os.environ[name] for name in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")}
        return {"MINIO_ACCESS_KEY": ROOT_USER, "MINIO_SECRET_KEY": self.secret}

    def start(self) -> None:
        log = self.folder.with_suffix(".log")
        arguments = [f"127.0.0.1:{self.port}", f"127.0.0.1:{reserve_port()}", str(self.folder)]
        if self.certificate:
            arguments += ["--certs-dir", str(self.certificate.parent)]
        secrets = {"MINIO_ROOT_USER": ROOT_USER, "MINIO_ROOT_PASSWORD": self.secret}
        environment = {**os.environ, **secrets, "FMNIST_HOME": str(PROJECT / "var")}  # where the built server is kept
        script = str(INCLUDE / "minio")
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [script, "server", *arguments], env=environment, stdout=output, stderr=output
            )
        while not self.is_healthy():
            if self.process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)

    def is_healthy(self) -> bool:
        if not accepts_connections(self.port):
            return False
        authority = str(self.certificate) if self.certificate else None
        with urllib3.PoolManager(retries=False, ca_certs=authority) as pool:
            return pool.request("GET", f"{self.endpoint}/minio/health/live").status == 200

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()

    def build_uri(self, bucket: str, endpoint: str | None = None) -> str:
        return f"s3://{bucket}?endpoint={endpoint or self.endpoint}"

    def open_store(self, bucket: str) -> S3Store:
        return S3Store(reach(self.build_uri(bucket)))

    def create_user(self, policy: str, bucket: str) -> dict[str, str]:
        """A new user with one of the policies of include/policies; the environment that names it."""
        admin = MinioAdmin(
            endpoint=f"127.0.0.1:{self.port}", credentials=StaticProvider(ROOT_USER, self.secret), secure=False
        )
        name, secret = f"{policy}-{uuid4().hex[:8]}", uuid4().hex
        add_user(admin, name, secret, policy, bucket)
        return {"MINIO_ACCESS_KEY": name, "MINIO_SECRET_KEY": secret}
