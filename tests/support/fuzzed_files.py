"""Good and damaged files in `incoming/`, and where each ends up in real runs.

`python -m bench.fuzzed_files` prints the table.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fmnist_tasks.registry.store import encode_name
from fmnist_tasks.schemas.runs import IngestResult, ValidationResult
from fmnist_tasks.settings import Parameters
from fmnist_tasks.steps import Run, run_step
from tests.support.pipeline import Pipeline
from tests.support.synthetic import encode_idx, encode_npz, make_images

Destination = Literal["accepted", "quarantined", "waiting", "lost"]

_BATCH_SIZE = 60  # images
_BATCHES_PER_RUN = 100
_BYTE_ORDERS = "<>=|"
_DTYPES = [
    "b1",
    "i1",
    "i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    "u8",
    "f2",
    "f4",
    "f8",
    "f16",
    "c8",
    "c16",
    "U1",
    "S1",
    "M8[s]",
]
_SHAPES = ["()", "(60,)", "(60, 784)", "(60, 28, 28, 1)", "(784, 60)", "(0, 28, 28)", "(-60, -28, 28)", "(60, 28, 27)"]
_SHAPES += ["(4294967296, 28, 28)", "(1, 60, 28, 28)", "(60, 28, 28", "(True, 28, 28)", "60", "(60L, 28L, 28L)"]
_NAMES = [
    b" ",
    b"\t",
    b"\n",
    b"\\",
    b"%",
    b"%41",
    b"\xe9",
    b"\xff\xfe",
    "\u202f".encode(),
    "\u202e".encode(),
    "👗".encode(),
]
_NAMES += [b"<img src=x onerror=alert(1)>", b"'; rm -rf *", b"$(id)", b"[bold]", b"{{ 7 * 7 }}", b"-rf", b"CON"]
_NAMES += [b"x" * 200]
_TEMPORARY_NAMES = [b".%d.npz.Ab12Cd", b"%d.npz.part", b"%d.npz.filepart", b"%d.crdownload", b"%d.tmp", b"%d.npz~"]


@dataclass(frozen=True)
class Case:
    """A file or a pair by raw name, its kind, and where it must end up, if that is known."""

    kind: str
    files: dict[bytes, bytes]
    expected: Destination | None = None


@dataclass(frozen=True)
class Outcome:
    """Where a case ended up, and why."""

    case: Case
    destination: Destination
    reason: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether it is lost or in the wrong place."""
        return self.destination == "lost" or self.case.expected not in {None, self.destination}


def make_cases(count: int, seed: int) -> Iterator[Case]:
    """Yield `count` cases of all kinds in turn; the same seed gives the same cases."""
    rng = random.Random(seed)  # noqa: S311
    factories: list[Callable[[random.Random, int], Case]] = [
        _make_untouched,
        _make_flipped,
        _make_flipped,
        _make_truncated,
        _make_header,
        _make_header,
        _make_other_dtype,
        _make_other_name,
        _make_appended,
        _make_noise,
        _make_unfinished,
        _make_other_zip,
    ]
    for number in range(count):
        yield factories[number % len(factories)](rng, seed * 1_000_000 + number)


def run_cases(pipeline: Pipeline, cases: list[Case]) -> Iterator[Outcome]:
    """Submit the cases in groups, each to a run of the real steps up to the checks, and yield the outcomes.

    Errors of the steps are raised.
    """
    folder = pipeline.store.root / "incoming"
    for start in range(0, len(cases), _BATCHES_PER_RUN):
        group = cases[start : start + _BATCHES_PER_RUN]
        folder.mkdir(parents=True, exist_ok=True)
        for case in group:
            for name, data in case.files.items():
                (folder / os.fsdecode(name)).write_bytes(data)
        run = Run(f"fuzz-{start}", "2026-11-30T02:00:00+00:00", Parameters(profile="quick"))
        ingestion: IngestResult = run_step("ingest", run)
        validation: ValidationResult = run_step("validate_data", run)
        accepted = {file.key for batch in validation.accepted for file in batch.files}
        reasons = {batch.name: "; ".join(batch.reasons) for batch in validation.quarantined}
        names = {file.key: batch.name for batch in ingestion.batches for file in batch.files}
        names |= {file.key: batch.name for batch in ingestion.unreadable for file in batch.files}
        quarantined = {
            data
            for stat in pipeline.store.list(f"quarantine/{run.id}/")
            if not stat.key.endswith(".reason.txt")
            for data in [pipeline.store.get(stat.key)]
        }
        waiting = {file.key for file in ingestion.waiting}
        for case in group:
            yield _classify(case, pipeline, accepted, reasons, names, quarantined, waiting)
        for path in folder.iterdir():
            path.unlink()


def _classify(
    case: Case,
    pipeline: Pipeline,
    accepted: set[str],
    reasons: dict[str, str],
    names: dict[str, str],
    quarantined: set[bytes],
    waiting: set[str],
) -> Outcome:
    keys = [f"incoming/{encode_name(name)}" for name in case.files]
    paths = [pipeline.store.root / "incoming" / os.fsdecode(name) for name in case.files]
    is_present = [path.exists() for path in paths]
    if accepted >= {*keys} and not any(is_present):
        return Outcome(case, "accepted")
    has_reasons = all(names.get(key) in reasons for key in keys)
    if has_reasons and quarantined >= {*case.files.values()} and not any(is_present):
        return Outcome(case, "quarantined", reasons[names[keys[0]]])
    is_unchanged = all(is_present) and [path.read_bytes() for path in paths] == [*case.files.values()]
    return Outcome(case, "waiting" if waiting >= {*keys} and is_unchanged else "lost")


def _make_batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    return make_images(_BATCH_SIZE, number)


def _compress(images: np.ndarray, labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, labels=labels)
    return buffer.getvalue()


def _make_pair(number: int, images: bytes, labels: bytes, *, packed: bool) -> dict[bytes, bytes]:
    names = b"%d-images-idx3-ubyte" % number, b"%d-labels-idx1-ubyte" % number
    if packed:
        return {names[0] + b".gz": gzip.compress(images), names[1] + b".gz": gzip.compress(labels)}
    return {names[0]: images, names[1]: labels}


def _make_files(rng: random.Random, number: int) -> dict[bytes, bytes]:
    """Return a good batch in one of four forms."""
    images, labels = _make_batch(number)
    form = rng.randrange(4)
    if form < 2:
        return {b"%d.npz" % number: (encode_npz(images=images, labels=labels), _compress(images, labels))[form]}
    return _make_pair(number, encode_idx(images), encode_idx(labels), packed=form == 2)


def _make_untouched(rng: random.Random, number: int) -> Case:
    return Case("untouched", _make_files(rng, number), "accepted")


def _make_changed(rng: random.Random, number: int, kind: str, change: Callable[[bytes], bytes]) -> Case:
    files = _make_files(rng, number)
    name = rng.choice(list(files))
    return Case(kind, {**files, name: change(files[name])})


def _make_flipped(rng: random.Random, number: int) -> Case:
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            # Half of the flips hit the first or last 200 bytes, where headers and directories are.
            ranges = [range(min(200, len(data))), range(max(0, len(data) - 200), len(data)), range(len(data))]
            changed[rng.choice(ranges[rng.choice([0, 1, 2, 2])])] ^= 1 << rng.randrange(8)
        return bytes(changed)

    return _make_changed(rng, number, "flipped bits", flip)


def _make_truncated(rng: random.Random, number: int) -> Case:
    return _make_changed(rng, number, "truncated", lambda data: data[: rng.randrange(len(data))])


def _make_appended(rng: random.Random, number: int) -> Case:
    ends = [bytes(100), b"PK\x05\x06" + bytes(18), rng.randbytes(1000)]
    return _make_changed(rng, number, "appended", lambda data: data + rng.choice([*ends, data]))


def _make_noise(rng: random.Random, number: int) -> Case:
    start = rng.choice([b"", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x93NUMPY", b"\0\0\x08\x03"])
    return _make_changed(rng, number, "noise", lambda _: start + rng.randbytes(rng.randrange(2000)))


def _make_header(rng: random.Random, number: int) -> Case:
    """Change the header: dtype, order and shape of an .npy file, or magic number and sizes of an IDX file."""
    images, labels = _make_batch(number)
    if rng.random() < 0.3:
        sizes = [rng.choice([0, 1, 28, 60, 784, 2**31, 2**32 - 1]) for _ in range(rng.randrange(6))]
        start = struct.pack(">HBB", rng.choice([0, 0, 1]), rng.choice([8, 8, 9, 13]), len(sizes))
        content = start + struct.pack(f">{len(sizes)}I", *sizes) + images.tobytes()
        files = _make_pair(number, content, encode_idx(labels), packed=rng.random() < 0.5)
        return Case("edited header", files)
    dtypes = [f"'{order}{kind}'" for order in _BYTE_ORDERS for kind in _DTYPES]
    descr = rng.choice([*dtypes, "'O'", "'|V784'", "'|S0'", "[('a', 'u1')]"])
    shape = rng.choice([*_SHAPES, "(60, 28, 28)", "(60, 28, 28)"])
    text = f"{{'descr': {descr}, 'fortran_order': {rng.choice(['False', 'True', '0'])}, 'shape': {shape}, }}"
    if rng.random() < 0.1:
        text = rng.choice(["", "{", "[" * 9000, "1" * 9000, text * 3, text.replace("descr", "d\xe9scr")])
    raw = text.encode("latin-1").ljust(rng.choice([0, 117]))
    version = rng.choice([b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\7\7"])
    length = len(raw).to_bytes(2 if version == b"\1\0" else 4, "little")
    array = b"\x93NUMPY" + version + rng.choice([length] * 9 + [b"\xff" * len(length)]) + raw + images.tobytes()
    return Case("edited header", {b"%d.npz" % number: _make_archive(rng, array, labels)})


def _make_archive(rng: random.Random, images: bytes, labels: np.ndarray) -> bytes:
    buffer, other = io.BytesIO(), io.BytesIO()
    np.save(other, labels)
    with zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
        file.writestr("images.npy", images)
        file.writestr("labels.npy", other.getvalue())
    return buffer.getvalue()


def _make_other_zip(rng: random.Random, number: int) -> Case:
    """Change a zip archive: other compression methods, names and members, and wrong flags."""
    images, labels = _make_batch(number)
    arrays = [("images", images), ("labels", labels)]
    arrays += rng.choice([[], [("comment", labels)], [("images", images[:7])]])
    buffer = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(buffer, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about duplicate names
        for name, array in arrays:
            content = io.BytesIO()
            np.save(content, array)
            folder, suffix = rng.choice(["", "", "", "x/"]), rng.choice([".npy", ".npy", ".npy", ""])
            file.writestr(f"{folder}{name}{suffix}", content.getvalue())
    data = bytearray(buffer.getvalue())
    for entry in [match.start() for match in re.finditer(b"PK\x01\x02", data)]:
        if rng.random() < 0.3:  # version, flags, method, times, checksum, sizes, lengths, offset
            data[entry + rng.choice([6, 8, 9, 10, 12, 16, 20, 24, 28, 30, 42])] ^= 1 << rng.randrange(8)
    return Case("other zip", {b"%d.npz" % number: bytes(data)})


def _make_other_dtype(rng: random.Random, number: int) -> Case:
    """Change dtype, byte order and shape of images or labels; integers are good, and labels in text."""
    images, labels = _make_batch(number)
    dtype = np.dtype(rng.choice([*(order + kind for order in "<>" for kind in _DTYPES), "O"]))
    if rng.random() < 0.4:
        original, images = images, images.astype(dtype)
        is_good = dtype.kind in "iu" and bool((images == original).all())
    else:
        labels = (labels.astype(np.int64) if dtype.kind == "M" else labels).astype(dtype)
        is_good = dtype.kind in "iuSU"
    if rng.random() < 0.3:
        images, labels = rng.choice([(images[..., None], labels), (images.reshape(len(images), -1), labels[:, None])])
    if rng.random() < 0.2:
        images = np.asfortranarray(images)
    return Case(
        "other dtype",
        {b"%d.npz" % number: encode_npz(images=images, labels=labels)},
        "accepted" if is_good else "quarantined",
    )


def _make_other_name(rng: random.Random, number: int) -> Case:
    images, labels = _make_batch(number)
    name = rng.choice(_NAMES)
    name = b"%b%d%b.npz" % ((name, number, b"") if rng.random() < 0.5 else (b"", number, name))
    return Case("other name", {name: encode_npz(images=images, labels=labels)}, "accepted")


def _make_unfinished(rng: random.Random, number: int) -> Case:
    images, labels = _make_batch(number)
    if rng.random() < 0.3:
        name, data = rng.choice(list(_make_pair(number, encode_idx(images), encode_idx(labels), packed=False).items()))
        return Case("half a pair", {name: data}, "waiting")
    name = rng.choice(_TEMPORARY_NAMES) % number
    return Case("unfinished copy", {name: encode_npz(images=images, labels=labels)[: rng.randrange(40_000)]}, "waiting")
