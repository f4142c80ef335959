"""What finds the like of a text, computed of the text alone: in any process, and before the others are there."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from lib.data.rows import normalize
from lib.data.shingles import MOST_TEXTS, TEXT_BITS, Numbers, hash_shingles, mark_odd_numbers

SMALLEST_MAP, WIDTHS = 64, 5  # bytes of a bit map; the widest has 64 << 4
_PERMUTATIONS = 175  # 35 bands of 5 rows at a threshold of 0.8; with 128, of 4 rows, twice as many pairs agree in vain
_MISS = 1e-6
_HASHED = 1 << 13  # shingles, or characters, hashed at once: so many stay in the processor's cache


class SignedTexts(NamedTuple):
    """Comparable texts, and of each: a digest, one key a band, the number of shingles, a bit map of them."""

    texts: list[bytes]
    digests: list[bytes]
    keys: NDArray[np.uint32]
    sizes: NDArray[np.int32]
    maps: list[bytes]

    def choose(self, places: Sequence[int]) -> Self:
        if len(places) == len(self.texts):
            return self
        lists = [[some[place] for place in places] for some in (self.texts, self.digests, self.maps)]
        numbers = np.array(places, dtype=np.int64)
        return self._replace(
            texts=lists[0], digests=lists[1], maps=lists[2], keys=self.keys[numbers], sizes=self.sizes[numbers]
        )


def choose_bands(threshold: float) -> tuple[int, int]:
    """Return bands and rows per band: the most rows (fewest false candidates) that keep the chance to miss."""
    fitting = [
        (_PERMUTATIONS // rows, rows)
        for rows in range(1, _PERMUTATIONS + 1)
        if (1 - threshold**rows) ** (_PERMUTATIONS // rows) <= _MISS
    ]
    return fitting[-1] if fitting else (_PERMUTATIONS, 1)


class Signer:
    """Signs texts: MinHash keys with a seed of its own, and what excludes pairs."""

    def __init__(self, threshold: float, seed: int) -> None:
        self.bands, self._rows = choose_bands(threshold)
        random = np.random.default_rng(seed)
        self._factors = random.integers(0, 1 << 31, size=(_PERMUTATIONS, 1), dtype=np.uint32) * 2 + 1
        self._terms = random.integers(0, 1 << 32, size=(_PERMUTATIONS, 1), dtype=np.uint32)
        self._weights = random.integers(1, 1 << 63, size=self._rows, dtype=np.uint64) * 2 + 1

    def sign(self, texts: Sequence[str]) -> SignedTexts:
        """Sign texts, each by itself: what it gets does not depend on the others."""
        comparable = [make_comparable(text) for text in texts]
        encoded = [text.encode() for text in comparable]
        keys, sizes, maps = [np.empty((0, self.bands), dtype=np.uint32)], [np.empty(0, dtype=np.int32)], []
        for some in _batches(comparable):
            shingles, starts = hash_shingles(some)
            own = np.diff(starts, append=len(shingles))
            keys.append(self._band_keys(shingles, starts))
            sizes.append(own.astype(np.int32))
            maps += make_bit_maps(shingles, own)
        digests = [xxhash.xxh3_128_digest(text) for text in encoded]
        return SignedTexts(encoded, digests, np.concatenate(keys), np.concatenate(sizes), maps)

    def _band_keys(self, shingles: NDArray[np.uint64], starts: Numbers) -> NDArray[np.uint32]:
        """Return one number a band, (texts, bands); numbers that collide only propose a pair more."""
        low = np.full((_PERMUTATIONS, len(starts)), 0xFFFFFFFF, dtype=np.uint32)
        mixed = (shingles >> np.uint64(TEXT_BITS - 32)).astype(np.uint32)
        for start in range(0, len(mixed), _HASHED):
            values = mixed[start : start + _HASHED] * self._factors
            values += self._terms
            first, last = np.searchsorted(starts, (start, start + _HASHED - 1), side="right") - [1, 0]
            edges = np.maximum(starts[first:last] - start, 0)
            part = low[:, first:last]
            np.minimum(part, np.minimum.reduceat(values, edges, axis=1), out=part)
        used = low[: self.bands * self._rows].reshape(self.bands, self._rows, -1).astype(np.uint64)
        return ((used * self._weights[:, None]).sum(axis=1, dtype=np.uint64) >> np.uint64(32)).astype(np.uint32).T


def make_comparable(text: str) -> str:
    """Return a text case-folded, without punctuation, white space folded; one of punctuation only as it is."""
    folded = normalize(text).casefold()
    return normalize(folded.translate(_NO_PUNCTUATION)) or folded


class _NoPunctuation(dict[int, str | None]):
    """A table for `str.translate` that learns each character when it first meets it.

    None, not an empty text, drops a character: with that Python translates ASCII five times as fast.
    """

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        return self.setdefault(code, None if unicodedata.category(character).startswith("P") else character)


_NO_PUNCTUATION = _NoPunctuation()


def choose_widths(sizes: NDArray[np.signedinteger[Any]]) -> Numbers:
    """Return by the number of shingles how wide the bit map of a text is: of so many doublings of the smallest."""
    return np.searchsorted(4 * SMALLEST_MAP << np.arange(WIDTHS - 1), sizes)


def make_bit_maps(shingles: NDArray[np.uint64], sizes: Numbers) -> list[bytes]:
    """Return the bit map of each text, whose shingles follow those of the text before."""
    widths = choose_widths(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    maps = [b""] * len(sizes)
    for width in np.unique(widths):
        bits = 8 * SMALLEST_MAP << width
        chosen = np.flatnonzero(widths == width)
        rank = np.cumsum(widths == width) - 1
        own = widths[owner] == width
        places = rank[owner[own]] * bits + (shingles[own] & np.uint64(bits - 1)).astype(np.int64)
        marked = mark_odd_numbers(places, len(chosen) * bits).tobytes()
        for number, place in enumerate(chosen.tolist()):
            maps[place] = marked[number * bits // 8 : (number + 1) * bits // 8]
    return maps


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts some at a time: a hundred at once are hashed ten times as fast as one by one."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == MOST_TEXTS or characters >= _HASHED:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
