"""The real DAG in a real Airflow with its store in a real MinIO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmnist_tasks import service
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.settings import DAG_ID
from tests.support.airflow_home import QUICK, Airflow, until
from tests.support.minio_server import Server
from tests.support.pipeline import Line

pytestmark = pytest.mark.integration


def everything_told(airflow: Airflow, store: S3Store, *outputs: str) -> bytes:
    """All that a run leaves for people to read: outputs, logs, and every object."""
    logs = [path.read_bytes() for path in airflow.home.rglob("*.log")]
    return b"\n".join([*map(str.encode, outputs), *logs, *(store.get(stat.key) for stat in store.list(""))])


def test_the_same_dag_with_a_connection_of_airflow(
    migrated: Path, line: Line, server: Server, minio: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    minio.put("incoming/bad.npz", b"no batch")  # the bucket is an administrator's to make
    user = server.user("publisher", minio.bucket)
    for name in user:
        monkeypatch.delenv(name)
    airflow = Airflow(migrated, line, {"FMNIST_STORE": f"s3://{minio.bucket}?connection=fmnist_store"})
    login, secret = user.values()
    extra = json.dumps({"endpoint_url": server.endpoint})
    named = ["--conn-type", "generic", "--conn-login", login, "--conn-password", secret, "--conn-extra", extra]
    code, output = airflow("airflow", "connections", "add", "fmnist_store", *named)
    assert code == 0, output

    code, output = airflow.run()
    assert code == 0, output
    entry = service.in_service(minio)
    assert f"{server.endpoint}/{minio.bucket}/releases/{entry.version}/model.h5" in output
    assert "quarantined" in output
    assert len(releases.read_files(minio, releases.read_manifest(minio, entry.version))) >= 8
    assert not (line.home / "store").exists()
    told = everything_told(airflow, minio, output)
    assert secret.encode() not in told
    assert b"AWS4-HMAC-SHA256" not in told

    code, output = airflow.run()
    assert code == 0, output
    assert "nothing changed" in output


def test_wrong_credentials_end_red_at_once_and_show_nothing(
    migrated: Path, line: Line, server: Server, minio: S3Store
) -> None:
    wrong = {"MINIO_ACCESS_KEY": "nobody", "MINIO_SECRET_KEY": "s3cr3t-enough"}
    airflow = Airflow(migrated, line, {**wrong, "FMNIST_STORE": server.uri(minio.bucket)})
    code, output = airflow("airflow", "dags", "test", DAG_ID, "--conf", json.dumps(QUICK))
    assert code == 1, output
    assert output.count("ingest begins") == 1
    assert "does not accept these credentials (InvalidAccessKeyId" in output
    assert "Which champion is in service cannot be read" in output
    assert "s3cr3t-enough" not in output + "".join(path.read_text() for path in airflow.home.rglob("*.log"))


@pytest.fixture
def own_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that a test may stop and start; where there can be none, `server` says so."""
    own = Server(tmp_path / "minio")
    own.start()
    for name, value in own.credentials.items():
        monkeypatch.setenv(name, value)
    yield own
    own.stop()


def test_a_server_that_is_gone_ends_the_run_red_and_cleared_tasks_finish_it(
    own_migrated: Path, finished: Line, own_server: Server
) -> None:
    store = own_server.store("fmnist")
    for stat in finished.store.list(""):
        store.put(stat.key, finished.store.get(stat.key))
    before = champion.history(store)
    airflow = Airflow(own_migrated, finished, {"FMNIST_STORE": own_server.uri("fmnist")})
    with airflow.standalone():
        run_id = airflow.begun()
        until(lambda: airflow.states(run_id).get("promotion_gate") == "success")
        own_server.stop()
        until(lambda: airflow.state(run_id) == "failed")
        assert airflow.states(run_id)["publish"] == "failed"
        (log,) = airflow.home.glob(f"logs/dag_id={DAG_ID}/run_id={run_id}/task_id=release.publish/attempt=3.log")
        assert (
            f"{own_server.endpoint} accepts no connection; see that the server runs, and clear the task"
            in log.read_text()
        )

        own_server.start()
        assert champion.history(store) == before
        code, output = airflow("airflow", "tasks", "clear", DAG_ID, "--yes", "--only-failed")
        assert code == 0, output
        until(lambda: airflow.state(run_id) == "success")
    assert [entry.write_id for entry in champion.history(store)] == [before[0].write_id, run_id]
    service.open_release(store, service.in_service(store).version)
