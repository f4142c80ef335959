"""Baselines whose cost does not grow with the product of texts and labels."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.data.template_inversion import find_word_places

_PRODUCTS = 4_000_000  # products that are in memory at a time
_COMMON = 1000  # labels that a term may occur with: a more frequent one says little of any of them


class LabelFinder:
    """The labels whose words stand in a text, found by the words of the text."""

    def __init__(self, labels: Sequence[str]) -> None:
        words = {label: _words(label) for label in labels}
        labels_of_word = Counter(word for found in words.values() for word in set(found))
        self._order = {label: place for place, label in enumerate(labels)}
        self._by_word: defaultdict[str, list[str]] = defaultdict(list)
        for label, found in words.items():  # under the word that the fewest labels have; without any, under none
            self._by_word[min(found, key=lambda word: (labels_of_word[word], word), default="")].append(label)

    def most_frequent(self, text: str, otherwise: str) -> str:
        """Return the label whose word stands most often in the text, among equals the first; else `otherwise`."""
        candidates = [label for word in {"", *_words(text)} for label in self._by_word.get(word, ())]
        candidates.sort(key=lambda label: self._order[label])
        places = {label: found for label in candidates if (found := find_word_places(label, text))}
        return min(places, key=lambda label: (-len(places[label]), places[label][0]), default=otherwise)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def find_nearest_centroids(texts: Sequence[str], labels: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Return, for each asked text, the label whose texts' sum has the largest cosine to it.

    By TF-IDF of words and pairs of words. A text that shares no term with any label gets the most frequent one.
    """
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    tfidf = TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    terms = csr_array(tfidf.fit_transform(texts))
    names, number = np.unique(np.array(labels, dtype=object), return_inverse=True)
    members = csr_array((np.ones(len(texts), dtype=np.float32), (number, np.arange(len(texts)))))
    centroids = csr_array(normalize(members @ terms)).tocsc()
    lengths = np.diff(centroids.indptr)
    centroids.data[np.repeat(lengths > max(_COMMON, len(names) // 100), lengths)] = 0
    centroids.eliminate_zeros()
    by_term = csr_array(centroids.T)
    questions = csr_array(tfidf.transform(asked))
    most_frequent = int(np.bincount(number).argmax())
    result: list[str] = []
    for start, end in pairwise(_edges(questions, np.diff(by_term.indptr))):
        products = (questions[start:end] @ by_term).tocsr()
        for first, last in pairwise(products.indptr.tolist()):
            best = products.indices[first + products.data[first:last].argmax()] if last > first else most_frequent
            result.append(str(names[best]))
    return result


def _edges(questions: Any, lengths: NDArray[Any]) -> list[int]:
    """Return where to cut the questions, so that a part takes some millions of products or is one question.

    lengths: labels with each term.
    """
    present = questions.copy()
    present.data[:] = 1
    costs = np.cumsum(present @ lengths.astype(float))
    edges = [0]
    while edges[-1] < len(costs):
        done = costs[edges[-1] - 1] if edges[-1] else 0
        edges.append(max(edges[-1] + 1, int(np.searchsorted(costs, done + _PRODUCTS, side="right"))))
    return edges
