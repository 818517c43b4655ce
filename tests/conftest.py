from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

# Airflow reads its home at the first import, wherever that happens.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-unit-")

import pytest

from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.store import Store
from tests.support import synthetic
from tests.support.minio_server import NoServerError, Server
from tests.support.pipeline import Line
from tests.support.proxy import Proxy

atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    synthetic.declare(folder)
    return folder


@pytest.fixture
def line(tmp_path: Path, made_data: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    new = Line(tmp_path / "line")
    shutil.copytree(made_data, new.data)
    for name, value in new.environment.items():
        monkeypatch.setenv(name, value)
    return new


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory, made_data: Path) -> Path:
    """A line on which one run has gone all the way to a champion; never changed, only copied."""
    home = tmp_path_factory.mktemp("finished") / "line"
    shutil.copytree(made_data, home / "data")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in Line(home).environment.items():
            patch.setenv(name, value)
        Line(home).upto("promote")
    return home


@pytest.fixture
def finished(finished_home: Path, line: Line) -> Line:
    """A line of its own with a finished run and its champion."""
    shutil.copytree(finished_home / "store", line.home / "store")
    return line


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The S3 server in FMNIST_TEST_ENDPOINT, or else a MinIO of its own; each test takes a bucket of its own."""
    if endpoint := os.environ.get("FMNIST_TEST_ENDPOINT"):
        yield Server(tmp_path_factory.mktemp("named"), named=endpoint)
        return
    new = Server(tmp_path_factory.mktemp("minio") / "data")
    try:
        new.start()
    except NoServerError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    yield new
    new.stop()


@pytest.fixture
def bucket() -> str:
    return f"test-{uuid4().hex}"


@pytest.fixture
def minio(server: Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store in a bucket of its own, and the environment that reaches it."""
    for name, value in {**server.credentials, "FMNIST_STORE": server.uri(bucket)}.items():
        monkeypatch.setenv(name, value)
    return server.store(bucket)


@pytest.fixture(params=["folder", "minio"])
def either(request: pytest.FixtureRequest, store: FolderStore) -> Store:
    """Both kinds of store, one after the other."""
    return request.getfixturevalue("minio") if request.param == "minio" else store


@pytest.fixture
def finished_minio(finished: Line, minio: S3Store) -> S3Store:
    """A bucket with all that a finished run left, and the environment that reaches it."""
    for stat in finished.store.list(""):
        minio.put(stat.key, finished.store.get(stat.key))
    return minio


@pytest.fixture
def proxy(server: Server, minio: S3Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Stands between the clients made from now on and the server."""
    with Proxy(server.endpoint).running() as new:
        monkeypatch.setenv("FMNIST_STORE", server.uri(minio.bucket, new.endpoint))
        yield new
