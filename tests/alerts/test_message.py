"""The messages of alerts, and their sections in the runbook."""

from __future__ import annotations

from typing import Any

import pytest

from fmnist_tasks.alerts.events import EVENTS
from fmnist_tasks.alerts.message import Message, render_message
from fmnist_tasks.page.runbook import render_runbook
from fmnist_tasks.schemas.alerts import SavedAlert

ALERT = SavedAlert(
    event="rejected",
    dag_id="fmnist_retrain",
    run_id="scheduled__2026-11-23T02:00:00+00:00",
    task_id="",
    text="Task accuracy_gate: base model rejected",
    headline="test accuracy 91.20%, below the threshold of 92.00%",
    champion="Current champion: v1",
    created="2026-11-23T02:10:00+00:00",
)
ADDRESS = "https://airflow.example.com"


def render(repeated: bool = False, instance: str = "", address: str = ADDRESS, **changes: Any) -> Message:
    alert = ALERT.model_copy(update=changes)
    return render_message("id", alert, instance=instance, address=address, repeated=repeated)


def test_the_subject_has_instance_event_value_and_threshold() -> None:
    assert render(instance="prod").subject == (
        "[prod] Run rejected: test accuracy 91.20%, below the threshold of 92.00%"
    )
    assert render().subject.startswith("Run rejected: ")
    assert render(repeated=True).subject.endswith("(possibly repeated)")


def test_a_message_links_to_the_run_its_report_and_the_runbook() -> None:
    message = render()
    run = "scheduled__2026-11-23T02%3A00%3A00%2B00%3A00"
    for text in (message.text, message.html):
        assert f"{ADDRESS}/dags/fmnist_retrain/runs/{run}" in text
        assert f"{ADDRESS}/fmnist/runs/{run}" in text
        assert f"{ADDRESS}/fmnist/runbook#run-rejected" in text
        assert "2026-11-23 02:10 UTC" in text
    assert "http" not in render(address="").text


def test_a_request_for_approval_has_a_link_and_a_deadline() -> None:
    message = render(event="approval needed", task_id="tuned_model.approval")
    for text in (message.text, message.html):
        assert "/tasks/tuned_model.approval/required_actions" in text
        assert "Respond by 2026-11-26 02:10 UTC" in text


def test_an_alert_without_a_dag_links_to_the_releases_page() -> None:
    message = render(event="champion changed", dag_id="", run_id=None)
    assert "DAG" not in message.text
    assert f"{ADDRESS}/fmnist/\n" in message.text


def test_an_unknown_event_is_a_failure() -> None:
    message = render(event="half a pair")
    assert (message.kind, message.subject[:13]) == ("failure", "Half a pair: ")


def test_a_long_text_with_control_characters_gives_a_short_subject() -> None:
    message = render(headline="", text="a\n\tb\x1b[0m\u202e" + "c" * 5000)
    assert message.subject.isprintable()
    assert len(message.subject) < 200
    assert "c" * 5000 in message.text


@pytest.mark.parametrize("event", EVENTS)
def test_the_runbook_has_a_section_for_each_event(event: str) -> None:
    page = str(render_runbook())
    assert f'<h2 id="{EVENTS[event].section}">{EVENTS[event].title}</h2>' in page
