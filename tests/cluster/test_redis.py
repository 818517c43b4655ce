"""The Redis user in the Compose file has exactly the rights that Celery needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from fmnist_tasks.settings import PROJECT
from tests.support.airflow_home import wait_until
from tests.support.ports import reserve_port
from tests.support.requirements import REDIS, require

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a Redis that is started by the command in the Compose file, with the password in a file."""
    require(REDIS)
    folder, port = tmp_path_factory.mktemp("redis"), reserve_port()
    (folder / "password").write_text("of the queue, #1\n")
    service = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())["services"]["redis"]
    *shell, script = service["command"]
    script = script.replace("$$", "$").replace("dir /data", f"dir {folder}\nbind 127.0.0.1\nport {port}")
    environment = {"PATH": os.environ["PATH"], "REDIS_PASSWORD_FILE": str(folder / "password")}
    process = subprocess.Popen([*shell, script], env=environment, stdout=subprocess.DEVNULL)

    def is_ready() -> bool:
        with suppress(exceptions.ConnectionError):
            return bool(connect(port).ping())
        return False

    try:
        wait_until(is_ready, every=0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def connect(port: int, user: str = "airflow", password: str = "of the queue, #1") -> Redis:  # noqa: S107
    return Redis(port=port, username=user, password=password, retry=Retry(NoBackoff(), 0))


def test_the_user_of_the_queue_has_no_administrative_commands(port: int) -> None:
    redis = connect(port)
    redis.lpush("default", "task")
    assert redis.brpop("default", timeout=1) == (b"default", b"task")
    for command in ("CONFIG GET dir", "CONFIG SET dir /", "FLUSHALL", "SHUTDOWN", "ACL LIST", "KEYS *", "SAVE",
                    "MODULE LIST", "REPLICAOF host 1", "MONITOR"):  # fmt: skip
        with pytest.raises(exceptions.NoPermissionError):
            redis.execute_command(*command.split())


@pytest.mark.parametrize(("user", "password"), [("default", ""), ("default", "of the queue, #1"), ("airflow", "other")])
def test_no_other_user_can_sign_in(port: int, user: str, password: str) -> None:
    with pytest.raises(exceptions.AuthenticationError):
        connect(port, user, password).ping()
    with pytest.raises(exceptions.AuthenticationError):
        connect(port, "", "").ping()


def test_the_health_check_signs_in(port: int, tmp_path: Path) -> None:
    test = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())["services"]["redis"]["healthcheck"]["test"]
    command = test[1].replace("$$", "$").replace("redis:6379", f"127.0.0.1:{port}")
    for password, healthy in (("of the queue, #1", True), ("other", False)):
        environment = {"PATH": os.environ["PATH"], "REDIS_PASSWORD": password}
        assert (subprocess.run(["sh", "-c", command], env=environment).returncode == 0) == healthy
