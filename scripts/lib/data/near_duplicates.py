"""Texts that are nearly the same: Jaccard similarity of their character 5-grams.

MinHash signatures propose pairs, banded so that a pair at the threshold is missed with probability
1e-6 at most; each pair is then compared by its whole 5-grams (as hashes of 64 bits). So what is found
depends on the texts and the threshold, not on the order of the texts and, but for that chance, not on
the seed. (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3.)

Texts just below the threshold are proposed too, in crowds of n all n^2/2 of them. Where that is many, candidates come
from the rarest shingles instead (`lib.data.prefix_filter`), which proposes few of such a crowd and misses none. Bit
maps of two texts (odd sketches: Mitzenmacher, Pagh, Pham 2014) bound their difference from below and so exclude nearly
all of the rest in some 50 ns a pair, never a similar one. No exact method bounds what every crowd costs, so the work is
bounded too, by n log n: a crowd that takes more is compared in part, and `uncompared` says how many pairs were not.
"""

import math
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lib.core.cli import report_progress
from lib.data.bands import count_across_groups, pair_across_groups, pair_neighbors
from lib.data.groups import Groups
from lib.data.prefix_filter import PrefixFilter
from lib.data.shingles import Numbers
from lib.data.signatures import SignedTexts
from lib.data.text_index import TextIndex

_FEW_EACH = 256  # candidates for each text that are compared in the time of a search for a way to fewer
_VAIN = 100  # comparisons in vain for each that joins two groups, at which neighbors are no longer compared
_WORK_EACH, _LEAST_WORK = 200, 200_000_000  # see `_most_work`
_AT_ONCE = 128  # pairs of short texts that are compared at once


class SimilarPairs(NamedTuple):
    """Pairs of places, and how many pairs were not compared since there are too many of them."""

    pairs: list[tuple[int, int]]
    uncompared: int


def find_similar_pairs(signed: Iterable[SignedTexts], threshold: float, *, folder: Path) -> SimilarPairs:
    """Return pairs of places among texts whose similarity is at least `threshold`, enough to connect all such.

    A spanning forest: two texts are joined by a chain of pairs exactly when they are joined by a
    chain of similar texts. `folder` has room for a temporary copy of the texts.

    signed: all texts, in any number of parts, by a `Signer` for the same threshold.
    """
    pairs: list[tuple[int, int]] = []
    first: dict[bytes, int] = {}
    origins = array("q")
    count = 0
    with TextIndex(threshold, folder) as index:
        for some in signed:
            new = []
            for place, digest in enumerate(some.digests):
                if count + place == (origin := first.setdefault(digest, count + place)):
                    new.append(place)
                    origins.append(count + place)
                else:
                    pairs.append((origin, count + place))
            index.add(some.choose(new))
            count += len(some.digests)
        del first
        for one, other in _find_joining_pairs(index):
            pairs.append((min(origins[one], origins[other]), max(origins[one], origins[other])))
        return SimilarPairs(pairs, index.uncompared)


def describe_uncompared(similar: SimilarPairs) -> dict[str, int]:
    """Return what a report says of pairs that were not compared, if any."""
    return {"near_duplicates_not_compared": similar.uncompared} if similar.uncompared else {}


def tell_uncompared(rule: str, similar: SimilarPairs) -> None:
    if similar.uncompared:
        report_progress(
            f"{rule}: up to {similar.uncompared:,} pairs of texts were not compared, since too many share most of"
            " their words; some near-duplicates among them may have stayed apart"
        )


def number_clusters(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return for each of `count` texts the number of its cluster, which count up in order of first texts."""
    groups = Groups(count)
    for one, other in pairs:
        groups.merge(one, other)
    return np.unique(groups.roots(), return_inverse=True)[1].tolist()


def _find_joining_pairs(index: TextIndex) -> Iterator[tuple[int, int]]:
    """Yield pairs of similar texts, each of which joins two groups that were apart."""
    groups = Groups(index.count)
    keys = index.keys()
    # Neighbors first: that joins the many copies of one text in linear time; where few are similar, most is in vain.
    exact, joined = index.exact, 0
    for left, right in pair_neighbors(keys):
        for pair in _merge_similar(index, groups, left, right):
            joined += 1
            yield pair
        if index.exact - exact > _VAIN * (joined + _VAIN):
            break
    proposed, candidates = _fewest_candidates(index, groups, keys)
    most, looked_at = index.work + _most_work(index.count), 0
    for left, right in candidates:
        if index.work > most:
            index.uncompared = proposed - looked_at
            return
        looked_at += len(left)
        yield from _merge_similar(index, groups, left, right)


def _most_work(count: int) -> int:
    """Return the work that may be done for so many texts, in pairs of bit maps: some 70 ns each."""
    return max(_LEAST_WORK, int(_WORK_EACH * count * math.log2(max(2, count))))


def _fewest_candidates(
    index: TextIndex, groups: Groups, keys: NDArray[np.uint32]
) -> tuple[int, Iterator[tuple[Numbers, Numbers]]]:
    """Choose what proposes the fewest pairs, and return how many and the pairs: no choice misses a similar one."""
    everyone = np.zeros((index.count, 1), dtype=np.uint32)
    roots = groups.roots()
    proposed, chosen = min(
        ((count_across_groups(some, roots), some) for some in (keys, everyone)), key=lambda found: found[0]
    )
    if proposed > _FEW_EACH * index.count:
        prefixes = PrefixFilter(index.shingles, index.threshold, index.folder)
        if (fewer := prefixes.prepare(roots)) < proposed:
            return fewer, prefixes.pairs()
        prefixes.close()
    return proposed, (pair for band in chosen.T for pair in pair_across_groups(band, groups.roots()))


def _merge_similar(index: TextIndex, groups: Groups, left: Numbers, right: Numbers) -> Iterator[tuple[int, int]]:
    """Yield those of the proposed pairs that are similar and not yet in one group; `groups` learns of them."""
    apart = groups.roots()[left] != groups.roots()[right]
    left, right = left[apart], right[apart]
    index.work += len(left)
    for exclude in (index.may_be_similar, index.may_be_similar_by_wide_maps):
        chosen = exclude(left, right)
        left, right = left[chosen], right[chosen]
    pairs = list(zip(left.tolist(), right.tolist(), strict=True))
    for start in range(0, len(pairs), _AT_ONCE):
        some = [
            (one, other) for one, other in pairs[start : start + _AT_ONCE] if groups.root(one) != groups.root(other)
        ]
        for (one, other), is_similar in zip(some, index.similar_short(some), strict=True):
            if groups.root(one) == groups.root(other):
                continue
            if index.similar(one, other) if is_similar is None else is_similar:
                groups.merge(one, other)
                yield one, other
