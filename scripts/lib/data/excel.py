"""Rows of an Excel workbook (.xlsx): those of its first sheet that holds any, named by the sheet's first row."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lib.core.cli import extract_first_line, fail, report_progress
from lib.core.limits import limit_memory_within
from lib.data.value_limits import compute_piece_mb

_PIECE = 1000  # rows that are in memory at a time


def read_excel(path: Path) -> Iterator[tuple[int, list[Any]]]:
    """Yield the cells of each row that has any, with its number in the sheet. Raises `UserError`, while reading too.

    Values are what the cells show last: of a formula its result, of an error nothing. Dates are `datetime`.
    """
    import openpyxl

    most_mb = compute_piece_mb(path)
    try:
        with limit_memory_within(most_mb):
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            sheets = [sheet for sheet in book.worksheets if next(_rows(sheet), None)]
        if sheets[1:]:
            others = ", ".join(repr(sheet.title) for sheet in sheets[1:4])
            report_progress(f"{path}: read is sheet {sheets[0].title!r}; not read: {others}")
        rows = _rows(sheets[0]) if sheets else iter(())
        while True:
            with limit_memory_within(most_mb):
                piece = list(islice(rows, _PIECE))
            if not piece:
                return
            yield from piece
    except MemoryError:
        fail(f"takes more than {most_mb:,} MB of memory", "save its sheet as CSV UTF-8", at=path)
    except Exception as error:  # of zipfile, of the parser of XML, and KeyError, ValueError, TypeError of openpyxl
        fail(f"not an Excel workbook: {extract_first_line(error).rstrip('.')}", "save its sheet as CSV UTF-8", at=path)


def _rows(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        values = [None if cell.data_type == "e" else cell.value for cell in cells]
        if any(value is not None for value in values):
            yield number, values
