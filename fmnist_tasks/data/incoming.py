"""New labelled batches below `incoming/`: find them, read them, and move bad ones to `quarantine/`.

A batch is one file, a pair of IDX files such as `NAME-images-idx3-ubyte` and `NAME-labels-idx1-ubyte`, each plain or
`.gz`, or a folder of image files (see `batch_files`). Whatever its bytes and its name, a file joins the dataset, goes
to quarantine with a reason, or waits for the next run. A file is removed only if it is unchanged since it was read;
otherwise it waits.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import BinaryIO

from fmnist_tasks.data.batch_files import IMAGE_FILE, MAX_BYTES, BatchContent, read_files, read_folder
from fmnist_tasks.data.class_folders import is_system_file
from fmnist_tasks.errors import AccessError, DataError, StoreError
from fmnist_tasks.registry.blobs import compute_reference
from fmnist_tasks.registry.folder import to_original_key
from fmnist_tasks.registry.store import FILE, UNREADABLE, Stat, Store, decode_key, is_ahead, require_response
from fmnist_tasks.schemas.data import DatasetProperties, IncomingFile, QuarantinedBatch, WaitingFile

PREFIX = "incoming/"
MAX_WAIT = timedelta(days=7)  # for the other half of a pair, and for a copy in progress

MAX_FILES = 5_000  # of all batches of a run; its records name each

_IDX = re.compile(r"(?P<name>.+)-(?P<kind>images[-.]idx[34]|labels[-.]idx1)-ubyte(\.gz)?")
# Names that copy tools give to incomplete files: hidden, as of rsync and Syncthing, or with one of these endings.
_INCOMPLETE = re.compile(
    r"(.*/)?(\.[^/]*|[^/]*(~|\.(part|partial|filepart|crdownload|download|opdownload|gstmp|tmp|temp|swp|!sync)))(/.*)?",
    re.IGNORECASE,
)
_MAX_NAME_LENGTH = 100  # characters; leaves room for endings within the 255 bytes that file systems allow


def to_incoming_file(stat: Stat) -> IncomingFile:
    """Convert the store's description of a file to a record field."""
    return IncomingFile(
        key=stat.key, version=stat.version, bytes=stat.bytes, modified=stat.modified.isoformat(), kind=stat.kind
    )


def to_stat(file: IncomingFile) -> Stat:
    """Convert a record field back to the store's description of the file."""
    return Stat(file.key, file.bytes, datetime.fromisoformat(file.modified), file.version, kind=file.kind)


def make_waiting_files(batch: IncomingBatch, reason: str, *, needs_attention: bool = False) -> list[WaitingFile]:
    """Return the files of a batch that waits, or its folder."""
    return [make_waiting_file(key, reason, needs_attention=needs_attention) for key in batch.keys]


def make_waiting_file(key: str, reason: str, *, needs_attention: bool = False) -> WaitingFile:
    """Return a file that stays where it is until the next run."""
    return WaitingFile(key=key, reason=reason, needs_attention=needs_attention)


@dataclass(frozen=True)
class IncomingBatch:
    """A file, a pair of IDX files, images first, or a folder of image files. The name is unique in a listing."""

    name: str
    files: list[IncomingFile]

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of image files."""
        return all("/" in (name := _restore_name(file.key)) and IMAGE_FILE.fullmatch(name) for file in self.files)

    @property
    def keys(self) -> list[str]:
        """The keys of its files; of a folder, which may have thousands, only its own."""
        if self.is_folder:
            return [f"{PREFIX}{self.files[0].key.removeprefix(PREFIX).partition('/')[0]}/"]
        return [file.key for file in self.files]


def make_display_name(key: str) -> str:
    """Return the displayed name of a batch: only letters, digits, spaces and `_.-`, at most 100 characters.

    If the key has other characters or is longer, the name ends with a digest of the key, before any suffix.
    """
    name = key.removeprefix(PREFIX)
    plain = re.sub(r"(%[0-9A-F]{2})+|[^A-Za-z0-9 _.-]", "_", name)
    if plain == name and len(name) <= _MAX_NAME_LENGTH and name.strip(". "):  # a valid file name
        return name
    stem, _, suffix = plain.rpartition(".")
    suffix = f".{suffix}" if stem and len(suffix) <= 12 else ""
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return f"{plain.removesuffix(suffix)[: _MAX_NAME_LENGTH - 9 - len(suffix)]}-{digest}{suffix}"


def find_batches(
    stats: Iterable[Stat], now: datetime, settle_time: timedelta
) -> tuple[list[IncomingBatch], list[WaitingFile]]:
    """Return the batches to read and the files that wait, from a listing of `incoming/`.

    `now` is the time by the store's clock. A file in a folder must be unchanged for `settle_time`, since it may still
    be written. Objects of an S3 server are always complete.
    """
    waiting, groups, halves = [], [], defaultdict[str, dict[str, list[Stat]]](lambda: {"images": [], "labels": []})
    folders, unsettled = defaultdict[str, list[Stat]](list), set[str]()
    for stat in stats:
        name = _restore_name(stat.key)
        if is_system_file(name):
            continue
        folder = name.partition("/")[0] if "/" in name else ""
        is_incomplete, age = _INCOMPLETE.fullmatch(name), now - (stat.changed or stat.modified)
        if stat.kind.startswith(UNREADABLE):
            reason = (
                f"the account of the workers cannot read this {stat.kind.split()[-1]}; grant it read access, or remove "
                f"the {stat.kind.split()[-1]}"
            )
            waiting.append(make_waiting_file(stat.key, reason, needs_attention=True))
        elif is_incomplete and age <= MAX_WAIT:
            reason = "its name marks an incomplete copy (such as .part); rename it once the copy is complete"
            unsettled |= {folder} - {""}
            waiting.append(
                make_waiting_file(stat.key, reason, needs_attention=is_ahead(stat.changed or stat.modified, now))
            )
        elif (
            stat.changed and abs(age) < settle_time
        ):  # a time far ahead comes from a clock that has been set back since
            if folder in unsettled:
                continue  # one reason is enough for all images of a folder
            if IMAGE_FILE.fullmatch(name):
                unsettled |= {folder} - {""}
            reason = f"it changed in the last {settle_time.total_seconds():g} seconds and may be incomplete"
            waiting.append(make_waiting_file(stat.key, reason))
        elif not is_incomplete and stat.kind == FILE and (match := _IDX.fullmatch(name)):
            halves[match["name"]][match["kind"][:6]].append(stat)
        elif not is_incomplete and stat.kind == FILE and folder and IMAGE_FILE.fullmatch(name):
            folders[folder].append(stat)
        else:
            groups.append((name, [stat]))
    for folder, images in folders.items():
        if folder in unsettled:
            reason = f"the folder {folder} is still being copied"
            waiting.append(make_waiting_file(f"{PREFIX}{folder}/", reason))
        else:
            groups.append((folder, images))
    for name, by_kind in halves.items():
        for pair in itertools.zip_longest(by_kind["images"], by_kind["labels"]):
            if all(pair):
                groups.append((name, list(pair)))
                continue
            (half,) = filter(None, pair)
            since = half.changed or half.modified
            is_late = now - since > MAX_WAIT or is_ahead(since, now)
            delay = ", for more than a week" if is_late else ""
            reason = f"the other file of its IDX pair is missing{delay}; add it, or remove this one"
            waiting.append(make_waiting_file(half.key, reason, needs_attention=is_late))
    batches, names = [], set[str]()
    for name, files in groups:
        display_name = make_display_name(PREFIX + name)
        for number in itertools.count(2):
            if display_name.casefold() not in names:
                break
            display_name = f"{make_display_name(PREFIX + name)}-{number}"
        names.add(display_name.casefold())
        batches.append(IncomingBatch(display_name, [to_incoming_file(stat) for stat in files]))
    return batches, waiting


def is_idx_name(name: str) -> bool:
    """Whether a file of this name is one of a pair of IDX files."""
    return bool(_IDX.fullmatch(name))


def is_images_name(name: str) -> bool:
    """Whether a file of this name has the images of a pair of IDX files."""
    return bool((match := _IDX.fullmatch(name)) and match["kind"].startswith("images"))


def group_file_names(names: Iterable[str]) -> list[list[str]]:
    """Return the names of the files of each batch: pairs of IDX files, images first, and single files."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):  # images come before labels
        match = _IDX.fullmatch(name)
        groups.setdefault(match["name"] if match else f"/{name}", []).append(name)
    return list(groups.values())


def read_batch(
    store: Store, batch: IncomingBatch, dataset: DatasetProperties
) -> tuple[BatchContent | str, list[IncomingFile]]:
    """Return the content of a batch, or the reason against it; and its files with digests.

    Invalid content raises nothing. Raises :class:`AccessError`, :class:`StoreError` or :class:`MissingError` if the
    store cannot read a file.
    """
    for file in batch.files:
        if file.kind != FILE:
            return f"{file.key} is a {file.kind}, which is not read; submit a regular file", batch.files
        if _INCOMPLETE.fullmatch(_restore_name(file.key)):
            return (
                f"{file.key}: its name has marked it as an incomplete copy for more than a week; if it is complete, "
                "rename it and submit it again"
            ), batch.files
        if file.bytes > MAX_BYTES:
            return f"{file.key} has {file.bytes:,} bytes; the limit is {MAX_BYTES:,}", batch.files
    if batch.is_folder:
        return _read_folder(store, batch, dataset)
    with ExitStack() as stack:
        contents = {file.key: stack.enter_context(store.open(file.key)) for file in batch.files}
        files = [_add_digest(batch, file, contents[file.key]) for file in batch.files]
        try:
            return read_files(contents, dataset), files
        except DataError as error:
            return str(error), files


def _read_folder(
    store: Store, batch: IncomingBatch, dataset: DatasetProperties
) -> tuple[BatchContent | str, list[IncomingFile]]:
    files = []
    for file in batch.files:
        with store.open(file.key) as content:
            files.append(_add_digest(batch, file, content))
    try:
        return read_folder({_decode_name(file.key): partial(store.open, file.key) for file in files}, dataset), files
    except DataError as error:
        return str(error), files


def _add_digest(batch: IncomingBatch, file: IncomingFile, content: BinaryIO) -> IncomingFile:
    try:
        return file.model_copy(update={"sha256": compute_reference(file.key, content).sha256})
    except OSError as error:
        raise StoreError(f"cannot read {batch.name}: {error.strerror}; check the disk of the store") from error


def _restore_name(key: str) -> str:
    return to_original_key(key).removeprefix(PREFIX)


def _decode_name(key: str) -> str:
    """Return the name that a file below `incoming/` has in a file system; bytes that are not UTF-8 become marks."""
    return decode_key(_restore_name(key)).decode(errors="replace")


def has_changed(store: Store, files: Iterable[IncomingFile]) -> bool:
    """Whether a file has changed since it was listed, or is gone."""
    return any((stat := store.stat(file.key)) is None or stat.version != file.version for file in files)


def remove_file(store: Store, file: IncomingFile, to: str | None = None) -> WaitingFile | None:
    """Remove a file, or move it to a key, if it is unchanged since it was read; otherwise return why it waits."""
    try:
        if store.remove_if_unchanged(to_stat(file), to, file.sha256):
            return None
    except (AccessError, StoreError) as error:
        require_response(store)
        return make_waiting_file(file.key, f"it cannot be removed: {error}", needs_attention=True)
    return make_waiting_file(file.key, "it changed since it was read")


def move_to_quarantine(
    store: Store, run_id: str, batch: IncomingBatch, reasons: list[str]
) -> tuple[QuarantinedBatch | None, list[WaitingFile]]:
    """Move the batch's files to `quarantine/RUN/`, with the reasons beside them; None if they changed and wait.

    The next call completes one that was interrupted. Files that are not regular, such as links and pipes, are removed.
    """
    stats = {file.key: store.stat(file.key) for file in batch.files}
    if any((stat := stats[file.key]) and stat.version != file.version for file in batch.files):
        return None, [
            make_waiting_file(file.key, "it changed since it was read") for file in batch.files if stats[file.key]
        ]
    actions = (f"{file.key} was {'moved' if file.kind == FILE else 'removed'}" for file in batch.files)
    text = "\n".join([*reasons, "", *actions, ""]).encode(errors="replace")
    keys, reason_key = _choose_keys(store, run_id, batch, text)
    store.put(reason_key, text)
    results = [
        remove_file(store, file, key if file.kind == FILE else None)
        for file, key in zip(batch.files, keys, strict=True)
    ]
    waiting = list(filter(None, results))
    return QuarantinedBatch(name=batch.name, reasons=reasons, location=store.location(reason_key)), waiting


def _choose_keys(store: Store, run_id: str, batch: IncomingBatch, text: bytes) -> tuple[list[str], str]:
    """Return keys for the files and for the reason that hold no other content; a second call returns the same."""
    contents = [(file.bytes, file.sha256) for file in batch.files] + [(len(text), hashlib.sha256(text).hexdigest())]
    digest = hashlib.sha256("".join(f"{file.key}{file.version}" for file in batch.files).encode()).hexdigest()[:8]
    for ending in ("", f"-{digest}"):
        keys = [f"quarantine/{run_id}/{_name_in_quarantine(batch, file, ending)}" for file in batch.files]
        reason_key = f"quarantine/{run_id}/{batch.name}{ending}.reason.txt"
        if all(_is_free(store, key, *content) for key, content in zip([*keys, reason_key], contents, strict=True)):
            break
    return keys, reason_key


def _name_in_quarantine(batch: IncomingBatch, file: IncomingFile, ending: str) -> str:
    if batch.is_folder:  # whose folders name the classes
        folder, _, rest = file.key.removeprefix(PREFIX).partition("/")
        return f"{folder}{ending}/{rest}"
    return f"{make_display_name(PREFIX + _restore_name(file.key))}{ending}"


def _is_free(store: Store, key: str, size: int, sha256: str | None) -> bool:
    """Whether the key has no object, or the one that an interrupted call put there, with this size and digest."""
    stat = store.stat(key)
    if stat is None:
        return True
    if stat.bytes != size or sha256 is None:
        return False
    with store.open(key) as content:
        return compute_reference(key, content).sha256 == sha256
