"""Shared fixtures, and the groups of tests that run in one test worker."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

# The caller's settings for another Airflow, store or alert receiver must not reach the tests.
_TEST_SETTINGS = {"FMNIST_HOME", "FMNIST_TEST_ENDPOINT"}
_FOREIGN_PREFIXES = ("AIRFLOW", "FMNIST_", "PYTHONPATH")
if "FMNIST_TEST_ENDPOINT" not in os.environ:
    _FOREIGN_PREFIXES += ("MINIO_", "AWS_")
for _name in [name for name in os.environ if name.startswith(_FOREIGN_PREFIXES) and name not in _TEST_SETTINGS]:
    del os.environ[_name]
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1", "localhost")))
_PROJECT = Path(__file__).resolve().parent.parent
os.environ.setdefault("FMNIST_HOME", str(_PROJECT / "var"))
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(_PROJECT / "dags")
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(_PROJECT / "plugins")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
# Airflow reads its home when it is first imported.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-unit-")
os.environ["AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY"] = "1"
# Test workers share the cores, so more threads of TensorFlow would only slow down the other workers.
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import absl.logging
import pytest
from xdist.scheduler import LoadScopeScheduling

from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.store import Store
from tests.support import synthetic
from tests.support.airflow_in_process import AirflowInProcess
from tests.support.finished_run import provide_finished_run, provide_migrated_database
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline
from tests.support.proxy import Proxy
from tests.support.replay import replay_steps
from tests.support.requirements import MINIO, require
from tests.support.unit_lane import enforce_unit_lane, raise_attempts

pytest_plugins = ["tests.support.skip_summary", "tests.support.fault_summary"]
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
# Airflow closes all log handlers when it configures logging. TensorFlow's handler would then close the stream that
# pytest substituted for standard error when TensorFlow was imported. It does not close the original stream.
absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)


# Fixtures that train or start a service. They are set up before `unit_lane`, which therefore cannot refuse them.
COSTLY_FIXTURES = {"finished_home", "minio_server", "airflow_database", "migrated_home", "shared_cluster"}
# The slowest groups, slowest first. A group is a file, or all fault-injection tests that share a cluster.
LONGEST_GROUPS = (
    "faults",
    "faults/test_weeks.py",
    "test_pythons.py",
    "page/test_browser.py",
    "dags/test_real_images.py",
    "cluster/test_cluster.py",
    "steps/test_killed_on_minio.py",
    "steps/test_killed.py",
    "dags/test_in_scheduler.py",
)


def find_group(test: str) -> str:
    """The group of a test, given its pytest node ID: its file, or "faults" for tests that share the cluster."""
    file = test.partition("::")[0].removeprefix("tests/")
    return "faults" if file.startswith("faults/") and file not in LONGEST_GROUPS else file


class GroupScheduling(LoadScopeScheduling):
    """Assigns all tests of a group to one test worker, so that they share fixtures; groups start in their order."""

    def _split_scope(self, nodeid: str) -> str:
        return find_group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return GroupScheduling(config, log)


def is_unit_test(item: pytest.Item) -> bool:
    """Whether a test belongs to the unit lane: it has no marker of another lane."""
    return not any(item.get_closest_marker(lane) for lane in ("integration", "exhaustive"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse unit tests that use costly fixtures, and put the slowest groups first."""
    for item in items:
        costly = COSTLY_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if costly and is_unit_test(item):
            raise pytest.UsageError(f"{item.nodeid} uses {', '.join(sorted(costly))}; mark this test `integration`")
    order = {name: rank for rank, name in enumerate(LONGEST_GROUPS)}
    items.sort(key=lambda item: order.get(find_group(item.nodeid), len(order)))


@pytest.fixture(autouse=True)
def unit_lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a unit test, refuse training, Airflow processes and network access."""
    if is_unit_test(request.node):
        enforce_unit_lane(monkeypatch)
        yield
        raise_attempts()
    else:
        yield


@pytest.fixture(scope="session")
def synthetic_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small synthetic dataset and its declaration."""
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.write_dataset(folder)
    return folder


@pytest.fixture
def pipeline(tmp_path: Path, synthetic_data: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline with an empty store, on synthetic data; the environment of this process selects it."""
    pipeline = Pipeline(tmp_path / "pipeline")
    shutil.copytree(synthetic_data, pipeline.data)
    for name, value in pipeline.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("DAG_ID", "DAG_RUN_ID"):  # Airflow leaves them behind when it runs a task in this process
        monkeypatch.delenv(f"AIRFLOW_CTX_{name}", raising=False)
    return pipeline


@pytest.fixture(scope="session")
def finished_home() -> Path:
    """The home of a pipeline after one run that promoted a champion. Tests copy it and never change it."""
    return provide_finished_run()


@pytest.fixture
def finished_pipeline(finished_home: Path, pipeline: Pipeline) -> Pipeline:
    """A pipeline with a finished run and its champion."""
    shutil.copytree(finished_home / "store", pipeline.home / "store")
    return pipeline


@pytest.fixture
def replaying_pipeline(finished_home: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline without a champion, in which the steps that train or predict replay recorded results."""
    shutil.copytree(finished_home / "store" / "blobs", pipeline.home / "store" / "blobs")
    replay_steps(monkeypatch, Pipeline(finished_home).store)
    return pipeline


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """An empty database for the Airflow of this process."""
    from airflow import settings

    # An alert of an earlier test may have looked up a connection, which creates a database file without tables.
    settings.get_engine().dispose()
    home = Path(os.environ["AIRFLOW_HOME"])
    for file in home.glob("airflow.db*"):
        file.unlink()
    shutil.copy(provide_migrated_database() / "airflow.db", home)


@pytest.fixture
def airflow(
    airflow_database: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AirflowInProcess:
    """Airflow's command line in this process."""
    return AirflowInProcess(capfd, monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """The S3 server at FMNIST_TEST_ENDPOINT, or else a new MinIO. Each test uses its own bucket."""
    if endpoint := os.environ.get("FMNIST_TEST_ENDPOINT"):
        yield MinioServer(tmp_path_factory.mktemp("external"), external_endpoint=endpoint)
        return
    require(MINIO)
    server = MinioServer(tmp_path_factory.mktemp("minio") / "data")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket() -> str:
    """The name of a bucket that no other test uses. It does not exist yet."""
    return f"test-{uuid4().hex}"


@pytest.fixture
def minio_store(minio_server: MinioServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store in a new bucket. The environment of this process selects it."""
    for name, value in {**minio_server.credentials, "FMNIST_STORE": minio_server.build_uri(bucket)}.items():
        monkeypatch.setenv(name, value)
    return minio_server.open_store(bucket)


@pytest.fixture(params=["folder", pytest.param("minio", marks=pytest.mark.integration)])
def store_of_each_kind(request: pytest.FixtureRequest, store: FolderStore) -> Store:
    """A folder store, then, in the integration lane, an S3 store."""
    return request.getfixturevalue("minio_store") if request.param == "minio" else store


@pytest.fixture
def finished_minio_store(finished_pipeline: Pipeline, minio_store: S3Store) -> S3Store:
    """A store in a new bucket with the objects of a finished run. The environment of this process selects it."""
    for stat in finished_pipeline.store.list(""):
        minio_store.put(stat.key, finished_pipeline.store.get(stat.key))
    return minio_store


@pytest.fixture
def proxy(minio_server: MinioServer, minio_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the server. Stores that are opened from now on connect through it."""
    with Proxy(minio_server.endpoint).serve() as proxy:
        monkeypatch.setenv("FMNIST_STORE", minio_server.build_uri(minio_store.bucket, proxy.endpoint))
        yield proxy
