"""Check that no row occurs in two splits, nor one nearly like it: from the written corpus alone.

Nothing of what made the split is used: ids, texts and similarities are computed anew from the files,
with another MinHash seed. What the template adds is left out, or every two rows would be alike.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from lib.cli import UserError, fail, parser, progress, run, settings_argument
from lib.files import read_json, read_jsonl, write_json
from lib.inputs import input_text
from lib.near_duplicates import similar_pairs
from lib.records import normalise
from lib.templates import Template

SPLITS = ("train", "validation", "test")
_SEED = 20011  # any but the one of audit_data


class Row(NamedTuple):
    """A corpus row and where it stands. `text` is its input without the template."""

    file: Path
    line: int
    id: str
    text: str


def main(args: argparse.Namespace) -> None:
    template = read_json(args.template)
    files = {split: getattr(args, split) for split in SPLITS}
    rows = [row for file in files.values() for row in _rows(file, template)]
    _refuse_same(rows, [row.id for row in rows], "the same row")
    _refuse_same(rows, [normalise(row.text).casefold() for row in rows], "the same text")
    threshold = args.settings["near_duplicates"]
    pairs = similar_pairs([row.text for row in rows], threshold, seed=_SEED)
    for one, other in pairs:
        _refuse(rows[one], rows[other], f"nearly the same text (similarity {threshold} or more)")
    counts = {split: sum(row.file == file for row in rows) for split, file in files.items()}
    found = {"same_rows": 0, "same_texts": 0, "near_duplicates": 0}
    write_json(args.output, {"rows": counts, "threshold": threshold, "across_splits": found})
    progress(f"check_leakage: none of {len(rows)} rows is in two splits")


def _rows(file: Path, template: Template) -> list[Row]:
    rows = []
    for line, row in enumerate(read_jsonl(file), start=1):
        try:
            rows.append(Row(file, line, row["id"], input_text(template, row["prompt"])))
        except UserError as error:
            fail(str(error), at=file, line=line)
    return rows


def _refuse_same(rows: list[Row], keys: list[str], what: str) -> None:
    first: dict[str, Row] = {}
    for row, key in zip(rows, keys, strict=True):
        _refuse(first.setdefault(key, row), row, what)


def _refuse(one: Row, other: Row, what: str) -> None:
    """Raise `UserError` that names both places when they are in different splits."""
    if one.file != other.file:
        hint = "the scores would be of rows that were trained on: make the corpus again from split_data on"
        fail(f"{what} is at {other.file}:{other.line}", hint, at=one.file, line=one.line)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--settings", type=settings_argument, required=True, help="JSON: near_duplicates")
    for name in SPLITS:
        arguments.add_argument(f"--{name}", type=Path, required=True)
    arguments.add_argument("--template", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    run(arguments, main)
