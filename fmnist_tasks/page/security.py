"""Security headers, limits on request bodies, and the same-origin check, for every request of every user."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response, status
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BATCH_BYTES = 256 << 20
_MAX_BYTES = {"try/image": 5 << 20, "submit": MAX_BATCH_BYTES}  # of an image, and of a batch, by the path
_PATH = re.compile(r"/(?:datasets/[^/]+/)?(.*)")
_MAX_FORM_BYTES = 16 << 10  # of any other body: a reason of 500 characters takes up to 12 bytes for each

# All content comes from the page's own origin, scripts and styles only from files; only the same origin may frame it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# The report of a run contains its images and styles; it may load nothing and run no script.
_REPORT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'self'"


class SecurityMiddleware:
    """ASGI middleware: sets security headers on each response, and limits the body of each request.

    It runs before anything parses or stores a body, and therefore before authentication.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set the headers. Respond with 413 once a body is too long, whatever its Content-Length says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = _PATH.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
        limit = _MAX_BYTES.get(path[1] if path else "", _MAX_FORM_BYTES)
        length = headers.get("content-length", "0")
        has_body = length != "0" or "transfer-encoding" in headers
        too_large = HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, f"the request body exceeds {limit:,} bytes")
        received = 0

        async def receive_limited() -> Message:
            nonlocal received, has_body
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            has_body = message.get("more_body", False)
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                response_headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    response_headers.setdefault(name, value)
                if has_body:  # the body was not read completely: without this, the server would receive the rest
                    response_headers["Connection"] = "close"
            await send(message)

        if length.isdecimal() and int(length) <= limit:
            await self._app(scope, receive_limited, send_with_headers)
        else:
            response = JSONResponse({"detail": too_large.detail}, too_large.status_code)
            await response(scope, receive, send_with_headers)


def respond_with_report(page: bytes) -> Response:
    """Respond with the report of a run, which has inline styles."""
    return Response(page, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": _REPORT})


def require_same_origin(request: Request) -> None:
    """Refuse, with 403, a request that a browser sends on behalf of another site.

    Browsers send the origin of a request (Fetch Metadata, or the header Origin). Programs do not, but they use a token
    and no cookie.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    same = urlsplit(origin).netloc == request.headers.get("host") if origin else "cookie" not in request.headers
    if not (site == "same-origin" if site else same):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "this request was sent from another site")
