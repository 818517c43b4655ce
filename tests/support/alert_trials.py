"""Trials of the promise that no alert is lost: real stores and receivers, with faults and kills by a seed.

In each trial one to three steps of a run are rejected. The process that reports them, or a later one, meets faults.
Later steps and `fmnist_watch` follow, at advancing times, until nothing waits.
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
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.runs import write_record
from fmnist_tasks.registry.store import Store
from tests.support.alert_process import AlertProcesses, Call
from tests.support.listeners import MailServer, WebhookServer
from tests.support.minio_server import MinioServer
from tests.support.proxy import Fault, Proxy, Request

LABEL = "(possibly repeated)"
SCENARIOS = (
    "receivers down",
    "answers of the store lost",
    "killed while sending",
    "killed in a later flush",
    "killed, receivers down, answers lost",
    "connection broken after the message",
    "writes to the store fail",
)
MINUTE, HOUR, DAY = 60, 3600, 24 * 3600
_POINTS = 60  # about as many as there are for one alert: before and after each request and delivery
_LATER = (("flush", 90), ("watch", 20 * MINUTE), ("flush", 3 * HOUR), ("watch", DAY + HOUR), ("flush", DAY + 2 * HOUR))


@dataclass
class Receivers:
    """A mail server with two recipients and a web hook, which are up or down."""

    mail_server: MailServer = field(default_factory=lambda: MailServer(to="one@example.com, two@example.com"))
    webhook_server: WebhookServer = field(default_factory=WebhookServer)

    def __post_init__(self) -> None:
        with self.webhook_server.serve():
            pass  # to have a port

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
        """Channel, subject and text of each message that was taken."""
        mails = zip(self.mail_server.recipients, self.mail_server.mails, strict=True)
        found = [(to, str(mail["Subject"]), _read_text(mail)) for to, mail in mails]
        return found + [("web hook", post["title"], post["message"]) for post in self.webhook_server.posts]


def _read_text(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


@dataclass
class Tally:
    """What became of the alerts of one or more trials. A delivery is one alert through one of the three channels."""

    trials: int = 0
    alerts: int = 0
    deliveries: int = 0  # that should be
    lost: int = 0
    duplicates: int = 0
    unlabelled: int = 0  # duplicates without a label on any of their messages
    needless_labels: int = 0  # on messages that came once
    kills: int = 0

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Stage:
    """Where trials take place."""

    store: Store
    environment: dict[str, str]  # reaches the store
    processes: AlertProcesses
    proxy: Proxy | None = None  # before the store, if that is a server

    def play(self, scenario: str, seed: int, fatal: int | None = None) -> Tally:
        """One trial; with `fatal`, the first process is killed at that point instead of one by the seed."""
        random, receivers = Random(f"{scenario} {seed}"), Receivers()  # noqa: S311 - a seeded trial
        steps = [(f"step_{number}", f"trial {seed}, reason {number}") for number in range(random.randint(1, 3))]
        for step, reason in steps:
            self._reject(step, reason)
        down_for = random.choice([MINUTE, DAY]) if "down" in scenario else 0
        down = random.choice([("mail",), ("web",), ("mail", "web")])
        refuses = random.random() < 0.5  # connections, rather than messages
        victim = 0 if scenario != "killed in a later flush" else random.choice([1, 2])
        if scenario == "killed in a later flush":
            down_for, down = MINUTE, ("mail", "web")
        point = fatal or random.randint(1, _POINTS * len(steps)) if "killed" in scenario or fatal else 0
        kills = 0
        for number, (action, seconds) in enumerate([("fail", 0), *_LATER, *self._list_final_calls()]):
            if number > len(_LATER) and not find_pending(self.store):
                break
            is_down = set(down) if seconds < down_for else set()
            breaks = scenario.startswith("connection broken") and number == 0
            receivers.mail_server.answer = "451 later" if "mail" in is_down else "" if breaks else "250 kept"
            receivers.webhook_server.status = 503 if "web" in is_down else 0 if breaks else 200
            disturbed = number <= 2
            call = Call(
                action=action,
                seconds=seconds,
                steps=tuple(steps) if action == "fail" else (),
                fatal=point if number == victim else 0,
                seed=seed * 100 + number,
                lost_answers=0.3 if "lost" in scenario and disturbed else 0,
                failing_writes=0.1 if scenario.startswith("writes") and disturbed else 0,
            )
            if self.proxy:
                self.proxy.reset(_Losses(call.seed, call.lost_answers))
            with receivers.serve("mail" not in is_down or not refuses, "web" not in is_down or not refuses):
                kills += not self.processes.make(call, {**self.environment, **receivers.environment})
        tally = _count([reason for _, reason in steps], receivers)
        tally.kills = kills
        return tally

    def _reject(self, step: str, reason: str) -> None:
        record = {
            "created": "2026-11-23T02:00:00+00:00",
            "started": "2026-11-23T02:00:01+00:00",
            "parameters": {"seed": 0},
            "status": "rejected",
            "outcome": reason,
            "result": {},
        }
        write_record(self.store, "run-1", step, record)

    @staticmethod
    def _list_final_calls() -> list[tuple[str, int]]:
        return [("watch", 2 * DAY + number * 2 * HOUR) for number in range(8)]


class _Losses:
    """Drops the answers to a share of the writes."""

    def __init__(self, seed: int, share: float) -> None:
        self._random, self._share = Random(seed), share  # noqa: S311 - a seeded trial

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
    assert sum(counts.values()) == len(messages), "a message belongs to no alert, or to two"
    return tally


def play_trials(count: int) -> dict[str, Tally]:
    """By scenario: the tally of its trials, half of them on a folder, half on a MinIO of their own."""
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
                    tallies[scenario].add(stage.play(scenario, seed))
        finally:
            server.stop()
    return tallies


def build_stage_in_folder(folder: Path, processes: AlertProcesses) -> Stage:
    """A store in a new folder."""
    return Stage(FolderStore(folder), {"FMNIST_STORE": folder.as_uri()}, processes)


def build_stage_on_minio(server: MinioServer, proxy: Proxy, processes: AlertProcesses) -> Stage:
    """A bucket of its own, reached through the proxy."""
    bucket = f"trial-{uuid4().hex}"
    environment = {**server.credentials, "FMNIST_STORE": server.build_uri(bucket, proxy.endpoint)}
    os.environ.update(server.credentials)  # for the store of this process
    store = server.open_store(bucket)
    store.prepare()
    return Stage(store, environment, processes, proxy)
