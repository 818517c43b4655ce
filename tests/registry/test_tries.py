"""How long an S3 server that is gone is waited for. Time passes on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError, NewConnectionError
from urllib3.exceptions import TimeoutError as TookTooLong

from fmnist_tasks import steps
from fmnist_tasks.errors import StoreError
from fmnist_tasks.registry import access, tries
from fmnist_tasks.registry.store import Store, open_store
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN

GONE = "s3://bucket?endpoint=http://gone:9000"


class Clock:
    """Time that passes only where the client waits."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(params=["refused", "not connected", "not answered", "late, then not answered"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock, and a server that is gone: each try takes as long as the client's time limits let it."""
    new = Clock()
    connect, read = access._TIMEOUT.connect_timeout, access._TIMEOUT.read_timeout
    seconds = {"refused": 0, "not connected": connect, "not answered": read}.get(request.param, connect + read)

    def urlopen(pool: urllib3.PoolManager, method: str, url: str, **_: object) -> None:
        new.sleep(seconds)
        reason = TookTooLong() if seconds else NewConnectionError(HTTPConnection("gone"), "refused")
        raise MaxRetryError(HTTPConnectionPool("gone"), url, reason)

    monkeypatch.setattr("tenacity.time", new)
    monkeypatch.setattr("tenacity.nap.time", new)
    monkeypatch.setattr(urllib3.PoolManager, "urlopen", urlopen)
    monkeypatch.setenv("MINIO_ACCESS_KEY", "access")
    monkeypatch.setenv("MINIO_SECRET_KEY", "secret")
    return new


@pytest.mark.parametrize(
    "ask",
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
def test_no_call_to_a_server_that_is_gone_takes_more_than_a_minute(
    clock: Clock, ask: Callable[[Store], object]
) -> None:
    with pytest.raises(StoreError, match=r"gone:9000 (accepts no connection|does not answer in time); see that"):
        ask(open_store(GONE))
    assert tries.BUDGET - 5 <= clock.now < 60  # it did try again, for as long as it may


def test_a_step_whose_server_is_gone_ends_clearly_within_two_minutes(
    pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_STORE", GONE)
    with pytest.raises(StoreError, match=r"gone:9000 .*; see that the server runs, and clear the task"):
        steps.ingest(RUN)
    assert clock.now < 120
