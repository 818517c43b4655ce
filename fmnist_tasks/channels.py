"""How a message reaches a person: by mail and by all that Apprise knows, each an Airflow connection.

* `fmnist_mail`, of type SMTP; its extra names `from_email` and `to`, one address or a list.
* `fmnist_apprise`, of type Apprise; the `config` in its extra has the addresses.

A connection that does not exist is no channel. A channel that fails is logged, and never raises: what happened must not
depend on whether anyone could be told of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fmnist_tasks.connections import find_connection, known_to_hooks

log = logging.getLogger(__name__)

Kind = Literal["failure", "warning", "success"]


@dataclass(frozen=True)
class Message:
    """What a person reads: a subject, plain text, and the same as an HTML page."""

    kind: Kind
    subject: str
    text: str
    page: str


def deliver(message: Message) -> None:
    """Send the message through every channel there is."""
    for name, send in _CHANNELS.items():
        try:
            if (connection := find_connection(name)) is None:
                continue
            with known_to_hooks(connection):
                send(connection, message)
        except Exception as error:  # noqa: BLE001 - whatever a provider, a server or a network may raise
            log.error("not delivered through %s (%s): %s", name, message.subject, error)
        else:
            log.info("delivered through %s: %s", name, message.subject)


def _mail(connection: Any, message: Message) -> None:
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    with SmtpHook(connection.conn_id) as hook:
        hook.send_email_smtp(
            to=connection.extra_dejson["to"],
            from_email=connection.extra_dejson["from_email"],
            subject=message.subject,
            html_content=message.page,
        )


def _apprise(connection: Any, message: Message) -> None:
    import apprise
    from airflow.providers.apprise.hooks.apprise import AppriseHook

    # The hook's own `notify` does not tell whether anyone took the message.
    services = apprise.Apprise()
    AppriseHook(connection.conn_id).set_config_from_conn(connection, services)
    if not services.notify(title=message.subject, body=message.text, notify_type=message.kind):
        raise ConnectionError("one of its services did not take the message; Apprise's log lines say which")


_CHANNELS: dict[str, Callable[[Any, Message], None]] = {"fmnist_mail": _mail, "fmnist_apprise": _apprise}
