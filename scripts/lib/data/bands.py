"""Pairs of texts that agree in a band of their MinHash signatures, or in any other key."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lib.data.shingles import Numbers

_BLOCK = 1 << 14  # pairs handled at once


def pair_neighbors(keys: NDArray[np.uint32]) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield texts that agree in a band and, ordered by this band and the next, stand side by side; in blocks."""
    for band, key in enumerate(keys.T):
        order = np.lexsort((keys[:, (band + 1) % keys.shape[1]], key))
        places = np.flatnonzero(key[order[1:]] == key[order[:-1]])
        for start in range(0, len(places), _BLOCK):
            block = places[start : start + _BLOCK]
            yield order[block], order[block + 1]


def pair_across_groups(key: NDArray[np.uint32], roots: NDArray[np.int32]) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield pairs of texts with the same key in different groups, in blocks."""
    order, own_end, bucket_end = _runs(key, roots)
    until = np.cumsum(bucket_end - own_end)
    for start in range(0, int(until[-1]) if len(until) else 0, _BLOCK):
        numbers = np.arange(start, min(start + _BLOCK, until[-1]))
        left = np.searchsorted(until, numbers, side="right")
        yield order[left], order[bucket_end[left] - (until[left] - numbers)]


def count_across_groups(keys: NDArray[np.uint32], roots: NDArray[np.int32]) -> int:
    """Return how many pairs `pair_across_groups` gives over all bands."""
    return sum(int((bucket_end - own_end).sum()) for _, own_end, bucket_end in (_runs(key, roots) for key in keys.T))


def _runs(key: NDArray[np.uint32], roots: NDArray[np.int32]) -> tuple[Numbers, Numbers, Numbers]:
    """Return the texts by key and group, and for each where its group's and where its key's part ends."""
    order = np.lexsort((roots, key))
    other_key = key[order[1:]] != key[order[:-1]]
    other_group = roots[order[1:]] != roots[order[:-1]]
    return order, _ends(other_key | other_group), _ends(other_key)


def _ends(breaks: NDArray[np.bool_]) -> Numbers:
    """Return, for each place, the next one behind which there is a break, counted from 1."""
    ends = np.append(np.flatnonzero(breaks) + 1, len(breaks) + 1)
    return np.repeat(ends, np.diff(ends, prepend=0))
