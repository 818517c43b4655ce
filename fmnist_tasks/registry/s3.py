"""The object store on any S3 server with conditional writes, such as MinIO.

Only this module, `access` and `retries` know how S3 servers behave. Each object has the SHA-256 of its bytes as
metadata, for users; nothing here relies on it. Names on a server may have empty parts, `.` and `..`, but keys may not:
in their keys, these slashes and dots are percent-encoded too.
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
from fmnist_tasks.registry.blobs import compute_reference
from fmnist_tasks.registry.bucket_lifecycle import RULES
from fmnist_tasks.registry.retries import is_operation_retryable, retry, to_store_error
from fmnist_tasks.registry.s3_address import Bucket
from fmnist_tasks.registry.signing import NO_KEYS, Keys
from fmnist_tasks.registry.store import (
    DEFAULT_MAX_BYTES,
    Stat,
    decode_key,
    decode_prefix,
    encode_name,
    require_max_size,
    require_valid_key,
)

log = logging.getLogger(__name__)

_PAGE_SIZE = 1000  # keys in one response to a listing
_PART_BYTES = 8 << 20  # larger objects are sent in parts, and received into a temporary file
_CHUNK_BYTES = 1 << 20  # read from the network at once
_UNAVAILABLE_CODES = {"AccessDenied", "NotImplemented", "MethodNotAllowed", "VersioningNotConfigured"}

# A second conditional create of this object shows whether the server refuses it.
_PROBE_KEY = "conditional-create.txt"
_PROBE = b"Each process creates this object on condition that it does not exist, to check that the server refuses.\n"

_CONTENT_TYPES = mimetypes.MimeTypes()  # Python's own table, the same on every machine
_CONTENT_TYPES.add_type("text/markdown", ".md")  # missing in Python 3.11 and 3.12

T = TypeVar("T")


class S3Store:
    """Objects in one bucket, which the first write creates, with versioning."""

    def __init__(self, bucket: Bucket, keys: Keys = NO_KEYS) -> None:
        self.keys = keys
        self.dataset = ""
        self.bucket, self._client = bucket.name, bucket.client
        self.endpoint = bucket.endpoint
        self._is_prepared = False  # whether `prepare_bucket` has run

    def get(self, key: str, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Return the bytes of an object."""
        with self.open(key, max_bytes) as file:
            return file.read()

    def open(self, key: str, max_bytes: int | None = None) -> BinaryIO:
        """Return a temporary file with the object; a small one is in memory only."""
        return self._run_request("read", key, lambda: self._download(key, max_bytes))

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        """Write an object, or replace it; large ones in parts, of which nothing is visible until all are stored."""
        _to_object_name(key)
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        self.prepare_bucket()
        self._run_request("write", key, lambda: self._upload(key, file))

    def put_if_absent(self, key: str, data: bytes | BinaryIO) -> bool:
        """Write an object only if the key is free, by one request, which the server accepts or refuses."""
        _to_object_name(key)
        self.prepare_bucket()
        if not self._supports_conditional_create:
            raise AccessError(
                f"{self.endpoint} ignores the condition If-None-Match and overwrites objects: two writers could both "
                "win, so nothing is written; use a server with conditional writes (docs/store.md)"
            )
        content = data if isinstance(data, bytes) else _read_all(data)  # one request, so not in parts
        return self._run_request("create", key, lambda: self._create(key, content))

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """Yield the objects whose names start with the prefix and come after `after`, in the order of their names."""
        # Names on a server are UTF-8, so a prefix that is not matches nothing.
        start, last = (name.decode(errors="replace") for name in (decode_prefix(prefix), _decode_key(after)))
        is_full = True
        while is_full:
            page = self._run_request("list", prefix, lambda last=last: self._list_page(start, last))  # type: ignore[misc]
            yield from (stat for name, stat in page if not (name.endswith("/") and not stat.bytes))
            is_full = len(page) == _PAGE_SIZE
            last = page[-1][0] if page else last

    def stat(self, key: str) -> Stat | None:
        """Return size and time of an object, or None if it does not exist."""
        try:
            return self._run_request("read", key, lambda: self._read_stat(key))
        except MissingError:
            return None

    def delete(self, key: str) -> None:
        """Delete an object, if it exists; with versioning, the bucket keeps an earlier version."""
        try:
            self._run_request("delete", key, lambda: self._client.remove_object(self.bucket, _to_object_name(key)))
        except MissingError:
            log.debug("%s did not exist when it was to be deleted", key)

    def remove_if_unchanged(self, stat: Stat, to: str | None = None, sha256: str | None = None) -> bool:
        """Delete an object, or move it to the key `to`, if it has not changed since the stat.

        The version of an object is its ETag, which depends on the content, so `sha256` is not needed. The server copies
        on condition of the ETag, without a download. The deletion has no condition: an object that is written between
        the last check and the deletion is deleted too, but remains as an earlier version.
        """
        try:
            return self._run_request("move" if to else "delete", stat.key, lambda: self._remove_if_unchanged(stat, to))
        except MissingError:
            return True

    def location(self, key: str) -> str:
        """Return the address of the object on its server."""
        return f"{self.endpoint}/{self.bucket}/{key}"

    def _remove_if_unchanged(self, stat: Stat, to: str | None) -> bool:
        name = _to_object_name(stat.key)
        if self._read_stat(stat.key).version != stat.version:
            return False
        if to is not None:
            source = CopySource(self.bucket, name, match_etag=stat.version)
            try:
                self._client.copy_object(self.bucket, _to_object_name(to), source)
            except S3Error as error:
                if error.code != "PreconditionFailed":
                    raise
                return False
        self._client.remove_object(self.bucket, name)
        return True

    def _run_request(self, verb: str, key: str, action: Callable[[], T]) -> T:
        """Run the requests in `action` with retries; convert their errors to those of this project."""
        try:
            return retry(action, is_operation_retryable)
        except (MinioException, HTTPError) as error:
            if isinstance(error, S3Error) and error.code in {"NoSuchKey", "NoSuchBucket"}:
                raise MissingError(f"{self.location(key)} does not exist") from error
            raise to_store_error(error, f"cannot {verb} {self.location(key)}", self.endpoint) from error
        except ValueError as error:  # the client rejects some names that servers accept
            raise AccessError(f"cannot {verb} {self.location(key)}: {error}; give the object another name") from error

    def _download(self, key: str, max_bytes: int | None) -> BinaryIO:
        response = self._client.get_object(self.bucket, _to_object_name(key))
        file = SpooledTemporaryFile(_PART_BYTES)  # noqa: SIM115 - the caller closes it
        try:
            # Absent if a proxy sends the body in chunks.
            require_max_size(key, int(response.headers.get("Content-Length") or 0), max_bytes)
            for chunk in response.stream(_CHUNK_BYTES):
                file.write(chunk)
                require_max_size(key, file.tell(), max_bytes)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        finally:
            response.close()
            response.release_conn()
        return cast(BinaryIO, file)

    def _upload(self, key: str, file: BinaryIO) -> None:
        content = compute_reference(key, file)
        file.seek(0)
        self._client.put_object(
            self.bucket,
            _to_object_name(key),
            file,
            content.bytes,
            content_type=_guess_content_type(key),
            metadata={"sha256": content.sha256},
            part_size=_PART_BYTES,
        )

    def _create(self, key: str, data: bytes) -> bool:
        sha256 = compute_reference(key, data).sha256
        headers: DictType = {
            "If-None-Match": "*",
            "Content-Type": _guess_content_type(key),
            "X-Amz-Meta-Sha256": sha256,
        }
        try:
            # The client's public put_object sends the condition as metadata, and would overwrite.
            self._client._put_object(self.bucket, _to_object_name(key), data, headers)
        except S3Error as error:
            if error.code != "PreconditionFailed":
                raise
            return False
        return True

    def _list_page(self, start: str, last: str) -> Sequence[tuple[str, Stat]]:
        """Return at most a page of objects with their names on the server, including markers of folders."""
        try:
            items = self._client.list_objects(self.bucket, prefix=start, start_after=last, recursive=True)
            return [(cast(str, item.object_name), _make_stat(item)) for item in islice(items, _PAGE_SIZE)]
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
            return []

    def _read_stat(self, key: str) -> Stat:
        try:
            return _make_stat(self._client.stat_object(self.bucket, _to_object_name(key)))
        except S3Error as error:
            if error.code == "AccessDenied":  # a response to HEAD has no body; the one to a listing has the reason
                self._list_page(_to_object_name(key), "")
            raise

    def prepare_bucket(self) -> None:
        """Create the bucket if needed, and turn on versioning unless it is suspended; the first write does this too."""
        if not self._is_prepared:
            self._run_request("prepare", "", self._create_bucket)
            self._is_prepared = True

    def _create_bucket(self) -> None:
        try:
            if self._read_versioning() not in {ENABLED, SUSPENDED}:
                self._set_lifecycle()
                self._client.set_bucket_versioning(self.bucket, VersioningConfig(ENABLED))
        except S3Error as error:
            if error.code not in _UNAVAILABLE_CODES:
                raise
            log.warning(
                "bucket %s: versioning cannot be turned on, so deleted objects are lost (%s)",
                self.bucket,
                error.message,
            )

    def _set_lifecycle(self) -> None:
        """Set the rules that delete earlier versions, unless the bucket has rules."""
        try:
            if self._client.get_bucket_lifecycle(self.bucket) is None:
                self._client.set_bucket_lifecycle(self.bucket, LifecycleConfig(RULES))
        except S3Error as error:
            if error.code not in _UNAVAILABLE_CODES:
                raise
            log.warning(
                "bucket %s: lifecycle rules cannot be set, so earlier versions are stored forever (%s)",
                self.bucket,
                error.message,
            )

    def _read_versioning(self) -> str | None:
        try:
            return self._client.get_bucket_versioning(self.bucket).status
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
        try:
            self._client.make_bucket(self.bucket)
        except S3Error as error:
            if error.code != "BucketAlreadyOwnedByYou":  # another process has just created it
                raise
        return None

    @cached_property
    def _supports_conditional_create(self) -> bool:
        """Whether the server refuses to create an object that exists; a server without conditions overwrites it."""
        create = lambda: self._create(_PROBE_KEY, _PROBE)  # noqa: E731
        return not (self._run_request("create", _PROBE_KEY, create) and self._run_request("create", _PROBE_KEY, create))


def _read_all(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _make_stat(item: Object) -> Stat:
    return Stat(
        key=_encode_name(cast(str, item.object_name).encode()),
        bytes=cast(int, item.size),
        modified=cast(datetime, item.last_modified),
        version=cast(str, item.etag),
    )


def _to_object_name(key: str) -> str:
    """Return the object's name on the server; raises :class:`SettingsError` for an invalid key."""
    try:
        return _decode_key(require_valid_key(key, _encode_name, _decode_key)).decode()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{key!r} is not a valid key: names on an S3 server are UTF-8") from error


def _encode_name(name: bytes) -> str:
    """Return the key of a name on a server; a slash at the end of the name becomes a last part of encoded slashes."""
    key = re.sub("(^|(?<=/))/", "%2F", encode_name(name))
    parts = (key + "%2F" if name.endswith(b"/") else key).split("/")
    return "/".join(part.replace(".", "%2E") if part in {".", ".."} else part for part in parts)


def _decode_key(key: str) -> bytes:
    name = decode_key(key)
    return name[:-1] if re.search("(^|/)(%2F)+$", key) else name


def _guess_content_type(key: str) -> str:
    """Return the content type by the key's extension; for text with the charset UTF-8."""
    content_type = _CONTENT_TYPES.guess_type(key)[0] or "application/octet-stream"
    is_text = content_type.startswith("text/") or content_type == "application/json"
    return f"{content_type}; charset=utf-8" if is_text else content_type
