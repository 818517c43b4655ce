"""`fmnist_watch`: missing runs, failures without an alert, and the heartbeat."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from fmnist_tasks import alerts
from fmnist_tasks.alerts import Alert, outbox
from fmnist_tasks.alerts.watch import check_pipeline
from fmnist_tasks.errors import AccessError, FmnistError, IntegrityError, RejectedError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.store import read_clock
from tests.alerts.conftest import Clock
from tests.support.documents import save_record
from tests.support.outbox import read_alerts
from tests.support.pipeline import Pipeline


def list_events(pipeline: Pipeline) -> list[str]:
    return sorted(alert["event"] for alert in read_alerts(pipeline.store))


def write_record(pipeline: Pipeline, clock: Clock, run_id: str, step: str, status: str = "done", **fields: Any) -> None:
    now = clock.read(pipeline.store).isoformat()
    defaults = {"created": now, "started": now, "status": status, "outcome": "why"}
    save_record(pipeline.store, run_id, step, **defaults | fields)


def promote(pipeline: Pipeline, clock: Clock, version: str) -> None:
    current = champion.find_champion(pipeline.store)
    after = current.sequence if current else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(champion, "read_clock", clock.read)
        champion.append_entry(
            pipeline.store, version=version, action="promote", reason="r", write_id=f"run-{version}", after=after
        )


def list_failures(pipeline: Pipeline) -> list[str]:
    return [event for event in list_events(pipeline) if event != "champion changed"]


def test_a_pipeline_without_a_successful_run_is_reported(pipeline: Pipeline, clock: Clock) -> None:
    assert "No run has succeeded since fmnist_watch first ran" in check_pipeline()
    clock.advance(days=7.9)
    check_pipeline()
    assert list_events(pipeline) == []
    clock.advance(days=0.2)
    for _ in range(3):
        assert "more than the 8 allowed" in check_pipeline()
    assert list_events(pipeline) == ["no successful run"]


def test_the_alert_is_repeated_weekly_until_a_run_succeeds(pipeline: Pipeline, clock: Clock) -> None:
    promote(pipeline, clock, "v1")
    for days, count in ((7.9, 0), (0.2, 1), (6.8, 1), (0.2, 2), (7, 3)):
        clock.advance(days=days)
        check_pipeline()
        assert list_failures(pipeline) == ["no successful run"] * count
    promote(pipeline, clock, "v2")
    clock.advance(days=7.9)
    check_pipeline()
    assert list_failures(pipeline) == ["no successful run"] * 3
    clock.advance(days=0.2)
    check_pipeline()
    assert list_failures(pipeline) == ["no successful run"] * 4


def test_a_run_in_which_nothing_changed_is_a_success(pipeline: Pipeline, clock: Clock) -> None:
    promote(pipeline, clock, "v1")
    clock.advance(days=8)
    write_record(pipeline, clock, "run-2", "detect_change", result={"changed": False})
    write_record(pipeline, clock, "run-3", "detect_change", result={"changed": True})
    clock.advance(days=7.9)
    assert "The last successful run" in check_pipeline()
    assert "no successful run" not in list_events(pipeline)


def test_clearing_an_old_task_or_rolling_back_is_not_a_success(pipeline: Pipeline, clock: Clock) -> None:
    write_record(pipeline, clock, "run-1", "detect_change", result={"changed": False})
    created = clock.read(pipeline.store).isoformat()
    promote(pipeline, clock, "v1")
    clock.advance(days=8.1)
    write_record(pipeline, clock, "run-1", "detect_change", created=created, result={"changed": False})
    write_record(pipeline, clock, "run-0", "promote", created=created)
    champion.append_entry(pipeline.store, version="v0", action="rollback", reason="r", write_id="w", after=1)
    check_pipeline()
    assert list_failures(pipeline) == ["no successful run"]


def test_clearing_a_task_does_not_change_the_time_of_a_success(pipeline: Pipeline, clock: Clock) -> None:
    created = clock.read(pipeline.store) - timedelta(days=9)
    write_record(pipeline, clock, "run-1", "detect_change", created=created.isoformat(), result={"changed": False})
    assert f"{created:%Y-%m-%d %H:%M}" in check_pipeline()
    assert list_events(pipeline) == ["no successful run"]


@pytest.mark.parametrize(("status", "event"), [("rejected", "rejected"), ("failed", "run failed")])
def test_a_failure_that_a_killed_task_did_not_report_is_reported(
    pipeline: Pipeline, clock: Clock, status: str, event: str
) -> None:
    write_record(pipeline, clock, "run-1", "accuracy_gate", status)
    write_record(pipeline, clock, "try-1", "accuracy_gate", status, actor="ann (shell)")  # its user has seen it
    check_pipeline()
    check_pipeline()
    (alert,) = read_alerts(pipeline.store)
    assert (alert["event"], alert["run_id"]) == (event, "run-1")


def test_a_reported_failure_is_not_reported_again(pipeline: Pipeline, clock: Clock) -> None:
    write_record(pipeline, clock, "run-1", "accuracy_gate", "rejected")
    task = SimpleNamespace(task_id="base_model.accuracy_gate", map_index=-1, try_number=2)
    dag = SimpleNamespace(dag_id="fmnist_retrain")
    alerts.alert_task_failure({"run_id": "run-1", "dag": dag, "task_instance": task, "exception": RejectedError("why")})
    check_pipeline()
    assert list_events(pipeline) == ["rejected"]


def test_a_change_of_the_champion_that_a_killed_process_did_not_report_is_reported(
    pipeline: Pipeline, clock: Clock
) -> None:
    promote(pipeline, clock, "v1")
    alerts.send_alert(Alert("champion changed", "run-v1", "v1 is now the champion", identity="entry 1"))
    champion.append_entry(
        pipeline.store, version="v0", action="rollback", reason="why", write_id="w", actor="ann", after=1
    )
    check_pipeline()
    check_pipeline()
    texts = sorted(alert["text"] for alert in read_alerts(pipeline.store))
    assert texts == ["ann rolled back from v1 to v0: why", "v1 is now the champion"]


def test_a_retryable_failure_is_reported_after_the_retry_period(pipeline: Pipeline, clock: Clock) -> None:
    write_record(pipeline, clock, "run-1", "train-0", "failed", retryable=True)
    clock.advance(hours=6)
    check_pipeline()
    assert list_events(pipeline) == []
    clock.advance(hours=1.5)
    check_pipeline()
    assert list_events(pipeline) == ["run failed"]


def test_an_unfinished_step_is_reported_after_its_time_limit(pipeline: Pipeline, clock: Clock) -> None:
    write_record(pipeline, clock, "run-1", "train-0", "running")
    clock.advance(hours=6)
    check_pipeline()
    assert list_events(pipeline) == []
    clock.advance(hours=1.5)
    check_pipeline()
    check_pipeline()
    (alert,) = read_alerts(pipeline.store)
    assert (alert["event"], alert["run_id"]) == ("run failed", "run-1")
    assert "has not ended; its process was probably killed" in alert["text"]
    clock.advance(days=4)
    check_pipeline()
    assert list_events(pipeline) == ["run failed"]


@pytest.mark.parametrize(("reported_after", "events"), [(True, 1), (False, 2)])
def test_a_killed_step_is_reported_once(pipeline: Pipeline, clock: Clock, reported_after: bool, events: int) -> None:
    """Airflow's callback reports it, or else the watch; a failure before the step started is a different one."""
    actions = [
        lambda: write_record(pipeline, clock, "run-1", "train-0", "running"),
        lambda: clock.advance(hours=1),
        lambda: alerts.send_alert(Alert("run failed", "run-1", "Task train: killed")),
    ]
    for action in actions if reported_after else reversed(actions):
        action()
    clock.advance(hours=8)
    check_pipeline()
    assert list_events(pipeline) == ["run failed"] * events


def test_times_in_the_future_do_not_suppress_alerts(pipeline: Pipeline, clock: Clock) -> None:
    clock.advance(days=365)
    check_pipeline()
    promote(pipeline, clock, "v1")
    created = clock.read(pipeline.store).isoformat()
    clock.advance(days=-365)
    write_record(pipeline, clock, "run-1", "detect_change", created=created, result={"changed": False})
    assert "No run has succeeded since fmnist_watch first ran" in check_pipeline()
    clock.advance(days=8.1)
    check_pipeline()
    assert list_failures(pipeline) == ["no successful run"]


def test_a_run_without_an_end_is_reported(pipeline: Pipeline, clock: Clock) -> None:
    write_record(pipeline, clock, "run-1", "ingest")
    clock.advance(days=3.4)
    check_pipeline()
    assert list_events(pipeline) == []
    clock.advance(days=0.2)
    check_pipeline()
    check_pipeline()
    assert list_events(pipeline) == ["run failed"]


@pytest.mark.parametrize(
    ("from_shell", "ended_by_shell", "events"), [(True, False, []), (False, True, []), (False, False, ["run failed"])]
)
def test_a_shell_run_needs_no_end_and_a_shell_can_end_an_airflow_run(
    pipeline: Pipeline, clock: Clock, from_shell: bool, ended_by_shell: bool, events: list[str]
) -> None:
    write_record(pipeline, clock, "run-1", "ingest", actor="ann (shell)" if from_shell else "schedule")
    if ended_by_shell:
        write_record(pipeline, clock, "run-1", "promote", actor="ann (shell)")
    clock.advance(days=3.6)
    check_pipeline()
    assert list_events(pipeline) == events


def test_a_run_rejected_by_a_user_is_not_reported_again(pipeline: Pipeline, clock: Clock) -> None:
    write_record(pipeline, clock, "run-1", "promotion_gate")
    alerts.send_alert(Alert("rejected by a user", "run-1", "rejected by mia"))
    clock.advance(days=4)
    check_pipeline()
    assert list_events(pipeline) == ["rejected by a user"]


def test_damaged_records_fail_the_watch_after_everything_else(
    pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_OVERDUE_DAYS", "1")
    check_pipeline()
    clock.advance(days=1.1)
    for step in ("ingest", "detect_change"):
        pipeline.store.put(f"runs/run-1/{step}.json", b"foreign")
    earlier = {"run_id": "run-1", "step": "train-0", "started": "2026-11-23T02:00:00+00:00", "status": "failed"}
    pipeline.store.put("runs/run-1/train-0.json", seal(earlier))  # as version 0.1 wrote it
    write_record(pipeline, clock, "run-2", "accuracy_gate", "rejected")
    damaged = (
        r"runs/run-1/detect_change\.json.*; runs/run-1/ingest\.json.*; runs/run-1/train-0\.json has schema version 1"
    )
    with pytest.raises(FmnistError, match=damaged):
        check_pipeline()
    assert list_events(pipeline) == ["no successful run", "rejected"]


def test_a_damaged_champion_log_does_not_stop_other_alerts(pipeline: Pipeline, clock: Clock) -> None:
    write_record(pipeline, clock, "run-2", "accuracy_gate", "rejected")
    pipeline.store.put("champion/00000001.json", b"foreign")
    with pytest.raises(IntegrityError, match=r"^champion/00000001\.json: "):
        check_pipeline()
    assert list_events(pipeline) == ["rejected"]


def test_a_record_that_may_not_be_read_fails_the_watch_after_everything_else(
    pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests often run as root, who may read all files of a folder."""
    for run_id in ("run-1", "run-2"):
        write_record(pipeline, clock, run_id, "accuracy_gate", "rejected")
    get = FolderStore.get

    def deny(store: FolderStore, key: str, *arguments: int) -> bytes:
        if key.startswith("runs/run-1/"):
            raise AccessError(f"{key}: permission denied")
        return get(store, key, *arguments)

    monkeypatch.setattr(FolderStore, "get", deny)
    with pytest.raises(FmnistError, match=r"^runs/run-1/accuracy_gate\.json: permission denied"):
        check_pipeline()
    assert list_events(pipeline) == ["rejected"]


@pytest.mark.parametrize("content", [{}, {"time": None}, {"schema_version": 3, "time": "2026-11-23"}])
def test_a_damaged_start_of_the_watch_is_replaced(
    pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch, content: dict[str, object]
) -> None:
    monkeypatch.setenv("FMNIST_OVERDUE_DAYS", "1")
    pipeline.store.put("alerts/watch.json", seal(content))
    check_pipeline()
    assert list_events(pipeline) == []
    clock.advance(days=1.1)
    check_pipeline()
    assert list_events(pipeline) == ["no successful run"]


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """An external monitor that records heartbeats."""
    monitor = SimpleNamespace(pings=[], status=200)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            monitor.pings.append(self.path)
            self.send_response(monitor.status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("FMNIST_HEARTBEAT_URL", f"http://127.0.0.1:{server.server_port}/s3cret")
    yield monitor
    server.shutdown()
    server.server_close()


@pytest.mark.integration
def test_the_heartbeat_is_sent_only_on_success_and_never_logged(
    pipeline: Pipeline, monitor: SimpleNamespace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_pipeline()
    assert monitor.pings == ["/s3cret"]
    monitor.status = 404
    check_pipeline()
    assert "FMNIST_HEARTBEAT_URL: responded with status 404" in caplog.text
    pipeline.store.put("champion/00000001.json", b"foreign")
    with pytest.raises(FmnistError):
        check_pipeline()
    assert len(monitor.pings) == 2
    pipeline.store.delete("champion/00000001.json")
    monkeypatch.setenv("FMNIST_HEARTBEAT_URL", "http://127.0.0.1:1/s3cret")
    check_pipeline()
    assert "FMNIST_HEARTBEAT_URL: cannot be reached" in caplog.text
    assert "s3cret" not in caplog.text


def test_times_are_those_of_the_store(pipeline: Pipeline, clock: Clock) -> None:
    clock.advance(days=-400)  # the store's clock; this machine's is far ahead
    check_pipeline()
    clock.advance(days=8.1)
    assert "more than the 8 allowed" in check_pipeline()
    assert abs(read_clock(pipeline.store) - clock.read(pipeline.store)) > timedelta(days=300)


def test_a_delivery_error_fails_the_watch_but_no_other_task(
    pipeline: Pipeline, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Sending an alert never raises, but an outbox that delivers nothing must be noticed."""

    def fail(store: object) -> None:
        raise RuntimeError("a fault of the outbox")

    monkeypatch.setattr(outbox, "find_pending", fail)
    alerts.send_alert(Alert("run failed", "run-1", "why"))
    assert "a fault of the outbox" in caplog.text
    with pytest.raises(RuntimeError, match="a fault of the outbox"):
        check_pipeline()
