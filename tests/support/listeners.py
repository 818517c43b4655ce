"""Real receivers of alerts on loopback: a mail server and a web hook."""

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
    """A mail server that records its mails."""

    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)  # of each mail
    port: int = field(default_factory=reserve_port)
    password: str = ""  # with one, only `pipeline` may send
    to: str = "team@example.com"  # recipients of alerts
    refused: tuple[str, ...] = ()  # unknown recipients
    reply: str = "250 OK"  # to a mail; empty: the mail is recorded, and the connection closed without a reply

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: object, session: object, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 no such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        if self.password and not session.authenticated:
            return "530 authentication required"
        assert isinstance(envelope.content, bytes)  # str only if the server decodes it
        if not self.reply.startswith(("4", "5")):
            self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
            self.recipients += [str(recipient) for recipient in envelope.rcpt_tos]
        if not self.reply:
            assert isinstance(server.transport, Transport)
            server.transport.abort()
        return self.reply or "250 OK"

    @contextmanager
    def serve(self) -> Iterator[MailServer]:
        def authenticate(
            server: object, session: object, envelope: object, mechanism: str, credentials: LoginPassword
        ) -> AuthResult:
            return AuthResult(
                success=(credentials.login, credentials.password) == (b"pipeline", self.password.encode())
            )

        controller = Controller(
            self,
            hostname="127.0.0.1",
            port=self.port,
            authenticator=authenticate,
            auth_require_tls=False,  # loopback only
        )
        controller.start()
        try:
            yield self
        finally:
            controller.stop()

    @property
    def connection(self) -> str:
        """The Airflow connection, of type SMTP, that sends mail to this server."""
        extra = {"disable_tls": True, "disable_ssl": True, "from_email": "pipeline@example.com", "to": self.to}
        credentials = {"login": "pipeline", "password": self.password} if self.password else {}
        return json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": self.port, "extra": extra, **credentials})


@dataclass
class WebhookServer:
    """A web hook that records its posts."""

    posts: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0
    status: int = 200  # 0: the post is recorded, and the connection closed without a response
    password: str = ""  # with one, only `pipeline` may post

    @contextmanager
    def serve(self) -> Iterator[WebhookServer]:
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                post = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                is_authorized = not webhook.password or self.headers["Authorization"] == f"Basic {webhook.credentials}"
                if is_authorized and webhook.status < 300:
                    webhook.posts.append(post)
                if not webhook.status:
                    self.connection.shutdown(SHUT_RDWR)
                    return
                self.send_response(webhook.status if is_authorized else 401)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Log nothing."""

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
        """User and password, encoded for HTTP basic authentication."""
        return b64encode(f"pipeline:{self.password}".encode()).decode()

    @property
    def connection(self) -> str:
        """The Airflow connection, of type Apprise, that posts to this server."""
        path = f"json://{f'pipeline:{self.password}@' if self.password else ''}127.0.0.1:{self.port}/"
        return json.dumps({"conn_type": "apprise", "extra": {"config": {"path": path, "tag": "all"}}})
