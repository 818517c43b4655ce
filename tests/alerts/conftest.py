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
    """The store's clock, which a test may put forward."""

    ahead: timedelta = timedelta()

    def read(self, store: Store) -> datetime:
        return read_clock(store) + self.ahead

    def advance(self, **time: float) -> None:
        self.ahead += timedelta(**time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    new = Clock()
    monkeypatch.setattr(outbox, "read_clock", new.read)
    return new


@pytest.fixture
def mail_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MailServer]:
    with MailServer().serve() as box:
        monkeypatch.setenv("AIRFLOW_CONN_FMNIST_MAIL", box.connection)
        yield box


@pytest.fixture
def webhook_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebhookServer]:
    with WebhookServer().serve() as new:
        monkeypatch.setenv("AIRFLOW_CONN_FMNIST_APPRISE", new.connection)
        yield new
