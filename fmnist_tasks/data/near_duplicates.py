"""Near-duplicates: images that differ by a few bits, a shift of one pixel, a horizontal flip or their brightness.

Two images are compared only if random hyperplanes separate neither (locality-sensitive hashing, Charikar 2002,
https://doi.org/10.1145/509907.509965): a table holds codes of the images, one bit for each hyperplane, and is searched
for equal codes. The hyperplanes ignore the mean brightness and the outermost pixels, which a shift changes. An image is
in the tables as it is and shifted up and down; it is looked up as it is, shifted to the left and to the right, and
flipped. Of at most `_MAX_CANDIDATES` images with the same code in a table, those whose codes in all tables differ least
are compared. So the time grows with the number of images, not with that of pairs, also if many are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fmnist_tasks.data.colour import to_luminance

_TABLES = 8
_EXACT = _TABLES  # the table with hashes, for exact copies
_BITS, _FEW_BITS, _FEW_IMAGES = 40, 24, 10_000  # of a code; few for up to so many images: codes differ less
_MIN_PROJECTION = 1.0  # a flat image has projections of about 0, whose signs are random
_MAX_CANDIDATES = 32  # of a table, for one variant of an image
_MAX_COMPARED = 8  # candidates of all tables, for one variant of an image
_MAX_DIFFERENT_BITS = 0.125  # share of the bits of all tables; three changed pixels change up to a tenth
_MAX_SIZE = 32  # pixels; larger images are compared in this size
_MIN_CORRELATION = 0.998
_MAX_DIFFERENCE, _MAX_PIXELS = 8, 3  # shades by which pixels may differ, and how many may differ by more
_CHUNK = 4096  # images that are looked up at once


@dataclass(frozen=True)
class NearDuplicates:
    """For each image, the position of a near-duplicate among the indexed images, and the correlation; -1: none."""

    neighbours: np.ndarray  # int64 (N,)
    correlations: np.ndarray  # float32 (N,), of the aligned images


class NearDuplicateIndex:
    """Codes of images, in which near-duplicates of other images are found. Images can be added, in linear time."""

    def __init__(self, images: np.ndarray, expected: int = 0) -> None:
        """Index images, uint8 (N, H, W) or (N, H, W, 3); `expected` is how many there will be if more are added."""
        shades = _to_shades(images)
        pixels = _reduce(shades)
        self._is_reduced = pixels.shape != shades.shape
        bits = _FEW_BITS if max(len(images), expected) <= _FEW_IMAGES else _BITS
        self._planes = _make_planes(pixels.shape[1], pixels.shape[2], bits)
        # A shift of a reduced image is not a reduced shift, so these are only looked up in all directions.
        self._shifts = [0] if self._is_reduced else [0, 1, -1]
        self._segments = [self._make_segment(pixels)]

    def add(self, images: np.ndarray) -> None:
        """Index more images; their positions follow those of the others."""
        self._segments.append(self._make_segment(_reduce(_to_shades(images))))
        while len(self._segments) > 1 and len(self._segments[-2]) < 2 * len(self._segments[-1]):
            last = self._segments.pop()
            self._segments.append(self._segments.pop().merge(last))

    def __len__(self) -> int:
        """The number of images."""
        return sum(map(len, self._segments))

    def find(self, images: np.ndarray, *, own: np.ndarray | None = None) -> NearDuplicates:
        """Find a near-duplicate of each image, uint8 (N, H, W) or (N, H, W, 3).

        `own` (N,) are the positions of these images in the index, if they are indexed themselves. Then only images
        before them count, so that of several near-duplicates all but the first have one.
        """
        found = NearDuplicates(np.full(len(images), -1, np.int64), np.zeros(len(images), np.float32))
        for start in range(0, len(images), _CHUNK):
            chunk = slice(start, min(start + _CHUNK, len(images)))
            for variant in self._make_variants(_to_shades(images[chunk])):
                self._compare(variant, None if own is None else own[chunk], found, start)
        return found

    def _make_segment(self, pixels: np.ndarray) -> _Segment:
        return _Segment(pixels, np.stack([_encode(_shift(pixels, shift, 0), self._planes) for shift in self._shifts]))

    def _make_variants(self, shades: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the images (N, H, W) as they are looked up, reduced."""
        yield _reduce(shades)
        yield _reduce(np.ascontiguousarray(shades[:, :, ::-1]))
        for down in (-1, 0, 1) if self._is_reduced else (0,):
            for right in (-1, 0, 1):
                if (down, right) != (0, 0):
                    yield _reduce(_shift(shades, down, right))

    def _compare(self, variant: np.ndarray, own: np.ndarray | None, found: NearDuplicates, start: int) -> None:
        """Compare variants of a chunk of images with the indexed images whose codes are most similar."""
        codes, limit = _encode(variant, self._planes), int(_MAX_DIFFERENT_BITS * self._planes.shape[1])
        first = 0
        for segment in self._segments:
            own_rows = None if own is None else own - first
            rows, entries = _choose_most_similar(*segment.list_candidates(codes, own_rows, limit))
            for number, shift in enumerate(self._shifts):
                members = np.flatnonzero(entries // max(len(segment), 1) == number)
                for part in np.split(members, range(_CHUNK, len(members), _CHUNK)) if len(members) else ():
                    candidates = entries[part] % len(segment)
                    correlations = _correlate(variant[rows[part]], _shift(segment.pixels[candidates], shift, 0))
                    _record(found, start + rows[part], first + candidates, correlations)
            first += len(segment)


class _Segment:
    """Some of the indexed images, and tables with their codes."""

    def __init__(self, pixels: np.ndarray, codes: np.ndarray) -> None:
        """Take images (N, H, W) and their codes, uint64 (shifts, N, tables + 1)."""
        self.pixels = pixels
        self._codes = codes
        self._flat = codes.reshape(-1, _TABLES + 1)  # an entry is the number of the shift times N, plus the image
        self._order = np.stack([_sort_table(self._flat, table) for table in range(_TABLES + 1)], axis=1)
        self._sorted = np.take_along_axis(self._flat, self._order, axis=0)

    def __len__(self) -> int:
        return len(self.pixels)

    def merge(self, other: _Segment) -> _Segment:
        """Return a segment with the images of both."""
        return _Segment(
            np.concatenate([self.pixels, other.pixels]), np.concatenate([self._codes, other._codes], axis=1)
        )

    def list_candidates(
        self, codes: np.ndarray, own: np.ndarray | None, limit: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pairs of rows and entries that have the same code in a table, and their distances.

        The distance of two images is the number of different bits in all tables; pairs above the limit are left out.
        """
        pairs = []
        for table in range(_TABLES + 1):
            low, high = self._find_ranges(codes, table)
            counts = high - low
            rows = np.repeat(np.arange(len(codes)), counts)
            offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
            entries = self._order[np.repeat(low, counts) + offsets, table].astype(np.int64)
            if own is not None:
                is_before = entries % max(len(self), 1) < own[rows]
                rows, entries = rows[is_before], entries[is_before]
            distances = np.bitwise_count(codes[rows, :_TABLES] ^ self._flat[entries, :_TABLES]).sum(
                axis=1, dtype=np.int64
            )
            if table == _EXACT:
                distances[:] = -1  # first, even if many images have the same codes
            is_near = distances <= limit
            pairs.append((rows[is_near], entries[is_near], distances[is_near]))
        rows, entries, distances = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return rows, entries, distances

    def _find_ranges(self, codes: np.ndarray, table: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where the entries with the same code begin and end in a table; of many, those with similar codes."""
        column, wanted = self._sorted[:, table], codes[:, table]
        by_code = np.argsort(wanted)  # neighbouring codes are near each other in memory
        low, high = np.empty(len(wanted), np.int64), np.empty(len(wanted), np.int64)
        low[by_code] = np.searchsorted(column, wanted[by_code], "left")
        high[by_code] = np.searchsorted(column, wanted[by_code], "right")
        many = np.flatnonzero(high - low > _MAX_CANDIDATES)
        if len(many):  # a binary search for the codes of the next tables, by which they are sorted
            left, right = low[many], high[many]
            tables = [(table + step) % _TABLES for step in (1, 2)]
            while (left < right).any():
                middle = (left + right) // 2
                entries = self._order[np.minimum(middle, len(column) - 1), table]
                first, second = (self._flat[entries, other] for other in tables)
                first_wanted, second_wanted = (codes[many, other] for other in tables)
                is_less = (first < first_wanted) | ((first == first_wanted) & (second < second_wanted))
                is_open = left < right
                left, right = np.where(is_open & is_less, middle + 1, left), np.where(is_open & ~is_less, middle, right)
            low[many] = np.clip(left - _MAX_CANDIDATES // 2, low[many], high[many] - _MAX_CANDIDATES)
            high[many] = low[many] + _MAX_CANDIDATES
        return low, high


def _sort_table(codes: np.ndarray, table: int) -> np.ndarray:
    """Return the order of the entries by the code of a table, and of many with the same code by the next tables."""
    order = np.argsort(codes[:, table], kind="stable").astype(np.int32)
    column = codes[order, table]
    starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]]) if len(column) else np.zeros(0, np.int64)
    counts = np.diff(starts, append=len(column))
    is_crowded = np.repeat(counts > _MAX_CANDIDATES, counts)
    crowded = order[is_crowded]
    keys = [codes[crowded, (table + step) % _TABLES] for step in (2, 1, 0)]
    order[is_crowded] = crowded[np.lexsort(keys)]
    return order


def _record(found: NearDuplicates, positions: np.ndarray, candidates: np.ndarray, correlations: np.ndarray) -> None:
    """Record the pairs of positions and candidates that correlate more than any found so far."""
    is_better = correlations > found.correlations[positions]
    best_last = np.argsort(correlations[is_better], kind="stable")
    better = positions[is_better][best_last]
    found.neighbours[better] = candidates[is_better][best_last]  # of equal positions, the last one stays
    found.correlations[better] = correlations[is_better][best_last]


def _choose_most_similar(rows: np.ndarray, entries: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of each row with the smallest distances, without repetitions."""
    order = np.lexsort((entries, distances, rows))
    rows, entries = rows[order], entries[order]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (np.diff(rows) != 0) | (np.diff(entries) != 0)
    rows, entries = rows[is_new], entries[is_new]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    ranks = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    return rows[ranks < _MAX_COMPARED], entries[ranks < _MAX_COMPARED]


def _shift(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Return images (N, H, W), shifted by some pixels; what is rolled over is outermost, so it is ignored."""
    return np.roll(images, (down, right), axis=(1, 2)) if down or right else images


def _to_shades(images: np.ndarray) -> np.ndarray:
    return to_luminance(images) if images.ndim == 4 else images


def _reduce(shades: np.ndarray) -> np.ndarray:
    """Return images (N, H, W) with at most `_MAX_SIZE` pixels in each direction, each the mean of a block."""
    factor = -(-max(shades.shape[1:]) // _MAX_SIZE)
    if factor == 1:
        return shades
    height, width = (size // factor for size in shades.shape[1:])
    blocks = shades[:, : height * factor, : width * factor].reshape(-1, height, factor, width, factor)
    reduced: np.ndarray = np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
    return reduced


def _make_planes(height: int, width: int, bits: int) -> np.ndarray:
    """Return hyperplanes, float32 (H·W, tables·bits), that ignore the mean and the outermost pixels."""
    planes = np.zeros((height, width, _TABLES * bits), np.float32)
    inner = np.random.default_rng(0).standard_normal((height - 2, width - 2, _TABLES * bits), np.float32)
    planes[1:-1, 1:-1] = inner - inner.mean(axis=(0, 1))
    return planes.reshape(height * width, -1)


def _encode(pixels: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Return the codes of images (N, H, W) and a hash, uint64 (N, tables + 1)."""
    bits = planes.shape[1] // _TABLES
    codes = np.zeros((len(pixels), _TABLES, 8), np.uint8)
    for start in range(0, len(pixels), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        signs = pixels[chunk].reshape(-1, len(planes)).astype(np.float32) @ planes > _MIN_PROJECTION
        codes[chunk, :, : bits // 8] = np.packbits(signs.reshape(len(signs), _TABLES, bits), axis=2)
    return np.concatenate([codes.view(np.uint64)[..., 0], _hash(pixels)[:, None]], axis=1)


def _hash(pixels: np.ndarray) -> np.ndarray:
    """Return a hash of all but the outermost pixels of images (N, H, W), uint64 (N,)."""
    height, width = pixels.shape[1:]
    inner = pixels[:, 1:-1, 1:-1].reshape(len(pixels), (height - 2) * (width - 2))
    factors = 2 * np.random.default_rng(1).integers(1 << 63, size=inner.shape[1], dtype=np.uint64) + 1
    hashes = np.zeros(len(pixels), np.uint64)
    for start in range(0, len(pixels), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        hashes[chunk] = inner[chunk].astype(np.uint64) @ factors
    return hashes


def _correlate(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the correlation of each pair of images (N, H, W) without their outermost pixels; 0 if they differ more.

    The correlation of flat images is not defined, and that of dim ones falls with a single changed bit. So images are
    also equal, with a correlation of 1, if almost all pixels are.
    """
    first, second = (array[:, 1:-1, 1:-1].reshape(len(array), -1).astype(np.float32) for array in (images, others))
    is_equal = (np.abs(first - second) > _MAX_DIFFERENCE).sum(axis=1) <= _MAX_PIXELS
    first -= first.mean(axis=1, keepdims=True)
    second -= second.mean(axis=1, keepdims=True)
    norms = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    correlation = np.divide((first * second).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)
    return np.where(is_equal, 1, np.where(correlation >= _MIN_CORRELATION, correlation, 0))
