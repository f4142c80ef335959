"""What a record is: its columns, its text, its identity."""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from lib.files import canonical_json

MISSING = object()


def column(row: Mapping[str, Any], name: str) -> Any:
    """Value of a column, or `MISSING`. A dotted name that is no key itself reaches into nested objects."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def as_text(value: Any) -> str | None:
    """Text of a JSON value without outer white space: numbers and booleans as JSON writes them.

    None for lists and objects: how to read them as text is not ours to guess.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value) if isinstance(value, (bool, int, float)) else None


def normalise(text: str) -> str:
    """Unicode NFC, trimmed, white space folded: texts that differ only in this are the same text."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def record_id(values: Mapping[str, str]) -> str:
    """sha256 of a record's normalised values by column name, whatever their order."""
    normalised = {name: normalise(value) for name, value in values.items()}
    return hashlib.sha256(canonical_json(normalised).encode()).hexdigest()
