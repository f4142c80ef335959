"""Texts that are nearly alike, and what they are to a comparison of all pairs."""

import random
from pathlib import Path

from lib.data.near_duplicates import SimilarPairs, find_similar_pairs, number_clusters
from lib.data.signatures import Signer, make_comparable
from lib.data.text_index import TextIndex

SENTENCES = [
    "The old dog never came home again; they still set out his bowl.",
    "She hid behind the door when the footsteps came closer.",
    "What a lovely morning, the whole street smells of fresh bread",
]


def jaccard(one: str, other: str) -> float:
    a, b = (
        {text[start : start + 5] for start in range(max(1, len(text) - 4))}
        for text in map(make_comparable, (one, other))
    )
    return len(a & b) / len(a | b)


def find_similar(texts: list[str], threshold: float, folder: Path, *, seed: int = 1) -> SimilarPairs:
    """Return the similar pairs of texts that come in parts, as those of a file do."""
    signer = Signer(threshold, seed)
    parts = (texts[start : start + 97] for start in range(0, len(texts), 97))
    return find_similar_pairs(map(signer.sign, parts), threshold, folder=folder)


def fill_index(index: TextIndex, texts: list[str], seed: int = 1) -> None:
    index.add(Signer(index.threshold, seed).sign(texts))


def clusters(texts: list[str], threshold: float, folder: Path, *, seed: int = 1) -> list[int]:
    pairs = find_similar(texts, threshold, folder, seed=seed).pairs
    assert all(jaccard(texts[one], texts[other]) >= threshold for one, other in pairs)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    return number_clusters(len(texts), pairs)


def clusters_by_brute_force(texts: list[str], threshold: float) -> list[int]:
    every = [
        (one, other)
        for one in range(len(texts))
        for other in range(one)
        if jaccard(texts[one], texts[other]) >= threshold
    ]
    assert len(every) > 5
    return number_clusters(len(texts), every)


def some_words(rng: random.Random) -> list[str]:
    return ["".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(300)]
