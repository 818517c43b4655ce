"""Uploads that are not images, are damaged, or expand to far more data than their size."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib

from PIL import Image


def make_png(width: int, height: int, data: bytes, extra: bytes = b"") -> bytes:
    """A greyscale PNG with this size in its header and this compressed data, which need not match."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + make_png_chunk(b"IHDR", header)
        + extra
        + make_png_chunk(b"IDAT", data)
        + make_png_chunk(b"IEND", b"")
    )


def make_png_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def encode_image(kind: str) -> bytes:
    """A valid image in this format of Pillow."""
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 90).save(buffer, kind)
    return buffer.getvalue()


def make_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("image.png", encode_image("PNG"))
    return buffer.getvalue()


ROWS = zlib.compress(b"\x00" * (64 * 65))
HOSTILE_IMAGES = {
    "nothing": b"",
    "text": b"this is not an image",
    "HTML": b"<html><script>alert(1)</script></html>",
    "SVG with a script": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(x) print\nshowpage\n",
    "a pickle": pickle.dumps({"an": "object"}),
    "an archive": make_zip(),
    "an array": b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (28, 28)}",
    "a decompression bomb": make_png(60_000, 60_000, zlib.compress(b"\x00" * 100_000)),
    "a decompression bomb just above the limit": make_png(7072, 7071, zlib.compress(bytes(7073) * 7071)),
    "a decompression bomb in a text chunk": make_png(
        64, 64, ROWS, make_png_chunk(b"zTXt", b"k\x00\x00" + zlib.compress(b"\x00" * 100_000_000))
    ),
    "a decompression bomb in a colour profile": make_png(
        64, 64, ROWS, make_png_chunk(b"iCCP", b"k\x00\x00" + zlib.compress(b"\x00" * 100_000_000))
    ),
    "a PNG without its data": make_png(64, 64, b""),
    "a truncated PNG": encode_image("PNG")[:60],
    "a PNG with a flipped bit": encode_image("PNG")[:45]
    + bytes([encode_image("PNG")[45] ^ 1])
    + encode_image("PNG")[46:],
    "a PNG without pixels": make_png(0, 0, ROWS),
    "a truncated JPEG": encode_image("JPEG")[:300],
    "a GIF that is only a header": b"GIF89a\xff\xff\xff\xff\x00\x00\x00",
    "a TIFF with a directory beyond its end": b"II*\x00\xff\xff\xff\x7f" + bytes(64),
    "a BMP of negative size": b"BM"
    + struct.pack("<IHHI", 100, 0, 0, 54)
    + struct.pack("<IiiHH", 40, -5, -5, 1, 24)
    + bytes(64),
    "a PPM that claims more data": b"P5 4000 4000 255\n" + bytes(10),
    "an icon": b"\x00\x00\x01\x00\x01\x00" + bytes(40),
}
