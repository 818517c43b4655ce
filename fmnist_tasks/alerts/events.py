"""What an alert is about: its event, and what is always said of that event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["failure", "warning", "success"]


@dataclass(frozen=True)
class Alert:
    """Something that people should know: an event, the run that it belongs to, if any, and what happened, in sentences.

    Two alerts with the same event, run (and its DAG) and `identity` are one alert, sent once. The identity is the text
    unless given; without a run and an identity, each alert is one of its own.
    """

    event: str  # a key of EVENTS; others are sent as failures
    run_id: str | None
    text: str
    dag_id: str | None = None  # None: the DAG whose task this is, or that of the run
    headline: str = (
        ""  # for the subject: what happened in a few words, a value against its threshold; default: the text
    )
    identity: str = ""
    task_id: str = ""  # of a task that waits for an answer


@dataclass(frozen=True)
class Event:
    """What all alerts of an event have in common."""

    title: str  # begins the subject
    kind: Kind
    action: str  # what to do first, in one sentence

    @property
    def section(self) -> str:
        """The heading of the event in the runbook, as an anchor."""
        return self.title.lower().replace(" ", "-")


EVENTS = {
    "rejected": Event(
        "Retraining rejected",
        "failure",
        "The champion stays. Read the verdict in the report, then look at the newest batches.",
    ),
    "rejected by a user": Event(
        "Rejected by a user",
        "failure",
        "The champion stays, and nothing has to be done: the reason is in this message.",
    ),
    "approval expired": Event(
        "Approval expired",
        "failure",
        "The champion stays. To decide after all, clear the task `approval` of the run: it asks again.",
    ),
    "approval needed": Event(
        "Approval needed", "warning", "Approve or reject; for a candidate, read the verdict in the report first."
    ),
    "batch quarantined": Event(
        "Batch quarantined",
        "warning",
        "The run goes on without the batch: read the reason beside its files, correct them, and submit them again.",
    ),
    "batch waiting": Event(
        "Batch waiting",
        "warning",
        "Give the user of the workers the right to read and delete these files, or add what is missing of a pair.",
    ),
    "champion changed": Event(
        "Champion changed",
        "success",
        "Nothing has to be done; if it turns out to be worse in use, roll back on the registry page.",
    ),
    "run failed": Event(
        "Run failed",
        "failure",
        "Read the error, then the log of the task; once the cause is gone, clear the failed task to finish the run.",
    ),
    "no successful run": Event(
        "No successful run",
        "failure",
        "See that fmnist_retrain is not paused, that the scheduler is healthy, and that no run waits for an approval.",
    ),
    "alert undeliverable": Event(
        "Alert undeliverable",
        "failure",
        "Read the alert in the store, then repair the channel and prove it with `fmnist alert-test`.",
    ),
    "test": Event("Test alert", "success", "Nothing has to be done: `fmnist alert-test` sent this."),
}


def find_event(name: str) -> Event:
    """What is known of an event; for one that is not listed, a failure with its name as title."""
    return EVENTS.get(name) or Event(
        name.capitalize(), "failure", "Read the log of the task and the report of the run."
    )
