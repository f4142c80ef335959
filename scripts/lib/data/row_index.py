"""What the audit learns of each row before it looks at any other: digests, label, groups, or why it is set aside."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from lib.core.cli import fail
from lib.data.conversations import find_conversation
from lib.data.row_values import REASONS, CheckedRow, Reason
from lib.data.rows import MISSING, get_column, hash_row, list_reachable_names


class IndexedRows(NamedTuple):
    """Some rows, a value of each in every list.

    states, ids, inputs: as in `Rows`. targets: None of a row that is set aside. spellings: the labels as they stand in
    the rows, of those that have one.
    groups: hashes, one for each column of `split.groups`; none of a row that is set aside.
    """

    files: list[str]
    lines: list[int]
    numbers: list[int]
    states: bytes
    targets: list[str | None]
    spellings: list[str]
    ids: bytes
    inputs: bytes
    groups: list[list[int]]


class SeenColumns:
    """Which columns there are, and in how many rows those are absent that some row must have.

    corpus, split: columns of the file that are needed for either.
    """

    def __init__(self, corpus: Sequence[str], split: Sequence[str]) -> None:
        self._corpus, self._split = corpus, split
        self._known: dict[str, None] = {}
        self._first: dict[str, Any] = {}
        self._absent = Counter[str]()
        self._readable = 0

    def see(self, row: dict[str, Any]) -> None:
        self._readable += 1
        self._first = self._first or row
        self._known.update(dict.fromkeys(row))
        for name in (*self._corpus, *self._split):
            if name not in row and get_column(row, name) is MISSING:
                self._absent[name] += 1

    def add(self, later: "SeenColumns") -> None:
        """Take in what was seen of later rows."""
        self._readable += later._readable
        self._first = self._first or later._first
        self._known.update(later._known)
        self._absent.update(later._absent)

    def refuse_absent(self, path: Path) -> None:
        """Raise `UserError` when no row has a column that is needed."""
        for name in (*self._corpus, *self._split):
            if self._known and self._absent[name] == self._readable:
                where = "corpus or data.target" if name in self._corpus else "split"
                fail(f"no row has the column {name!r}", self._describe(name, where), at=path)

    def _describe(self, name: str, where: str) -> str:
        """Return the columns that there are, in nested rows with the names that reach into them."""
        row = self._first
        if column := find_conversation(row):
            return f"these rows are conversations: add data: {{conversation: {column}}}, and leave out data.target"
        for key, value in row.items():
            if isinstance(value, list) and value and get_column(value[0], name) is not MISSING:
                return f"the rows are a list under the key {key!r} of a row: save that list as the file"
        names = sorted(self._known.keys() - row.keys()) + list(list_reachable_names(row))
        return f"the columns are {', '.join(names[:20])}: mend {where}"


def index_rows(checked: Iterable[CheckedRow], target: str, seen: SeenColumns) -> IndexedRows:
    """Return what is kept of some rows in memory; `seen` learns of their columns."""
    states, ids, inputs = bytearray(), bytearray(), bytearray()
    rows = IndexedRows([], [], [], b"", [], [], b"", b"", [])
    for _, read, values, spelling, split, groups, *_ in checked:
        if "row" in read:
            seen.see(read["row"])
        rows.files.append(read["file"])
        rows.lines.append(read["line"])
        rows.numbers.append(read["number"])
        if spelling is not None:
            rows.spellings.append(spelling)
        if isinstance(values, Reason):
            states.append(1 + REASONS.index(values.reason))
            rows.targets.append(None)
            ids += bytes(32)
            inputs += bytes(16)
            rows.groups.append([])
            continue
        states.append(0)
        rows.targets.append(values[target])
        own, asked = hash_row(values, target, split=split)
        ids += own
        inputs += asked[:16]
        rows.groups.append([xxhash.xxh3_64_intdigest(group.encode()) for group in groups])
    return rows._replace(states=bytes(states), ids=bytes(ids), inputs=bytes(inputs))
