"""Readers of raw files: every row with the line it starts on.

A file that is something else as a whole is refused before its first row; see `lib.data.file_kinds`.

JSON and CSV are read here and not by `datasets`: that has no line numbers, and its CSV reader turns
"NA" into null and "007" into 7. Parquet has types and no lines: `lib.data.parquet`.

No row is larger or nested deeper than `MOST_CHARACTERS` and `DEEPEST` say: such a row is a fault of its own, like a
broken line.
"""

import csv
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any, NamedTuple, NoReturn

from lib.core.cli import fail, report_progress
from lib.data.compressed import read_gzip
from lib.data.excel import read_excel
from lib.data.file_kinds import SEPARATORS, detect_encoding, detect_file_kind, detect_separator, read_head, refuse
from lib.data.rows import NOT_TEXT

_SPACE = re.compile(r"[ \t\r\n]*")  # what JSON calls white space
DEEPEST = 100  # lists and objects in each other, the row among them: Python itself ends at some 1000
MOST_CHARACTERS = 64_000_000  # of a row as it stands in its file
TOO_DEEP = f"nested more than {DEEPEST} deep"
TOO_LARGE = f"the row has more than {MOST_CHARACTERS:,} characters"
_LONGEST_NUMBER = 4300  # digits: Python reads no longer ones
_TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (*_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES), ".xlsx", ".parquet")
FORMATS = f"{', '.join(_TEXT_SUFFIXES)}, each also as .gz, .xlsx or .parquet"


class SourceRow(NamedTuple):
    """A row of a file: `row`, or in `error` why it cannot be read. `line` counts from 1."""

    line: int
    row: dict[str, Any]
    error: str | None = None


def read_rows(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of a file, by its extension.

    Raises `UserError` when the file is missing, of another format, or broken as a whole.
    """
    if not path.is_file():
        fail("no such file" if not path.exists() else "not a file", "check the path", at=path)
    if is_readable(path) and path.suffix.lower() == ".gz":
        return read_gzip(path, read_rows)
    suffix = path.suffix.lower()
    if kind := detect_file_kind(read_head(path), suffix):
        refuse(kind, path)
    match suffix:
        case ".json":
            rows = _read_json_list(path) if _first_byte(path) == b"[" else _read_json_lines(path)
        case ".jsonl" | ".ndjson":
            rows = _read_json_lines(path)
        case ".csv" | ".tsv":
            rows = _read_csv(path, _choose_separator(path, suffix))
        case ".xlsx":
            rows = _read_excel(path)
        case ".parquet":
            from lib.data.parquet import read_parquet

            return convert_typed_rows(*read_parquet(path))
        case _:
            fail("this format cannot be read", f"use {FORMATS}", at=path)
    return map(_shallow, rows)


def is_readable(path: PurePath) -> bool:
    """Return whether rows are read from files of this name."""
    return path.name.lower().endswith(SUFFIXES)


def _shallow(source: SourceRow) -> SourceRow:
    """Return the row, or what is wrong with it where it is nested so deeply that a later reader would end in it."""
    if source.error is None and _is_deep(source.row):
        return SourceRow(source.line, {}, TOO_DEEP)
    return source


def _is_deep(value: Any) -> bool:
    """Return whether a value has more than `DEEPEST` lists and objects in each other."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def convert_to_json(value: Any) -> Any:
    """Return a value as JSON: NaN, a missing number, is null; dates are ISO text.

    What JSON has no place for becomes `{NOT_TEXT: "bytes"}`: only a template that names the column is told of it.
    """
    if isinstance(value, dict):
        return {_without_half_pairs(str(key)): convert_to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [convert_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else {NOT_TEXT: "an infinite number"}
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (Decimal, timedelta)):
        return str(value)
    if isinstance(value, str) and not _is_unicode(value):
        return {NOT_TEXT: "text with half of a surrogate pair"}
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return {NOT_TEXT: type(value).__name__}


def convert_typed_rows(rows: Iterable[Mapping[str, Any]], features: Mapping[str, Any]) -> Iterator[SourceRow]:
    """Yield rows of Parquet or the hub, numbered from 1, labels by their names. features: those of `datasets`."""
    for number, row in enumerate(rows, start=1):
        named = {name: _with_label_names(value, features.get(name)) for name, value in row.items()}
        if sum(len(value) for value in row.values() if isinstance(value, (str, bytes))) > MOST_CHARACTERS:
            yield SourceRow(number, {}, TOO_LARGE)
        elif _is_deep(named):
            yield SourceRow(number, {}, TOO_DEEP)
        else:
            yield SourceRow(number, convert_to_json(named))


def _with_label_names(value: Any, feature: Any) -> Any:
    """Return the value with the names of its `ClassLabel`s in the place of their numbers; -1, no label, is null."""
    if isinstance(feature, dict) and isinstance(value, dict):
        return {name: _with_label_names(item, feature.get(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_label_names(item, getattr(feature, "feature", None)) for item in value]
    names = getattr(feature, "names", None)
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _first_byte(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


class _Json:
    """A JSON parser that notes what `json` lets pass: keys twice, and values that are no JSON (NaN, 1e999, half pairs).

    Notes rather than raises, so that the end of the value, and with it the next row, stays known.
    """

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._is_json = True
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._number,
            parse_float=self._number,
            parse_int=self._integer,
        )

    def read(self, text: str, start: int) -> tuple[Any, int, str | None]:
        """Return the value at `start`, where it ends, and what is wrong with it as a row. Raises `ValueError`."""
        self._problems.clear()
        self._is_json = True
        value, end = self._decoder.raw_decode(text, start)
        if not isinstance(value, dict):
            self._problems.append("the row is not an object")
        if end - start > MOST_CHARACTERS:
            self._problems.append(TOO_LARGE)
        if text.find("\\u", start, end) >= 0 and not _is_unicode(json.dumps(value, ensure_ascii=False)):
            self._is_json = False
        return value if self._is_json else convert_to_json(value), end, self._problems[0] if self._problems else None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            self._problems.append(f"the key {_most_frequent(key for key, _ in pairs)!r} occurs twice")
        return value

    def _integer(self, text: str) -> int:
        if len(text) <= _LONGEST_NUMBER:
            return int(text)
        self._problems.append(f"a number of {len(text)} digits")
        return 0

    def _number(self, text: str) -> float:
        value = float(text)
        self._is_json &= math.isfinite(value)
        return value


def _most_frequent(names: Iterable[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _without_half_pairs(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, RecursionError):
        return "not JSON: nested too deeply"
    return f"not JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else f"not JSON: {error}"


class _Encoding:
    """Refuses a file in another encoding once a line is not UTF-8; a broken line of a UTF-8 file passes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_checked = False

    def check(self, line: int) -> None:
        if not self._is_checked and (kind := detect_encoding(self._path)):
            refuse(kind, self._path, line)
        self._is_checked = True


def _read_json_lines(path: Path) -> Iterator[SourceRow]:
    parser, encoding = _Json(), _Encoding(path)
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \t\r\n")
                if not text:
                    continue
                row, end, problem = parser.read(text, 0)
                if end < len(text):
                    problem = f"not JSON: something follows the object in column {_skip_space(text, end) + 1}"
            except (ValueError, RecursionError) as error:
                if isinstance(error, UnicodeDecodeError):
                    encoding.check(number)
                row, problem = {}, _reason(error)
            yield SourceRow(number, row, problem)


def _read_json_list(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of a list. It is one value: behind a break no row can be recognized, so a break ends the file."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        _Encoding(path).check(line)
        fail("not UTF-8", "save the file as UTF-8", at=path, line=line)
    del raw
    parser = _Json()
    line, counted = 1, 0
    place = _skip_space(text, _skip_space(text, 0) + 1)
    if text[place : place + 1] == "]":
        place += 1
    else:
        while True:
            line, counted = line + text.count("\n", counted, place), place
            try:
                row, place, problem = parser.read(text, place)
            except (ValueError, RecursionError) as error:
                broken = error.pos if isinstance(error, json.JSONDecodeError) else place
                _refuse_list(path, text, broken, _reason(error))
            yield SourceRow(line, row, problem)
            place = _skip_space(text, place)
            separator = text[place : place + 1]
            if separator not in (",", "]"):
                _refuse_list(path, text, place, "not JSON: no comma or ] behind the row")
            place = _skip_space(text, place + 1)
            if separator == "]":
                break
    place = _skip_space(text, place)
    if place < len(text):
        _refuse_list(path, text, place, "not JSON: something follows the list")


def _skip_space(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return space.end() if space else place


def _refuse_list(path: Path, text: str, place: int, what: str) -> NoReturn:
    if place >= (end := len(text.rstrip())):
        place, what = end, "the list is cut: the file ends inside it"
    fail(
        what,
        "mend the file; one broken row spares the others only in JSON Lines",
        at=path,
        line=text.count("\n", 0, place) + 1,
    )


def _choose_separator(path: Path, suffix: str) -> str:
    """Return what separates the cells of a file, and say so where its name does not."""
    separator = detect_separator(read_head(path))
    if suffix == ".csv" and separator != ",":
        report_progress(f"{path}: cells are separated by {SEPARATORS[separator]}")
    return "\t" if suffix == ".tsv" and separator == "," else separator


def _read_csv(path: Path, separator: str) -> Iterator[SourceRow]:
    """Yield rows whose cells are text, as they stand in the file. The first row names the columns.

    A column without a name is called by its place (`column 1`: the index of pandas); its empty cells are left out.
    """
    undecodable: list[int] = []
    encoding = _Encoding(path)
    with open(path, "rb") as file:
        records = _csv_records(_decode_lines(file, undecodable), separator)
        names: list[str] | None = None
        for line, cells, problem in records:
            if undecodable:
                line, problem = undecodable[0], "not UTF-8"
                undecodable.clear()
                encoding.check(line)
            if names is None and line == 1 and _is_separator_line(cells):
                continue
            if names is None:
                names = _column_names(path, line, cells, problem)
                continue
            missing = len(names) - len(cells)
            if problem is None and sum(map(len, cells)) > MOST_CHARACTERS:
                problem = TOO_LARGE
            if problem is None and (missing > 0 or any(cell.strip() for cell in cells[len(names) :])):
                problem = f"{len(cells)} cells, but the first row names {len(names)} columns"
            yield SourceRow(line, {} if problem else _name_cells(names, cells), problem)


def _read_excel(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of a workbook, whose first row names the columns; `line` is the number in the sheet."""
    names: list[str] | None = None
    for line, cells in read_excel(path):
        if names is None:
            names = _column_names(path, line, ["" if cell is None else str(cell) for cell in cells], None)
            continue
        problem = None
        if any(cell is not None for cell in cells[len(names) :]):
            problem = f"{len(cells)} cells, but the first row names {len(names)} columns"
        row = {name: cell for name, cell in zip(names, cells, strict=False) if name}
        yield SourceRow(line, {} if problem else convert_to_json(row), problem)


def _name_cells(names: list[str], cells: list[str]) -> dict[str, str]:
    pairs = list(zip(names, cells, strict=False))  # more cells than names are empty
    nameless = {f"column {place}": cell for place, (name, cell) in enumerate(pairs, 1) if cell and not name}
    return nameless | {name: cell for name, cell in pairs if name}


def _is_separator_line(cells: list[str]) -> bool:
    """Return whether a first row is Excel's `sep=;`, cut at that separator."""
    return len(cells) == 2 and cells[0] == "sep=" and not cells[1]


def _csv_records(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str], str | None]]:
    """Yield the line on which a record starts, its cells, and what is wrong with it; blank lines are no records."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, strict=True, delimiter=separator)
    while True:
        line = reader.line_num + 1
        cells: list[str] = []
        problem = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not CSV: {error}"
        if cells or problem:
            yield line, cells, problem


def _decode_lines(file: Iterable[bytes], undecodable: list[int]) -> Iterator[str]:
    """Yield lines as text; the numbers of those that are not UTF-8 go to `undecodable`."""
    for number, raw in enumerate(file, start=1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            undecodable.append(number)
            yield raw.decode("utf-8", errors="replace")


def _column_names(path: Path, line: int, cells: list[str], problem: str | None) -> list[str]:
    """Return names of the columns; empty ones at the end name none."""
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    given = [name for name in names if name]
    if problem is None and not given:
        problem = "the first row names no column"
    if problem is None and len(set(given)) < len(given):
        problem = f"the column {_most_frequent(given)!r} occurs twice"
    if problem is not None:
        fail(problem, "mend the first row, it names the columns", at=path, line=line)
    return names
