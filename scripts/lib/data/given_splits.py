"""What a row says of its split itself: the split that it was given, and the groups that must stay together."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.core.layout import SPLITS
from lib.data.rows import MISSING, convert_to_text, get_column


class NoSplitError(ValueError):
    """Why a row cannot be put into a split: the message says which column is wrong."""


def read_given_split(read: Mapping[str, Any], column: str | None, values: Mapping[str, str]) -> str:
    """Return the split that a row of `fetch_data` was given, or nothing.

    column: of the row, unless its file says the split. values: what stands in the column, by split, where that is not
    the split's own name. Raises `NoSplitError` for another value.
    """
    if column is None:
        return str(read.get("split", ""))
    found = _read_text(read["row"], column)
    names = {**{split: split for split in SPLITS if split not in values}, **{text: key for key, text in values.items()}}
    if found and found not in names:
        raise NoSplitError(f"{column!r} is {found!r}, none of {', '.join(map(repr, names))}; see split.values")
    return names.get(found, "")


def read_groups(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Return the groups of a row, one for each column, as `COLUMN=VALUE`. Raises `NoSplitError` for an empty value."""
    groups = []
    for column in columns:
        if not (text := _read_text(row, column)):
            raise NoSplitError(f"{column!r}, a column of split.groups, is empty")
        groups.append(f"{column}={text}")
    return groups


def _read_text(row: Mapping[str, Any], column: str) -> str:
    value = get_column(row, column)
    text = "" if value is MISSING else convert_to_text(value)
    if text is None:
        raise NoSplitError(f"{column!r} is no text")
    return text
