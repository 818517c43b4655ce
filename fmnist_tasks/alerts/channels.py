"""Channels: e-mail recipients and Apprise services, from two Airflow connections.

* `fmnist_mail`, of type SMTP; its extra has `from_email` and `to`, addresses as a list or separated by commas.
* `fmnist_apprise`, of type Apprise; the `config` in its extra has the addresses of services.

Each recipient and each service is a separate channel: an alert that one refuses is not repeated to the others. The ID
of a channel is the same in every process and contains no secret.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import smtplib
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, parseaddr
from functools import partial
from threading import Thread
from typing import Any, Literal
from urllib.parse import quote

from fmnist_tasks.alerts.message import Message
from fmnist_tasks.connections import find_connection

log = logging.getLogger(__name__)

MAX_SECONDS = 120  # for one delivery; a message without a response by then may still arrive

# Errors of HTTP clients that could not connect, so nothing was sent.
_NEVER_CONNECTED = re.compile(
    r"failed to establish a new connection|connection refused|connecttimeout|name(resolution| or service not known)"
    r"|certificate[ _]verify|failed to resolve",
    re.IGNORECASE,
)
_HTTP_ERROR = re.compile(r"error=(\d{3})\b")  # in the logs of Apprise's plugins


@dataclass(frozen=True)
class Outcome:
    """The result of a delivery: accepted, refused, or unsure if the message may have arrived without confirmation."""

    status: Literal["accepted", "refused", "unsure"]
    reason: str = ""


@dataclass(frozen=True)
class Channel:
    """One receiver of alerts; `name` is shown in messages, `id` is part of keys in the store."""

    id: str
    name: str
    deliver: Callable[[Message], Outcome]


def find_channels() -> tuple[list[Channel], list[str]]:
    """Return all channels, and the faults of connections or entries that cannot be used."""
    channels: dict[str, Channel] = {}
    faults: list[str] = []
    for name, read in _READERS.items():
        try:
            if (connection := find_connection(name)) is not None:
                channels |= {channel.id: channel for channel in read(connection, faults)}
        except Exception as error:  # noqa: BLE001 - any, from a secrets backend, a provider or a bad extra
            faults.append(
                f"connection {name} cannot be read ({type(error).__name__}): check that its extra is valid JSON as in "
                "docs/alerts.md"
            )
    return list(channels.values()), faults


def deliver(channel: Channel, message: Message) -> Outcome:
    """Send the message through the channel; never raises, and takes at most `MAX_SECONDS`."""
    outcomes = [Outcome("unsure", f"no response within {MAX_SECONDS} seconds")]

    def call() -> None:
        try:
            outcomes.append(channel.deliver(message))
        except Exception as error:  # noqa: BLE001 - any, from a provider, a server or the network
            outcomes.append(Outcome("unsure", f"{type(error).__name__}: {error}"))

    # No client limits the time of a whole delivery, so it runs in a thread: a daemon, which ends with its task.
    thread = Thread(target=copy_context().run, args=(call,), name="fmnist-alert", daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    outcome = outcomes[-1]
    if outcome.status == "accepted":
        log.info("delivered through %s: %s", channel.name, message.subject)
    else:
        log.error("not delivered through %s (%s): %s", channel.name, message.subject, outcome.reason)
    return outcome


def _read_mail(connection: Any, faults: list[str]) -> list[Channel]:
    extra = connection.extra_dejson
    to = extra.get("to") or []
    addresses = re.split(r"[,;]", to) if isinstance(to, str) else to
    recipients = [address.strip() for address in addresses if address.strip()]
    if not recipients or not extra.get("from_email"):
        faults.append("connection fmnist_mail cannot be used: its extra must have from_email and to")
        return []
    return [
        Channel(
            _digest("mail", parseaddr(recipient)[1]),
            f"fmnist_mail to {recipient}",
            partial(_send_mail, connection, recipients, recipient),
        )
        for recipient in recipients
    ]


def _send_mail(connection: Any, recipients: list[str], recipient: str, message: Message) -> Outcome:
    """Send to one recipient. The provider's hook only connects: its own sending repeats after a broken connection."""
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    class Hook(SmtpHook):
        @classmethod
        def get_connection(cls, conn_id: str) -> Any:
            return connection

    sender = connection.extra_dejson["from_email"]
    try:
        content = _build_mail(message, sender, recipients, parseaddr(recipient)[1])
        client: Any = Hook(connection.conn_id).get_conn()._smtp_client
    except Exception as error:  # noqa: BLE001 - any: nothing was sent
        return Outcome("refused", _explain(error))
    try:
        return _send_message(client, parseaddr(sender)[1], parseaddr(recipient)[1], content)
    finally:
        client.close()


def _send_message(client: Any, sender: str, recipient: str, content: bytes) -> Outcome:
    try:
        client.ehlo_or_helo_if_needed()
        for code, reply in (client.mail(sender), client.rcpt(recipient)):
            if code not in {250, 251}:
                return Outcome("refused", f"the mail server replied {code} {reply.decode(errors='replace')}")
    except (smtplib.SMTPException, OSError) as error:
        return Outcome("refused", _explain(error))
    try:
        code, reply = client.data(content)
    except smtplib.SMTPDataError as error:  # before the message was sent
        return Outcome("refused", _explain(error))
    except (smtplib.SMTPException, OSError) as error:
        return Outcome("unsure", f"the connection broke before the mail server confirmed: {_explain(error)}")
    if code != 250:
        return Outcome("refused", f"the mail server replied {code} {reply.decode(errors='replace')}")
    return Outcome("accepted")


def _build_mail(message: Message, sender: str, recipients: list[str], recipient: str) -> bytes:
    mail = EmailMessage(policy=SMTP)
    mail["Subject"] = message.subject
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Date"] = formatdate()
    # A repeat has the same ID, so mail programs show both as one.
    mail["Message-ID"] = f"<{message.alert_id}.{_digest('mail', recipient)}@{parseaddr(sender)[1].rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text)
    mail.add_alternative(message.html, subtype="html")
    return mail.as_bytes()


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class _NoAddresses(logging.Filter):
    """Keep lines with an address, which contains secrets, out of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "://" not in record.getMessage()


_NO_ADDRESSES = _NoAddresses()


def _read_apprise(connection: Any, faults: list[str]) -> list[Channel]:
    import apprise

    logging.getLogger("apprise").addFilter(_NO_ADDRESSES)
    config = connection.extra_dejson.get("config")
    config = json.loads(config) if isinstance(config, str) else config
    if not config:
        faults.append(
            "connection fmnist_apprise cannot be used: its extra must have config, with the path of a service"
        )
        return []
    channels = []
    for number, entry in enumerate([config] if isinstance(config, dict) else config, 1):
        services = apprise.Apprise()
        if not services.add(entry.get("path") or ""):
            faults.append(f"connection fmnist_apprise: entry {number} has an address that Apprise does not support")
        for service in services:
            name = f"fmnist_apprise, entry {number} ({service.service_name})"
            channels.append(Channel(_digest("apprise", _identify(service)), name, partial(_send_by_apprise, service)))
    return channels


def _identify(service: Any) -> str:
    """Return a service's address without its password, so the channel's ID survives a change of password."""
    address = str(service.url(privacy=False))
    return address.replace(f":{quote(service.password, safe='')}@", "@") if service.password else address


def _send_by_apprise(service: Any, message: Message) -> Outcome:
    import apprise

    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    # Plugins return only whether they succeeded, and log the reason. They also log addresses with secrets, so their
    # lines are read here and not passed on.
    service.logger = logging.Logger("fmnist.apprise", logging.DEBUG)
    service.logger.addHandler(Collector())
    services = apprise.Apprise()
    services.add(service)
    if services.notify(message.text, message.subject, message.kind, body_format=apprise.NotifyFormat.TEXT):
        return Outcome("accepted")
    text = "\n".join(lines)
    if error := _HTTP_ERROR.search(text):
        return Outcome("refused", f"the service responded with status {error[1]}")
    if _NEVER_CONNECTED.search(text):
        return Outcome("refused", "no connection to the service")
    return Outcome("unsure", "the service did not confirm the message")


def _digest(*values: str) -> str:
    return hashlib.sha256("\n".join(values).encode()).hexdigest()[:16]


_READERS: dict[str, Callable[[Any, list[str]], list[Channel]]] = {
    "fmnist_mail": _read_mail,
    "fmnist_apprise": _read_apprise,
}
