"""The object store on any S3 server with conditional writes, such as MinIO.

Whatever S3 servers do in a way of their own stays in this room and in `access` and `tries`. Each object carries the
SHA-256 of its bytes as metadata, for people; nothing here relies on it.
"""

from __future__ import annotations

import io
import logging
import mimetypes
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, TypeVar, cast

from minio.commonconfig import ENABLED
from minio.error import MinioException, S3Error
from minio.helpers import DictType
from minio.lifecycleconfig import LifecycleConfig
from minio.versioningconfig import SUSPENDED, VersioningConfig
from urllib3.exceptions import HTTPError

from fmnist_tasks.errors import AccessError, MissingError
from fmnist_tasks.registry.access import Bucket
from fmnist_tasks.registry.blobs import describe
from fmnist_tasks.registry.lifecycle import RULES
from fmnist_tasks.registry.progress import Progress
from fmnist_tasks.registry.store import Stat, check_key
from fmnist_tasks.registry.tries import explained, tried, was_disturbed

log = logging.getLogger(__name__)

_PAGE = 1000  # keys that a server lists at once
_PIECE = 8 << 20  # bytes held in memory; what is larger is sent in parts, and received into a temporary file
_CHUNK = 1 << 20  # bytes read from the network at once
_REFUSED = {"AccessDenied", "NotImplemented", "MethodNotAllowed"}

# An object that exists, on which a server shows that it refuses a second create.
_PROOF_KEY = "conditional-create.txt"
_PROOF = b"This object is created again and again on condition that it does not exist: the server has to refuse.\n"

_TYPES = mimetypes.MimeTypes()  # Python's own, the same on every machine
_TYPES.add_type("text/markdown", ".md")  # which Python 3.11 and 3.12 lack

T = TypeVar("T")


class S3Store:
    """Objects in one bucket, which is made, with versioning, by the first write."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket, self._client = bucket.name, bucket.client
        self.endpoint = bucket.endpoint
        self._prepared = False  # whether the bucket was looked at before a first write

    def get(self, key: str) -> bytes:
        """Bytes of an object."""
        with self.open(key) as file:
            return file.read()

    def open(self, key: str) -> BinaryIO:
        """The object in a temporary file of its own, or in memory if it is small."""
        return self._done("read", check_key(key), lambda: self._download(key))

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        """Write an object, replacing what was there; large ones in parts, which appear at once when all are there."""
        check_key(key)
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        self.prepare()
        self._done("write", key, lambda: self._upload(key, file))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object only if the key is free: the server accepts or refuses a single request."""
        check_key(key)
        self.prepare()
        if not self._keeps_conditions:
            raise AccessError(
                f"{self.endpoint} overwrites what it should create only if absent (If-None-Match): two writers could "
                "both win, so nothing is written; use a server with conditional writes, see the README"
            )
        return self._done("create", key, lambda: self._create(key, data))

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """Objects whose key begins with the prefix and comes after `after`, in the order of their keys."""
        full = True
        while full:
            page = self._done("list", prefix, lambda start=after: self._page(prefix, start))  # type: ignore[misc]
            yield from page
            full = len(page) == _PAGE
            after = page[-1].key if page else after

    def stat(self, key: str) -> Stat | None:
        """Size and time of an object, or None if there is none."""
        try:
            return self._done("read", check_key(key), lambda: self._look(key))
        except MissingError:
            return None

    def delete(self, key: str) -> None:
        """Remove an object; the versioning of the bucket keeps what it was."""
        try:
            self._done("delete", check_key(key), lambda: self._client.remove_object(self.bucket, key))
        except MissingError:
            log.debug("%s was not there to be deleted", key)

    def location(self, key: str) -> str:
        """Address of the object on its server."""
        return f"{self.endpoint}/{self.bucket}/{key}"

    def _done(self, verb: str, key: str, action: Callable[[], T]) -> T:
        """The result of the requests in `action`, or the project's own error for theirs."""
        try:
            return tried(action, was_disturbed)
        except (MinioException, HTTPError) as error:
            if isinstance(error, S3Error) and error.code in {"NoSuchKey", "NoSuchBucket"}:
                raise MissingError(f"{self.location(key)} does not exist") from error
            raise explained(error, f"cannot {verb} {self.location(key)}", self.endpoint) from error

    def _download(self, key: str) -> BinaryIO:
        response = self._client.get_object(self.bucket, key)
        file = SpooledTemporaryFile(_PIECE)  # noqa: SIM115 - the caller closes it
        try:
            with Progress(key, int(response.headers["Content-Length"])) as progress:
                for chunk in response.stream(_CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
        finally:
            response.close()
            response.release_conn()
        file.seek(0)
        return cast(BinaryIO, file)

    def _upload(self, key: str, file: BinaryIO) -> None:
        content = describe(key, file)
        file.seek(0)
        with Progress(key, content["bytes"]) as progress:
            self._client.put_object(
                self.bucket,
                key,
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
            self._client._put_object(self.bucket, key, data, headers)
        except S3Error as error:
            if error.code != "PreconditionFailed":
                raise
            return False
        return True

    def _page(self, prefix: str, after: str) -> Sequence[Stat]:
        try:
            found = self._client.list_objects(self.bucket, prefix=prefix, start_after=after, recursive=True)
            return [_stat(item.object_name, item.size, item.last_modified) for item in islice(found, _PAGE)]
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
            return []

    def _look(self, key: str) -> Stat:
        try:
            found = self._client.stat_object(self.bucket, key)
        except S3Error as error:
            if error.code == "AccessDenied":  # an answer to HEAD has no body; one to a listing says why
                self._page(key, "")
            raise
        return _stat(key, found.size, found.last_modified)

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


def _stat(key: str | None, size: int | None, modified: datetime | None) -> Stat:
    return Stat(cast(str, key), cast(int, size), cast(datetime, modified))


def _content_type(key: str) -> str:
    """The type by the key's ending; text says that it is UTF-8."""
    kind = _TYPES.guess_type(key)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind == "application/json" else kind
