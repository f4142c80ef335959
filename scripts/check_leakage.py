"""Check that no row occurs in two splits, nor one nearly like it: from the written corpus alone.

Nothing of what made the split is used: ids, texts and similarities are computed again from the files,
with another MinHash seed. What the template adds is left out, or every two rows would be alike.
"""

import argparse
from array import array
from collections.abc import Iterator
from pathlib import Path

import xxhash

from lib.core.cli import UserError, build_parser, fail, parse_settings, report_progress, run
from lib.core.files import read_json, read_jsonl, write_json
from lib.core.layout import SPLITS
from lib.data.near_duplicates import describe_uncompared, find_similar_pairs, tell_uncompared
from lib.data.rows import normalize
from lib.data.template_inversion import extract_input
from lib.data.templates import Template

_SEED = 20011  # any but the one of audit_data


class Corpus:
    """The rows of the three files, numbered one file after the other; in memory are digests, not texts."""

    def __init__(self, files: list[Path], template: Template) -> None:
        self.files, self.template = files, template
        self.counts = array("q")

    def texts(self) -> Iterator[str]:
        """Yield the input of each row without the template. Raises `UserError` for a row that is in two splits."""
        ids: dict[bytes, int] = {}
        same: dict[bytes, int] = {}
        for file in self.files:
            self.counts.append(0)
            for line, row in enumerate(read_jsonl(file), start=1):
                number = sum(self.counts)
                self.counts[-1] = line
                try:
                    text = extract_input(self.template, row["prompt"])
                except UserError as error:
                    fail(str(error), at=file, line=line)
                self.refuse(ids.setdefault(_digest(row["id"]), number), number, "the same row")
                self.refuse(same.setdefault(_digest(normalize(text).casefold()), number), number, "the same text")
                yield text

    def refuse(self, one: int, other: int, what: str) -> None:
        """Raise `UserError` that names both places when they are in different splits."""
        (file, line), (other_file, other_line) = self._place(one), self._place(other)
        if file != other_file:
            hint = "the scores would be of rows that were trained on: make the corpus again from split_data on"
            fail(f"{what} is at {other_file}:{other_line}", hint, at=file, line=line)

    def _place(self, number: int) -> tuple[Path, int]:
        for file, count in zip(self.files, self.counts, strict=False):
            if number < count:
                return file, number + 1
            number -= count
        raise IndexError(number)


def main(args: argparse.Namespace) -> None:
    corpus = Corpus([getattr(args, split) for split in SPLITS], read_json(args.template))
    threshold = args.settings["near_duplicates"]
    similar = find_similar_pairs(corpus.texts(), threshold, seed=_SEED, folder=args.output.parent)
    for one, other in similar.pairs:
        corpus.refuse(one, other, f"nearly the same text (similarity {threshold} or more)")
    counts = dict(zip(SPLITS, corpus.counts, strict=True))
    found = {"same_rows": 0, "same_texts": 0, "near_duplicates": 0, **describe_uncompared(similar)}
    write_json(args.output, {"rows": counts, "threshold": threshold, "across_splits": found})
    tell_uncompared("check_leakage", similar)
    report_progress(f"check_leakage: none of {sum(counts.values())} rows is in two splits")


def _digest(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode())


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="JSON: near_duplicates")
    for name in SPLITS:
        arguments.add_argument(f"--{name}", type=Path, required=True)
    arguments.add_argument("--template", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    run(arguments, main)
