"""Olive's text templates, which `str.format` fills in, as templates of slmflow."""

import re
import string
from typing import NamedTuple

from lib.data.templates import format_placeholder


class Converted(NamedTuple):
    """text: the template. columns: those that it names, in order, each as often as it stands there."""

    text: str
    columns: list[str]
    faults: list[str]


def convert_template(text: str) -> Converted:
    """Return a template of slmflow for one of `str.format`: {Best Answer} stays, {row[0]!r:>9} becomes {row.0}.

    faults: what is left out, and what keeps it from being read.
    """
    written, columns, faults = "", [], []
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        return Converted(_escape_braces(text), [], [f"str.format cannot read it ({error})"])
    for literal, name, form, conversion in parts:
        written += _escape_braces(literal)
        if name is None:
            continue
        if not name.strip() or name.isdigit():
            faults.append("a placeholder without a name")
            continue
        if form or conversion:
            faults.append(f"the format of {name}")
        column = re.sub(r"\[([^\]]*)\]", r".\1", name)
        columns.append(column)
        written += _place_column(column)
    return Converted(written, columns, faults)


def join_columns(columns: list[str]) -> Converted:
    """Return the template that joins columns by a space, as `text_cols` does."""
    return Converted(" ".join(map(_place_column, columns)), columns, [])


def _place_column(name: str) -> str:
    placeholder = format_placeholder(name)
    if placeholder[1] in "?/":  # which would begin or end a part
        return "{" + f'"{name}"' + "}"
    return placeholder


def _escape_braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
