"""The object store on any S3 server with conditional writes, such as MinIO.

Whatever S3 servers do in a way of their own stays in this room and in `access` and `tries`. Each object carries the
SHA-256 of its bytes as metadata, for people; nothing here relies on it. Names on a server may have empty parts, `.` and
`..`, which keys may not: there, slashes and dots are percent-encoded as well.
"""

from __future__ import annotations

import io
import logging
import mimetypes
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, TypeVar, cast

from minio.commonconfig import ENABLED, CopySource
from minio.datatypes import Object
from minio.error import MinioException, S3Error
from minio.helpers import DictType
from minio.lifecycleconfig import LifecycleConfig
from minio.versioningconfig import SUSPENDED, VersioningConfig
from urllib3.exceptions import HTTPError

from fmnist_tasks.errors import AccessError, MissingError, SettingsError
from fmnist_tasks.registry.access import Bucket
from fmnist_tasks.registry.blobs import describe
from fmnist_tasks.registry.lifecycle import RULES
from fmnist_tasks.registry.progress import Progress
from fmnist_tasks.registry.signing import NO_KEYS, Keys
from fmnist_tasks.registry.store import (
    MAX_DOCUMENT_BYTES,
    Stat,
    check_key,
    check_size,
    decode_key,
    decode_prefix,
    encode_name,
)
from fmnist_tasks.registry.tries import explained, tried, was_disturbed

log = logging.getLogger(__name__)

_PAGE = 1000  # keys that a server lists at once
_PIECE = 8 << 20  # bytes held in memory; what is larger is sent in parts, and received into a temporary file
_CHUNK = 1 << 20  # bytes read from the network at once
_REFUSED = {"AccessDenied", "NotImplemented", "MethodNotAllowed", "VersioningNotConfigured"}

# An object that exists, on which a server shows that it refuses a second create.
_PROOF_KEY = "conditional-create.txt"
_PROOF = b"This object is created again and again on condition that it does not exist: the server has to refuse.\n"

_TYPES = mimetypes.MimeTypes()  # Python's own, the same on every machine
_TYPES.add_type("text/markdown", ".md")  # which Python 3.11 and 3.12 lack

T = TypeVar("T")


class S3Store:
    """Objects in one bucket, which is made, with versioning, by the first write."""

    def __init__(self, bucket: Bucket, keys: Keys = NO_KEYS) -> None:
        self.keys = keys
        self.bucket, self._client = bucket.name, bucket.client
        self.endpoint = bucket.endpoint
        self._prepared = False  # whether the bucket was looked at before a first write

    def get(self, key: str, at_most: int = MAX_DOCUMENT_BYTES) -> bytes:
        """Bytes of an object."""
        with self.open(key, at_most) as file:
            return file.read()

    def open(self, key: str, at_most: int | None = None) -> BinaryIO:
        """The object in a temporary file of its own, or in memory if it is small."""
        return self._done("read", key, lambda: self._download(key, at_most))

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        """Write an object, replacing what was there; large ones in parts, which appear at once when all are there."""
        _name(key)
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        self.prepare()
        self._done("write", key, lambda: self._upload(key, file))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object only if the key is free: the server accepts or refuses a single request."""
        _name(key)
        self.prepare()
        if not self._keeps_conditions:
            raise AccessError(
                f"{self.endpoint} overwrites what it should create only if absent (If-None-Match): two writers could "
                "both win, so nothing is written; use a server with conditional writes, see the README"
            )
        return self._done("create", key, lambda: self._create(key, data))

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """Objects whose name begins with the prefix and comes after `after`, in the order of their names."""
        # Names on a server are UTF-8: bytes that are none match nothing.
        beginning, passed = (name.decode(errors="replace") for name in (decode_prefix(prefix), _decode(after)))
        full = True
        while full:
            names = self._done("list", prefix, lambda start=passed: self._page(beginning, start))  # type: ignore[misc]
            yield from (stat for name, stat in names if not (name.endswith("/") and not stat.bytes))
            full = len(names) == _PAGE
            passed = names[-1][0] if names else passed

    def stat(self, key: str) -> Stat | None:
        """Size and time of an object, or None if there is none."""
        try:
            return self._done("read", key, lambda: self._look(key))
        except MissingError:
            return None

    def delete(self, key: str) -> None:
        """Remove an object; the versioning of the bucket keeps what it was."""
        try:
            self._done("delete", key, lambda: self._client.remove_object(self.bucket, _name(key)))
        except MissingError:
            log.debug("%s was not there to be deleted", key)

    def take(self, seen: Stat, to: str | None = None, sha256: str | None = None) -> bool:
        """Remove or move an object as it was seen.

        Its version is the digest that the server gives its content: the server copies on condition of that, and none of
        the bytes come here. A newer object that is written between the last look and the deletion, which has no
        condition, stays in the bucket's earlier versions.
        """
        try:
            return self._done("move" if to else "delete", seen.key, lambda: self._take(seen, to))
        except MissingError:
            return True

    def location(self, key: str) -> str:
        """Address of the object on its server."""
        return f"{self.endpoint}/{self.bucket}/{key}"

    def _take(self, seen: Stat, to: str | None) -> bool:
        if self._look(seen.key).version != seen.version:
            return False
        if to is not None:
            source = CopySource(self.bucket, _name(seen.key), match_etag=seen.version)
            try:
                self._client.copy_object(self.bucket, _name(to), source)
            except S3Error as error:
                if error.code != "PreconditionFailed":
                    raise
                return False
        self._client.remove_object(self.bucket, _name(seen.key))
        return True

    def _done(self, verb: str, key: str, action: Callable[[], T]) -> T:
        """The result of the requests in `action`, or the project's own error for theirs."""
        try:
            return tried(action, was_disturbed)
        except (MinioException, HTTPError) as error:
            if isinstance(error, S3Error) and error.code in {"NoSuchKey", "NoSuchBucket"}:
                raise MissingError(f"{self.location(key)} does not exist") from error
            raise explained(error, f"cannot {verb} {self.location(key)}", self.endpoint) from error
        except ValueError as error:  # the client's own rules for names
            raise AccessError(f"cannot {verb} {self.location(key)}: {error}; give the object another name") from error

    def _download(self, key: str, at_most: int | None) -> BinaryIO:
        response = self._client.get_object(self.bucket, _name(key))
        file = SpooledTemporaryFile(_PIECE)  # noqa: SIM115 - the caller closes it
        try:
            # A proxy that sends in chunks leaves the length out.
            length = int(response.headers.get("Content-Length") or 0)
            check_size(key, length, at_most)
            with Progress(key, length) as progress:
                for chunk in response.stream(_CHUNK):
                    file.write(chunk)
                    check_size(key, file.tell(), at_most)
                    progress.update(len(chunk))
            file.seek(0)
        except BaseException:
            file.close()
            raise
        finally:
            response.close()
            response.release_conn()
        return cast(BinaryIO, file)

    def _upload(self, key: str, file: BinaryIO) -> None:
        content = describe(key, file)
        file.seek(0)
        with Progress(key, content["bytes"]) as progress:
            self._client.put_object(
                self.bucket,
                _name(key),
                file,
                content["bytes"],
                content_type=_content_type(key),
                metadata={"sha256": content["sha256"]},
                part_size=_PIECE,
                progress=progress,
            )

    def _create(self, key: str, data: bytes) -> bool:
        sha256 = describe(key, data)["sha256"]
        headers: DictType = {"If-None-Match": "*", "Content-Type": _content_type(key), "X-Amz-Meta-Sha256": sha256}
        try:
            # The client's public put_object would send the condition as metadata, and overwrite.
            self._client._put_object(self.bucket, _name(key), data, headers)
        except S3Error as error:
            if error.code != "PreconditionFailed":
                raise
            return False
        return True

    def _page(self, beginning: str, passed: str) -> Sequence[tuple[str, Stat]]:
        """At most a page of objects with their names on the server, markers of folders among them."""
        try:
            found = self._client.list_objects(self.bucket, prefix=beginning, start_after=passed, recursive=True)
            return [(cast(str, item.object_name), _stat(item)) for item in islice(found, _PAGE)]
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
            return []

    def _look(self, key: str) -> Stat:
        try:
            return _stat(self._client.stat_object(self.bucket, _name(key)))
        except S3Error as error:
            if error.code == "AccessDenied":  # an answer to HEAD has no body; one to a listing says why
                self._page(_name(key), "")
            raise

    def prepare(self) -> None:
        """See that the bucket is there and keeps earlier versions; the first write does it too."""
        if not self._prepared:
            self._done("prepare", "", self._make_bucket)
            self._prepared = True

    def _make_bucket(self) -> None:
        """See that the bucket is there, and that it keeps earlier versions unless a person decided otherwise."""
        try:
            if self._versioning() not in {ENABLED, SUSPENDED}:
                self._set_lifecycle()
                self._client.set_bucket_versioning(self.bucket, VersioningConfig(ENABLED))
        except S3Error as error:
            if error.code not in _REFUSED:
                raise
            log.warning("bucket %s: earlier versions are not kept (%s)", self.bucket, error.message)

    def _set_lifecycle(self) -> None:
        """Limit how long earlier versions are kept, unless a person has set rules for the bucket."""
        try:
            if self._client.get_bucket_lifecycle(self.bucket) is None:
                self._client.set_bucket_lifecycle(self.bucket, LifecycleConfig(RULES))
        except S3Error as error:
            if error.code not in _REFUSED:
                raise
            log.warning("bucket %s: earlier versions are kept for ever (%s)", self.bucket, error.message)

    def _versioning(self) -> str | None:
        try:
            return self._client.get_bucket_versioning(self.bucket).status
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
        try:
            self._client.make_bucket(self.bucket)
        except S3Error as error:
            if error.code != "BucketAlreadyOwnedByYou":  # by another process, a moment faster
                raise
        return None

    @cached_property
    def _keeps_conditions(self) -> bool:
        """Whether the server refuses to create what exists; a server that ignores the condition would overwrite."""
        create = lambda: self._create(_PROOF_KEY, _PROOF)  # noqa: E731
        return not (self._done("create", _PROOF_KEY, create) and self._done("create", _PROOF_KEY, create))


def _stat(item: Object) -> Stat:
    return Stat(
        key=_encode(cast(str, item.object_name).encode()),
        bytes=cast(int, item.size),
        modified=cast(datetime, item.last_modified),
        version=cast(str, item.etag),
    )


def _name(key: str) -> str:
    """The object's name on the server; raises :class:`SettingsError` if the key is none."""
    try:
        return _decode(check_key(key, _encode, _decode)).decode()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{key!r} is no valid key: names on an S3 server are UTF-8") from error


def _encode(name: bytes) -> str:
    """The key of a name on a server; a name that ends in a slash has a last part of nothing but encoded slashes."""
    key = re.sub("(^|(?<=/))/", "%2F", encode_name(name))
    parts = (key + "%2F" if name.endswith(b"/") else key).split("/")
    return "/".join(part.replace(".", "%2E") if part in {".", ".."} else part for part in parts)


def _decode(key: str) -> bytes:
    name = decode_key(key)
    return name[:-1] if re.search("(^|/)(%2F)+$", key) else name


def _content_type(key: str) -> str:
    """The type by the key's ending; text says that it is UTF-8."""
    kind = _TYPES.guess_type(key)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind == "application/json" else kind
