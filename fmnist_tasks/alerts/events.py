"""Alerts and their events; an event has a title, a severity and an action to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["failure", "warning", "success"]


@dataclass(frozen=True)
class Alert:
    """One event to report, with the run that it belongs to, if any, and a text.

    Alerts with the same event, run, DAG and `identity` are the same alert, which is sent once. The identity defaults to
    the text; without a run and an identity, each alert is unique.
    """

    event: str  # a key of EVENTS; an unknown event is sent as a failure
    run_id: str | None
    text: str  # sentences, without the last full stop
    dag_id: str | None = None  # None: the DAG of the current task, or else of the run
    headline: str = ""  # for the subject, for example a value and its threshold; default: the text
    identity: str = ""
    task_id: str = ""  # of a task that waits for an approval
    dataset: str = ""  # that the alert is about; empty: the default dataset


@dataclass(frozen=True)
class Event:
    """The properties that all alerts of an event share."""

    title: str  # start of the subject
    kind: Kind
    action: str  # the first action to take, in one sentence

    @property
    def section(self) -> str:
        """Anchor of the event's section in the runbook."""
        return self.title.lower().replace(" ", "-")


EVENTS = {
    "rejected": Event(
        "Run rejected", "failure", "Read the failed checks in the report, then follow the runbook. The champion stays."
    ),
    "rejected by a user": Event(
        "Rejected by a user", "failure", "The champion stays, and no action is needed. This message gives the reason."
    ),
    "approval expired": Event(
        "Approval expired",
        "failure",
        "The champion stays. To decide after all, clear the task `approval` of the run; a new request is then sent.",
    ),
    "approval needed": Event(
        "Approval needed", "warning", "Approve or reject; for a candidate, read the verdict in the report first."
    ),
    "batch quarantined": Event(
        "Batch quarantined",
        "warning",
        "The run continues without the batch. Read the reason in the quarantine folder, correct the files, and submit "
        "them again.",
    ),
    "batch waiting": Event("Batch waiting", "warning", "Follow the instruction beside each file."),
    "champion changed": Event(
        "Champion changed",
        "success",
        "No action is needed. If it performs worse in production, roll back on the Releases page.",
    ),
    "run failed": Event(
        "Run failed",
        "failure",
        "Read the error, then the log of the task. Remove the cause, then clear the failed task to continue the run.",
    ),
    "no successful run": Event(
        "No successful run",
        "failure",
        "Check that the DAG is not paused, the scheduler is healthy, and no run waits for an approval.",
    ),
    "alert undeliverable": Event(
        "Alert undeliverable",
        "failure",
        "Read the alert in the store, then repair the channel and test it with `fmnist alert-test`.",
    ),
    "test": Event("Test alert", "success", "No action is needed: `fmnist alert-test` sent this."),
}


def find_event(name: str) -> Event:
    """Return the event; if the name is unknown, a failure with the name as its title."""
    return EVENTS.get(name) or Event(
        name.capitalize(), "failure", "Read the log of the task and the report of the run."
    )
