"""Texts that are nearly the same: Jaccard similarity of their character 5-grams.

MinHash signatures (`datasketch`) propose pairs, banded so that a pair at the threshold is missed with
probability 1e-6 at most; each pair is then compared exactly. So what is found depends on the texts
and the threshold, not on the order of the texts and, but for that chance, not on the seed.
(Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3.)
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import xxhash
from datasketch import MinHash
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from lib.records import normalise

_SHINGLE = 5  # characters
_PERMUTATIONS = 128
_MISS = 1e-6


def similar_pairs(texts: Sequence[str], threshold: float, *, seed: int) -> list[tuple[int, int]]:
    """Pairs of places in `texts` whose similarity is at least `threshold`, enough to connect all such.

    A spanning forest: two texts are joined by a chain of pairs exactly when they are joined by a
    chain of similar texts.
    """
    pairs: list[tuple[int, int]] = []
    places: dict[str, int] = {}
    for place, text in enumerate(map(_comparable, texts)):
        if place != (first := places.setdefault(text, place)):
            pairs.append((first, place))
    distinct = list(places)
    joined = DisjointSet(range(len(distinct)))
    for bucket in _buckets(_signatures(distinct, seed), *_bands(threshold)):
        pairs += [
            (places[distinct[one]], places[distinct[other]])
            for one, other in _joining_pairs(bucket, distinct, threshold, joined)
        ]
    return pairs


def cluster_numbers(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `count` texts the number of its cluster; numbers count up in order of first texts."""
    joined = DisjointSet(range(count))
    for one, other in pairs:
        joined.merge(one, other)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(joined[place], len(numbers)) for place in range(count)]


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


def _shingles(text: str) -> set[str]:
    return {text[start : start + _SHINGLE] for start in range(max(1, len(text) - _SHINGLE + 1))}


def _bands(threshold: float) -> tuple[int, int]:
    """Bands and rows per band: the most rows (fewest false candidates) that keep the chance to miss."""
    fitting = [
        (_PERMUTATIONS // rows, rows)
        for rows in range(1, _PERMUTATIONS + 1)
        if (1 - threshold**rows) ** (_PERMUTATIONS // rows) <= _MISS
    ]
    return fitting[-1] if fitting else (_PERMUTATIONS, 1)


def _signatures(texts: Sequence[str], seed: int) -> NDArray[np.uint32]:
    """MinHash signatures, shape (texts, permutations)."""
    result = np.empty((len(texts), _PERMUTATIONS), dtype=np.uint32)
    minhash = MinHash(_PERMUTATIONS, seed=seed, hashfunc=xxhash.xxh32_intdigest)
    for place, text in enumerate(texts):
        minhash.clear()
        minhash.update_batch([shingle.encode() for shingle in _shingles(text)])
        result[place] = minhash.hashvalues
    return result


def _buckets(signatures: NDArray[np.uint32], bands: int, rows: int) -> Iterator[list[int]]:
    """Places whose signatures agree in a whole band, for each band and group of two or more."""
    weights = np.random.default_rng(0).integers(1, 2**63, size=rows, dtype=np.uint64) | np.uint64(1)
    for band in range(bands):
        # One number a band; numbers that collide only propose a pair more.
        keys = (signatures[:, band * rows : (band + 1) * rows] * weights).sum(axis=1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order])) + 1
        edges = np.concatenate([[0], starts, [len(keys)]])
        for group in np.flatnonzero(np.diff(edges) > 1):
            yield order[edges[group] : edges[group + 1]].tolist()


def _joining_pairs(
    bucket: Sequence[int], texts: Sequence[str], threshold: float, joined: DisjointSet
) -> Iterator[tuple[int, int]]:
    """Similar pairs of a bucket that join two clusters; `joined` learns of them.

    Each text is compared with the clusters it is not yet in, so a thousand copies of a form cost a
    thousand comparisons, not half a million.
    """
    clusters: dict[int, list[int]] = defaultdict(list)
    for place in bucket:
        clusters[joined[place]].append(place)
    if len(clusters) == 1:
        return
    shingles = {place: _shingles(texts[place]) for place in bucket}
    merged: list[list[int]] = []
    for members in clusters.values():
        whole = members
        for other in [*merged]:
            pair = _similar_pair(members, other, shingles, threshold)
            if pair:
                joined.merge(*pair)
                yield pair
                merged.remove(other)
                whole = [*other, *whole]
        merged.append(whole)


def _similar_pair(
    some: Sequence[int], others: Sequence[int], shingles: dict[int, set[str]], threshold: float
) -> tuple[int, int] | None:
    for one in some:
        for other in others:
            small, large = sorted((shingles[one], shingles[other]), key=len)
            # Sets of unlike size cannot be similar: no need to intersect them.
            if len(small) < threshold * len(large):
                continue
            shared = len(small & large)
            if shared >= threshold * (len(small) + len(large) - shared):
                return min(one, other), max(one, other)
    return None
