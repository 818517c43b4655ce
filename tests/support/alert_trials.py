"""Fault-injection trials of the guarantee that no alert is lost, with real stores and receivers.

In each trial, one to three steps of a run are rejected. Seeded faults and kills hit the process that reports them, or a
later one. Later steps and `fmnist_watch` follow, at advancing times, until no alert is pending.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from uuid import uuid4

from fmnist_tasks.alerts.outbox import find_pending
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.store import Store
from tests.support.alert_process import AlertProcesses, Call
from tests.support.documents import save_record
from tests.support.listeners import MailServer, WebhookServer
from tests.support.minio_server import MinioServer
from tests.support.proxy import Fault, Proxy, Request

LABEL = "(possibly repeated)"
SCENARIOS = (
    "receivers down",
    "responses of the store lost",
    "killed while sending",
    "killed while a later process delivers",
    "killed, receivers down, responses lost",
    "connection broken after the message",
    "writes to the store fail",
)
MINUTE, HOUR, DAY = 60, 3600, 24 * 3600
_POINTS = 60  # roughly the number of points for one alert: before and after each request and delivery
_LATER_CALLS = (
    ("flush", 90),
    ("watch", 20 * MINUTE),
    ("flush", 3 * HOUR),
    ("watch", DAY + HOUR),
    ("flush", DAY + 2 * HOUR),
)


@dataclass
class Receivers:
    """A mail server with two recipients, and a web hook."""

    mail_server: MailServer = field(default_factory=lambda: MailServer(to="one@example.com, two@example.com"))
    webhook_server: WebhookServer = field(default_factory=WebhookServer)

    def __post_init__(self) -> None:
        with self.webhook_server.serve():
            pass  # chooses its port

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AIRFLOW_CONN_FMNIST_MAIL": self.mail_server.connection,
            "AIRFLOW_CONN_FMNIST_APPRISE": self.webhook_server.connection,
        }

    @contextmanager
    def serve(self, mail: bool, web: bool) -> Iterator[None]:
        with ExitStack() as stack:
            if mail:
                stack.enter_context(self.mail_server.serve())
            if web:
                stack.enter_context(self.webhook_server.serve())
            yield

    def list_messages(self) -> list[tuple[str, str, str]]:
        """Return channel, subject and text of each message that was accepted."""
        mails = zip(self.mail_server.recipients, self.mail_server.mails, strict=True)
        messages = [(to, str(mail["Subject"]), _read_text(mail)) for to, mail in mails]
        return messages + [("web hook", post["title"], post["message"]) for post in self.webhook_server.posts]


def _read_text(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


@dataclass
class Tally:
    """The outcomes of one or more trials. A delivery is one alert through one of the three channels."""

    trials: int = 0
    alerts: int = 0
    deliveries: int = 0  # expected ones
    lost: int = 0
    duplicates: int = 0
    unlabelled: int = 0  # duplicates without the label
    needless_labels: int = 0  # on messages that arrived once
    kills: int = 0

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Stage:
    """A store, and the processes that use it."""

    store: Store
    environment: dict[str, str]  # of processes that use the store
    processes: AlertProcesses
    proxy: Proxy | None = None  # in front of the store, if it is a server

    def run_trial(self, scenario: str, seed: int, kill_point: int | None = None) -> Tally:
        """Run one trial. With `kill_point`, the first process is killed there, instead of at a seeded point."""
        random, receivers = Random(f"{scenario} {seed}"), Receivers()  # noqa: S311 - seeded
        steps = [(f"step_{number}", f"trial {seed}, reason {number}") for number in range(random.randint(1, 3))]
        for step, reason in steps:
            self._reject(step, reason)
        outage_seconds = random.choice([MINUTE, DAY]) if "down" in scenario else 0
        down_receivers = random.choice([("mail",), ("web",), ("mail", "web")])
        refuses_connections = random.random() < 0.5  # instead of messages
        killed_call = 0
        if scenario == "killed while a later process delivers":
            killed_call = random.choice([1, 2])
            outage_seconds, down_receivers = MINUTE, ("mail", "web")
        if not kill_point and "killed" in scenario:
            kill_point = random.randint(1, _POINTS * len(steps))
        kills = 0
        for number, (action, seconds) in enumerate([("fail", 0), *_LATER_CALLS, *self._list_final_calls()]):
            if number > len(_LATER_CALLS) and not find_pending(self.store):
                break
            failing_receivers = set(down_receivers) if seconds < outage_seconds else set()
            breaks_connection = scenario.startswith("connection broken") and number == 0
            receivers.mail_server.reply = (
                "451 later" if "mail" in failing_receivers else "" if breaks_connection else "250 OK"
            )
            receivers.webhook_server.status = 503 if "web" in failing_receivers else 0 if breaks_connection else 200
            has_faults = number <= 2
            call = Call(
                action=action,
                seconds=seconds,
                steps=tuple(steps) if action == "fail" else (),
                kill_point=(kill_point or 0) if number == killed_call else 0,
                seed=seed * 100 + number,
                lost_responses=0.3 if "lost" in scenario and has_faults else 0,
                failing_writes=0.1 if scenario.startswith("writes") and has_faults else 0,
            )
            if self.proxy:
                self.proxy.reset(_LostResponses(call.seed, call.lost_responses))
            with receivers.serve(
                *(name not in failing_receivers or not refuses_connections for name in ("mail", "web"))
            ):
                kills += not self.processes.run(call, {**self.environment, **receivers.environment})
        tally = _count([reason for _, reason in steps], receivers)
        tally.kills = kills
        return tally

    def _reject(self, step: str, reason: str) -> None:
        save_record(self.store, "run-1", step, status="rejected", outcome=reason)

    @staticmethod
    def _list_final_calls() -> list[tuple[str, int]]:
        return [("watch", 2 * DAY + number * 2 * HOUR) for number in range(8)]


class _LostResponses:
    """Drop the responses to a share of the writes."""

    def __init__(self, seed: int, share: float) -> None:
        self._random, self._share = Random(seed), share  # noqa: S311 - seeded

    def __call__(self, request: Request) -> Fault | None:
        return Fault(drop_response=True) if request.method == "PUT" and self._random.random() < self._share else None


def _count(reasons: list[str], receivers: Receivers) -> Tally:
    messages = receivers.list_messages()
    channels = ("one@example.com", "two@example.com", "web hook")
    tally = Tally(trials=1, alerts=len(reasons), deliveries=len(reasons) * len(channels))
    assert {channel for channel, _, _ in messages} <= set(channels)
    counts: Counter[tuple[str, str]] = Counter()
    for reason in reasons:
        for channel in channels:
            subjects = [subject for to, subject, text in messages if to == channel and reason in text]
            labelled = sum(LABEL in subject for subject in subjects)
            counts[channel, reason] = len(subjects)
            tally.lost += not subjects
            tally.duplicates += max(0, len(subjects) - 1)
            tally.unlabelled += max(0, len(subjects) - 1 - labelled)
            tally.needless_labels += len(subjects) == 1 and labelled == 1
    assert sum(counts.values()) == len(messages), "a message belongs to no alert or to several"
    return tally


def run_trials(count: int) -> dict[str, Tally]:
    """Return the tally of each scenario; trials alternate between a folder and a separate MinIO."""
    tallies = {scenario: Tally() for scenario in SCENARIOS}
    with TemporaryDirectory() as home, AlertProcesses() as processes:
        server = MinioServer(Path(home) / "minio")
        server.start()
        try:
            with Proxy(server.endpoint).serve() as proxy:
                for seed in range(count):
                    scenario = SCENARIOS[seed % len(SCENARIOS)]
                    on_server = seed // len(SCENARIOS) % 2 and not scenario.startswith("writes")
                    stage = (
                        build_stage_on_minio(server, proxy, processes)
                        if on_server
                        else build_stage_in_folder(Path(home) / f"store-{seed}", processes)
                    )
                    tallies[scenario].add(stage.run_trial(scenario, seed))
        finally:
            server.stop()
    return tallies


def build_stage_in_folder(folder: Path, processes: AlertProcesses) -> Stage:
    """Return a stage whose store is a new folder."""
    return Stage(FolderStore(folder), {"FMNIST_STORE": folder.as_uri()}, processes)


def build_stage_on_minio(server: MinioServer, proxy: Proxy, processes: AlertProcesses) -> Stage:
    """Return a stage whose store is a new bucket, behind the proxy."""
    bucket = f"trial-{uuid4().hex}"
    environment = {**server.credentials, "FMNIST_STORE": server.build_uri(bucket, proxy.endpoint)}
    os.environ.update(server.credentials)  # for the store of this process
    store = server.open_store(bucket)
    store.prepare_bucket()
    return Stage(store, environment, processes, proxy)
