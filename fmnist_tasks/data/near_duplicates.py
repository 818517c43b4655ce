"""Near-duplicates: images that differ by a few bits, a shift of one pixel, a horizontal flip or their brightness.

Two images are compared only if the random hyperplanes of at least one table do not separate them (locality-sensitive
hashing, Charikar 2002, https://doi.org/10.1145/509907.509965): a table holds codes of the images, one bit for each
hyperplane, and is searched for equal codes. The hyperplanes ignore the mean brightness and the outermost pixels, which
a shift changes. A few changed pixels turn many bits of small images, so further tables hold hashes of a quarter of the
pixels each, one of which three changed pixels leave as it is. An image is in the tables as it is and shifted up and
down; it is looked up as it is, shifted to the left and to the right, and flipped. Of at most `_MAX_CANDIDATES` images
with the same code in a table, those whose codes in all tables differ least are compared: their mean colours, then their
pixels in greyscale. So the time grows with the number of images, not with that of pairs, also if many are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fmnist_tasks.data.colour import to_luminance

_TABLES = 8
_QUARTERS = 4  # tables with hashes, one more than pixels may differ
_BITS, _FEW_BITS, _FEW_IMAGES = 40, 24, 10_000  # of a code; few for up to so many images: codes differ less
_MIN_PROJECTION = 1.0  # a flat image has projections of about 0, whose signs are random
_MAX_CANDIDATES = 16  # of a table, for one variant of an image
_MAX_COMPARED = 4  # candidates with an equal quarter, and as many others, for one variant of an image
_MAX_DIFFERENT_BITS = 0.125  # share of the bits of all tables, unless a quarter is equal
_MAX_SIZE = 32  # pixels; larger images are compared in this size
_MIN_CORRELATION = 0.998
_MAX_DIFFERENCE, _MAX_PIXELS = 8, 3  # shades by which pixels may differ, and how many may differ by more
_MAX_TINT, _MAX_TINT_SHARE = 8.0, 0.1  # shades, and share of the tint, by which near-duplicates may differ in it
_CHUNK = 4096  # images that are looked up at once
_COMPARED_AT_ONCE = 512  # pairs, so that their pixels stay in the processor's cache
_ENTRY_BITS, _DISTANCE_BITS = 32, 10  # of a number that is sorted in place of a pair
_ENTRY_MASK = (1 << _ENTRY_BITS) - 1


@dataclass(frozen=True)
class NearDuplicates:
    """For each image, the position of a near-duplicate among the indexed images, and the correlation; -1: none."""

    positions: np.ndarray  # int64 (N,)
    correlations: np.ndarray  # float32 (N,), of the aligned images


@dataclass(frozen=True)
class _Matches:
    """Pairs of images, (M,) each: one that is looked up, one of a segment, and their correlation."""

    rows: np.ndarray
    images: np.ndarray
    correlations: np.ndarray


class NearDuplicateIndex:
    """Codes of images, in which near-duplicates of other images are found. Images can be added, in linear time.

    The images may form groups; a near-duplicate in one of them counts only if there is none in an earlier one.
    """

    def __init__(self, *groups: np.ndarray) -> None:
        """Index groups of images, uint8 (N, H, W) or (N, H, W, 3)."""
        height, width = groups[0].shape[1:3]
        self._factors = -(-height // _MAX_SIZE), -(-width // _MAX_SIZE)
        bits = _FEW_BITS if sum(map(len, groups)) <= _FEW_IMAGES else _BITS
        self._planes = _make_planes(height // self._factors[0], width // self._factors[1], bits)
        # A shift of a reduced image is not a reduced shift, so these are only looked up in all directions.
        self._shifts = (0, 1, -1) if self._factors[0] == 1 else (0,)
        self._groups = [[self._make_segment(images)] for images in groups]

    def add(self, images: np.ndarray) -> None:
        """Add images to the last group; their positions follow those of the others."""
        segments = self._groups[-1]
        segments.append(self._make_segment(images))
        while len(segments) > 1 and len(segments[-2]) < 2 * len(segments[-1]):
            last = segments.pop()
            segments.append(segments.pop().merge(last))

    def __len__(self) -> int:
        """The number of images."""
        return sum(len(segment) for segments in self._groups for segment in segments)

    def find(self, images: np.ndarray, *, own: np.ndarray | None = None, group: int | None = None) -> NearDuplicates:
        """Find a near-duplicate of each image, uint8 (N, H, W) or (N, H, W, 3), in all groups or in one.

        `own` (N,) are the positions of these images in the index, if they are indexed themselves. Then only images
        before them count, so that of several near-duplicates all but the first have one.
        """
        return self._find(images, self._groups, own, group)

    def find_new(self, images: np.ndarray) -> NearDuplicates:
        """Find a near-duplicate of each image among the indexed ones, and those before it in `images`.

        The latter count as part of the last group; their positions are those they would have if they were added.
        """
        *groups, last = self._groups
        own = np.arange(len(self), len(self) + len(images))
        return self._find(images, [*groups, [*last, self._make_segment(images)]], own, None)

    def _find(
        self, images: np.ndarray, groups: list[list[_Segment]], own: np.ndarray | None, group: int | None
    ) -> NearDuplicates:
        found = NearDuplicates(np.full(len(images), -1, np.int64), np.zeros(len(images), np.float32))
        limit = int(_MAX_DIFFERENT_BITS * self._planes.shape[1])
        for start in range(0, len(images), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            variants = [(pixels, _encode(pixels, self._planes)) for pixels in self._make_variants(images[chunk])]
            tints = _compute_tints(images[chunk])
            first = 0
            for number, segments in enumerate(groups):
                rows = np.flatnonzero(found.positions[chunk] < 0) if group in (None, number) else np.zeros(0, int)
                remaining = [(pixels[rows], codes[rows]) for pixels, codes in variants] if len(rows) else []
                for segment in segments:
                    own_rows = None if own is None else own[chunk][rows] - first
                    for pixels, codes in remaining:
                        matches = segment.compare(pixels, codes, tints[rows], own_rows, limit)
                        _record(found, start + rows[matches.rows], first + matches.images, matches.correlations)
                    first += len(segment)
        return found

    def _make_segment(self, images: np.ndarray) -> _Segment:
        pixels = self._reduce(_to_shades(images))
        codes = [_encode(_shift(pixels, shift, 0), self._planes) for shift in self._shifts]
        return _Segment(pixels, np.stack(codes), _compute_tints(images), self._shifts)

    def _make_variants(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the images, reduced to shades (N, H, W), as they are looked up."""
        shades = _to_shades(images)
        yield self._reduce(shades)
        yield self._reduce(np.ascontiguousarray(shades[:, :, ::-1]))
        for down in (0,) if self._factors[0] == 1 else (-1, 0, 1):
            for right in (-1, 0, 1):
                if (down, right) != (0, 0):
                    yield self._reduce(_shift(shades, down, right))

    def _reduce(self, shades: np.ndarray) -> np.ndarray:
        """Return images (N, H, W) with at most `_MAX_SIZE` pixels in each direction, each the mean of a block."""
        down, right = self._factors
        if (down, right) == (1, 1):
            return shades
        height, width = shades.shape[1] // down, shades.shape[2] // right
        blocks = shades[:, : height * down, : width * right].reshape(-1, height, down, width, right)
        reduced: np.ndarray = np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
        return reduced


class _Segment:
    """Some of the indexed images, and tables with their codes."""

    def __init__(self, pixels: np.ndarray, codes: np.ndarray, tints: np.ndarray, shifts: tuple[int, ...]) -> None:
        """Take images (N, H, W), their codes, uint64 (shifts, N, tables + quarters), and tints, float32 (N, 3)."""
        self._pixels, self._codes, self._tints, self._shifts = pixels, codes, tints, shifts
        self._flat = codes.reshape(-1, codes.shape[2])  # an entry is the number of the shift times N, plus the image
        self._order = [_sort_table(self._flat, table) for table in range(codes.shape[2])]
        self._sorted = [self._flat[order, table] for table, order in enumerate(self._order)]

    def __len__(self) -> int:
        return len(self._pixels)

    def merge(self, other: _Segment) -> _Segment:
        """Return a segment with the images of both."""
        pixels = np.concatenate([self._pixels, other._pixels])
        codes = np.concatenate([self._codes, other._codes], axis=1)
        return _Segment(pixels, codes, np.concatenate([self._tints, other._tints]), self._shifts)

    def compare(
        self, pixels: np.ndarray, codes: np.ndarray, tints: np.ndarray, own: np.ndarray | None, limit: int
    ) -> _Matches:
        """Compare images (N, H, W) with those of this segment whose tints are alike and whose codes differ least."""
        rows, entries = self._choose_candidates(codes, own, limit)
        ours, theirs = tints[rows], self._tints[entries % max(len(self), 1)]
        has_tint = (np.abs(ours - theirs) <= _MAX_TINT + _MAX_TINT_SHARE * np.abs(theirs)).all(axis=1)
        rows, entries = rows[has_tint], entries[has_tint]
        numbers, images = np.divmod(entries, max(len(self), 1))
        correlations = np.zeros(len(rows), np.float32)
        for number, shift in enumerate(self._shifts):
            pairs = np.flatnonzero(numbers == number)
            for start in range(0, len(pairs), _COMPARED_AT_ONCE):
                part = pairs[start : start + _COMPARED_AT_ONCE]
                correlations[part] = _correlate(pixels[rows[part]], _shift(self._pixels[images[part]], shift, 0))
        return _Matches(rows, images, correlations)

    def _choose_candidates(
        self, codes: np.ndarray, own: np.ndarray | None, limit: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of rows and entries that have the same code in a table: for each row those that differ least.

        The distance of two images is the number of different bits in all tables, plus that of different quarters; pairs
        above the limit are left out, unless a quarter is equal.
        """
        pairs = np.sort(np.concatenate([self._list_pairs(codes, table) for table in range(codes.shape[1])]))
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        rows, entries = pairs >> _ENTRY_BITS, pairs & _ENTRY_MASK
        if own is not None:
            is_before = entries % max(len(self), 1) < own[rows]
            rows, entries = rows[is_before], entries[is_before]
        ours, theirs = codes[rows], self._flat[entries]
        distances = np.bitwise_count(ours[:, :_TABLES] ^ theirs[:, :_TABLES]).sum(axis=1, dtype=np.int64)
        different = (ours[:, _TABLES:] != theirs[:, _TABLES:]).sum(axis=1)
        has_equal = different < _QUARTERS
        is_near = has_equal | (distances <= limit)
        lists = 2 * rows + ~has_equal  # each is ranked by itself, so that coincidences do not displace near-duplicates
        ranked = (((lists << _DISTANCE_BITS) + distances + different) << _ENTRY_BITS) + entries
        ranked = np.sort(ranked[is_near])
        lists, entries = ranked >> (_DISTANCE_BITS + _ENTRY_BITS), ranked & _ENTRY_MASK
        starts = np.flatnonzero(np.diff(lists, prepend=-1))
        ranks = np.arange(len(lists)) - np.repeat(starts, np.diff(starts, append=len(lists)))
        return lists[ranks < _MAX_COMPARED] >> 1, entries[ranks < _MAX_COMPARED]

    def _list_pairs(self, codes: np.ndarray, table: int) -> np.ndarray:
        """Return the pairs that have the same code in a table: the row in the upper bits, the entry in the lower."""
        low, high = self._find_ranges(codes, table)
        counts = high - low
        rows = np.repeat(np.arange(len(codes)), counts)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        pairs: np.ndarray = (rows << _ENTRY_BITS) + self._order[table][np.repeat(low, counts) + offsets]
        return pairs

    def _find_ranges(self, codes: np.ndarray, table: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where the entries with the same code begin and end in a table; of many, those with similar codes."""
        column, wanted = self._sorted[table], codes[:, table]
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
                entries = self._order[table][np.minimum(middle, len(column) - 1)]
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
    found.positions[better] = candidates[is_better][best_last]  # of equal positions, the last one stays
    found.correlations[better] = correlations[is_better][best_last]


def _shift(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Return images (N, H, W), shifted by some pixels; what is rolled over is outermost, so it is ignored."""
    return np.roll(images, (down, right), axis=(1, 2)) if down or right else images


def _compute_tints(images: np.ndarray) -> np.ndarray:
    """Return by how much the means of red, green and blue differ from the mean of all, float32 (N, 3)."""
    if images.ndim == 3:
        return np.zeros((len(images), 3), np.float32)
    means = images.mean(axis=(1, 2), dtype=np.float32)
    tints: np.ndarray = means - means.mean(axis=1, keepdims=True)
    return tints


def _to_shades(images: np.ndarray) -> np.ndarray:
    return to_luminance(images) if images.ndim == 4 else images


def _make_planes(height: int, width: int, bits: int) -> np.ndarray:
    """Return hyperplanes, float32 (H·W, tables·bits), that ignore the mean and the outermost pixels."""
    planes = np.zeros((height, width, _TABLES * bits), np.float32)
    inner = np.random.default_rng(0).standard_normal((height - 2, width - 2, _TABLES * bits), np.float32)
    planes[1:-1, 1:-1] = inner - inner.mean(axis=(0, 1))
    return planes.reshape(height * width, -1)


def _encode(pixels: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Return the codes of images (N, H, W) and the hashes of quarters, uint64 (N, tables + quarters)."""
    bits = planes.shape[1] // _TABLES
    codes = np.zeros((len(pixels), _TABLES, 8), np.uint8)
    for start in range(0, len(pixels), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        signs = pixels[chunk].reshape(-1, len(planes)).astype(np.float32) @ planes > _MIN_PROJECTION
        codes[chunk, :, : bits // 8] = np.packbits(signs.reshape(len(signs), _TABLES, bits), axis=2)
    return np.concatenate([codes.view(np.uint64)[..., 0], _hash_quarters(pixels)], axis=1)


def _hash_quarters(pixels: np.ndarray) -> np.ndarray:
    """Return hashes of every fourth of the inner pixels of images (N, H, W), uint64 (N, quarters)."""
    height, width = pixels.shape[1:]
    inner = pixels[:, 1:-1, 1:-1].reshape(len(pixels), (height - 2) * (width - 2))
    factors = 2 * np.random.default_rng(1).integers(1 << 63, size=inner.shape[1], dtype=np.uint64) + 1
    hashes = np.zeros((len(pixels), _QUARTERS), np.uint64)
    for start in range(0, len(pixels), _CHUNK):
        chunk = inner[start : start + _CHUNK].astype(np.uint64)
        for quarter in range(_QUARTERS):
            part = slice(quarter, None, _QUARTERS)
            hashes[start : start + _CHUNK, quarter] = chunk[:, part] @ factors[part]
    return hashes


def _correlate(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the correlation of each pair of images (N, H, W) without their outermost pixels; 0 if they differ more.

    The correlation of flat images is not defined, and that of dim ones falls with a single changed bit. So images are
    also equal, with a correlation of 1, if almost all pixels are.
    """
    first, second = (np.ascontiguousarray(array[:, 1:-1, 1:-1]).reshape(len(array), -1) for array in (images, others))
    differences = np.maximum(first, second) - np.minimum(first, second)
    is_equal = (differences > _MAX_DIFFERENCE).sum(axis=1, dtype=np.uint16) <= _MAX_PIXELS
    first, second = (array - array.mean(axis=1, dtype=np.float32, keepdims=True) for array in (first, second))
    norms = np.sqrt(np.vecdot(first, first) * np.vecdot(second, second))
    correlation = np.divide(np.vecdot(first, second), norms, out=np.zeros_like(norms), where=norms > 0)
    return np.where(is_equal, 1, np.where(correlation >= _MIN_CORRELATION, correlation, 0))
