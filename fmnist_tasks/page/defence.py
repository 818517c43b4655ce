"""What every answer and every request of the page must keep to, whoever is signed in."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response, status
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_UPLOAD_BYTES = 5 << 20  # bytes of an image
_MAX_FORM_BYTES = 16 << 10  # bytes of any other body: a reason of 500 characters, each encoded as up to twelve

# Nothing is fetched from elsewhere, nothing runs that is not our one script, nobody else frames the page.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# A run's report has its pictures and its style inside, and is an answer of its own: it may do no more than show them.
_REPORT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'self'"


class Guard:
    """ASGI middleware: bounds what a browser does with each answer, and how much of each request's body is read.

    It comes before anything that parses or keeps a body, and so before it is known who sent it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 instead of reading on, whatever the request's Content-Length says, and set the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        most = _MAX_UPLOAD_BYTES if scope["path"].endswith("/try/image") else _MAX_FORM_BYTES
        length = headers.get("content-length", "0")
        has_body = length != "0" or "transfer-encoding" in headers
        too_large = HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, f"the request body exceeds {most:,} bytes")
        received = 0

        async def receive_within_bounds() -> Message:
            nonlocal received, has_body
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise too_large
            has_body = message.get("more_body", False)
            return message

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    answer.setdefault(name, value)
                if has_body:  # that was not read: the server would go on to receive it
                    answer["Connection"] = "close"
            await send(message)

        if length.isdecimal() and int(length) <= most:
            await self._app(scope, receive_within_bounds, send_guarded)
        else:
            response = JSONResponse({"detail": too_large.detail}, too_large.status_code)
            await response(scope, receive, send_guarded)


def as_report(page: bytes) -> Response:
    """A run's report, which brings a style of its own."""
    return Response(page, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": _REPORT})


def from_here(request: Request) -> None:
    """Refuse, with 403, a request that another site made a browser send.

    Browsers say where a request comes from (Fetch Metadata, and Origin before that); programs that say nothing bring a
    token of their own and no cookie.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    same = urlsplit(origin).netloc == request.headers.get("host") if origin else "cookie" not in request.headers
    if not (site == "same-origin" if site else same):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "this request was sent from another site")
