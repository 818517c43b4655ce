"""Files as they may arrive under `incoming/`, good and damaged, and what becomes of each of them in real runs.

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

from fmnist_tasks import steps
from fmnist_tasks.registry.store import encode_name
from fmnist_tasks.settings import Parameters
from fmnist_tasks.steps import Run
from tests.support.pipeline import Pipeline
from tests.support.synthetic import encode_idx, encode_npz, make_images

Place = Literal["accepted", "quarantined", "waiting", "lost"]

_IMAGES = 60  # of a batch
_GROUP = 100  # batches that arrive for one run
_ORDERS = "<>=|"
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
_UNFINISHED = [b".%d.npz.Ab12Cd", b"%d.npz.part", b"%d.npz.filepart", b"%d.crdownload", b"%d.tmp", b"%d.npz~"]


@dataclass(frozen=True)
class Case:
    """What arrives: one file or a pair, by raw name, how it was made, and where it has to end, if that is known."""

    kind: str
    files: dict[bytes, bytes]
    expected: Place | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a case in a run."""

    case: Case
    place: Place
    reason: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether it is lost, or somewhere else than it has to be."""
        return self.place == "lost" or self.case.expected not in {None, self.place}


def make_cases(count: int, seed: int) -> Iterator[Case]:
    """So many cases, of all kinds in turn, the same for the same seed."""
    dice = random.Random(seed)  # noqa: S311
    makers: list[Callable[[random.Random, int], Case]] = [
        _untouched, _flipped, _flipped, _truncated, _header, _header, _other_dtype, _other_name, _appended, _noise,
        _unfinished, _other_zip,
    ]  # fmt: skip
    for number in range(count):
        yield makers[number % len(makers)](dice, seed * 1_000_000 + number)


def run_cases(pipeline: Pipeline, cases: list[Case]) -> Iterator[Outcome]:
    """Let the cases arrive in groups, each for a run of the real steps up to the checks, and see what became of them.

    Whatever a step raises is raised.
    """
    folder = pipeline.store.root / "incoming"
    for start in range(0, len(cases), _GROUP):
        group = cases[start : start + _GROUP]
        folder.mkdir(parents=True, exist_ok=True)
        for case in group:
            for name, data in case.files.items():
                (folder / os.fsdecode(name)).write_bytes(data)
        run = Run(f"fuzz-{start}", "2026-11-30T02:00:00+00:00", Parameters(profile="quick"))
        ingested = steps.ingest(run)
        validated = steps.validate_data(run, ingested)
        accepted = {file["key"] for batch in validated["accepted"] for file in batch["files"]}
        reasons = {entry["batch"]: "; ".join(entry["reasons"]) for entry in validated["quarantined"]}
        names = {
            file["key"]: batch["name"]
            for batch in [*ingested["batches"], *ingested["unreadable"]]
            for file in batch["files"]
        }
        kept = {
            data
            for stat in pipeline.store.list(f"quarantine/{run.id}/")
            if not stat.key.endswith(".reason.txt")
            for data in [pipeline.store.get(stat.key)]
        }
        waiting = {file["key"] for file in ingested["waiting"]}
        for case in group:
            yield _see(case, pipeline, accepted, reasons, names, kept, waiting)
        for path in folder.iterdir():
            path.unlink()


def _see(
    case: Case,
    pipeline: Pipeline,
    accepted: set[str],
    reasons: dict[str, str],
    names: dict[str, str],
    kept: set[bytes],
    waiting: set[str],
) -> Outcome:
    keys = [f"incoming/{encode_name(name)}" for name in case.files]
    left = [(pipeline.store.root / "incoming" / os.fsdecode(name)).exists() for name in case.files]
    if accepted >= {*keys} and not any(left):
        return Outcome(case, "accepted")
    if all(names.get(key) in reasons for key in keys) and kept >= {*case.files.values()} and not any(left):
        return Outcome(case, "quarantined", reasons[names[keys[0]]])
    whole = all(
        (pipeline.store.root / "incoming" / os.fsdecode(name)).read_bytes() == data
        for (name, data), is_there in zip(case.files.items(), left, strict=True)
        if is_there
    )
    return Outcome(case, "waiting" if waiting >= {*keys} and all(left) and whole else "lost")


def _batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    return make_images(_IMAGES, number)


def _compress(images: np.ndarray, labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, labels=labels)
    return buffer.getvalue()


def _pair(number: int, images: bytes, labels: bytes, *, packed: bool) -> dict[bytes, bytes]:
    names = b"%d-images-idx3-ubyte" % number, b"%d-labels-idx1-ubyte" % number
    if packed:
        return {names[0] + b".gz": gzip.compress(images), names[1] + b".gz": gzip.compress(labels)}
    return {names[0]: images, names[1]: labels}


def _files(dice: random.Random, number: int) -> dict[bytes, bytes]:
    """A good batch in one of the four forms."""
    images, labels = _batch(number)
    form = dice.randrange(4)
    if form < 2:
        return {b"%d.npz" % number: (encode_npz(images=images, labels=labels), _compress(images, labels))[form]}
    return _pair(number, encode_idx(images), encode_idx(labels), packed=form == 2)


def _untouched(dice: random.Random, number: int) -> Case:
    return Case("untouched", _files(dice, number), "accepted")


def _changed(dice: random.Random, number: int, kind: str, change: Callable[[bytes], bytes]) -> Case:
    files = _files(dice, number)
    name = dice.choice(list(files))
    return Case(kind, {**files, name: change(files[name])})


def _flipped(dice: random.Random, number: int) -> Case:
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(dice.choice([1, 1, 1, 2, 8])):
            # Half of the flips hit the first or last 200 bytes, where headers and directories are.
            places = [range(min(200, len(data))), range(max(0, len(data) - 200), len(data)), range(len(data))]
            changed[dice.choice(places[dice.choice([0, 1, 2, 2])])] ^= 1 << dice.randrange(8)
        return bytes(changed)

    return _changed(dice, number, "flipped bits", flip)


def _truncated(dice: random.Random, number: int) -> Case:
    return _changed(dice, number, "truncated", lambda data: data[: dice.randrange(len(data))])


def _appended(dice: random.Random, number: int) -> Case:
    ends = [bytes(100), b"PK\x05\x06" + bytes(18), dice.randbytes(1000)]
    return _changed(dice, number, "with something behind", lambda data: data + dice.choice([*ends, data]))


def _noise(dice: random.Random, number: int) -> Case:
    start = dice.choice([b"", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x93NUMPY", b"\0\0\x08\x03"])
    return _changed(dice, number, "noise", lambda _: start + dice.randbytes(dice.randrange(2000)))


def _header(dice: random.Random, number: int) -> Case:
    """Another header over the same bytes: dtype, order and shape of an .npy file, or magic number and sizes of IDX."""
    images, labels = _batch(number)
    if dice.random() < 0.3:
        sizes = [dice.choice([0, 1, 28, 60, 784, 2**31, 2**32 - 1]) for _ in range(dice.randrange(6))]
        start = struct.pack(">HBB", dice.choice([0, 0, 1]), dice.choice([8, 8, 9, 13]), len(sizes))
        content = start + struct.pack(f">{len(sizes)}I", *sizes) + images.tobytes()
        files = _pair(number, content, encode_idx(labels), packed=dice.random() < 0.5)
        return Case("edited header", files)
    dtypes = [f"'{order}{kind}'" for order in _ORDERS for kind in _DTYPES]
    descr = dice.choice([*dtypes, "'O'", "'|V784'", "'|S0'", "[('a', 'u1')]"])
    shape = dice.choice([*_SHAPES, "(60, 28, 28)", "(60, 28, 28)"])
    text = f"{{'descr': {descr}, 'fortran_order': {dice.choice(['False', 'True', '0'])}, 'shape': {shape}, }}"
    if dice.random() < 0.1:
        text = dice.choice(["", "{", "[" * 9000, "1" * 9000, text * 3, text.replace("descr", "d\xe9scr")])
    raw = text.encode("latin-1").ljust(dice.choice([0, 117]))
    version = dice.choice([b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\7\7"])
    length = len(raw).to_bytes(2 if version == b"\1\0" else 4, "little")
    array = b"\x93NUMPY" + version + dice.choice([length] * 9 + [b"\xff" * len(length)]) + raw + images.tobytes()
    return Case("edited header", {b"%d.npz" % number: _archive(dice, array, labels)})


def _archive(dice: random.Random, images: bytes, labels: np.ndarray) -> bytes:
    buffer, other = io.BytesIO(), io.BytesIO()
    np.save(other, labels)
    with zipfile.ZipFile(buffer, "w", dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
        file.writestr("images.npy", images)
        file.writestr("labels.npy", other.getvalue())
    return buffer.getvalue()


def _other_zip(dice: random.Random, number: int) -> Case:
    """A zip archive as others make it: other methods, names and members, and flags that claim something else."""
    images, labels = _batch(number)
    arrays = [("images", images), ("labels", labels)]
    arrays += dice.choice([[], [("comment", labels)], [("images", images[:7])]])
    buffer = io.BytesIO()
    method = dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(buffer, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a name that comes twice
        for name, array in arrays:
            content = io.BytesIO()
            np.save(content, array)
            folder, suffix = dice.choice(["", "", "", "x/"]), dice.choice([".npy", ".npy", ".npy", ""])
            file.writestr(f"{folder}{name}{suffix}", content.getvalue())
    data = bytearray(buffer.getvalue())
    for entry in [match.start() for match in re.finditer(b"PK\x01\x02", data)]:
        if dice.random() < 0.3:  # version, flags, method, times, check sum, sizes, lengths, offset
            data[entry + dice.choice([6, 8, 9, 10, 12, 16, 20, 24, 28, 30, 42])] ^= 1 << dice.randrange(8)
    return Case("other zip", {b"%d.npz" % number: bytes(data)})


def _other_dtype(dice: random.Random, number: int) -> Case:
    """Images or labels of every dtype, byte order and shape; what keeps the values as whole numbers is good."""
    images, labels = _batch(number)
    dtype = np.dtype(dice.choice([*(order + kind for order in "<>" for kind in _DTYPES), "O"]))
    if dice.random() < 0.4:
        images = images.astype(dtype)
        good = dtype == np.uint8
    else:
        labels = (labels.astype(np.int64) if dtype.kind == "M" else labels).astype(dtype)
        good = dtype.kind in "iu"
    if dice.random() < 0.3:
        images, labels = dice.choice([(images[..., None], labels), (images.reshape(len(images), -1), labels[:, None])])
    if dice.random() < 0.2:
        images = np.asfortranarray(images)
    return Case(
        "other dtype",
        {b"%d.npz" % number: encode_npz(images=images, labels=labels)},
        "accepted" if good else "quarantined",
    )


def _other_name(dice: random.Random, number: int) -> Case:
    images, labels = _batch(number)
    name = dice.choice(_NAMES)
    name = b"%b%d%b.npz" % ((name, number, b"") if dice.random() < 0.5 else (b"", number, name))
    return Case("other name", {name: encode_npz(images=images, labels=labels)}, "accepted")


def _unfinished(dice: random.Random, number: int) -> Case:
    images, labels = _batch(number)
    if dice.random() < 0.3:
        name, data = dice.choice(list(_pair(number, encode_idx(images), encode_idx(labels), packed=False).items()))
        return Case("half a pair", {name: data}, "waiting")
    name = dice.choice(_UNFINISHED) % number
    return Case(
        "unfinished copy", {name: encode_npz(images=images, labels=labels)[: dice.randrange(40_000)]}, "waiting"
    )
