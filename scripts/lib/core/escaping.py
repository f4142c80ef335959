"""Texts of strangers where something would act on them: a terminal, a Markdown page, a spreadsheet.

Ordinary text stays as it is, byte for byte.
"""

import json
import re
from typing import Any

# Control characters of both blocks, the separators that some program takes for the end of a line, and the characters
# that turn the direction of what follows (Unicode TR 9; CVE-2021-42574).
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What CommonMark and its GitHub dialect act on: code, emphasis, tags, entities, links, tables, formulas; an underscore
# does nothing within a word, and a backslash only before punctuation (ours may follow).
_MARKDOWN = re.compile(
    r"[`*|~$]|<(?=[A-Za-z/!?]|\Z)|&(?=#?\w+;)|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|\\(?=[!-/:-@\[-`{-~]|\Z)"
)
# What would begin a heading, a quotation, a list or a rule at the start of a line; the sign that makes it is captured.
_BLOCK = re.compile(r"\s*(?:(#)#{0,5}(?!\S)|(>)|([+-])(?!\S)|([=-])[=-]*\s*\Z|\d{1,9}([.)])(?!\S))")
# Parts of an address or of a connection string that open a door: a login, a signature, a key (RFC 3986, 3.2.1; Azure's
# shared access signatures and connection strings).
_LOGIN = re.compile(r"[^/@\s:'\"(]*:[^/@\s]+(?=@)")  # wherever it stands in an address, whole or not
_KEYS = re.compile(r"(?i)\b((?:sig|token|password|pwd|secret|account_?key|shared_?access_?\w+)=)[^&;\s'\",]+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # full-width forms too


def escape_controls(text: str) -> str:
    r"""Write what acts on a terminal, or breaks a line, as JSON writes it: `\n`, `\u001b`."""
    return _CONTROLS.sub(lambda sign: json.dumps(sign[0])[1:-1] if sign[0] != "\x7f" else "\\u007f", text)


def hide_secrets(text: str) -> str:
    """Return a text in which logins, signatures and keys of addresses are dots."""
    return _KEYS.sub(r"\1…", _LOGIN.sub("…", text))


def escape_markdown(value: Any) -> str:
    """Return a value as Markdown that shows it and does nothing else, in one line."""
    text = _MARKDOWN.sub(lambda sign: {"<": "&lt;", "&": "&amp;"}.get(sign[0], f"\\{sign[0]}"), str(value))
    if block := _BLOCK.match(text):
        place = block.start(block.lastindex or 0)
        text = f"{text[:place]}\\{text[place:]}"
    return escape_controls(text)


def escape_formula(cell: Any) -> Any:
    """Return a cell of a CSV table as spreadsheets take it for text; numbers stay numbers.

    A text that begins as a formula gets an apostrophe before it (OWASP, "CSV Injection"), and so does one that begins
    with apostrophes before that, so that two texts stay two.
    """
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell
