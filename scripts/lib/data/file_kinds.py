"""What a file is by its first bytes, whatever its name says.

`detect_file_kind` returns a kind that no reader takes, or None. `FAULTS` says in words what each kind is and what to
do about it; a kind that gets a reader one day leaves that table. Rows and weights are both looked at here, so this
module imports neither.
"""

import codecs
import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lib.core.cli import fail

HEAD_BYTES = 1 << 16
_SEPARATOR_LINE = re.compile(r"\Asep=([,;\t|])\r?\n")  # Excel's own first line
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


class FileKind(NamedTuple):
    """A kind of `FAULTS`, and what of this file stands in its sentence."""

    name: str
    detail: str = ""


_AS_UTF_8 = "save the file as UTF-8, as by: iconv -f {} -t UTF-8 OLD > NEW"
_UNPACK = "unpack it and name the file inside"
# What a file is that is not read as it stands, and what to do. None of them is the fault of single rows.
FAULTS = {
    "git_lfs_pointer": ("a Git LFS pointer, not the file itself", "install git-lfs and run git lfs pull"),
    "git_annex_pointer": ("a git-annex pointer, not the file itself", "run git annex get"),
    "html": ("an HTML page, not the file itself", "download the file again, by its raw link or after a login"),
    "xml": ("an XML document", "write its rows as JSON Lines or CSV"),
    "compressed": ("compressed ({})", _UNPACK),
    "zip": ("a zip archive", _UNPACK),
    "gzip": ("compressed (gzip)", "let its name end in .gz, behind that of the file inside"),
    "excel": ("an Excel workbook", "let its name end in .xlsx, or save its sheet as CSV UTF-8"),
    "old_excel": ("an old Excel workbook", "save it as .xlsx or CSV UTF-8"),
    "office": ("a document of an office program", "save its table as CSV UTF-8"),
    "pdf": ("a PDF document", "write its rows as JSON Lines or CSV"),
    "sqlite": ("an SQLite database", "export its table as CSV"),
    "arrow": ("an Arrow file, as datasets' save_to_disk writes it", "write it with Dataset.to_parquet"),
    "parquet": ("a Parquet file under another name", "let its name end in .parquet"),
    "utf_16": ("text in UTF-16, not in UTF-8", _AS_UTF_8.format("UTF-16")),
    "utf_32": ("text in UTF-32, not in UTF-8", _AS_UTF_8.format("UTF-32")),
    "windows_1252": ("not UTF-8, likely Windows-1252", _AS_UTF_8.format("WINDOWS-1252")),
    "not_utf_8": ("not UTF-8, in an unknown encoding", _AS_UTF_8.format("ENCODING")),
    "binary": ("a binary file, not text", "name a file of rows"),
    "carriage_returns": ("lines end in CR alone, as on an old Mac", "save the file with LF or CRLF line ends"),
    "json_as_csv": ("JSON under the name of CSV", "let its name end in .json"),
    "not_json": ("neither a JSON list nor JSON Lines, it begins with {}", "name it after its format"),
    "json_list_as_lines": ("a JSON list, not JSON Lines", "let its name end in .json"),
    "json_values": ("its rows are {}, not objects with named columns", 'write each row as {{"column": "value", ...}}'),
    "json_rows_in_key": (
        "one JSON object whose rows are under its key {}",
        "save that list alone, from [ to ]",
    ),
    "json_columns": (
        "one JSON object of columns, as pandas writes it",
        'write its rows with DataFrame.to_json(..., orient="records", lines=True)',
    ),
    "json_object": ("one JSON object over several lines", "write a list of rows, or each row on one line"),
    "json_objects": (
        "JSON objects over several lines, one behind the other",
        "write each on one line, or all in a list [ ] with commas between",
    ),
    "json_lines_with_commas": ("JSON Lines with commas between", "take the commas away, or put all in a list [ ]"),
    "json_lines_broken": ("no line of its beginning is one JSON object", "write each row as a JSON object on one line"),
    "python_dicts": ("Python dictionaries, not JSON: its keys are in single quotes", "write it with json.dumps"),
    "csv_head": ("the first row has {}", "let the first row name every column"),
}
_MAGIC = {
    b"version https://git-lfs.github.com/spec/": FileKind("git_lfs_pointer"),
    b"version https://hawser.github.com/spec/": FileKind("git_lfs_pointer"),
    b"/annex/objects/": FileKind("git_annex_pointer"),
    b"\x1f\x8b": FileKind("gzip"),
    b"\xfd7zXZ\x00": FileKind("compressed", "xz"),
    b"\x28\xb5\x2f\xfd": FileKind("compressed", "zstd"),
    b"7z\xbc\xaf\x27\x1c": FileKind("compressed", "7z"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": FileKind("old_excel"),
    b"%PDF-": FileKind("pdf"),
    b"SQLite format 3\x00": FileKind("sqlite"),
    b"ARROW1\x00": FileKind("arrow"),
    b"\xff\xff\xff\xff": FileKind("arrow"),
    codecs.BOM_UTF32_LE: FileKind("utf_32"),  # before UTF-16, with whose mark it begins
    codecs.BOM_UTF32_BE: FileKind("utf_32"),
    codecs.BOM_UTF16_LE: FileKind("utf_16"),
    codecs.BOM_UTF16_BE: FileKind("utf_16"),
}


def refuse(kind: FileKind, path: Path, line: int | None = None) -> NoReturn:
    """Raise the `UserError` of a kind: what the file is, and what to do."""
    what, hint = FAULTS[kind.name]
    fail(what.format(kind.detail), hint.format(kind.detail), at=path, line=line)


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file, as many as `detect_file_kind` looks at."""
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)


def detect_file_kind(head: bytes, suffix: str) -> FileKind | None:
    """Return what a file is that cannot be read by its suffix, from its first `HEAD_BYTES`; None when it may be.

    A file that begins as it should and breaks later is none of this: its broken rows are told one by one.
    """
    if kind := _detect_container(head, suffix):
        return kind
    is_cut = len(head) == HEAD_BYTES
    match suffix:
        case ".json" | ".jsonl" | ".ndjson":
            return _detect_wide_text(head) or _detect_json(_text(head), lines=suffix != ".json", is_cut=is_cut)
        case ".csv" | ".tsv" | ".tab":
            return _detect_wide_text(head) or _detect_csv(_text(head), is_cut=is_cut)
    return None


def detect_encoding(path: Path) -> FileKind | None:
    """Tell a file in another encoding from UTF-8 with some broken lines, by which of the two has more lines in it.

    Reads the whole file: the first accent may stand in its last line. Ask when a line is not UTF-8.
    """
    right = broken = letters = groups = 0
    with open(path, "rb") as file:
        for line in file:
            if line.isascii():
                continue
            if _decodes(line, "utf-8"):
                right += 1
                continue
            broken += 1
            letters += len(re.findall(rb"[\x80-\xff]", line)) if _decodes(line, "cp1252") else sys.maxsize
            groups += len(re.findall(rb"[\x80-\xff]+", line))
    if right >= broken:
        return None
    # Letters with accents stand among others; in encodings of other scripts they stand side by side.
    return FileKind("windows_1252" if letters < 1.5 * groups else "not_utf_8")


def _detect_container(head: bytes, suffix: str) -> FileKind | None:
    """Return what the first bytes alone tell, of rows and of weights."""
    for start, kind in _MAGIC.items():
        if head.startswith(start):
            return kind
    if re.match(rb"BZh[1-9]1AY&SY", head):
        return FileKind("compressed", "bzip2")
    if head.startswith(b"PK\x03\x04"):
        if suffix == ".xlsx":
            return None
        return FileKind("excel" if b"xl/" in head else "office" if b"mimetype" in head or b"word/" in head else "zip")
    if head.startswith(b"PAR1"):
        return None if suffix == ".parquet" else FileKind("parquet")
    if re.match(rb"\s*<(!doctype html|html|head)\b", head.removeprefix(codecs.BOM_UTF8), re.IGNORECASE):
        return FileKind("html")
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<?xml"):
        return FileKind("xml")
    return None


def _detect_wide_text(head: bytes) -> FileKind | None:
    """Find UTF-16 and UTF-32 without their mark: of Latin letters, every second byte or three of four are NUL."""
    if b"\x00" not in head:
        return None
    nul = [head[place::4].count(0) / max(1, len(head[place::4])) for place in range(4)]
    if min(nul[1:]) > 0.9 or min(nul[:3]) > 0.9:
        return FileKind("utf_32")
    odd, even = min(nul[1], nul[3]), min(nul[0], nul[2])
    if (odd > 0.4 and even < 0.1) or (even > 0.4 and odd < 0.1):
        return FileKind("utf_16")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return FileKind("binary")
    return None


def _text(head: bytes) -> str:
    return head.decode("utf-8-sig", errors="replace").lstrip(" \t\r\n")


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _has_carriage_returns_alone(text: str) -> bool:
    return "\n" not in text and "\r" in text.rstrip()


def _detect_json(text: str, *, lines: bool, is_cut: bool) -> FileKind | None:
    first, _, rest = text.partition("\n")
    following = rest.lstrip()
    if text.startswith("["):
        return _detect_json_list(text, first, following, lines=lines)
    if _has_carriage_returns_alone(text):
        return FileKind("carriage_returns")
    if text.startswith("{") and (kind := _detect_json_objects(text, first, following)):
        return kind
    whole = [line for line in text.split("\n")[: -1 if is_cut else None] if line.strip()]
    if any(_is_json_object(line.strip(" \t\r")) for line in whole):
        return None
    if text.startswith("{"):
        return FileKind("json_lines_broken") if len(whole) > 1 else None
    return FileKind("not_json", repr(first.strip()[:40])) if text else None


def _detect_json_list(text: str, first: str, following: str, *, lines: bool) -> FileKind | None:
    value, end = _decode(first, 0)
    if end is not None and following and not first[end:].strip() and not _holds_objects(value):
        # Each line is a value of its own.
        if following.startswith("["):
            return FileKind("json_values", "lists")
        if lines:
            return None
    if lines:
        return FileKind("json_list_as_lines")
    kinds = {type(item) for item in _first_items(text, 2)}
    if kinds and dict not in kinds:
        return FileKind("json_values", "lists" if kinds == {list} else "texts or numbers")
    return None


def _detect_json_objects(text: str, first: str, following: str) -> FileKind | None:
    if re.match(r"\{\s*'", text):
        return FileKind("python_dicts")
    _, end = _decode(first, 0)
    if end is not None and following:
        return FileKind("json_lines_with_commas") if first[end:].strip() == "," and following[0] == "{" else None
    if _holds_columns(text):
        return FileKind("json_columns")
    if not following or (following[0] == "{" and not first.rstrip().endswith("[")):
        return None  # the one row there is, a broken row, or one that is longer than the head
    rows, end = _row_lists(text)
    if end is not None and text[end:].lstrip(" \t\r\n,")[:1] == "{":
        return FileKind("json_objects")
    if rows:
        return FileKind("json_rows_in_key", repr(max(rows, key=lambda key: rows[key])))
    return FileKind("json_object")


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _holds_columns(text: str) -> bool:
    """Tell whether an object has a column in each key, with its cells by number; or names, and rows without any."""
    value, end = _decode(text, 0)
    if end is not None and {"columns", "data"} <= value.keys():
        return True
    if end is None:
        return bool(re.match(r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{\s*"0"\s*:', text))
    return bool(value) and all(isinstance(column, dict) and "0" in column for column in value.values())


def _is_json_object(line: str) -> bool:
    return line.startswith("{") and _decode(line, 0)[1] == len(line)


def _decode(text: str, place: int) -> tuple[Any, int | None]:
    """Return the JSON value at a place and where it ends, None where it is broken or cut."""
    try:
        return json.JSONDecoder().raw_decode(text, place)
    except (ValueError, RecursionError):
        return None, None


def _skip(text: str, place: int, *marks: str) -> int:
    """Return the place behind white space, one of the marks if it stands there, and white space again."""
    while text[place : place + 1] in (" ", "\t", "\r", "\n") and place < len(text):
        place += 1
    return _skip(text, place + 1) if text[place : place + 1] in marks and place < len(text) else place


def _first_items(text: str, count: int) -> list[Any]:
    """Return the first values of a list, as far as they stand in the text."""
    items: list[Any] = []
    place: int | None = _skip(text, 1)
    while len(items) < count and place is not None:
        value, place = _decode(text, place)
        if place is not None:
            items.append(value)
            place = _skip(text, place, ",")
    return items


def _row_lists(text: str) -> tuple[dict[str, float], int | None]:
    """Return the keys of an object that hold lists of objects, with their lengths, and where the object ends.

    A list that the text cuts off counts as the longest one.
    """
    lists: dict[str, float] = {}
    place = _skip(text, 1)
    while text[place : place + 1] == '"':
        key, end = _decode(text, place)
        if end is None:
            return lists, None
        place = _skip(text, end, ":")
        value, end = _decode(text, place)
        if text[place : place + 1] == "[" and text[_skip(text, place + 1) :][:1] == "{":
            lists[key] = len(value) if end is not None else float("inf")
        if end is None:
            return lists, None
        place = _skip(text, end, ",")
    return lists, place + 1 if text[place : place + 1] == "}" else None


def _detect_csv(text: str, *, is_cut: bool) -> FileKind | None:
    if _has_carriage_returns_alone(text):
        return FileKind("carriage_returns")
    if re.match(r'\[?\s*\{\s*"', text):
        return FileKind("json_as_csv")
    separator = _find_separator(text, is_cut=is_cut)
    text = _SEPARATOR_LINE.sub("", text)
    head, *below = _widths(text, separator, is_cut=is_cut) or [0]
    if len(below) > 1 and len(set(below)) == 1 and below[0] > head:
        return FileKind("csv_head", f"{head} cells, all rows below have {below[0]}")
    return None


def detect_separator(head: bytes) -> str:
    """Return what separates the cells of a CSV file, from its first `HEAD_BYTES`: one of `SEPARATORS`."""
    return _find_separator(_text(head), is_cut=len(head) == HEAD_BYTES)


def _find_separator(text: str, *, is_cut: bool) -> str:
    if told := _SEPARATOR_LINE.match(text):
        return told[1]
    widths = {separator: _widths(text, separator, is_cut=is_cut) for separator in SEPARATORS}
    if not widths[","]:
        return ","
    head, *below = widths[","]
    for separator, other in widths.items():
        if other[0] > 1 and (head == 1 or (len(set(other)) == 1 and len({head, *below}) > 1)):
            return separator
    return ","


def _widths(text: str, separator: str, *, is_cut: bool) -> list[int]:
    """Count the cells of each record, without empty ones at its end."""
    records = [record for record in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if record]
    whole = records[:-1] if is_cut and len(records) > 1 else records
    return [max((place for place, cell in enumerate(record, 1) if cell.strip()), default=0) for record in whole]
