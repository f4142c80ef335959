"""Readers of raw files: every row with the line it starts on.

JSON and CSV are read here and not by `datasets`: that has no line numbers, and its CSV reader turns
"NA" into null and "007" into 7. Parquet has types and no lines, so `datasets` reads it.
"""

import csv
import glob
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lib.cli import fail, first_line

_SPACE = re.compile(r"[ \t\r\n]*")  # what JSON calls white space
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
FORMATS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


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
    match path.suffix.lower():
        case ".json":
            return _read_json_list(path) if _first_byte(path) == b"[" else _read_json_lines(path)
        case ".jsonl" | ".ndjson":
            return _read_json_lines(path)
        case ".csv":
            return _read_csv(path)
        case ".parquet":
            return _read_parquet(path)
    fail("not a format that is read here", f"use {FORMATS}", at=path)


def json_ready(value: Any) -> Any:
    """A value of Parquet or the hub as JSON: NaN, their missing number, is null; dates are ISO text.

    Raises `ValueError` for values that JSON has no place for.
    """
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise ValueError("holds an infinite number")
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (Decimal, timedelta)):
        return str(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError(f"holds {type(value).__name__}, not text or numbers")


def typed_rows(rows: Iterable[dict[str, Any]]) -> Iterator[SourceRow]:
    """Rows that `datasets` read, numbered from 1."""
    for number, row in enumerate(rows, start=1):
        try:
            yield SourceRow(number, json_ready(row))
        except ValueError as error:
            yield SourceRow(number, {}, f"the row {error}")


def _first_byte(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


class _Json:
    """A JSON parser that notes what `json` lets pass: keys twice, NaN and numbers beyond a double.

    Notes rather than raises, so that the end of the value, and with it the next row, stays known.
    """

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._number
        )

    def read(self, text: str, start: int) -> tuple[Any, int, str | None]:
        """The value at `start`, where it ends, and what is wrong with it as a row. Raises `ValueError`."""
        self._problems.clear()
        value, end = self._decoder.raw_decode(text, start)
        if not isinstance(value, dict):
            self._problems.append("the row is not an object")
        elif text.find("\\u", start, end) >= 0 and not _is_unicode(json.dumps(value, ensure_ascii=False)):
            self._problems.append("half of a surrogate pair is not a character")
        return value, end, self._problems[0] if self._problems else None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            self._problems.append(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
        return value

    def _constant(self, name: str) -> None:
        self._problems.append(f"{name} is not JSON")

    def _number(self, text: str) -> float:
        value = float(text)
        if math.isinf(value):
            self._problems.append(f"the number {text} is too large")
        return value


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


def _read_json_lines(path: Path) -> Iterator[SourceRow]:
    parser = _Json()
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
                row, problem = {}, _reason(error)
            yield SourceRow(number, row, problem)


def _read_json_list(path: Path) -> Iterator[SourceRow]:
    """A list is one value: behind a break nothing can be told apart, so a break is never only a bad row."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fail("not UTF-8", "save the file as UTF-8", at=path, line=raw.count(b"\n", 0, error.start) + 1)
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
                _broken_list(path, text, broken, _reason(error))
            yield SourceRow(line, row, problem)
            place = _skip_space(text, place)
            separator = text[place : place + 1]
            if separator not in (",", "]"):
                _broken_list(path, text, place, "not JSON: no comma or ] behind the row")
            place = _skip_space(text, place + 1)
            if separator == "]":
                break
    place = _skip_space(text, place)
    if place < len(text):
        _broken_list(path, text, place, "not JSON: something follows the list")


def _skip_space(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return space.end() if space else place


def _broken_list(path: Path, text: str, place: int, what: str) -> NoReturn:
    if place >= (end := len(text.rstrip())):
        place, what = end, "the list is cut: the file ends inside it"
    fail(
        what,
        "mend the file; one broken row spares the others only in JSON Lines",
        at=path,
        line=text.count("\n", 0, place) + 1,
    )


def _read_csv(path: Path) -> Iterator[SourceRow]:
    """Cells are text, as they stand in the file. The first row names the columns."""
    undecodable: list[int] = []
    with open(path, "rb") as file:
        records = _csv_records(_decoded_lines(file, undecodable))
        names: list[str] | None = None
        for line, cells, problem in records:
            if undecodable:
                line, problem = undecodable[0], "not UTF-8"
                undecodable.clear()
            if names is None:
                names = _column_names(path, line, cells, problem)
                continue
            if problem is None and len(cells) != len(names):
                problem = f"{len(cells)} cells, but the first row names {len(names)} columns"
            yield SourceRow(line, {} if problem else dict(zip(names, cells, strict=True)), problem)


def _csv_records(lines: Iterable[str]) -> Iterator[tuple[int, list[str], str | None]]:
    """Line on which a record starts, its cells, and what is wrong with it; blank lines are no records."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, strict=True)
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


def _decoded_lines(file: Iterable[bytes], undecodable: list[int]) -> Iterator[str]:
    """Lines as text; the numbers of those that are not UTF-8 go to `undecodable`."""
    for number, raw in enumerate(file, start=1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            undecodable.append(number)
            yield raw.decode("utf-8", errors="replace")


def _column_names(path: Path, line: int, cells: list[str], problem: str | None) -> list[str]:
    names = [cell.strip() for cell in cells]
    if problem is None and len(set(names)) < len(names):
        problem = f"the column {next(name for name in names if names.count(name) > 1)!r} occurs twice"
    if problem is not None:
        fail(problem, "mend the first row, it names the columns", at=path, line=line)
    return names


def _read_parquet(path: Path) -> Iterator[SourceRow]:
    import datasets

    if "::" in str(path):
        fail("its name holds ::, which the reader of Parquet takes for an archive", "rename the file", at=path)
    try:
        # Streaming: no second copy of the data in a cache, and none of an older file with this name.
        rows = datasets.load_dataset("parquet", data_files=[glob.escape(str(path))], split="train", streaming=True)
        yield from typed_rows(rows)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        fail(f"not Parquet: {first_line(error)}", "write the file again", at=path)
