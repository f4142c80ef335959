"""What the audit keeps in memory of each row, and which rows it sets aside or joins by that alone."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.data.near_duplicates import number_clusters
from lib.data.row_index import IndexedRows
from lib.data.row_values import REASONS
from lib.data.rows import format_place, normalize

Places = NDArray[np.int64]


@dataclass
class Rows:
    """Hold what stays in memory of each row: 81 bytes, whatever its text. Texts are read again where needed.

    state: 0 for a usable row, else the place of its reason in `REASONS`, counted from 1.
    other: the row that it conflicts with or repeats.
    file, target: numbers in `files` and `targets`; answers of task generation have none.
    ids, inputs: digests of the whole row, 32 bytes, and of its input columns, 16 bytes; a given split is a part of
    both, for what stands in two of them is not removed, but told.
    groups: for each column of `split.groups` the hashes of its values.
    spellings: how often each label occurs as it stands in the rows; none for task generation.
    """

    files: dict[str, int] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    spellings: Counter[str] = field(default_factory=Counter)
    state: bytearray = field(default_factory=bytearray)
    other: array = field(default_factory=lambda: array("i"))
    file: array = field(default_factory=lambda: array("i"))
    line: array = field(default_factory=lambda: array("q"))
    number: array = field(default_factory=lambda: array("i"))
    target: array = field(default_factory=lambda: array("i"))
    tokens: array = field(default_factory=lambda: array("i"))
    ids: bytearray = field(default_factory=bytearray)
    inputs: bytearray = field(default_factory=bytearray)
    groups: list[array] = field(default_factory=list)

    def add(self, indexed: IndexedRows, *, classified: bool) -> None:
        """Take in what was learned of further rows."""
        before, count = len(self.state), len(indexed.states)
        self.file.extend(self.files.setdefault(file, len(self.files)) for file in indexed.files)
        self.line.extend(indexed.lines)
        self.number.extend(indexed.numbers)
        self.other.extend([-1] * count)
        self.tokens.extend([0] * count)
        self.state += indexed.states
        self.ids += indexed.ids
        self.inputs += indexed.inputs
        if classified:
            self.spellings.update(indexed.spellings)
        self.target.extend(
            self.targets.setdefault(target, len(self.targets)) if classified and target is not None else -1
            for target in indexed.targets
        )
        self._add_groups(indexed.groups, before)

    def _add_groups(self, groups: Sequence[Sequence[int]], before: int) -> None:
        columns = max(map(len, groups), default=0)
        if columns and not self.groups:
            self.groups = [array("Q", bytes(8 * before)) for _ in range(columns)]
        for column, hashes in enumerate(self.groups):
            hashes.extend(own[column] if own else 0 for own in groups)

    def usable(self) -> Places:
        return np.flatnonzero(np.frombuffer(self.state, dtype=np.uint8) == 0)

    def is_usable(self, number: int) -> bool:
        return not self.state[number]

    def is_set_aside(self, number: int) -> bool:
        return bool(self.state[number])

    def set_aside(self, places: Places, reason: str, others: Places) -> None:
        np.frombuffer(self.state, dtype=np.uint8)[places] = 1 + REASONS.index(reason)
        np.frombuffer(self.other, dtype=np.int32)[places] = others

    def place(self, index: int) -> str:
        return format_place(self._file_names[self.file[index]], self.line[index], self.number[index])

    def target_text(self, index: int) -> str:
        return self._target_names[self.target[index]]

    @cached_property
    def _file_names(self) -> list[str]:
        return list(self.files)

    @cached_property
    def _target_names(self) -> list[str]:
        return list(self.targets)


def _digests(digests: bytearray, width: int, places: Places) -> NDArray[Any]:
    return np.frombuffer(digests, dtype=f"V{width}")[places]


def set_aside_conflicts(rows: Rows) -> None:
    """Set aside rows whose input occurs with another label too: which one is right is not ours to say."""
    usable = rows.usable()
    _, first, group = np.unique(_digests(rows.inputs, 16, usable), return_index=True, return_inverse=True)
    folded = {normalize(text): number for text, number in rows.targets.items()}
    label = np.array([folded[normalize(text)] for text in rows.targets], dtype=np.int64)
    labels = label[np.frombuffer(rows.target, dtype=np.int32)[usable]]
    differs = labels != labels[first[group]]
    # The first row of a group conflicts with the first that differs from it, all those with the first.
    second = np.full(len(first), -1)
    second[group[differs][::-1]] = usable[differs][::-1]
    others = np.where(differs, usable[first[group]], second[group])
    rows.set_aside(usable[others >= 0], "label_conflict", others[others >= 0])


def set_aside_duplicates(rows: Rows) -> None:
    usable = rows.usable()
    _, first, group = np.unique(_digests(rows.ids, 32, usable), return_index=True, return_inverse=True)
    originals = usable[first[group]]
    again = originals != usable
    rows.set_aside(usable[again], "exact_duplicate", originals[again])


def find_same_groups(rows: Rows, kept: Places) -> Iterator[tuple[int, int]]:
    """Yield pairs of places in `kept` whose rows are in one group, enough to connect all of it."""
    for hashes in rows.groups:
        values = np.frombuffer(hashes, dtype=np.uint64)[kept]
        order = np.argsort(values, kind="stable")
        same = np.flatnonzero(values[order[1:]] == values[order[:-1]])
        yield from zip(order[same].tolist(), order[same + 1].tolist(), strict=True)


def number_row_clusters(rows: Rows, kept: Places, pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Return the number of each row's near-duplicate cluster, -1 for those set aside.

    They are numbered by their smallest id, so that the order of rows does not matter.
    """
    order = np.argsort(_digests(rows.ids, 32, kept), kind="stable")
    rank = np.empty(len(kept), dtype=np.int64)
    rank[order] = np.arange(len(kept))
    clusters = np.full(len(rows.state), -1)
    clusters[kept[order]] = number_clusters(len(kept), ((rank[one], rank[other]) for one, other in pairs))
    return clusters


def count_reasons(rows: Rows) -> dict[str, int]:
    counts = Counter(rows.state)
    return {reason: counts[place] for place, reason in enumerate(REASONS, start=1) if counts[place]}


def count_classes(rows: Rows, kept: Places) -> dict[str, int]:
    targets = np.frombuffer(rows.target, dtype=np.int32)[kept]
    counts = np.bincount(targets[targets >= 0], minlength=len(rows.targets))
    return {target: count for target, count in zip(rows.targets, counts.tolist(), strict=True) if count}
