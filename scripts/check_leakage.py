"""Check that no row occurs in two splits, nor one nearly like it, nor one of its group: from the written corpus alone.

Nothing of what made the split is used: ids, texts and similarities are computed again from the files,
with another MinHash seed. What the template adds is left out, or every two rows would be alike.

Of a split that was given, what leaks is counted and listed where the settings say so; the scores are then told with
these rows and without them.
"""

import argparse
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from lib.core.cli import UserError, build_parser, fail, parse_settings, report_progress, run
from lib.core.files import parse_jsonl_line, read_json, read_jsonl, read_lines, write_json
from lib.core.layout import SCORED_SPLITS, SPLITS
from lib.core.processes import map_in_order
from lib.data.groups import Groups
from lib.data.near_duplicates import describe_uncompared, find_similar_pairs, tell_uncompared
from lib.data.rows import normalize
from lib.data.signatures import SignedTexts, Signer
from lib.data.template_inversion import InputReader
from lib.data.templates import Template
from lib.data.value_limits import batch_by_size

_SEED = 20011  # any but the one of audit_data
_MOST_LISTED = 1000  # leaking pairs


class ReadRows(NamedTuple):
    """Some rows of a file: of each the digests that no row of another split may have, and what finds its like.

    digests: of id, text and groups, each with the kind of leak and its words.
    """

    digests: list[list[tuple[bytes, str, str]]]
    signed: SignedTexts


class RowReader:
    """Reads rows from the lines of the corpus; several processes can share the work."""

    def __init__(self, template: Template, signer: Signer) -> None:
        self._inputs, self._signer = InputReader(template), signer

    def read(self, part: tuple[Path, list[tuple[int, str]]]) -> ReadRows:
        """Read some numbered lines of a file. Raises `UserError` for one that does not follow the template."""
        file, lines = part
        digests, texts = [], []
        for number, line in lines:
            row = parse_jsonl_line(file, line, number)
            try:
                texts.append(self._inputs.extract(row["prompt"]))
            except UserError as error:
                fail(str(error), at=file, line=number)
            digests.append(_digest_row(row, texts[-1]))
        return ReadRows(digests, self._signer.sign(texts))


def _digest_row(row: dict[str, Any], text: str) -> list[tuple[bytes, str, str]]:
    return [
        (_digest("id " + row["id"]), "same_rows", "the same row"),
        (_digest("text " + normalize(text).casefold()), "same_texts", "the same text"),
        *(
            (_digest("group " + group), "same_groups", f"a row of the same group {group!r}")
            for group in row.get("groups", ())
        ),
    ]


class Corpus:
    """The rows of the three files, numbered one file after the other; in memory are digests, not texts.

    reports: leaks are noted in `leaks` and `pairs`, not refused.
    """

    def __init__(self, files: list[Path], *, reports: bool) -> None:
        self.files, self.reports = files, reports
        self.counts = array("q")
        self.leaks: Counter[str] = Counter()
        self.pairs: list[dict[str, str]] = []
        self.joined: list[tuple[int, int]] = []

    def read(self, reader: RowReader, processes: int) -> Iterator[SignedTexts]:
        """Yield the input of each row without the template. Raises `UserError` for a row that is in two splits."""
        known: dict[bytes, int] = {}
        number = 0
        for rows in map_in_order(reader.read, self._count_parts(), processes):
            for digests in rows.digests:
                for digest, kind, what in digests:
                    if (first := known.setdefault(digest, number)) != number:
                        self.compare(first, number, kind, what)
                number += 1
            yield rows.signed

    def _count_parts(self) -> Iterator[tuple[Path, list[tuple[int, str]]]]:
        """Yield the lines of the files, some at a time, and count them."""
        for file in self.files:
            self.counts.append(0)
            for lines in batch_by_size(read_lines(file), lambda numbered: len(numbered[1])):
                self.counts[-1] += len(lines)
                yield file, lines

    def compare(self, one: int, other: int, kind: str, what: str) -> None:
        """Note two rows that are alike. Raises `UserError` that names both places when they are in different splits."""
        (file, line), (other_file, other_line) = self._place(one), self._place(other)
        if self.reports:
            self.joined.append((one, other))
        if file == other_file:
            return
        if not self.reports:
            hint = "the scores would be of rows that were trained on: make the corpus again from split_data on"
            fail(f"{what} is at {other_file}:{other_line}", hint, at=file, line=line)
        self.leaks[kind] += 1
        if len(self.pairs) < _MOST_LISTED:
            places = {"one": f"{file.name}:{line}", "other": f"{other_file.name}:{other_line}"}
            self.pairs.append({"kind": kind, **places})

    def find_leaking(self) -> dict[str, list[str]]:
        """Return by scored split the ids of its rows that are like one of an earlier split, if only through others."""
        groups = Groups(sum(self.counts))
        for one, other in self.joined:
            groups.merge(one, other)
        roots = groups.roots()
        starts = np.cumsum([0, *self.counts])
        leaking = {}
        for split, file, start, end in zip(SPLITS, self.files, starts[:-1], starts[1:], strict=True):
            before = np.isin(roots[start:end], roots[:start])
            if split in SCORED_SPLITS:
                leaking[split] = [row["id"] for row, is_leak in zip(read_jsonl(file), before, strict=True) if is_leak]
        return leaking

    def _place(self, number: int) -> tuple[Path, int]:
        for file, count in zip(self.files, self.counts, strict=False):
            if number < count:
                return file, number + 1
            number -= count
        raise IndexError(number)


def main(args: argparse.Namespace) -> None:
    reports = args.settings["leakage"] == "report"
    corpus = Corpus([getattr(args, split) for split in SPLITS], reports=reports)
    threshold = args.settings["near_duplicates"]
    reader = RowReader(read_json(args.template), Signer(threshold, _SEED))
    similar = find_similar_pairs(corpus.read(reader, args.processes), threshold, folder=args.output.parent)
    for one, other in similar.pairs:
        corpus.compare(one, other, "near_duplicates", f"nearly the same text (similarity {threshold} or more)")
    counts = dict(zip(SPLITS, corpus.counts, strict=True))
    kinds = ("same_rows", "same_texts", "near_duplicates", "same_groups")
    found = {kind: corpus.leaks[kind] for kind in kinds} | describe_uncompared(similar)
    result: dict[str, Any] = {"rows": counts, "threshold": threshold, "across_splits": found}
    leaking = corpus.find_leaking() if corpus.leaks else {}
    write_json(args.output, result | ({"leaking": leaking, "pairs": corpus.pairs} if leaking else {}))
    tell_uncompared("check_leakage", similar)
    told = [f"{len(ids)} of {counts[split]} {split} rows" for split, ids in leaking.items() if ids]
    report_progress(
        f"check_leakage: {' and '.join(told)} are like rows of an earlier split, see {args.output.name}"
        if told
        else f"check_leakage: none of {sum(counts.values())} rows is in two splits"
    )


def _digest(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode())


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="JSON: near_duplicates, leakage")
    for name in SPLITS:
        arguments.add_argument(f"--{name}", type=Path, required=True)
    arguments.add_argument("--template", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    arguments.add_argument("--processes", type=int, default=1)
    run(arguments, main)
