"""Real servers that alerts are delivered to: one for mail, one for web hooks. Both listen on loopback."""

from __future__ import annotations

import json
from asyncio import Transport
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from threading import Thread
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.ports import reserve_port


@dataclass
class MailServer:
    """Keeps what a mail server is given."""

    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)  # of each mail
    port: int = field(default_factory=reserve_port)
    password: str = ""  # with one, only `pipeline` may send
    to: str = "team@example.com"  # whom alerts are sent to
    refused: tuple[str, ...] = ()  # recipients that it does not know
    answer: str = "250 kept"  # to a mail; empty: the connection is closed instead

    async def handle_RCPT(  # noqa: N802 - its name
        self, server: object, session: object, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 no such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        if self.password and not session.authenticated:
            return "530 authentication required"
        assert isinstance(envelope.content, bytes)  # a text only if the server is told to decode
        if not self.answer.startswith(("4", "5")):
            self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
            self.recipients += [str(recipient) for recipient in envelope.rcpt_tos]
        if not self.answer:
            assert isinstance(server.transport, Transport)
            server.transport.abort()
        return self.answer or "250 nobody hears this"

    @contextmanager
    def serve(self) -> Iterator[MailServer]:
        def authenticate(
            server: object, session: object, envelope: object, mechanism: str, given: LoginPassword
        ) -> AuthResult:
            return AuthResult(success=(given.login, given.password) == (b"pipeline", self.password.encode()))

        controller = Controller(
            self,
            hostname="127.0.0.1",
            port=self.port,
            authenticator=authenticate,
            auth_require_tls=False,  # both are on this machine
        )
        controller.start()
        try:
            yield self
        finally:
            controller.stop()

    @property
    def connection(self) -> str:
        """What an Airflow connection of type SMTP says to send mail here."""
        extra = {"disable_tls": True, "disable_ssl": True, "from_email": "pipeline@example.com", "to": self.to}
        credentials = {"login": "pipeline", "password": self.password} if self.password else {}
        return json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": self.port, "extra": extra, **credentials})


@dataclass
class WebhookServer:
    """Keeps what is posted to a web address."""

    posts: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0
    status: int = 200  # 0: the post is kept, and the connection closed instead of an answer
    password: str = ""  # with one, only `pipeline` may post

    @contextmanager
    def serve(self) -> Iterator[WebhookServer]:
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                post = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                known = not webhook.password or self.headers["Authorization"] == f"Basic {webhook.credentials}"
                if known and webhook.status < 300:
                    webhook.posts.append(post)
                if not webhook.status:
                    self.connection.shutdown(SHUT_RDWR)
                    return
                self.send_response(webhook.status if known else 401)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = server.server_port
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def credentials(self) -> str:
        """Name and password, as HTTP has them."""
        return b64encode(f"pipeline:{self.password}".encode()).decode()

    @property
    def connection(self) -> str:
        """What an Airflow connection of type Apprise says to post here."""
        path = f"json://{f'pipeline:{self.password}@' if self.password else ''}127.0.0.1:{self.port}/"
        return json.dumps({"conn_type": "apprise", "extra": {"config": {"path": path, "tag": "all"}}})
