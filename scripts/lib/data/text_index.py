"""Texts with what finds their like: MinHash bands propose pairs, bit maps exclude most, shingles decide.

Texts wait in a temporary file. In memory stays, for each distinct text: 4 bytes a band (140 at a
threshold of 0.8), 64 bytes of bit map up to 256 shingles, twice that for each doubling, 1024 at most,
and about 230 of digest, place, size and group; in a crowd, 512 of a second bit map and some 80 for each rare shingle.
"""

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lib.data.shingles import MOST_TEXTS, TEXT_BITS, Hashes, Numbers, hash_shingles, mark_odd_numbers
from lib.data.signatures import SMALLEST_MAP, WIDTHS, SignedTexts, choose_bands, choose_widths

_CACHED = 1 << 23  # shingles, 12 bytes each
_WIDEST_MAP = 1 << 22  # bits
_READ = 1 << 16  # bytes of texts read at once
_EXACT_WORK, _SHORT_WORK = 1000, 500  # pairs of bit maps that are compared in the time of two texts, of two short ones
_SHORT, _WIDE_BITS = 1024, 4096  # shingles of a text that has a wide bit map
_WORTH_WIDE_MAPS = 64  # pairs at once
_MOST_WIDE_BYTES = 1 << 27


class TextIndex:
    """Keeps band keys, number of shingles and bit map of each text; the text itself is in a file."""

    def __init__(self, threshold: float, folder: Path) -> None:
        self.threshold, self.folder = threshold, folder
        # At a similarity of t, two sets of together n members differ in n (1 - t) / (1 + t) of them.
        self._difference = (1 - threshold) / (1 + threshold) + 1e-9
        self.count = 0
        self.bands, _ = choose_bands(threshold)
        self._keys, self._sizes, self._ends = bytearray(), array("i"), array("q", [0])
        self._width, self._slot, self._maps = array("b"), array("i"), [bytearray() for _ in range(WIDTHS)]
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed in __exit__)
        self._cache: dict[int, tuple[NDArray[np.uint64], NDArray[np.uint64]]] = {}
        self._cached = 0
        self._short: dict[int, Hashes] = {}
        self._short_cached = 0
        self._wide_slot, self._wide = array("i"), bytearray()
        self.work = 0  # done so far, in pairs whose bit maps were compared
        self.exact = 0  # pairs whose shingles were compared
        self.uncompared = 0  # pairs that were proposed and not looked at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, signed: SignedTexts) -> None:
        """Take in signed texts, behind those that are there."""
        widths = choose_widths(signed.sizes)
        self._keys += signed.keys.tobytes()
        self._wide_slot.extend([-1] * len(widths))
        self._sizes.frombytes(signed.sizes.tobytes())
        self._width.frombytes(widths.astype(np.int8).tobytes())
        for width, bit_map in zip(widths.tolist(), signed.maps, strict=True):
            self._slot.append(len(self._maps[width]) // (SMALLEST_MAP << width))
            self._maps[width] += bit_map
        self._file.write(b"".join(signed.texts))
        self._file.flush()  # they are read by place, past the file object
        self._ends.extend(accumulate(map(len, signed.texts), initial=self._ends.pop()))
        self.count += len(widths)

    def keys(self) -> NDArray[np.uint32]:
        """Return the keys of the texts, (texts, bands)."""
        return np.frombuffer(self._keys, dtype=np.uint32).reshape(self.count, self.bands)

    def may_be_similar(self, left: Numbers, right: Numbers) -> NDArray[np.bool_]:
        """Return False only where sizes or bit maps exclude that the texts are similar."""
        sizes = np.frombuffer(self._sizes, dtype=np.int32)
        one, other = sizes[left], sizes[right]
        possible = np.minimum(one, other) >= self.threshold * np.maximum(one, other)
        allowed = (one + other) * self._difference
        widths = np.frombuffer(self._width, dtype=np.int8)
        common = np.minimum(widths[left], widths[right])
        for width in range(WIDTHS):
            places = np.flatnonzero(possible & (common == width))
            if len(places):
                different = self._bit_maps(left[places], width) ^ self._bit_maps(right[places], width)
                bits = np.bitwise_count(different).sum(axis=1, dtype=np.int32)
                possible[places] = bits <= allowed[places]
        return possible

    def _bit_maps(self, places: Numbers, width: int) -> NDArray[np.uint64]:
        """Return bit maps folded to `width`, shape (places, words); each is that wide at least."""
        words = SMALLEST_MAP // 8 << width
        result = np.empty((len(places), words), dtype=np.uint64)
        own = np.frombuffer(self._width, dtype=np.int8)[places]
        slots = np.frombuffer(self._slot, dtype=np.int32)[places]
        for wide in range(width, WIDTHS):
            chosen = np.flatnonzero(own == wide)
            if len(chosen):
                maps = np.frombuffer(self._maps[wide], dtype=np.uint64).reshape(-1, SMALLEST_MAP // 8 << wide)
                found = maps.take(slots[chosen], axis=0)
                if wide > width:
                    found = np.bitwise_xor.reduce(found.reshape(-1, 1 << (wide - width), words), axis=1)
                if len(chosen) == len(places):
                    return found
                result[chosen] = found
        return result

    def similar(self, one: int, other: int) -> bool:
        self.exact += 1
        self.work += _EXACT_WORK
        small, large = sorted((self._whole(one), self._whole(other)), key=lambda pair: len(pair[0]))
        together = len(small[0]) + len(large[0])
        different = small[1] ^ np.bitwise_xor.reduce(large[1].reshape(-1, len(small[1])), axis=0)
        if np.bitwise_count(different).sum() > together * self._difference:
            return False
        found = np.minimum(np.searchsorted(large[0], small[0]), len(large[0]) - 1)
        shared = np.count_nonzero(large[0][found] == small[0])
        return bool(shared >= self.threshold * (together - shared))

    def may_be_similar_by_wide_maps(self, left: Numbers, right: Numbers) -> NDArray[np.bool_]:
        """Return what `may_be_similar` does, by bit maps that exclude nearly all of the rest; of short texts only."""
        sizes = np.frombuffer(self._sizes, dtype=np.int32)
        possible = np.ones(len(left), dtype=np.bool_)
        short = np.flatnonzero(np.maximum(sizes[left], sizes[right]) <= _SHORT)
        if len(short) < _WORTH_WIDE_MAPS:
            return possible
        one, other = left[short], right[short]
        self._add_wide_maps(np.unique(np.concatenate([one, other])))
        slots = np.frombuffer(self._wide_slot, dtype=np.int32)
        maps = np.frombuffer(self._wide, dtype=np.uint64).reshape(-1, _WIDE_BITS // 64)
        bits = np.bitwise_count(maps[slots[one]] ^ maps[slots[other]]).sum(axis=1, dtype=np.int32)
        possible[short] = bits <= (sizes[one] + sizes[other]) * self._difference
        self.work += 10 * len(short)
        return possible

    def _add_wide_maps(self, places: Numbers) -> None:
        """Make the bit maps of these texts that are not there; when they grow too many, the others are dropped."""
        slots = np.frombuffer(self._wide_slot, dtype=np.int32)
        if len(self._wide) > _MOST_WIDE_BYTES:
            slots[:] = -1
            self._wide = bytearray()
        missing = places[slots[places] < 0]
        for start in range(0, len(missing), MOST_TEXTS):
            some = missing[start : start + MOST_TEXTS]
            shingles, starts = hash_shingles([self._text(place) for place in some.tolist()])
            owner = np.repeat(np.arange(len(some)), np.diff(starts, append=len(shingles)))
            numbers = owner * _WIDE_BITS + (shingles & np.uint64(_WIDE_BITS - 1)).astype(np.int64)
            slots[some] = len(self._wide) * 8 // _WIDE_BITS + np.arange(len(some))
            self._wide += mark_odd_numbers(numbers, len(some) * _WIDE_BITS).tobytes()
        self.work += 100 * len(missing)

    def _text(self, place: int) -> str:
        start, end = self._ends[place : place + 2]
        return os.pread(self._file.fileno(), end - start, start).decode()

    def shingles(self) -> Iterator[tuple[Hashes, Numbers]]:
        """Yield the shingles of all texts, some at a time, read from the file."""
        start = 0
        while start < self.count:
            end = start + 1
            while end < min(self.count, start + MOST_TEXTS) and self._ends[end] - self._ends[start] < _READ:
                end += 1
            yield hash_shingles([self._text(place) for place in range(start, end)])
            start = end

    def _whole(self, place: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return shingles of a text, from the file, and a bit map so wide that it says nearly as much as they."""
        if place not in self._cache:
            self._keep_whole(place, hash_shingles([self._text(place)])[0])
        return self._cache[place]

    def _keep_whole(self, place: int, shingles: Hashes) -> None:
        bits = min(max(64, 16 << len(shingles).bit_length()), _WIDEST_MAP)
        self._cached += len(shingles)
        if self._cached > _CACHED:
            self._cache, self._cached = {}, len(shingles)
        numbers = (shingles & np.uint64(bits - 1)).astype(np.int64)
        self._cache[place] = shingles, mark_odd_numbers(numbers, bits).view(np.uint64)

    def similar_short(self, pairs: Sequence[tuple[int, int]]) -> list[bool | None]:
        """Return what `similar` does, of the pairs of short texts: all at once, which takes half of the time.

        pairs: at most 256. Of one with a long text it says None.
        """
        numbers = [number for number, pair in enumerate(pairs) if max(map(self._sizes.__getitem__, pair)) <= _SHORT]
        results: list[bool | None] = [None] * len(pairs)
        if not numbers:
            return results
        places = dict.fromkeys(place for number in numbers for place in pairs[number])
        shingles = self._short_shingles(list(places))
        sizes = np.array([[len(shingles[place]) for place in pairs[number]] for number in numbers])
        mixed = np.concatenate([shingles[place] for number in numbers for place in pairs[number]])
        mixed |= np.repeat(np.arange(len(numbers), dtype=np.uint64) << np.uint64(TEXT_BITS), sizes.sum(axis=1))
        mixed.sort()
        twice = mixed[1:][mixed[1:] == mixed[:-1]] >> np.uint64(TEXT_BITS)
        shared = np.bincount(twice.astype(np.int64), minlength=len(numbers))
        found = shared >= self.threshold * (sizes.sum(axis=1) - shared)
        for number, is_similar in zip(numbers, found.tolist(), strict=True):
            results[number] = is_similar
        self.exact += len(numbers)
        self.work += _SHORT_WORK * len(numbers)
        return results

    def _short_shingles(self, places: list[int]) -> dict[int, Hashes]:
        missing = [place for place in places if place not in self._short]
        for start in range(0, len(missing), MOST_TEXTS):
            some = missing[start : start + MOST_TEXTS]
            shingles, starts = hash_shingles([self._text(place) for place in some])
            self._short_cached += len(shingles)
            if self._short_cached > _CACHED:
                kept = {place: self._short[place] for place in places if place in self._short}
                self._short, self._short_cached = kept, sum(map(len, kept.values())) + len(shingles)
            self._short.update(zip(some, np.split(shingles, starts[1:]), strict=True))
        return self._short
