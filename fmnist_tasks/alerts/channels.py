"""How a message reaches people: by mail and by all that Apprise knows, each an Airflow connection.

* `fmnist_mail`, of type SMTP; its extra names `from_email` and `to`, addresses as a list or joined by commas.
* `fmnist_apprise`, of type Apprise; the `config` in its extra has the addresses of services.

Each address of mail and each service is a channel of its own, so that what one refuses is not sent again to those that
have accepted it. A channel's id says which it is to every process, and nothing that is secret.
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

MAX_SECONDS = 120  # of one delivery; what has no answer by then may still arrive

# What an HTTP client says of a connection that was never made: nothing was handed over.
_NEVER_CONNECTED = re.compile(
    r"failed to establish a new connection|connection refused|connecttimeout|name(resolution| or service not known)"
    r"|certificate[ _]verify|failed to resolve",
    re.IGNORECASE,
)
_ANSWERED = re.compile(r"error=(\d{3})\b")  # how Apprise's plugins report an answer of HTTP that is no success


@dataclass(frozen=True)
class Outcome:
    """How a delivery ended: accepted, refused, or unsure, if the message may have been taken without a confirmation."""

    status: Literal["accepted", "refused", "unsure"]
    reason: str = ""


@dataclass(frozen=True)
class Channel:
    """One receiver of alerts; `name` is for people, and `id` for keys in the store."""

    id: str
    name: str
    deliver: Callable[[Message], Outcome]


def find_channels() -> tuple[list[Channel], list[str]]:
    """All channels that there are, and what is wrong with connections or parts of them that cannot serve as one."""
    channels: dict[str, Channel] = {}
    faults: list[str] = []
    for name, read in _READERS.items():
        try:
            if (connection := find_connection(name)) is not None:
                channels |= {channel.id: channel for channel in read(connection, faults)}
        except Exception as error:  # noqa: BLE001 - whatever a secrets backend, a provider or a wrong extra may raise
            faults.append(
                f"connection {name} cannot be read ({type(error).__name__}): see that its extra is valid JSON, "
                "as in docs/alerts.md"
            )
    return list(channels.values()), faults


def deliver(channel: Channel, message: Message) -> Outcome:
    """Send the message through the channel; never raises, and takes at most `MAX_SECONDS`."""
    outcomes = [Outcome("unsure", f"no answer within {MAX_SECONDS} seconds")]

    def call() -> None:
        try:
            outcomes.append(channel.deliver(message))
        except Exception as error:  # noqa: BLE001 - whatever a provider, a server or a network may raise
            outcomes.append(Outcome("unsure", f"{type(error).__name__}: {error}"))

    # A thread, since no client limits the time of a whole delivery; a daemon, so that it ends with its task.
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
    recipients = [one.strip() for one in (re.split(r"[,;]", to) if isinstance(to, str) else to) if one.strip()]
    if not recipients or not extra.get("from_email"):
        faults.append("connection fmnist_mail cannot be used: its extra must have from_email and to")
        return []
    return [
        Channel(
            _digest("mail", parseaddr(one)[1]), f"fmnist_mail to {one}", partial(_mail, connection, recipients, one)
        )
        for one in recipients
    ]


def _mail(connection: Any, recipients: list[str], recipient: str, message: Message) -> Outcome:
    """Send to one recipient. The provider's hook connects; it would send again after a connection that broke."""
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    class Hook(SmtpHook):
        @classmethod
        def get_connection(cls, conn_id: str) -> Any:
            return connection

    sender = connection.extra_dejson["from_email"]
    try:
        content = _build_mail(message, sender, recipients, parseaddr(recipient)[1])
        client: Any = Hook(connection.conn_id).get_conn()._smtp_client
    except Exception as error:  # noqa: BLE001 - nothing was handed over, whatever it is
        return Outcome("refused", _explain(error))
    try:
        return _hand_over(client, parseaddr(sender)[1], parseaddr(recipient)[1], content)
    finally:
        client.close()


def _hand_over(client: Any, sender: str, recipient: str, content: bytes) -> Outcome:
    try:
        client.ehlo_or_helo_if_needed()
        for code, reply in (client.mail(sender), client.rcpt(recipient)):
            if code not in {250, 251}:
                return Outcome("refused", f"the mail server answered {code} {reply.decode(errors='replace')}")
    except (smtplib.SMTPException, OSError) as error:
        return Outcome("refused", _explain(error))
    try:
        code, reply = client.data(content)
    except smtplib.SMTPDataError as error:  # the server did not want the message
        return Outcome("refused", _explain(error))
    except (smtplib.SMTPException, OSError) as error:
        return Outcome("unsure", f"the connection broke before the mail server confirmed: {_explain(error)}")
    if code != 250:
        return Outcome("refused", f"the mail server answered {code} {reply.decode(errors='replace')}")
    return Outcome("accepted")


def _build_mail(message: Message, sender: str, recipients: list[str], recipient: str) -> bytes:
    mail = EmailMessage(policy=SMTP)
    mail["Subject"] = message.subject
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Date"] = formatdate()
    # The same for a repeat, so that mail programs show both as one.
    mail["Message-ID"] = f"<{message.alert_id}.{_digest('mail', recipient)}@{parseaddr(sender)[1].rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text)
    mail.add_alternative(message.page, subtype="html")
    return mail.as_bytes()


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class _NoAddresses(logging.Filter):
    """Keeps lines with an address, and so with its secrets, out of the log."""

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
            faults.append(f"connection fmnist_apprise: entry {number} has an address that Apprise does not know")
        for service in services:
            name = f"fmnist_apprise, entry {number} ({service.service_name})"
            channels.append(Channel(_digest("apprise", _identify(service)), name, partial(_notify, service)))
    return channels


def _identify(service: Any) -> str:
    """A service's address without its password, so that its channel stays the same when that changes."""
    address = str(service.url(privacy=False))
    return address.replace(f":{quote(service.password, safe='')}@", "@") if service.password else address


def _notify(service: Any, message: Message) -> Outcome:
    import apprise

    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    # Plugins return only whether they succeeded; why not is in their log. They write addresses with secrets as well, so
    # their lines are read here and go nowhere else.
    service.logger = logging.Logger("fmnist.apprise", logging.DEBUG)
    service.logger.addHandler(Collector())
    services = apprise.Apprise()
    services.add(service)
    if services.notify(message.text, message.subject, message.kind, body_format=apprise.NotifyFormat.TEXT):
        return Outcome("accepted")
    text = "\n".join(lines)
    if answered := _ANSWERED.search(text):
        return Outcome("refused", f"the service answered {answered[1]}")
    if _NEVER_CONNECTED.search(text):
        return Outcome("refused", "the service accepts no connection")
    return Outcome("unsure", "the service did not confirm the message")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


_READERS: dict[str, Callable[[Any, list[str]], list[Channel]]] = {
    "fmnist_mail": _read_mail,
    "fmnist_apprise": _read_apprise,
}
