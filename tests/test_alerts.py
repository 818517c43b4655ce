"""Alerts arrive, once each, at real servers; a dead channel is logged and stops nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from fmnist_tasks import alerts, service
from fmnist_tasks.alerts import Alert
from fmnist_tasks.errors import SettingsError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.runs import write_record
from tests.support.listeners import MailServer, WebhookServer
from tests.support.pipeline import Pipeline
from tests.support.ports import reserve_port
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration

MISSED = Alert("rejected", "run-1", "Task accuracy_gate: test accuracy is 91.99%, below the bound of 92.00%")


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


def test_an_alert_arrives_by_every_channel(
    pipeline: Pipeline, mail_server: MailServer, webhook_server: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/pipeline/")
    champion.append(pipeline.store, version="v1", action="promote", reason="r", write_id="w", after=0)
    alerts.send(MISSED)
    (mail,), (post,) = mail_server.mails, webhook_server.posts
    assert (mail["To"], mail["From"]) == ("team@example.com", "pipeline@example.com")
    assert mail["Subject"] == post["title"] == "fmnist_retrain: rejected"
    assert post["type"] == "failure"
    page = mail.get_body(("html",)).get_content()
    for text in (page, post["message"]):
        for told in ("fmnist_retrain", "run-1", "91.99%, below the bound of 92.00%", "Champion in service: v1"):
            assert told in text
        assert "https://airflow.example.com/pipeline/dags/fmnist_retrain/runs/run-1" in text


def test_one_event_is_told_once_and_another_again(
    pipeline: Pipeline, webhook_server: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        alerts.send(MISSED)
    assert len(webhook_server.posts) == 1
    assert caplog.text.count("ALERT rejected") == 3
    alerts.send(Alert("rejected", "run-2", MISSED.text))
    alerts.send(Alert("rejected", "run-1", "Task promotion_gate: the size is too large"))
    assert len(webhook_server.posts) == 3


def test_what_comes_from_outside_is_shown_not_run(pipeline: Pipeline, mail_server: MailServer) -> None:
    alerts.send(Alert("batch quarantined", "run-1", "batch <script>alert(1)</script> is not used"))
    page = mail_server.mails[0].get_body(("html",)).get_content()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("broken", ["AIRFLOW_CONN_FMNIST_MAIL", "AIRFLOW_CONN_FMNIST_APPRISE"])
def test_a_dead_channel_is_logged_and_the_other_one_serves(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    dead = {
        "AIRFLOW_CONN_FMNIST_MAIL": MailServer().connection,
        "AIRFLOW_CONN_FMNIST_APPRISE": WebhookServer(port=reserve_port()).connection,
    }
    with MailServer().serve() as mail_server, WebhookServer().serve() as webhook_server:
        alive = {
            "AIRFLOW_CONN_FMNIST_MAIL": mail_server.connection,
            "AIRFLOW_CONN_FMNIST_APPRISE": webhook_server.connection,
        }
        for name, connection in (alive | {broken: dead[broken]}).items():
            monkeypatch.setenv(name, connection)
        alerts.send(MISSED)
        assert len(mail_server.mails) + len(webhook_server.posts) == 1
    channel = broken.removeprefix("AIRFLOW_CONN_").lower()
    assert f"not delivered through {channel} (fmnist_retrain: rejected)" in caplog.text


def test_a_service_that_refuses_is_logged(
    pipeline: Pipeline, webhook_server: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    webhook_server.status = 500
    alerts.send(MISSED)
    assert "not delivered through fmnist_apprise" in caplog.text


def test_without_a_channel_it_is_a_log_line(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    alerts.send(MISSED)
    assert "ALERT rejected in fmnist_retrain, run run-1: Task accuracy_gate" in caplog.text
    assert "delivered" not in caplog.text


def test_a_store_that_is_gone_does_not_silence_it(pipeline: Pipeline, webhook_server: WebhookServer) -> None:
    pipeline.store.put("champion/00000001.json", b"foreign")
    alerts.send(MISSED)
    assert "Which champion is in service cannot be read" in webhook_server.posts[0]["message"]
    shutil.rmtree(pipeline.home / "store")
    (pipeline.home / "store").write_text("no folder")
    alerts.send(MISSED)
    assert len(webhook_server.posts) == 2  # told twice rather than never


def test_a_rollback_is_told(finished_pipeline: Pipeline, webhook_server: WebhookServer) -> None:
    version = service.in_service(finished_pipeline.store).version
    with pytest.raises(SettingsError, match=r"is the champion already"):
        service.rollback(finished_pipeline.store, version, "no reason", actor="ann")
    assert webhook_server.posts == []
    finished_pipeline.promote_second_release()
    service.rollback(finished_pipeline.store, version, "it was worse", actor="ann")
    (post,) = webhook_server.posts
    assert post["type"] == "success"
    assert f"ann rolled back from second, which is withdrawn, to {version}: it was worse" in post["message"]


@pytest.mark.parametrize(("reason", "told"), [("timed_out", ["run failed"]), ("task_failure", [])])
def test_a_run_that_exceeds_its_time_is_told_and_a_failed_task_speaks_for_itself(
    pipeline: Pipeline, webhook_server: WebhookServer, reason: str, told: list[str]
) -> None:
    alerts.run_timed_out({"reason": reason, "run_id": "run-1", "dag": SimpleNamespace(dag_id="fmnist_retrain")})
    assert [post["title"] for post in webhook_server.posts] == [f"fmnist_retrain: {event}" for event in told]
    assert all("exceeded its time limit" in post["message"] for post in webhook_server.posts)


def ended(pipeline: Pipeline, run_id: str, step: str, status: str = "done", **result: object) -> None:
    write_record(
        pipeline.store, run_id, step, {"started": "2026-11-23T02:00:00+00:00", "status": status, "result": result}
    )


def test_a_line_that_stands_still_is_told_once(pipeline: Pipeline, webhook_server: WebhookServer) -> None:
    now = datetime.now(UTC)
    late = now + timedelta(days=8, hours=1)
    assert alerts.overdue(late) == "no run has ended well yet"
    ended(pipeline, "good", "detect_change", changed=False)
    ended(pipeline, "trains", "detect_change", changed=True)
    ended(pipeline, "bad", "promote", "failed")
    assert "days ago" not in alerts.overdue(now + timedelta(days=7))
    assert webhook_server.posts == []
    for _ in range(2):
        assert "more than 8 days ago" in alerts.overdue(late)
    (post,) = webhook_server.posts
    assert post["title"] == "fmnist_retrain: no successful run"
    assert "run good" in post["message"]
    ended(pipeline, RUN.id, "promote")
    assert "days ago" not in alerts.overdue(now + timedelta(days=7))
