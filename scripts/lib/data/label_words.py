"""Words that give labels away: where a rule on single words would do, a model is not worth its cost."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lib.data.template_inversion import find_word_places

_SLOTS = 1 << 22  # of the table that counts words roughly
_MOST_KNOWN = 100_000  # pieces of texts, some 200 bytes each
_LONGEST_KNOWN = 32  # characters: a longer one will hardly come again, as a text in a script without spaces


class CountedWords(NamedTuple):
    """What some texts add to the exact counts: texts with the word of their own label, and words by label."""

    own: Counter[str]
    words: Counter[tuple[str, str]]


class LabelWords:
    """Words that give labels away. Only those that are frequent enough are counted exactly.

    `glance` at all texts, `expect` the classes, then `add` the same texts, counted. Texts may be hashed and counted in
    forks of this process: they hash words alike.
    """

    def __init__(self) -> None:
        self._rough = np.zeros(_SLOTS, dtype=np.uint32)
        self._enough = 0.0
        self._by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._own = Counter[str]()
        self._frequent = _KnownPieces(self._keep_frequent)

    def glance(self, hashes: NDArray[np.int32]) -> None:
        """Count words roughly, by what a `WordHasher` gives of some texts."""
        np.add.at(self._rough, hashes, 1)

    def expect(self, classes: dict[str, int]) -> None:
        self._enough = min((_enough(count) for count in classes.values()), default=0)

    def count(self, rows: Iterable[tuple[str, str]]) -> CountedWords:
        """Count the frequent words of some texts, each with its target."""
        own, words = Counter[str](), Counter[tuple[str, str]]()
        for text, target in rows:
            own[target] += bool(find_word_places(target, text))
            words.update((word, target) for word in self._frequent.find(text))
        return CountedWords(own, words)

    def _keep_frequent(self, words: list[str]) -> list[str]:
        return [word for word in words if self._rough[_slot(word)] >= self._enough]

    def add(self, counted: CountedWords) -> None:
        self._own.update(counted.own)
        for (word, target), count in counted.words.items():
            self._by_word[word][target] += count

    def label_words(self, classes: dict[str, int]) -> dict[str, Any]:
        """Share of rows whose text holds the word of their own label: there a word is enough."""
        return {
            "share": round(self._own.total() / max(1, sum(classes.values())), 4),
            "by_label": {label: round(self._own[label] / max(1, count), 4) for label, count in classes.items()},
        }

    def shortcuts(self, classes: dict[str, int]) -> list[dict[str, Any]]:
        """Return single words that nearly give a label away: at least 90 % of their rows, and 5 % of the label's rows.

        Where one label has most rows, a word must also halve the error of always saying that label.
        """
        kept = sum(classes.values())
        found: list[dict[str, Any]] = []
        for word, counts in self._by_word.items():
            label, hits = counts.most_common(1)[0]
            needed = max(0.9, 1 - (1 - classes[label] / kept) / 2)
            if hits >= _enough(classes[label]) and hits >= needed * counts.total():
                found.append({"word": word, "label": label, "rows": counts.total(), "rows_of_label": hits})
        return sorted(found, key=lambda item: (-item["rows_of_label"], item["word"]))[:10]


class WordHasher:
    """Hashes the words of texts."""

    def __init__(self) -> None:
        self._slots = _KnownPieces(lambda words: [_slot(word) for word in words])

    def hash(self, texts: Iterable[str]) -> NDArray[np.int32]:
        """Return a number for each word of some texts: of each text every word once."""
        return np.array([slot for text in texts for slot in self._slots.find(text)], dtype=np.int32)


class _KnownPieces(dict[str, list[Any]]):
    """What is kept of the words in what stands between white space, which is looked at once.

    No word goes on over white space. That takes half of the time of finding all words of each text.
    """

    def __init__(self, keep: Callable[[list[str]], list[Any]]) -> None:
        self._keep = keep

    def find(self, text: str) -> set[Any]:
        """Return what is kept of the words of a text, each once."""
        return set(chain.from_iterable(map(self.__getitem__, text.split())))

    def __missing__(self, piece: str) -> list[Any]:
        found = self._keep(re.findall(r"\w+", piece.casefold()))
        if len(piece) <= _LONGEST_KNOWN:
            if len(self) >= _MOST_KNOWN:
                self.clear()
            self[piece] = found
        return found


def _slot(word: str) -> int:
    return hash(word) & (_SLOTS - 1)


def _enough(rows_of_label: int) -> float:
    return max(5, 0.05 * rows_of_label)
