"""Real servers that alerts are delivered to: one for mail, one for web hooks. Both listen on loopback."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session

from tests.support.ports import reserve_port


@dataclass
class MailServer:
    """Keeps what a mail server is given."""

    mails: list[EmailMessage] = field(default_factory=list)
    port: int = field(default_factory=reserve_port)
    password: str = ""  # with one, only `pipeline` may send

    async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        if self.password and not session.authenticated:
            return "530 authentication required"
        assert isinstance(envelope.content, bytes)  # a text only if the server is told to decode
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 kept"

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
        extra = {
            "disable_tls": True,
            "disable_ssl": True,
            "from_email": "pipeline@example.com",
            "to": "team@example.com",
        }
        credentials = {"login": "pipeline", "password": self.password} if self.password else {}
        return json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": self.port, "extra": extra, **credentials})


@dataclass
class WebhookServer:
    """Keeps what is posted to a web address."""

    posts: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0
    status: int = 200
    password: str = ""  # with one, only `pipeline` may post

    @contextmanager
    def serve(self) -> Iterator[WebhookServer]:
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                post = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                known = not webhook.password or self.headers["Authorization"] == f"Basic {webhook.credentials}"
                if known:
                    webhook.posts.append(post)
                self.send_response(webhook.status if known else 401)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = server.server_port
        thread = Thread(target=server.serve_forever, daemon=True)
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
