"""Texts that are nearly the same: Jaccard similarity of their character 5-grams.

MinHash signatures propose pairs, banded so that a pair at the threshold is missed with probability
1e-6 at most; each pair is then compared by its whole 5-grams (as hashes of 64 bits). So what is found
depends on the texts and the threshold, not on the order of the texts and, but for that chance, not on
the seed. (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3.)

Texts just below the threshold are proposed too, in crowds of n all n^2/2 of them. A bit map of each
text (an odd sketch: Mitzenmacher, Pagh, Pham 2014) bounds the difference of two from below and so
excludes nearly all of these in some 50 ns a pair, never a similar one; and no more pairs are looked at
than there are.

Texts wait in a temporary file. In memory stays, for each distinct text: 4 bytes a band (128 at a
threshold of 0.8), 64 bytes of bit map up to 256 shingles, twice that for each doubling, 1024 at most,
and about 230 of digest, place, size and group.
"""

import os
import tempfile
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from lib.records import normalise

_SHINGLE = 5  # characters
_PERMUTATIONS = 128
_MISS = 1e-6
_CACHED = 1 << 23  # shingles, 12 bytes each
_WIDEST_MAP = 1 << 22  # bits
_SMALLEST_MAP, _WIDTHS = 64, 5  # bytes of a bit map; the widest has 64 << 4
_BLOCK = 1 << 14  # pairs handled at once
_BATCH, _HASHED = 256, 1 << 13  # texts and shingles hashed at once

Numbers = NDArray[np.int64]


def similar_pairs(texts: Iterable[str], threshold: float, *, seed: int, folder: Path) -> list[tuple[int, int]]:
    """Pairs of places in `texts` whose similarity is at least `threshold`, enough to connect all such.

    A spanning forest: two texts are joined by a chain of pairs exactly when they are joined by a
    chain of similar texts. `folder` has room for a temporary copy of the texts.
    """
    pairs: list[tuple[int, int]] = []
    first: dict[bytes, int] = {}
    origins = array("q")
    with _Index(threshold, seed, folder) as index:
        for place, text in enumerate(map(_comparable, texts)):
            if place != (origin := first.setdefault(xxhash.xxh3_128_digest(text.encode()), place)):
                pairs.append((origin, place))
            else:
                origins.append(place)
                index.add(text)
        del first
        index.finish()
        for one, other in _joining_pairs(index):
            pairs.append((min(origins[one], origins[other]), max(origins[one], origins[other])))
    return pairs


def cluster_numbers(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `count` texts the number of its cluster; numbers count up in order of first texts."""
    groups = _Groups(count)
    for one, other in pairs:
        groups.merge(one, other)
    return np.unique(groups.roots(), return_inverse=True)[1].tolist()


def _comparable(text: str) -> str:
    """Case-folded, without punctuation, white space folded; a text of punctuation only stays as it is."""
    folded = normalise(text).casefold()
    return normalise(folded.translate(_NO_PUNCTUATION)) or folded


class _NoPunctuation(dict[int, str]):
    """A table for `str.translate` that learns each character when it first meets it."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        return self.setdefault(code, "" if unicodedata.category(character).startswith("P") else character)


_NO_PUNCTUATION = _NoPunctuation()


def _bands(threshold: float) -> tuple[int, int]:
    """Bands and rows per band: the most rows (fewest false candidates) that keep the chance to miss."""
    fitting = [
        (_PERMUTATIONS // rows, rows)
        for rows in range(1, _PERMUTATIONS + 1)
        if (1 - threshold**rows) ** (_PERMUTATIONS // rows) <= _MISS
    ]
    return fitting[-1] if fitting else (_PERMUTATIONS, 1)


class _Groups:
    """Union-find over the numbers below `count`, 4 bytes each; the root of a group is its smallest member."""

    def __init__(self, count: int) -> None:
        self._parents = array("i", range(count))
        self._view = np.frombuffer(self._parents, dtype=np.int32) if count else np.empty(0, dtype=np.int32)
        self._flat = True

    def root(self, place: int) -> int:
        parents = self._parents
        while parents[place] != place:
            parents[place] = place = parents[parents[place]]
        return place

    def merge(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._parents[high] = low
        self._flat &= low == high

    def roots(self) -> NDArray[np.int32]:
        """The root of every number: a view, true until the next merge."""
        while not self._flat:
            further = self._view[self._view]
            self._flat = np.array_equal(further, self._view)
            self._view[:] = further
        return self._view


class _Index:
    """Of each text what finds its like: band keys, number of shingles, bit map. The text is in a file."""

    def __init__(self, threshold: float, seed: int, folder: Path) -> None:
        self.threshold = threshold
        # At a similarity of t, two sets of together n members differ in n (1 - t) / (1 + t) of them.
        self._difference = (1 - threshold) / (1 + threshold) + 1e-9
        self.count = 0
        self.bands, self._rows = _bands(threshold)
        random = np.random.default_rng(seed)
        self._factors = random.integers(0, 1 << 31, size=(_PERMUTATIONS, 1), dtype=np.uint32) * 2 + 1
        self._terms = random.integers(0, 1 << 32, size=(_PERMUTATIONS, 1), dtype=np.uint32)
        self._weights = random.integers(1, 1 << 63, size=self._rows, dtype=np.uint64) * 2 + 1
        self._keys, self._sizes, self._ends = bytearray(), array("i"), array("q", [0])
        self._width, self._slot, self._maps = array("b"), array("i"), [bytearray() for _ in range(_WIDTHS)]
        self._waiting: list[str] = []
        self._characters = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 (closed in __exit__)
        self._cache: dict[int, tuple[NDArray[np.uint64], NDArray[np.uint64]]] = {}
        self._cached = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, text: str) -> None:
        self._waiting.append(text)
        self._characters += len(text)
        if len(self._waiting) == _BATCH or self._characters >= _HASHED:
            self.finish()

    def finish(self) -> None:
        """Take in the texts that wait; they do so since a hundred at a time are ten times faster."""
        if not self._waiting:
            return
        shingles, starts = _shingles(self._waiting)
        sizes = np.diff(starts, append=len(shingles))
        self._keys += self._band_keys(shingles, starts).tobytes()
        self._sizes.frombytes(sizes.astype(np.int32).tobytes())
        self._add_bit_maps(shingles, sizes)
        encoded = [text.encode() for text in self._waiting]
        self._file.write(b"".join(encoded))
        self._ends.extend(accumulate(map(len, encoded), initial=self._ends.pop()))
        self.count += len(self._waiting)
        self._waiting, self._characters = [], 0

    def _band_keys(self, shingles: NDArray[np.uint64], starts: Numbers) -> NDArray[np.uint32]:
        """Shape (texts, bands), one number a band; numbers that collide only propose a pair more."""
        low = np.full((_PERMUTATIONS, len(starts)), 0xFFFFFFFF, dtype=np.uint32)
        mixed = (shingles >> np.uint64(_TEXT_BITS - 32)).astype(np.uint32)
        for start in range(0, len(mixed), _HASHED):
            values = mixed[start : start + _HASHED] * self._factors
            values += self._terms
            first, last = np.searchsorted(starts, (start, start + _HASHED - 1), side="right") - [1, 0]
            edges = np.maximum(starts[first:last] - start, 0)
            part = low[:, first:last]
            np.minimum(part, np.minimum.reduceat(values, edges, axis=1), out=part)
        used = low[: self.bands * self._rows].reshape(self.bands, self._rows, -1).astype(np.uint64)
        return ((used * self._weights[:, None]).sum(axis=1, dtype=np.uint64) >> np.uint64(32)).astype(np.uint32).T

    def _add_bit_maps(self, shingles: NDArray[np.uint64], sizes: Numbers) -> None:
        widths = np.searchsorted(4 * _SMALLEST_MAP << np.arange(_WIDTHS - 1), sizes)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        slots = np.empty(len(sizes), dtype=np.int32)
        for width in np.unique(widths):
            bits = 8 * _SMALLEST_MAP << width
            chosen = np.flatnonzero(widths == width)
            slots[chosen] = len(self._maps[width]) * 8 // bits + np.arange(len(chosen))
            rank = np.cumsum(widths == width) - 1
            own = widths[owner] == width
            places = rank[owner[own]] * bits + (shingles[own] & np.uint64(bits - 1)).astype(np.int64)
            self._maps[width] += _odd_bits(places, len(chosen) * bits).tobytes()
        self._width.frombytes(widths.astype(np.int8).tobytes())
        self._slot.frombytes(slots.tobytes())

    def keys(self) -> NDArray[np.uint32]:
        """Shape (texts, bands)."""
        return np.frombuffer(self._keys, dtype=np.uint32).reshape(self.count, self.bands)

    def may_be_similar(self, left: Numbers, right: Numbers) -> NDArray[np.bool_]:
        """False only where sizes or bit maps exclude that the texts are similar."""
        sizes = np.frombuffer(self._sizes, dtype=np.int32)
        one, other = sizes[left], sizes[right]
        possible = np.minimum(one, other) >= self.threshold * np.maximum(one, other)
        allowed = (one + other) * self._difference
        widths = np.frombuffer(self._width, dtype=np.int8)
        common = np.minimum(widths[left], widths[right])
        for width in range(_WIDTHS):
            places = np.flatnonzero(possible & (common == width))
            if len(places):
                different = self._bit_maps(left[places], width) ^ self._bit_maps(right[places], width)
                bits = np.bitwise_count(different).sum(axis=1, dtype=np.int32)
                possible[places] = bits <= allowed[places]
        return possible

    def _bit_maps(self, places: Numbers, width: int) -> NDArray[np.uint64]:
        """Bit maps folded to `width`, shape (places, words); each is that wide at least."""
        words = _SMALLEST_MAP // 8 << width
        result = np.empty((len(places), words), dtype=np.uint64)
        own = np.frombuffer(self._width, dtype=np.int8)[places]
        slots = np.frombuffer(self._slot, dtype=np.int32)[places]
        for wide in range(width, _WIDTHS):
            chosen = own == wide
            if chosen.any():
                maps = np.frombuffer(self._maps[wide], dtype=np.uint64).reshape(-1, _SMALLEST_MAP // 8 << wide)
                folded = maps[slots[chosen]].reshape(-1, 1 << (wide - width), words)
                result[chosen] = np.bitwise_xor.reduce(folded, axis=1)
        return result

    def similar(self, one: int, other: int) -> bool:
        small, large = sorted((self._whole(one), self._whole(other)), key=lambda pair: len(pair[0]))
        together = len(small[0]) + len(large[0])
        different = small[1] ^ np.bitwise_xor.reduce(large[1].reshape(-1, len(small[1])), axis=0)
        if np.bitwise_count(different).sum() > together * self._difference:
            return False
        found = np.minimum(np.searchsorted(large[0], small[0]), len(large[0]) - 1)
        shared = np.count_nonzero(large[0][found] == small[0])
        return bool(shared >= self.threshold * (together - shared))

    def _whole(self, place: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Shingles of a text, from the file, and a bit map so wide that it says nearly as much as they."""
        if place not in self._cache:
            start, end = self._ends[place : place + 2]
            shingles, _ = _shingles([os.pread(self._file.fileno(), end - start, start).decode()])
            bits = min(max(64, 16 << len(shingles).bit_length()), _WIDEST_MAP)
            self._cached += len(shingles)
            if self._cached > _CACHED:
                self._cache, self._cached = {}, len(shingles)
            numbers = (shingles & np.uint64(bits - 1)).astype(np.int64)
            self._cache[place] = shingles, _odd_bits(numbers, bits).view(np.uint64)
        return self._cache[place]


def _odd_bits(numbers: Numbers, bits: int) -> NDArray[np.uint8]:
    """A bit map: for each number below `bits` whether it occurs an odd number of times.

    The maps of two sets differ in as many bits as the sets differ in members, at most.
    """
    odd = np.bincount(numbers, minlength=bits).astype(np.uint8) & 1
    return np.packbits(odd, bitorder="little")


def _shingles(texts: Sequence[str]) -> tuple[NDArray[np.uint64], Numbers]:
    """The distinct 5-grams of each text as sorted hashes of 56 bits, text after text, and where each begins.

    A shorter text is one shingle. At most 256 texts.
    """
    padded = [text.ljust(_SHINGLE, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(text) for text in padded])
    hashes = np.zeros(len(codes) - _SHINGLE + 1, dtype=np.uint64)
    for place, factor in enumerate(_CHARACTER_FACTORS):
        hashes += codes[place : place + len(hashes)] * factor
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    hashes >>= np.uint64(64 - _TEXT_BITS)
    hashes |= owner[: len(hashes)] << np.uint64(_TEXT_BITS)
    hashes = hashes[owner[: len(hashes)] == owner[_SHINGLE - 1 :]]
    hashes.sort()
    hashes = hashes[np.append(True, hashes[1:] != hashes[:-1])]
    starts = np.searchsorted(hashes, np.arange(len(texts), dtype=np.uint64) << np.uint64(_TEXT_BITS))
    return hashes & np.uint64((1 << _TEXT_BITS) - 1), starts


_CHARACTER_FACTORS = np.random.default_rng(5).integers(0, 1 << 63, size=_SHINGLE, dtype=np.uint64) * 2 + 1
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # the odd number of splitmix64
_TEXT_BITS = 56  # of a shingle's hash; the other 8 say of which text it is


def _joining_pairs(index: _Index) -> Iterator[tuple[int, int]]:
    """Pairs of similar texts, each of which joins two groups that were apart."""
    groups = _Groups(index.count)
    keys = index.keys()
    # Neighbours first: that joins the many copies of one text in linear time.
    for left, right in _neighbours(keys):
        yield from _joined(index, groups, left, right)
    everyone = np.zeros((index.count, 1), dtype=np.uint32)
    if _proposed(keys, groups.roots()) > _proposed(everyone, groups.roots()):
        keys = everyone
    for band in keys.T:
        for left, right in _across_groups(band, groups.roots()):
            yield from _joined(index, groups, left, right)


def _joined(index: _Index, groups: _Groups, left: Numbers, right: Numbers) -> Iterator[tuple[int, int]]:
    """Those of the proposed pairs that are similar and not yet in one group; `groups` learns of them."""
    apart = groups.roots()[left] != groups.roots()[right]
    left, right = left[apart], right[apart]
    chosen = index.may_be_similar(left, right)
    for one, other in zip(left[chosen].tolist(), right[chosen].tolist(), strict=True):
        if groups.root(one) != groups.root(other) and index.similar(one, other):
            groups.merge(one, other)
            yield one, other


def _neighbours(keys: NDArray[np.uint32]) -> Iterator[tuple[Numbers, Numbers]]:
    """Texts that agree in a band and, ordered by this band and the next, stand side by side; in blocks."""
    for band, key in enumerate(keys.T):
        order = np.lexsort((keys[:, (band + 1) % keys.shape[1]], key))
        places = np.flatnonzero(key[order[1:]] == key[order[:-1]])
        for start in range(0, len(places), _BLOCK):
            block = places[start : start + _BLOCK]
            yield order[block], order[block + 1]


def _across_groups(key: NDArray[np.uint32], roots: NDArray[np.int32]) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs of texts with the same key in different groups, in blocks."""
    order, own_end, bucket_end = _runs(key, roots)
    until = np.cumsum(bucket_end - own_end)
    for start in range(0, int(until[-1]) if len(until) else 0, _BLOCK):
        numbers = np.arange(start, min(start + _BLOCK, until[-1]))
        left = np.searchsorted(until, numbers, side="right")
        yield order[left], order[bucket_end[left] - (until[left] - numbers)]


def _proposed(keys: NDArray[np.uint32], roots: NDArray[np.int32]) -> int:
    """How many pairs `_across_groups` gives over all bands."""
    return sum(int((bucket_end - own_end).sum()) for _, own_end, bucket_end in (_runs(key, roots) for key in keys.T))


def _runs(key: NDArray[np.uint32], roots: NDArray[np.int32]) -> tuple[Numbers, Numbers, Numbers]:
    """The texts by key and group, and for each where its group's and where its key's part ends."""
    order = np.lexsort((roots, key))
    other_key = key[order[1:]] != key[order[:-1]]
    other_group = roots[order[1:]] != roots[order[:-1]]
    return order, _ends(other_key | other_group), _ends(other_key)


def _ends(breaks: NDArray[np.bool_]) -> Numbers:
    """For each place the next behind which there is a break, counted from 1."""
    ends = np.append(np.flatnonzero(breaks) + 1, len(breaks) + 1)
    return np.repeat(ends, np.diff(ends, prepend=0))
