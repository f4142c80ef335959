"""What a record is: its columns, its text, its identity."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from lib.core.files import dump_canonical_json

MISSING = object()
HEADED_SUFFIXES = (".csv", ".tsv", ".xlsx")
NOT_TEXT = "not text"
"""The one key of what stands in a row for a value that JSON has no place for; its value says what that was."""


def get_column(row: Any, name: str) -> Any:
    """Return value of a column, or `MISSING`. A dotted name that is no key reaches into objects, by number into
    lists.
    """
    if isinstance(row, dict) and name in row:  # nearly always
        return row[name]
    value = _child(row, name)
    for dot in re.finditer(r"\.", name) if value is MISSING else ():
        value = get_column(_child(row, name[: dot.start()]), name[dot.end() :])
        if value is not MISSING:
            break
    return value


def _child(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name, MISSING)
    if isinstance(value, list) and re.fullmatch("[0-9]{1,9}", name) and int(name) < len(value):
        return value[int(name)]
    return MISSING


def list_reachable_names(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names that reach into a row: `user.name`, `messages.0.content`."""
    for name, value in row.items():
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(inner, dict) and inner:
            yield from (f"{name}.{below}" for below in list_reachable_names({str(key): inner[key] for key in inner}))
        else:
            yield name


def convert_to_text(value: Any) -> str | None:
    """Return text of a JSON value without outer white space: numbers and booleans as JSON writes them.

    None for lists and objects: how to read them as text is not ours to guess.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value) if isinstance(value, (bool, int, float)) else None


def format_place(file: str | Path, line: int, number: int) -> str:
    """Say where a row stands: `FILE:LINE`, or `FILE, row NUMBER (line LINE)` where the line does not tell which it is.

    Rows of a JSON list may share a line, and those of CSV may span several.
    number: the row's place in its file, from 1.
    """
    suffix = PurePath(str(file).removesuffix(".gz")).suffix.lower()
    behind = 1 if suffix in HEADED_SUFFIXES else 0  # the first row of these names the columns
    if suffix == ".json" or line != number + behind:
        return f"{file}, row {number} (line {line})"
    return f"{file}:{line}"


def describe_value(value: Any) -> str:
    """Say what a value is that `convert_to_text` has no text for."""
    if isinstance(value, list):
        return "a list"
    return f"{value[NOT_TEXT]}, not text" if list(value) == [NOT_TEXT] else "a nested object"


def normalize(text: str) -> str:
    """Return Unicode NFC, trimmed, white space folded: texts that differ only in this are the same text."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def compute_row_id(values: Mapping[str, str], *, split: str = "") -> str:
    """Return sha256 of a row's normalized values by column name, whatever their order.

    split: the one that the row was given, which tells it from the same row of another one.
    """
    return _digest({name: normalize(value) for name, value in values.items()}, split).hex()


def hash_row(values: Mapping[str, str], target: str, *, split: str = "") -> tuple[bytes, bytes]:
    """Return the bytes of a row's id, and of that of its input columns alone: what is not the target."""
    normalized = {name: normalize(value) for name, value in values.items()}
    inputs = {name: value for name, value in normalized.items() if name != target}
    return _digest(normalized, split), _digest(inputs, split)


def _digest(normalized: Mapping[str, str], split: str) -> bytes:
    return hashlib.sha256(dump_canonical_json([split, normalized] if split else normalized).encode()).digest()
