"""Time limits of requests to an unreachable S3 server, on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError, NewConnectionError
from urllib3.exceptions import TimeoutError as TookTooLong

from fmnist_tasks.errors import StoreError
from fmnist_tasks.registry import retries, s3_address
from fmnist_tasks.registry.store import Store
from fmnist_tasks.registry.stores import open_store
from fmnist_tasks.steps import run_step
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN

UNREACHABLE = "s3://bucket?endpoint=http://unreachable:9000"


class Clock:
    """A clock that advances only while the client waits."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(params=["refused", "no connection", "no response", "slow connection, then no response"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock, and an unreachable server: each attempt takes as long as the client's time limits allow."""
    clock = Clock()
    connect, read = s3_address._TIMEOUT.connect_timeout, s3_address._TIMEOUT.read_timeout
    seconds = {"refused": 0, "no connection": connect, "no response": read}.get(request.param, connect + read)

    def urlopen(pool: urllib3.PoolManager, method: str, url: str, **_: object) -> None:
        clock.sleep(seconds)
        reason = TookTooLong() if seconds else NewConnectionError(HTTPConnection("unreachable"), "refused")
        raise MaxRetryError(HTTPConnectionPool("unreachable"), url, reason)

    monkeypatch.setattr("tenacity.time", clock)
    monkeypatch.setattr("tenacity.nap.time", clock)
    monkeypatch.setattr(urllib3.PoolManager, "urlopen", urlopen)
    monkeypatch.setenv("MINIO_ACCESS_KEY", "access")
    monkeypatch.setenv("MINIO_SECRET_KEY", "secret")
    return clock


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.get("k"),
        lambda store: store.put("k", b"x"),
        lambda store: store.put_if_absent("k", b"x"),
        lambda store: list(store.list("")),
        lambda store: store.stat("k"),
        lambda store: store.delete("k"),
    ],
    ids=["get", "put", "put_if_absent", "list", "stat", "delete"],
)
def test_no_call_to_an_unreachable_server_takes_more_than_a_minute(
    clock: Clock, call: Callable[[Store], object]
) -> None:
    with pytest.raises(
        StoreError, match=r"unreachable:9000 (does not accept connections|does not respond in time); check that"
    ):
        call(open_store(UNREACHABLE))
    assert retries.MAX_RETRY_SECONDS - 5 <= clock.now < 60  # it retried, up to the limit


def test_a_step_whose_server_is_unreachable_fails_clearly_within_two_minutes(
    pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_STORE", UNREACHABLE)
    with pytest.raises(StoreError, match=r"unreachable:9000 .*; check that the server is running, then clear the task"):
        run_step("ingest", RUN)
    assert clock.now < 120
