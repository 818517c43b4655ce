"""New labelled batches: what lies under `incoming/`, and how it gets into memory or into `quarantine/`.

A batch is `NAME.npz` (arrays `images`, `labels`) or a pair `NAME-images-idx3-ubyte` and `NAME-labels-idx1-ubyte`,
each plain or `.gz`. Whatever its bytes and its name, a file becomes part of the dataset, goes to quarantine with a
reason, or waits for the next run. It is removed only as it was read: what changed meanwhile waits.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from fmnist_tasks.data.declaration import SIDE
from fmnist_tasks.data.idx import read_idx
from fmnist_tasks.data.npz import Header, unpack
from fmnist_tasks.errors import AccessError, DataError, StoreError
from fmnist_tasks.registry.blobs import describe
from fmnist_tasks.registry.local import name_before
from fmnist_tasks.registry.store import FILE, UNREADABLE, Stat, Store, is_ahead, require_answer

PREFIX = "incoming/"
# Bytes of a file, and of its pixels and labels. A worker of 6 GB holds them, their copy on the way into the store, and
# what the checks make of them.
MAX_BYTES = 1 << 30
PATIENCE = timedelta(days=7)  # with half a pair, and with a name that copy tools give to what they have not finished

_IDX = re.compile(r"(?P<name>.+)-(?P<kind>images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?")
_UNFINISHED = re.compile(  # a part that is hidden, as rsync's and Syncthing's are, or ends like this
    r"(.*/)?(\.[^/]*|[^/]*(~|\.(part|partial|filepart|crdownload|download|opdownload|gstmp|tmp|temp|swp|!sync)))(/.*)?",
    re.IGNORECASE,
)
_LONGEST_NAME = 100  # characters: with endings, and in longer names, below the 255 bytes of file systems


@dataclass(frozen=True)
class File:
    """A file of a batch as it was seen, and read."""

    key: str
    version: str
    bytes: int
    modified: str  # UTC, ISO 8601
    kind: str = FILE
    sha256: str | None = None  # None as long as it was not read

    @classmethod
    def of(cls, stat: Stat) -> File:
        """What the store says of it."""
        return cls(stat.key, stat.version, stat.bytes, stat.modified.isoformat(), stat.kind)

    @property
    def stat(self) -> Stat:
        """What the store said of it."""
        return Stat(self.key, self.bytes, datetime.fromisoformat(self.modified), self.version, kind=self.kind)

    def as_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Batch:
    """Files that go together: a file, or a pair of IDX files, images first. The name is unique in a listing."""

    name: str
    files: list[File]


@dataclass(frozen=True)
class Waiting:
    """A file that stays where it is until the next run."""

    key: str
    reason: str
    alert: bool = False  # whether it will not get better by itself


def display_name(key: str) -> str:
    """The name under which a batch is shown, of letters, digits, blanks and `_.-` alone, at most 100 characters.

    Of a key that has others, or is longer, it ends in a digest of the key, before any suffix.
    """
    name = key.removeprefix(PREFIX)
    plain = re.sub(r"(%[0-9A-F]{2})+|[^A-Za-z0-9 _.-]", "_", name)
    if plain == name and len(name) <= _LONGEST_NAME and name.strip(". "):  # no folder is called so
        return name
    stem, _, suffix = plain.rpartition(".")
    suffix = f".{suffix}" if stem and len(suffix) <= 12 else ""
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return f"{plain.removesuffix(suffix)[: _LONGEST_NAME - 9 - len(suffix)]}-{digest}{suffix}"


def find_batches(stats: Iterable[Stat], now: datetime, settle: timedelta) -> tuple[list[Batch], list[Waiting]]:
    """What can be read, and what waits, of a listing of `incoming/` at that time by the store's clock.

    `settle` is how long a file in a folder must not have changed: a writer may be at work on it. Objects of an S3
    server are whole.
    """
    waiting, alone, halves = [], [], defaultdict[str, dict[str, list[Stat]]](lambda: {"images": [], "labels": []})
    for stat in stats:
        name = _original_name(stat.key)
        unfinished, age = _UNFINISHED.fullmatch(name), now - (stat.changed or stat.modified)
        if stat.kind.startswith(UNREADABLE):
            reason = f"this user may not read the {stat.kind.split()[-1]}; give it the right to, or remove it"
            waiting.append(Waiting(stat.key, reason, alert=True))
        elif unfinished and age <= PATIENCE:
            reason = "its name is that of a file which is still being copied; rename it when it is complete"
            waiting.append(Waiting(stat.key, reason, alert=is_ahead(stat.changed or stat.modified, now)))
        elif stat.changed and abs(age) < settle:  # a time far ahead is that of a clock that was set back since
            reason = f"it changed less than {settle.total_seconds():g} seconds before it was looked at, and may grow"
            waiting.append(Waiting(stat.key, reason))
        elif not unfinished and stat.kind == FILE and (match := _IDX.fullmatch(name)):
            halves[match["name"]][match["kind"][:6]].append(stat)
        else:
            alone.append((name, [stat]))
    for name, files in halves.items():
        for pair in itertools.zip_longest(files["images"], files["labels"]):
            if all(pair):
                alone.append((name, list(pair)))
                continue
            (half,) = filter(None, pair)
            since = half.changed or half.modified
            late = now - since > PATIENCE or is_ahead(since, now)
            reason = (
                f"the other file of its IDX pair is missing{', for more than a week' * late}; add it, or remove this"
            )
            waiting.append(Waiting(half.key, reason, alert=late))
    batches, names = [], set[str]()
    for name, found in alone:
        shown = display_name(PREFIX + name)
        for number in itertools.count(2):
            if shown.casefold() not in names:
                break
            shown = f"{display_name(PREFIX + name)}-{number}"
        names.add(shown.casefold())
        batches.append(Batch(shown, [File.of(stat) for stat in found]))
    return batches, waiting


def read_batch(store: Store, batch: Batch) -> tuple[tuple[np.ndarray, np.ndarray] | str, list[File]]:
    """Images uint8 (N, 28, 28) and integer labels (N,), or why there are none; and the files with their digests.

    Whatever the bytes are, they raise nothing. Raises :class:`AccessError`, :class:`StoreError` or
    :class:`MissingError` if a file cannot be had.
    """
    for file in batch.files:
        if file.kind != FILE:
            return f"{file.key}: is a {file.kind}, which is not followed or read", batch.files
        if _UNFINISHED.fullmatch(_original_name(file.key)):
            return (
                f"{file.key}: for more than a week its name has been that of a file which is still being copied; if it "
                "is complete, rename it and submit it again"
            ), batch.files
        if file.bytes > MAX_BYTES:
            return f"{file.key}: has {file.bytes:,} bytes, more than the {MAX_BYTES:,} that are read", batch.files
    with ExitStack() as stack:
        contents = {file.key: stack.enter_context(store.open(file.key)) for file in batch.files}
        try:
            files = [replace(file, sha256=describe(file.key, contents[file.key])["sha256"]) for file in batch.files]
        except OSError as error:
            raise StoreError(f"cannot read {batch.name}: {error.strerror}; check the disk of the store") from error
        try:
            return _normalise(*_decode(contents)), files
        except DataError as error:
            return str(error), files


def _original_name(key: str) -> str:
    return name_before(key).removeprefix(PREFIX)


def has_changed(store: Store, files: Iterable[File]) -> bool:
    """Whether a file is another than the one that was seen, or gone."""
    return any((stat := store.stat(file.key)) is None or stat.version != file.version for file in files)


def take(store: Store, file: File, to: str | None = None) -> Waiting | None:
    """Remove a file, or move it to a key, as it was read; if that cannot be, why it waits."""
    try:
        if store.take(file.stat, to, file.sha256):
            return None
    except (AccessError, StoreError) as error:
        require_answer(store)
        return Waiting(file.key, f"it cannot be removed: {error}", alert=True)
    return Waiting(file.key, "it changed since it was read")


def quarantine(
    store: Store, run_id: str, batch: Batch, reasons: list[str]
) -> tuple[dict[str, Any] | None, list[Waiting]]:
    """Move the batch's files to `quarantine/RUN/` with the reasons beside them; None if they changed and wait.

    A call that was interrupted is completed by the next one. Links, pipes and the like are removed.
    """
    stats = {file.key: store.stat(file.key) for file in batch.files}
    if any((stat := stats[file.key]) and stat.version != file.version for file in batch.files):
        return None, [Waiting(file.key, "it changed since it was read") for file in batch.files if stats[file.key]]
    fates = (f"{file.key} was {'moved' if file.kind == FILE else 'removed'}" for file in batch.files)
    text = "\n".join([*reasons, "", *fates, ""]).encode(errors="replace")
    places, reason_key = _find_places(store, run_id, batch, text)
    store.put(reason_key, text)
    taken = [
        take(store, file, place if file.kind == FILE else None) for file, place in zip(batch.files, places, strict=True)
    ]
    waiting = list(filter(None, taken))
    return {"batch": batch.name, "reasons": reasons, "location": store.location(reason_key)}, waiting


def _find_places(store: Store, run_id: str, batch: Batch, text: bytes) -> tuple[list[str], str]:
    """Keys for the files and for the reason, at which no other content lies; a second call finds the same."""
    reason = File("", "", len(text), "", sha256=hashlib.sha256(text).hexdigest())
    names = [display_name(PREFIX + _original_name(file.key)) for file in batch.files]
    digest = hashlib.sha256("".join(f"{file.key}{file.version}" for file in batch.files).encode()).hexdigest()[:8]
    for ending in ("", f"-{digest}"):
        places = [f"quarantine/{run_id}/{name}{ending}" for name in names]
        reason_key = f"quarantine/{run_id}/{batch.name}{ending}.reason.txt"
        contents = zip([*places, reason_key], [*batch.files, reason], strict=True)
        if all(_is_free(store, key, content) for key, content in contents):
            break
    return places, reason_key


def _is_free(store: Store, key: str, file: File) -> bool:
    """Whether there is nothing at the key, or what an interrupted call put there."""
    stat = store.stat(key)
    if stat is None:
        return True
    if stat.bytes != file.bytes or file.sha256 is None:
        return False
    with store.open(key) as content:
        return bool(describe(key, content)["sha256"] == file.sha256)


def _decode(contents: dict[str, BinaryIO]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one or two open files by key; raises :class:`DataError`."""
    for content in contents.values():
        content.seek(0)
    key, *others = contents
    if others:
        images, labels = (read_idx(content, key, MAX_BYTES) for key, content in contents.items())
        _check_structure(key, *(Header(array.dtype, array.shape, False, 0) for array in (images, labels)))
        return images, labels
    if not key.lower().endswith(".npz"):
        raise DataError(
            f"{key}: is neither an .npz nor one of a pair of IDX files (NAME-images-idx3-ubyte and "
            "NAME-labels-idx1-ubyte, plain or .gz)"
        )
    images, labels = unpack(
        contents[key], key, "images", "labels", limit=MAX_BYTES, check=partial(_check_structure, key)
    )
    return images, labels


def _check_structure(name: str, images: Header, labels: Header) -> None:
    """Raise :class:`DataError` unless these are images of the right size with one whole number each."""
    problems = []
    if images.dtype != np.uint8 or images.shape[1:] not in {(SIDE, SIDE), (SIDE, SIDE, 1), (SIDE * SIDE,)}:
        problems.append(
            f"images are {images.dtype} of shape {images.shape}, expected uint8 (pixels 0 to 255) of shape "
            f"(N, {SIDE}, {SIDE}), (N, {SIDE}, {SIDE}, 1) or (N, {SIDE * SIDE})"
        )
    if labels.dtype.kind not in "iu" or len(labels.shape) not in {1, 2} or labels.shape[1:] not in {(), (1,)}:
        problems.append(
            f"labels are {labels.dtype} of shape {labels.shape}, expected whole numbers (classes, from 0 on) of shape "
            "(N,) or (N, 1)"
        )
    if not problems and images.shape[0] != labels.shape[0]:
        problems.append(f"{images.shape[0]:,} images but {labels.shape[0]:,} labels")
    if not problems and not images.shape[0]:
        problems.append("has no images")
    if problems:
        raise DataError(f"{name}: {'; '.join(problems)}")


def _normalise(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same content in one form, row by row: uint8 (N, 28, 28), and labels (N,), uint8 unless one does not fit."""
    labels = labels.reshape(len(labels))
    if labels.min() >= 0 and labels.max() <= 255:
        labels = labels.astype(np.uint8)
    return np.ascontiguousarray(images.reshape(len(images), SIDE, SIDE)), labels
