"""Pairs that may be similar, by their rarest shingles: the prefix filter of Chaudhuri, Ganti, Kaushik (2006).

Order the shingles of every text alike, rare ones first. Two texts of a and b shingles with a Jaccard similarity of t
or more have t / (1 + t) * (a + b) in common, so the first that they have in common stands near the beginning of both:
behind it must be room for all the others (the positional filter of Xiao, Wang, Lin, Yu 2008). What thousands of texts
have in common stands last, where no room is left for it, unless it is enough to make two of them similar. So a crowd
of texts just below the threshold proposes few pairs, and no similar pair is missed.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib.data.shingles import TEXT_BITS, Hashes, Numbers

_SLOTS = 1 << 24  # of the table that counts in how many texts a shingle is, roughly: it only orders them
_SLACK = 1e-6  # of products that are compared with whole numbers
_BLOCK = 1 << 14  # pairs handled at once
_AT_ONCE = 1 << 22  # shingles of a part
_ENTRY = np.dtype([("shingle", np.uint32), ("text", np.int32), ("size", np.int32), ("reach", np.int32)])
_OTHER_GROUP = np.uint64(1 << 31)

Batches = Callable[[], Iterable[tuple[Hashes, Numbers]]]


class PrefixFilter:
    """The beginnings of all texts: 16 bytes on disk for each shingle in them that another text has, too.

    In memory is a part of the shingles at a time, with 76 bytes for each: some 300 MB, however many texts.

    batches: gives the shingles of all texts, in order, as `hash_shingles` does; it is called twice. folder: has room
    for temporary files.
    """

    def __init__(self, batches: Batches, threshold: float, folder: Path) -> None:
        self._threshold = threshold
        frequencies = np.zeros(_SLOTS, dtype=np.uint32)
        total = 0
        for shingles, _ in batches():
            np.add.at(frequencies, _slots(shingles), 1)
            total += len(shingles)
        # Of a text some 1 - threshold of the shingles are its beginning.
        count = 1 + int(total * (1 - threshold)) // _AT_ONCE
        self._files = [tempfile.TemporaryFile(dir=folder) for _ in range(count)]  # noqa: SIM115 (`close`)
        for part in _prefixes(batches(), frequencies, threshold):
            # By the hash of the shingle: two texts with a shingle in common meet in its part.
            owner = (part["shingle"].astype(np.uint64) * np.uint64(count)) >> np.uint64(32)
            for number, file in enumerate(self._files):
                file.write(part[owner == number].tobytes())

    def close(self) -> None:
        for file in self._files:
            file.close()

    def prepare(self, roots: NDArray[np.int32]) -> int:
        """Find which pairs there are, and return how many; those within the largest group are not among them.

        roots: the group of each text.
        """
        self._roots = roots.copy()  # it is a view, true until the next merge
        return sum(part.count for part in self._parts())

    def pairs(self) -> Iterator[tuple[Numbers, Numbers]]:
        """Yield the pairs, once, in blocks; a pair with several rare shingles in common occurs several times."""
        try:
            for part in self._parts():
                yield from part.pairs()
        finally:
            self.close()

    def _parts(self) -> Iterator["_Part"]:
        for file in self._files:
            file.seek(0)
            yield _Part(np.frombuffer(file.read(), dtype=_ENTRY), self._roots, self._threshold)


class _Part:
    """The pairs of texts that have some of the shingles in common. count: how many they are."""

    def __init__(self, entries: NDArray[np.void], roots: NDArray[np.int32], threshold: float) -> None:
        self._threshold = threshold
        self._text, self._size, self._reach = (
            np.ascontiguousarray(entries[name]) for name in ("text", "size", "reach")
        )
        groups = roots[self._text]
        largest = np.bincount(groups).argmax() if len(groups) else 0
        side = np.where(groups == largest, np.uint64(0), _OTHER_GROUP)
        keys = (entries["shingle"].astype(np.uint64) << np.uint64(32)) | self._size.astype(np.uint64) | side
        self._order = np.argsort(keys, kind="stable").astype(np.int32)
        keys = keys[self._order]
        # The smaller text of a pair: behind its shingle is room for what a text of its size or larger shares with it.
        small = np.flatnonzero(self._reach[self._order] >= self._size[self._order]).astype(np.int32)
        ranges = [self._ranges(keys, small, np.uint64(0)), self._ranges(keys, small, _OTHER_GROUP)]
        self._small, self._begin, counts = (np.concatenate(part) for part in zip(*ranges, strict=True))
        self._until = np.cumsum(counts, dtype=np.int64)
        self.count = int(counts.sum(dtype=np.int64))

    def _ranges(
        self, keys: Hashes, small: NDArray[np.int32], side: np.uint64
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Return places of smaller texts, and where the larger ones of their pairs on one side begin, and how many."""
        own = keys[small] & _OTHER_GROUP
        if side == 0:  # the largest group: what is in it need not be compared with itself
            small, own = small[own != 0], own[own != 0]
        entry = self._order[small]
        shingle = (keys[small] >> np.uint64(32) << np.uint64(32)) | side
        # Of two texts of one size on different sides the one outside the largest group counts as the smaller.
        least = self._size[entry] + (own == 0)
        begin = np.searchsorted(keys, shingle | least.astype(np.uint64))
        begin = np.where(own == side, small + 1, begin)
        most = np.minimum(self._reach[entry], np.floor(self._size[entry] / self._threshold + _SLACK)) + 1
        counts = np.searchsorted(keys, shingle | most.astype(np.uint64)) - begin
        chosen = counts > 0
        return small[chosen], begin[chosen].astype(np.int32), counts[chosen].astype(np.int32)

    def pairs(self) -> Iterator[tuple[Numbers, Numbers]]:
        """Yield the pairs, in blocks."""
        total = int(self._until[-1]) if len(self._until) else 0
        for start in range(0, total, _BLOCK):
            end = min(start + _BLOCK, total)
            first, last = np.searchsorted(self._until, (start, end - 1), side="right")
            edges = np.concatenate([[start], self._until[first:last], [end]])  # of the pairs of each smaller text
            own = np.diff(edges)
            begin = self._begin[first : last + 1] - edges[:-1]
            begin[0] += start - (self._until[first - 1] if first else 0)
            one = np.repeat(self._order[self._small[first : last + 1]], own)
            other = self._order[np.repeat(begin, own) + np.arange(start, end)]
            room = self._reach[other] >= self._size[one]
            yield self._text[one[room]].astype(np.int64), self._text[other[room]].astype(np.int64)


def _prefixes(
    batches: Iterable[tuple[Hashes, Numbers]], frequencies: NDArray[np.uint32], threshold: float
) -> Iterator[NDArray[np.void]]:
    """Yield shingles, texts, sizes of the texts, and the size of the largest text that may be similar by them."""
    count = 0
    least = threshold / (1 + threshold)
    for shingles, starts in batches:
        sizes = np.diff(starts, append=len(shingles))
        owner = np.repeat(np.arange(len(sizes)), sizes)
        seen = frequencies[_slots(shingles)]
        rarity = np.minimum(seen, np.uint32(_SLOTS - 1)).astype(np.uint64) << np.uint64(32)
        rarity |= (owner.astype(np.uint64) << np.uint64(TEXT_BITS)) | (shingles >> np.uint64(TEXT_BITS - 32))
        order = np.argsort(rarity, kind="stable")  # equal ones stay in the order of their hashes
        own = sizes[owner]
        room = own - (np.arange(len(shingles)) - starts[owner])
        reach = np.floor(room / least - own + _SLACK)
        chosen = (reach >= threshold * own - _SLACK) & (seen[order] > 1)
        entries = np.empty(int(chosen.sum()), dtype=_ENTRY)
        entries["shingle"] = shingles[order[chosen]] >> np.uint64(TEXT_BITS - 32)
        entries["text"] = count + owner[chosen]
        entries["size"] = own[chosen]
        entries["reach"] = np.minimum(reach[chosen], 2**31 - 2)
        yield entries
        count += len(sizes)


def _slots(shingles: Hashes) -> Numbers:
    return (shingles & np.uint64(_SLOTS - 1)).astype(np.int64)
