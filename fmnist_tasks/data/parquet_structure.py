"""The program of the child process that reads a Parquet file and writes its images and labels plainly.

Parquet is a large parser in C++ that a crafted file can take over, so it runs in isolation, and confines itself before
it reads the first byte. Its output is untrusted too.

Standard input is the file. Standard output has three parts:

1. the length of the header, 8 bytes, little-endian;
2. the header, JSON: `{"labels": [index or name, …], "names": [class, …], "sizes": [bytes, …]}`, or `{"fault": text}`;
3. the image files, one after the other, in the same order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).parents[2]))  # Python runs this file in isolated mode
from fmnist_tasks.confinement import Limits, confine

MAX_OUTPUT = 2 << 30  # bytes of all image files
LIMITS = Limits(memory=4 << 30, cpu=300, output=MAX_OUTPUT + (64 << 20), has_threads=True)
_IMAGES, _LABELS = ("image", "img", "images"), ("label", "labels", "class", "fine_label", "target")
_ROWS = 512  # that are decoded at once
_MAX_CLASSES = 256  # as in a declaration


def main() -> None:  # pragma: no cover - may open no file, so its coverage cannot be saved
    """Read the file on standard input, and write its content to standard output."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    confine(LIMITS)
    header, images = read_structure(sys.stdin.buffer)
    encoded = json.dumps(header).encode()
    sys.stdout.buffer.write(len(encoded).to_bytes(8, "little") + encoded)
    for image in images:
        sys.stdout.buffer.write(image)


def read_structure(stream: BinaryIO) -> tuple[dict[str, Any], list[bytes]]:
    """The header for a file, and the image files that follow it."""
    try:
        file = pq.ParquetFile(pa.PythonFile(stream, "r"), pre_buffer=False)
        schema = file.schema_arrow
        image, label = _find_column(schema, _IMAGES), _find_column(schema, _LABELS)
        kind = schema.field(label).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_integer(values) or pa.types.is_string(values) or pa.types.is_large_string(values)):
            raise ValueError(f"its column {label} has the type {kind}; use class indices or names")
        labels: list[int | str] = []
        images: list[bytes] = []
        size = 0
        for batch in file.iter_batches(_ROWS, columns=[image, label], use_threads=False):
            for value in batch.column(image).to_pylist():
                content = value.get("bytes") if isinstance(value, dict) else value
                images.append(content if isinstance(content, bytes) else b"")
                size += len(images[-1])
                if size > MAX_OUTPUT:
                    raise ValueError(f"has more than {MAX_OUTPUT:,} bytes of images; split it into several files")
            labels += batch.column(label).to_pylist()
        header = {"labels": labels, "names": _find_names(schema, label), "sizes": [len(content) for content in images]}
        return header, images
    except MemoryError:
        return {"fault": f"cannot be read within {LIMITS.memory >> 20} MiB of memory"}, []
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return {"fault": f"is not a Parquet file with encoded images and labels ({str(error)[:200]})"}, []


def _find_column(schema: pa.Schema, names: tuple[str, ...]) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise ValueError(f"it has the columns {', '.join(schema.names[:10])}, none of them {names[0]!r}")


def _find_names(schema: pa.Schema, label: str) -> list[str]:
    """The names of the classes, which Hugging Face's `datasets` writes into the file; empty if there are none."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(label, {})
    names = feature.get("names", [])
    if isinstance(names, list) and len(names) > _MAX_CLASSES:
        raise ValueError(f"it names {len(names):,} classes; the limit is {_MAX_CLASSES}")
    return [str(name) for name in names] if isinstance(names, list) else []


if __name__ == "__main__":
    main()
