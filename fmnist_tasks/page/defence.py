"""What every answer and every request of the page must keep to, whoever is signed in."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response, status

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


def guarded(response: Response) -> Response:
    """The response with the headers that bound what a browser does with it."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


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


async def bounded_body(request: Request, most: int) -> bytes:
    """The body of a request; 413 once it has more bytes than that, whatever its header says."""
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > most:
            raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, f"more than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)
