"""Fixtures of the alert tests: the store's clock, and receivers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from fmnist_tasks.alerts import outbox
from fmnist_tasks.registry.store import Store, read_clock
from tests.support.listeners import MailServer, WebhookServer


@dataclass
class Clock:
    """The store's clock, which a test can advance."""

    offset: timedelta = timedelta()

    def read(self, store: Store) -> datetime:
        return read_clock(store) + self.offset

    def advance(self, **time: float) -> None:
        self.offset += timedelta(**time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outbox, "read_clock", clock.read)
    return clock


@pytest.fixture
def mail_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MailServer]:
    with MailServer().serve() as server:
        monkeypatch.setenv("AIRFLOW_CONN_FMNIST_MAIL", server.connection)
        yield server


@pytest.fixture
def webhook_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebhookServer]:
    with WebhookServer().serve() as server:
        monkeypatch.setenv("AIRFLOW_CONN_FMNIST_APPRISE", server.connection)
        yield server
