"""Words that give labels away: where a rule on single words would do, a model is not worth its cost."""

import re
from array import array
from collections import Counter, defaultdict
from typing import Any

from lib.data.template_inversion import find_word_places

_SLOTS = 1 << 22  # of the table that counts words roughly


class LabelWords:
    """Words that give labels away. Only those that are frequent enough are counted exactly.

    `glance` at all texts, `expect` the classes, then `count` the same texts.
    """

    def __init__(self) -> None:
        self._rough = array("I", bytes(array("I").itemsize * _SLOTS))
        self._enough = 0.0
        self._by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._own = Counter[str]()

    def glance(self, text: str) -> None:
        for word in _words(text):
            self._rough[hash(word) % _SLOTS] += 1

    def expect(self, classes: dict[str, int]) -> None:
        self._enough = min((_enough(count) for count in classes.values()), default=0)

    def count(self, text: str, target: str) -> None:
        self._own[target] += bool(find_word_places(target, text))
        for word in _words(text):
            if self._rough[hash(word) % _SLOTS] >= self._enough:
                self._by_word[word][target] += 1

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


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _enough(rows_of_label: int) -> float:
    return max(5, 0.05 * rows_of_label)
