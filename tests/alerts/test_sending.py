"""Alerts arrive at real servers: at least once through each channel, and exactly once if nothing fails."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from fmnist_tasks import alerts
from fmnist_tasks.alerts import Alert, channels, outbox
from fmnist_tasks.alerts.message import Message
from fmnist_tasks.alerts.outbox import DELIVERED, PENDING, UNDELIVERABLE, find_pending
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.serving.release import require_champion
from fmnist_tasks.serving.rollback import roll_back
from tests.alerts.conftest import Clock
from tests.support.listeners import MailServer, WebhookServer
from tests.support.outbox import read_alerts
from tests.support.pipeline import Pipeline
from tests.support.proxy import Fault, Proxy

pytestmark = pytest.mark.integration

REJECTION = Alert("rejected", "run-1", "Task accuracy_gate: test accuracy is 91.99%, below the threshold of 92.00%")
LABEL = "(possibly repeated)"
SECRET = uuid4().hex


def test_an_alert_arrives_through_every_channel(
    pipeline: Pipeline, mail_server: MailServer, webhook_server: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/pipeline/")
    monkeypatch.setenv("FMNIST_INSTANCE", "prod")
    champion.append_entry(pipeline.store, version="v1", action="promote", reason="r", write_id="w", after=0)
    alerts.send_alert(REJECTION)
    (mail,), (post,) = mail_server.mails, webhook_server.posts
    assert (mail["To"], mail["From"]) == ("team@example.com", "pipeline@example.com")
    assert mail["Subject"] == post["title"] == f"[prod] Run rejected: {REJECTION.text}"
    assert post["type"] == "failure"
    plain, page = (mail.get_body((kind,)).get_content() for kind in ("plain", "html"))
    assert plain.split() == post["message"].split()
    for text in (page, plain):
        for fact in ("fmnist_retrain", "run-1", "91.99%, below the threshold of 92.00%", "Current champion: v1"):
            assert fact in text
        for path in ("dags/fmnist_retrain/runs/run-1", "fmnist/runs/run-1", "fmnist/runbook#run-rejected"):
            assert f"https://airflow.example.com/pipeline/{path}" in text
    assert [read_alerts(pipeline.store, PENDING), len(read_alerts(pipeline.store, DELIVERED))] == [[], 1]
    assert list(pipeline.store.list(PENDING)) == []


def test_an_event_is_sent_once_and_a_different_one_separately(
    pipeline: Pipeline, webhook_server: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        alerts.send_alert(REJECTION)
    assert len(webhook_server.posts) == 1
    assert caplog.text.count("ALERT rejected") == 3
    alerts.send_alert(Alert("rejected", "run-2", REJECTION.text))
    alerts.send_alert(Alert("rejected", "run-1", "Task promotion_gate: the size is too large"))
    assert len(webhook_server.posts) == 3


def test_events_without_a_run_are_separate_alerts(pipeline: Pipeline, webhook_server: WebhookServer) -> None:
    for _ in range(2):
        alerts.send_alert(Alert("champion changed", None, "v1 is the champion again"))
    assert len(webhook_server.posts) == 2
    for _ in range(2):
        alerts.send_alert(Alert("champion changed", None, "v1 is the champion again", identity="entry 3"))
    assert len(webhook_server.posts) == 3


def test_untrusted_text_is_escaped(pipeline: Pipeline, mail_server: MailServer) -> None:
    alerts.send_alert(Alert("batch quarantined", "run-1", "batch <script>alert(1)</script>\r\nBcc: a@b.example\x1b[2J"))
    (mail,) = mail_server.mails
    page = mail.get_body(("html",)).get_content()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert mail["Bcc"] is None
    assert mail["Subject"].isprintable()
    assert mail_server.recipients == ["team@example.com"]


@pytest.mark.parametrize(("form", "shown"), [("html", "&lt;img"), ("markdown", r"\[a\]\(https")])
def test_text_for_a_service_with_html_or_markdown_is_escaped(
    pipeline: Pipeline, webhook_server: WebhookServer, monkeypatch: pytest.MonkeyPatch, form: str, shown: str
) -> None:
    path = f"json://127.0.0.1:{webhook_server.port}/?format={form}"
    connection = {"conn_type": "apprise", "extra": {"config": {"path": path}}}
    monkeypatch.setenv("AIRFLOW_CONN_FMNIST_APPRISE", json.dumps(connection))
    alerts.send_alert(
        Alert("batch quarantined", "run-1", "batch <img src=x onerror=alert(1)> [a](https://evil.example)")
    )
    (post,) = webhook_server.posts
    assert shown in post["message"]
    assert "<img src=x" not in post["message"]


def refuse_messages(mail_server: MailServer, webhook_server: WebhookServer) -> None:
    mail_server.reply, webhook_server.status = "451 later", 503


def accept_messages(mail_server: MailServer, webhook_server: WebhookServer) -> None:
    mail_server.reply, webhook_server.status = "250 OK", 200


def test_a_receiver_gets_missed_alerts_when_it_is_back(
    pipeline: Pipeline, mail_server: MailServer, webhook_server: WebhookServer, clock: Clock
) -> None:
    refuse_messages(mail_server, webhook_server)
    alerts.send_alert(REJECTION)
    accept_messages(mail_server, webhook_server)
    alerts.deliver_due_alerts()  # too early
    assert (mail_server.mails, webhook_server.posts) == ([], [])
    clock.advance(minutes=1.1)
    alerts.deliver_due_alerts()
    (mail,), (post,) = mail_server.mails, webhook_server.posts
    assert LABEL not in mail["Subject"] + post["title"]  # the first message did not arrive
    clock.advance(hours=2)
    alerts.deliver_due_alerts()
    alerts.send_alert(REJECTION)
    assert (len(mail_server.mails), len(webhook_server.posts)) == (1, 1)


def test_retries_become_less_frequent(pipeline: Pipeline, webhook_server: WebhookServer, clock: Clock) -> None:
    webhook_server.status = 503
    alerts.send_alert(REJECTION)
    for minutes in (1, 5, 15, 60, 60, 60):
        count = sum(1 for _ in pipeline.store.list(PENDING))
        clock.advance(minutes=minutes - 0.1)
        alerts.deliver_due_alerts()
        assert sum(1 for _ in pipeline.store.list(PENDING)) == count
        clock.advance(minutes=0.2)
        alerts.deliver_due_alerts()
        assert sum(1 for _ in pipeline.store.list(PENDING)) == count + 1


@pytest.mark.parametrize("broken", ["AIRFLOW_CONN_FMNIST_MAIL", "AIRFLOW_CONN_FMNIST_APPRISE"])
def test_a_dead_channel_is_logged_and_does_not_delay_the_other(
    pipeline: Pipeline,
    mail_server: MailServer,
    webhook_server: WebhookServer,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    dead_server = MailServer() if broken.endswith("MAIL") else WebhookServer(port=MailServer().port)  # a free port
    monkeypatch.setenv(broken, dead_server.connection)
    alerts.send_alert(REJECTION)
    assert len(mail_server.mails) + len(webhook_server.posts) == 1
    channel = broken.removeprefix("AIRFLOW_CONN_").lower()
    assert f"not delivered through {channel}" in caplog.text
    with dead_server.serve():
        clock.advance(minutes=2)
        alerts.deliver_due_alerts()
    is_mail = isinstance(dead_server, MailServer)
    (message,) = dead_server.mails if is_mail else dead_server.posts
    assert LABEL not in str(message["Subject" if is_mail else "title"])
    assert len(mail_server.mails) + len(webhook_server.posts) == 1  # the other channel gets it once


def test_only_a_refused_recipient_is_retried(pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with MailServer(to="a@example.com, b@example.com", refused=("a@example.com",)).serve() as server:
        monkeypatch.setenv("AIRFLOW_CONN_FMNIST_MAIL", server.connection)
        alerts.send_alert(REJECTION)
        assert server.recipients == ["b@example.com"]
        server.refused = ()
        clock.advance(minutes=2)
        alerts.deliver_due_alerts()
        clock.advance(hours=2)
        alerts.deliver_due_alerts()
        assert server.recipients == ["b@example.com", "a@example.com"]


def test_only_a_failed_service_is_retried(pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with WebhookServer().serve() as good, WebhookServer(status=500).serve() as bad:
        paths = [json.loads(server.connection)["extra"]["config"] for server in (good, bad)]
        connection = {"conn_type": "apprise", "extra": {"config": paths}}
        monkeypatch.setenv("AIRFLOW_CONN_FMNIST_APPRISE", json.dumps(connection))
        alerts.send_alert(REJECTION)
        bad.status = 200
        clock.advance(minutes=2)
        alerts.deliver_due_alerts()
        assert (len(good.posts), len(bad.posts)) == (1, 1)


def test_a_message_that_may_have_arrived_is_labelled_when_repeated(
    pipeline: Pipeline, mail_server: MailServer, webhook_server: WebhookServer, clock: Clock
) -> None:
    mail_server.reply, webhook_server.status = "", 0  # accept the message, then close the connection
    alerts.send_alert(REJECTION)
    refuse_messages(mail_server, webhook_server)  # a clean refusal in between changes nothing
    clock.advance(minutes=2)
    alerts.deliver_due_alerts()
    accept_messages(mail_server, webhook_server)
    clock.advance(minutes=6)
    alerts.deliver_due_alerts()
    assert [LABEL in mail["Subject"] for mail in mail_server.mails] == [False, True]
    assert [LABEL in post["title"] for post in webhook_server.posts] == [False, True]
    assert "You may have received this message before" in webhook_server.posts[1]["message"]
    assert mail_server.mails[0]["Message-ID"] == mail_server.mails[1]["Message-ID"]


def test_an_alert_waits_for_a_channel(
    pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alerts.send_alert(REJECTION)
    assert "ALERT rejected in fmnist_retrain, run run-1: Task accuracy_gate" in caplog.text
    clock.advance(days=6)
    alerts.deliver_due_alerts()
    with WebhookServer().serve() as webhook_server:
        monkeypatch.setenv("AIRFLOW_CONN_FMNIST_APPRISE", webhook_server.connection)
        alerts.deliver_due_alerts()
        assert len(webhook_server.posts) == 1


def test_an_alert_without_a_channel_is_given_up_after_a_week(
    pipeline: Pipeline, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    alerts.send_alert(REJECTION)
    clock.advance(days=7.1)
    alerts.deliver_due_alerts()
    assert "no channel was configured" in caplog.text
    (undeliverable,) = read_alerts(pipeline.store)
    assert undeliverable["reasons"] == ["no channel was configured"]
    assert list(pipeline.store.list(PENDING)) == []
    alerts.send_alert(REJECTION)
    assert list(pipeline.store.list(PENDING)) == []


def test_an_alert_undelivered_for_a_week_is_reported_through_other_channels(
    pipeline: Pipeline,
    mail_server: MailServer,
    webhook_server: WebhookServer,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    webhook_server.status = 500
    alerts.send_alert(REJECTION)
    clock.advance(days=7.1)
    alerts.deliver_due_alerts()
    subjects = [str(mail["Subject"]) for mail in mail_server.mails]
    assert len(subjects) == 2
    assert subjects[1].startswith("Alert undeliverable: rejected of ")
    assert "the service responded with status 500" in mail_server.mails[1].get_body(("plain",)).get_content()
    assert any(
        record.levelno == logging.ERROR and "undeliverable for 7 days" in record.message for record in caplog.records
    )
    assert [alert["event"] for alert in read_alerts(pipeline.store, UNDELIVERABLE)] == ["rejected"]
    clock.advance(days=7.1)
    alerts.deliver_due_alerts()  # gives up the report too, without reporting that
    assert len(mail_server.mails) == 2
    assert len(read_alerts(pipeline.store, UNDELIVERABLE)) == 2
    assert list(pipeline.store.list(PENDING)) == []


def test_after_a_long_pause_each_channel_is_tried_before_an_alert_is_given_up(
    pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts.send_alert(REJECTION)
    clock.advance(days=30)
    with WebhookServer().serve() as webhook_server:
        monkeypatch.setenv("AIRFLOW_CONN_FMNIST_APPRISE", webhook_server.connection)
        alerts.deliver_due_alerts()
        assert len(webhook_server.posts) == 1
    assert [read_alerts(pipeline.store, UNDELIVERABLE), len(read_alerts(pipeline.store, DELIVERED))] == [[], 1]


def test_an_alert_without_an_attempt_is_not_given_up(
    pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that fails for one alert is skipped for the others in the same pass."""
    for run_id in ("run-1", "run-2"):
        alerts.send_alert(Alert("rejected", run_id, REJECTION.text))
    clock.advance(days=30)
    with WebhookServer(status=503).serve() as webhook_server:
        monkeypatch.setenv("AIRFLOW_CONN_FMNIST_APPRISE", webhook_server.connection)
        alerts.deliver_due_alerts()
    pending = [alert["event"] for alert in read_alerts(pipeline.store, PENDING)]
    assert sorted(pending) == ["alert undeliverable", "rejected"]


def test_an_alert_that_no_channel_accepts_does_not_delay_the_next(
    pipeline: Pipeline, webhook_server: WebhookServer, clock: Clock
) -> None:
    webhook_server.status = 413
    alerts.send_alert(REJECTION)
    clock.advance(minutes=2)
    webhook_server.status = 200
    deliver = channels.deliver

    def refuse_first(channel: channels.Channel, message: Message) -> channels.Outcome:
        if "91.99" in message.subject:
            return channels.Outcome("refused", "too large")
        return deliver(channel, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "deliver", refuse_first)
        alerts.send_alert(Alert("run failed", "run-2", "the next"))
    assert [post["title"] for post in webhook_server.posts] == ["fmnist_retrain failed: the next"]


def test_an_alert_waits_for_a_connection_that_is_briefly_missing(
    pipeline: Pipeline,
    mail_server: MailServer,
    webhook_server: WebhookServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If its API server cannot look up a connection, Airflow reports that the connection does not exist."""
    alerts.send_alert(REJECTION)
    with monkeypatch.context() as patch:
        patch.delenv("AIRFLOW_CONN_FMNIST_MAIL")
        alerts.send_alert(Alert("rejected", "run-2", REJECTION.text))
    assert (len(mail_server.mails), len(webhook_server.posts)) == (1, 2)
    alerts.deliver_due_alerts()
    assert (len(mail_server.mails), len(webhook_server.posts)) == (2, 2)


@pytest.mark.parametrize(
    ("name", "extra", "fault"),
    [
        ("AIRFLOW_CONN_FMNIST_MAIL", {"from_email": "a@example.com"}, "its extra must have from_email and to"),
        ("AIRFLOW_CONN_FMNIST_APPRISE", {}, "its extra must have config"),
        (
            "AIRFLOW_CONN_FMNIST_APPRISE",
            {"config": {"path": "slak://token"}},
            "an address that Apprise does not support",
        ),
    ],
)
def test_a_faulty_connection_is_logged_and_the_alert_waits(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    extra: dict[str, object],
    fault: str,
) -> None:
    kind = "smtp" if name.endswith("MAIL") else "apprise"
    monkeypatch.setenv(name, json.dumps({"conn_type": kind, "host": "h", "extra": extra}))
    alerts.send_alert(REJECTION)
    assert fault in caplog.text
    assert "token" not in caplog.text
    assert len(read_alerts(pipeline.store, PENDING)) == 1


@pytest.mark.parametrize("name", ["FMNIST_APPROVAL", "FMNIST_OVERDUE_DAYS", "FMNIST_HEARTBEAT_URL"])
def test_an_invalid_setting_does_not_stop_an_alert(
    pipeline: Pipeline, webhook_server: WebhookServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "wrong")
    alerts.send_alert(Alert("run failed", None, "x" * 20_000))
    (post,) = webhook_server.posts
    assert 10_000 < len(post["message"]) < 12_000
    assert len(read_alerts(pipeline.store, DELIVERED)) == 1


def test_a_missing_store_does_not_stop_an_alert(pipeline: Pipeline, webhook_server: WebhookServer) -> None:
    pipeline.store.put("champion/00000001.json", b"foreign")
    alerts.send_alert(REJECTION)
    assert "The current champion cannot be read" in webhook_server.posts[0]["message"]
    shutil.rmtree(pipeline.home / "store")
    (pipeline.home / "store").write_text("not a folder")
    alerts.send_alert(REJECTION)
    assert len(webhook_server.posts) == 2  # twice rather than never
    assert LABEL in webhook_server.posts[1]["title"]


@pytest.mark.parametrize("prefix", ["alerts/pending/", "alerts/delivered/"])
def test_a_lost_response_of_the_store_loses_no_alert(
    pipeline: Pipeline, minio_store: S3Store, proxy: Proxy, webhook_server: WebhookServer, prefix: str
) -> None:
    paths: list[str] = []

    def drop_first_response(request: object) -> Fault | None:
        path = str(getattr(request, "path", ""))
        if getattr(request, "method", "") != "PUT" or prefix not in path or path in paths:
            return None
        paths.append(path)
        return Fault(drop_response=True)

    proxy.reset(drop_first_response)
    alerts.send_alert(REJECTION)
    assert paths
    assert len(webhook_server.posts) == 1
    assert LABEL not in webhook_server.posts[0]["title"]
    assert len(read_alerts(minio_store, DELIVERED)) == 1


def test_a_damaged_alert_is_reported_and_does_not_delay_the_others(
    pipeline: Pipeline, webhook_server: WebhookServer
) -> None:
    damaged = "0" * 24
    pipeline.store.put(f"{PENDING}{damaged}.json", b"foreign")
    alerts.send_alert(REJECTION)
    titles = sorted(post["title"] for post in webhook_server.posts)
    assert titles[0].startswith("Alert undeliverable: A pending alert cannot be read")
    assert titles[1].startswith("Run rejected")
    assert pipeline.store.get(f"{UNDELIVERABLE}{damaged}.damaged") == b"foreign"
    assert list(pipeline.store.list(PENDING)) == []
    alerts.deliver_due_alerts()
    assert len(webhook_server.posts) == 2


def put_attempt_with_a_huge_number(store: FolderStore) -> None:
    content = {"schema_version": 2, "number": 10**250, "status": "failed", "time": "2026-11-23T02:00:00+00:00"}
    alert_id = next(iter(find_pending(store)))
    store.put(f"{PENDING}{alert_id}.channel.000001.json", seal(content))


def put_large_object(store: FolderStore) -> None:
    store.put(f"{PENDING}{'0' * 24}.json", b"")
    os.truncate(store.root / PENDING / f"{'0' * 24}.json", 100 << 20)


@pytest.mark.parametrize(
    "manipulate",
    [
        lambda store: (store.root / PENDING / f"{'0' * 24}.json").symlink_to("/etc/passwd"),
        lambda store: os.mkfifo(store.root / PENDING / f"{'0' * 24}.json"),
        put_large_object,
        put_attempt_with_a_huge_number,
        lambda store: store.put("alerts/channels/zz", b"\xff\xfe"),
        lambda store: (store.root / "alerts/channels/zz").symlink_to("/etc/passwd"),
    ],
    ids=["link", "pipe", "large", "number of an attempt", "name of a channel", "link as a channel"],
)
def test_one_bad_object_of_the_outbox_delays_no_other_alert(
    pipeline: Pipeline, mail_server: MailServer, webhook_server: WebhookServer, manipulate: Callable[..., None]
) -> None:
    refuse_messages(mail_server, webhook_server)
    alerts.send_alert(REJECTION)
    accept_messages(mail_server, webhook_server)
    manipulate(pipeline.store)
    for _ in range(2):
        alerts.send_alert(replace(REJECTION, text="another text"))
    assert any("another text" in post["message"] for post in webhook_server.posts)


def test_a_damaged_attempt_counts_as_interrupted(
    pipeline: Pipeline, mail_server: MailServer, webhook_server: WebhookServer, clock: Clock
) -> None:
    refuse_messages(mail_server, webhook_server)
    alerts.send_alert(REJECTION)
    for stat in pipeline.store.list(PENDING):
        if stat.key.count(".") > 1:
            pipeline.store.put(stat.key, b"")
            break
    accept_messages(mail_server, webhook_server)
    clock.advance(minutes=2)
    alerts.deliver_due_alerts()
    assert len(mail_server.mails) + len(webhook_server.posts) == 1  # through the channel whose attempt is intact
    clock.advance(hours=1)
    alerts.deliver_due_alerts()
    (mail,), (post,) = mail_server.mails, webhook_server.posts
    assert f"{mail['Subject']}{post['title']}".count(LABEL) == 1


def test_alerts_dated_in_the_future_are_delivered_or_given_up(
    pipeline: Pipeline, webhook_server: WebhookServer, clock: Clock
) -> None:
    clock.advance(days=365)
    webhook_server.status = 503
    alerts.send_alert(REJECTION)
    clock.advance(days=-365)
    webhook_server.status = 200
    alerts.deliver_due_alerts()
    assert len(webhook_server.posts) == 1
    clock.advance(days=365)
    webhook_server.status = 503
    alerts.send_alert(Alert("rejected", "run-2", REJECTION.text))
    clock.advance(days=-365)
    alerts.deliver_due_alerts()
    clock.advance(days=7.1)
    alerts.deliver_due_alerts()
    assert [alert["run_id"] for alert in read_alerts(pipeline.store, UNDELIVERABLE)] == ["run-2"]


def test_simultaneous_alerts_leave_no_secret_in_the_environment(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks receive their connection as an argument, not through the environment, which all threads share."""
    environments: list[dict[str, str]] = []
    barrier = threading.Barrier(2, timeout=30)

    class SlowMailServer(MailServer):
        async def handle_RCPT(self, *arguments: object) -> str:  # type: ignore[override]  # noqa: N802
            environments.append(dict(os.environ))
            return await super().handle_RCPT(*arguments)  # type: ignore[arg-type]

    with SlowMailServer(password=SECRET).serve() as server:
        from airflow.sdk import Connection

        connection = Connection.from_json(server.connection, conn_id="fmnist_mail")
        monkeypatch.setattr(channels, "find_connection", lambda name: connection if name == "fmnist_mail" else None)
        before = dict(os.environ)

        def send(number: int) -> None:
            barrier.wait()
            alerts.send_alert(Alert("champion changed", None, f"rollback {number}"))

        threads = [threading.Thread(target=send, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.mails) == 2
    assert all(SECRET not in str(environment) for environment in [*environments, dict(os.environ)])
    assert dict(os.environ) == before


def test_a_rollback_is_reported(finished_pipeline: Pipeline, webhook_server: WebhookServer) -> None:
    version = require_champion(finished_pipeline.store).version
    finished_pipeline.promote_second_release()
    roll_back(finished_pipeline.store, version, "it was worse", actor="ann")
    (post,) = webhook_server.posts
    assert post["type"] == "success"
    assert post["title"].startswith("Champion changed: ")
    assert f"ann rolled back from second, now withdrawn, to {version}: it was worse" in post["message"]
    assert "fmnist_retrain" not in post["message"]  # the rollback used no DAG


def test_a_flush_without_pending_alerts_costs_one_listing(
    minio_store: S3Store, pipeline: Pipeline, proxy: Proxy
) -> None:
    proxy.reset()
    alerts.deliver_due_alerts()
    assert [request.method for request in proxy.requests] == ["GET"]
