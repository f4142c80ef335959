"""Raw rows from files, hub and package: every row with its exact place, every fault in one clear line."""

import argparse
import gzip
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from datetime import datetime
from pathlib import Path

import fetch_data
import openpyxl
import pyarrow.parquet
import pytest

from lib.core.cli import UserError
from lib.core.files import read_jsonl
from lib.data import readers, value_limits
from lib.data.file_kinds import detect_file_kind
from lib.data.rows import NOT_TEXT
from lib.sources import pypi
from support.fake_hub import COMMIT, FakeHub
from support.paths import SCRIPTS
from support.workspaces import HOSTILE

SCRIPT = Path(fetch_data.__file__)


def fetch(tmp_path: Path, *files: tuple[str, bytes | str], unreadable: str = "error") -> list[dict]:
    """Write the files, fetch them, return what was written."""
    paths = []
    for name, content in files:
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content.encode() if isinstance(content, str) else content)
    names = [f"data/{name}" for name, _ in files]
    return fetch_source(tmp_path, {"files": names}, paths, unreadable)


def fetch_source(tmp_path: Path, source: dict, paths: list[Path], unreadable: str = "error") -> list[dict]:
    output = tmp_path / "rows.jsonl"
    settings = {"source": source, "unreadable": unreadable}
    fetch_data.main(argparse.Namespace(settings=settings, files=paths, output=output))
    return list(read_jsonl(output))


def refusal(tmp_path: Path, name: str, content: bytes | str, unreadable: str = "error") -> str:
    """The error message, with the folder left out; nothing may be written."""
    with pytest.raises(UserError) as error:
        fetch(tmp_path, (name, content), unreadable=unreadable)
    assert not list(tmp_path.glob("rows.jsonl*"))
    return str(error.value).replace(f"{tmp_path}/", "")


def places(rows: list[dict]) -> list[tuple]:
    return [(row["line"], row.get("row", row.get("error"))) for row in rows]


PRETTY = """[
  {
    "text": "one\\ntwo",
    "label": "joy"
  },

  {"text": "[}", "label": null}, {"text": 7,
    "nested": {"a": [1, true]}}
]
"""


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_json_list_gives_the_line_where_each_object_starts(tmp_path, newline, mark):
    rows = fetch(tmp_path, ("a.json", mark + PRETTY.replace("\n", newline)))
    assert places(rows) == [
        (2, {"text": "one\ntwo", "label": "joy"}),
        (7, {"text": "[}", "label": None}),
        (7, {"text": 7, "nested": {"a": [1, True]}}),
    ]
    assert {row["file"] for row in rows} == {"data/a.json"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_json_lines_in_any_dress(tmp_path, name):
    content = '\ufeff{"t": "a\u2028b"}\r\n\r\n  {"t": "ü"}  \n{"t": "007"}'  # U+2028 is no line end in JSON
    assert places(fetch(tmp_path, (name, content))) == [(1, {"t": "a\u2028b"}), (3, {"t": "ü"}), (4, {"t": "007"})]


def test_several_files_in_their_order_with_the_names_of_the_configuration(tmp_path):
    rows = fetch(tmp_path, ("b.jsonl", '{"t": 1}\n'), ("a.csv", "t\nx\n"))
    assert [(row["file"], row["line"]) for row in rows] == [("data/b.jsonl", 1), ("data/a.csv", 2)]


def test_csv_cells_stay_the_text_they_are(tmp_path):
    content = '\ufefftext,label\r\nNA,007\r\n"two\nlines, ""quoted""",1.10\r\n\r\n ,null\r\n'
    assert places(fetch(tmp_path, ("a.csv", content))) == [
        (2, {"text": "NA", "label": "007"}),
        (3, {"text": 'two\nlines, "quoted"', "label": "1.10"}),
        (6, {"text": " ", "label": "null"}),
    ]


def test_csv_cell_may_be_longer_than_the_limit_of_the_library(tmp_path):
    assert len(fetch(tmp_path, ("a.csv", "t\n" + "x" * 200_000 + "\n"))[0]["row"]["t"]) == 200_000


BROKEN_ROWS = {
    "cut.jsonl": (b'{"t": 1}\n{"t": \n{"t": 3}\n', 2, "not JSON"),
    "two.jsonl": (b'{"t": 1}\n{"t": 2} {"t": 3}\n{"t": 3}\n', 2, "something follows the object in column 10"),
    "keys.jsonl": (b'{"t": 1}\n{"t": 2, "t": 3}\n{"t": 3}\n', 2, "'t' occurs twice"),
    "deep_keys.json": (b'[{"t": 1},\n{"n": {"a": 2, "a": 3}},\n{"t": 3}]', 2, "'a' occurs twice"),
    "list.jsonl": (b'{"t": 1}\n["t"]\n{"t": 3}\n', 2, "not an object"),
    "text.json": (b'[{"t": 1},\n"t",\n{"t": 3}]', 2, "not an object"),
    "bytes.jsonl": ('{"t": "é"}\n'.encode() + b'{"t": "\xff"}\n{"t": 3}\n', 2, "not UTF-8"),
    "deep.jsonl": (b'{"t": 1}\n' + b'{"t":' * 100_000 + b'\n{"t": 3}\n', 2, "nested too deeply"),
    "digits.jsonl": (b'{"t": 1}\n{"t": ' + b"9" * 5000 + b'}\n{"t": 3}\n', 2, "a number of 5000 digits"),
    "few.csv": (b"t,u\n1,1\n2\n3,3\n", 3, "1 cells, but the first row names 2 columns"),
    "many.csv": (b"t,u\n1,1\n2,2,2\n3,3\n", 3, "3 cells"),
    "bytes.csv": ("t,u\né,1\n".encode() + b"\xe9,2\n3,3\n", 3, "not UTF-8"),
    "quote.csv": (b't,u\n1,1\n"2"x,2\n3,3\n', 3, "not CSV"),
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_broken_row_stops_with_its_line_or_is_set_aside(tmp_path, name):
    content, line, reason = BROKEN_ROWS[name]
    message = refusal(tmp_path, name, content)
    assert message.startswith(f"{name}, row 2 (line {line}): " if name.endswith(".json") else f"{name}:{line}: ")
    assert reason in message
    assert "data.unreadable: reject" in message
    assert "\n" not in message
    rows = fetch(tmp_path, (name, content), unreadable="reject")
    assert ["error" in row for row in rows] == [False, True, False]
    assert rows[1]["line"] == line
    assert reason in rows[1]["error"]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("one_line.json", '[{"t": 1}, {"t": 2}, {"t": 1, "t": 2}]', "one_line.json, row 3 (line 1): "),
        ("long_cells.csv", 'a,b\n"x\ny\nz",1\n1,2,3\n', "long_cells.csv, row 2 (line 5): "),
        ("rows.csv", "a,b\n1,2\n1,2,3\n", "rows.csv:3: "),
        ("lines.jsonl", '{"t": 1}\n{"t": 1, "t": 2}\n', "lines.jsonl:2: "),
        ("blank_lines.jsonl", '\n\n{"t": 1}\n{"t": 1, "t": 2}\n', "blank_lines.jsonl, row 2 (line 4): "),
    ],
)
def test_a_row_is_named_by_its_number_where_its_line_does_not_tell_it(tmp_path, name, content, place):
    assert refusal(tmp_path, name, content).startswith(place)
    number = int(place.partition("row ")[2].split()[0]) if "row " in place else 2
    rows = fetch(tmp_path, (name, content), unreadable="reject")
    assert next(row["number"] for row in rows if "error" in row) == number


def parquet(columns: dict | list) -> bytes:
    """A file of the columns; a list of pairs may name one twice."""
    import pyarrow
    import pyarrow.parquet

    names, values = zip(*(columns.items() if isinstance(columns, dict) else columns), strict=True)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table([pyarrow.array(one) for one in values], names=list(names)), buffer)
    return buffer.getvalue()


BROKEN_FILES = {
    "empty.json": ("", "holds no rows"),
    "empty_list.json": ("[ \n ]\n", "holds no rows"),
    "empty.jsonl": ("\n\n", "holds no rows"),
    "header.csv": ("text,label\n", "holds no rows"),
    "cut.json": ('[{"t": 1},\n {"t":\n', "cut.json:2: the list is cut"),
    "cut_between.json": ('[\n{"t": 1}\n', "cut_between.json:2: the list is cut"),
    "comma.json": ('[\n{"t": 1}\n{"t": 2}]', "comma.json:3: not JSON: no comma"),
    "trailing.json": ('[\n{"t": 1},\n]', "trailing.json:3: not JSON"),
    "behind.json": ('[{"t": 1}]\n]', "behind.json:2: not JSON: something follows the list"),
    "bytes.json": ('[{"t": "é"},\n{"t": "'.encode() + b'\xff"}]', "bytes.json:2: not UTF-8; save"),
    "nameless.csv": (",,\n1,2,3\n", "nameless.csv:1: the first row names no column"),
    "twice.csv": ("t,t\n1,2\n", "twice.csv:1: the column 't' occurs twice"),
    "rows.txt": ("x", "this format cannot be read"),
    "rows.parquet": ("x" * 100, "rows.parquet: not Parquet"),
    "twice.parquet": (parquet([("t", ["a"]), ("t", ["b"])]), "the column 't' occurs twice"),
}


@pytest.mark.parametrize("unreadable", ["error", "reject"])
@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_file_is_one_clear_line_whatever_the_policy(tmp_path, name, unreadable):
    content, reason = BROKEN_FILES[name]
    message = refusal(tmp_path, name, content, unreadable)
    assert message.startswith(name)
    assert reason in message
    assert "\n" not in message


def test_unclosed_quote_names_the_row_where_it_opens(tmp_path):
    assert refusal(tmp_path, "a.csv", 't\n1\n"2\n3\n4\n').startswith("a.csv:3: not CSV")


def test_missing_file_and_exit_code(tmp_path, run_script):
    settings = {"source": {"files": ["gone.json"]}, "unreadable": "error"}
    output = tmp_path / "rows.jsonl"
    done = run_script(
        "fetch_data", "--settings", settings, "--files", tmp_path / "gone.json", "--output", output, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/gone.json: no such file; check the path\n"


def test_later_broken_file_leaves_no_rows_of_the_first(tmp_path):
    with pytest.raises(UserError):
        fetch(tmp_path, ("a.jsonl", '{"t": 1}\n'), ("b.jsonl", "{\n"))
    assert not list(tmp_path.glob("rows.jsonl*"))


def test_parquet_rows_are_numbered_and_become_json(tmp_path):
    from datetime import date

    import pyarrow

    columns = {
        "text": ["007", "NA", None],
        "n": [1.5, float("nan"), 2.0],
        "nested": [{"a": 1}, {"a": 2}, {"a": 3}],
        "day": [date(2024, 1, 2)] * 3,
        "map": pyarrow.array(
            [[("k", 1)]] * 3, type=pyarrow.map_(pyarrow.string(), pyarrow.int64())
        ),  # no type of datasets
    }
    assert places(fetch(tmp_path, ("a.parquet", parquet(columns)))) == [
        (1, {"text": "007", "n": 1.5, "nested": {"a": 1}, "day": "2024-01-02", "map": [["k", 1]]}),
        (2, {"text": "NA", "n": None, "nested": {"a": 2}, "day": "2024-01-02", "map": [["k", 1]]}),
        (3, {"text": None, "n": 2.0, "nested": {"a": 3}, "day": "2024-01-02", "map": [["k", 1]]}),
    ]


def test_a_parquet_file_is_known_by_its_name_and_not_by_a_pattern(tmp_path):
    """Some readers take `*`, `?` and `[]` for patterns, and `::` for an archive."""
    other = tmp_path / "a1 b.parquet"
    other.write_bytes(parquet({"x": ["wrong"]}))
    for name in ("a[1]?b.parquet", "a*b.parquet", "a::b.parquet", f"{HOSTILE}.parquet"):
        assert [row["row"] for row in fetch(tmp_path, (name, parquet({"x": [name]})))] == [{"x": name}]


JSON_ROWS = '{"text": "one", "label": "calm"}\n{"text": "two, or so", "label": "angry"}\n' * 3
PRETTY_ROW = '{\n  "text": "one",\n  "label": "calm"\n}\n'
CSV_ROWS = "text,label\none,calm\ntwo,angry\nthree,calm\n"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
# What the bytes are, the names under which they come, and what must be said of them.
WHOLE_FILES = {
    "lfs": (LFS, "jsonl csv parquet", "Git LFS pointer", "git lfs pull"),
    "annex": ("/annex/objects/SHA256E-s12--4d7a.csv\n", "csv", "git-annex pointer", "git annex get"),
    "html": ("\n<!DOCTYPE html><html><body>Log in</body></html>", "json csv parquet", "HTML page", "download"),
    "gzip": (gzip.compress(JSON_ROWS.encode()), "jsonl csv", "compressed (gzip)", "end in .gz"),
    "not_gzip": (JSON_ROWS, "jsonl.gz csv.gz", "not a whole gzip file", "fetch it again"),
    "cut_gzip": (gzip.compress(JSON_ROWS.encode())[:-9], "jsonl.gz", "not a whole gzip file", "fetch it again"),
    "gzip_of_zeros": (gzip.compress(bytes(150_000_000)), "jsonl.gz", "unpacks to more than 1", "unpack it"),
    "gzip_of_gzip": (gzip.compress(gzip.compress(JSON_ROWS.encode())), "jsonl.gz", "compressed (gzip)", "end in .gz"),
    "excel": (b"PK\x03\x04" + bytes(26) + b"xl/workbook.xml", "csv", "Excel workbook", "end in .xlsx, or save its sheet as CSV"),
    "not_excel": (b"PK\x03\x04" + bytes(26) + b"xl/workbook.xml", "xlsx", "not an Excel workbook", "save its sheet as CSV"),
    "old_excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "csv xlsx", "an old Excel workbook", "save it as .xlsx"),
    "zip": (b"PK\x03\x04" + bytes(26) + b"rows.csv", "csv zip", "zip archive", "unpack"),
    "utf16": (JSON_ROWS.encode("utf-16"), "jsonl json csv", "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    "utf16_unmarked": (CSV_ROWS.encode("utf-16-be"), "csv jsonl", "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    "utf32": (CSV_ROWS.encode("utf-32"), "csv", "UTF-32", "iconv -f UTF-32 -t UTF-8"),
    "cp1252": (CSV_ROWS.replace("one", "café £5").encode("cp1252"), "csv", "csv:2: not UTF-8, likely Windows-1252", "iconv -f WINDOWS-1252 -t UTF-8"),
    "cp1252_late": (("t,u\n" + "a,b\n" * 50_000 + "ü,b\n").encode("cp1252"), "csv", "csv:50002: not UTF-8, likely", "iconv -f WINDOWS-1252 -t UTF-8"),
    "cp1252_json": ((JSON_ROWS + '{"text": "ü"}\n').encode("cp1252"), "jsonl", "jsonl:7: not UTF-8, likely Windows", "iconv -f WINDOWS-1252 -t UTF-8"),
    "cp1252_list": ('[\n{"t": "ü"}]'.encode("cp1252"), "json", "json:2: not UTF-8, likely Windows", "iconv -f WINDOWS-1252 -t UTF-8"),
    "shift_jis": ("t,u\n日本語,テスト\n".encode("shift-jis"), "csv", "csv:2: not UTF-8, in an unknown", "as UTF-8"),
    "cr": (CSV_ROWS.replace("\n", "\r"), "csv", "CR alone", "LF or CRLF"),
    "cr_json": (JSON_ROWS.replace("\n", "\r"), "jsonl json", "CR alone", "LF or CRLF"),
    "list": (json.dumps([{"t": 1}, {"t": 2}]), "jsonl ndjson", "a JSON list, not JSON Lines", "end in .json"),
    "long_list": (json.dumps([{"t": "x" * 200_000}], indent=1), "jsonl", "a JSON list", "end in .json"),
    "pretty": (PRETTY_ROW, "json jsonl", "one JSON object over several lines", "each row on one line"),
    "pretties": (PRETTY_ROW * 3, "json jsonl", "one behind the other", "each on one line"),
    "commas": (PRETTY_ROW.rstrip() + ",\n" + PRETTY_ROW, "json", "one behind the other", "in a list"),
    "key": (json.dumps({"version": [1], "data": [{"t": 1}] * 9, "by": [{"a": 1}]}, indent=2), "json", "key 'data'", "that list alone"),
    "long_key": (json.dumps({"v": {"x": [1]}, "rows": [{"t": "x" * 99}] * 9999}, indent=2), "json", "key 'rows'", "that list"),
    "key_by_line": ('{"data": [\n{"t": 1},\n{"t": 2}]}', "json", "key 'data'", "that list alone"),
    "columns": (json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "c", "1": "d"}}), "json", "of columns", 'orient="records"'),
    "texts": (json.dumps(["one", "two"]), "json", "texts or numbers, not objects", '{"column": "value"'),
    "lists": ('["one", "calm"]\n["two", "angry"]\n', "jsonl json", "lists, not objects", '{"column": "value"'),
    "trailing_commas": ('{"t": 1},\n{"t": 2},\n', "jsonl json", "commas between", "take the commas away"),
    "python": ("{'t': 1}\n{'t': 2}\n", "jsonl json", "Python dictionaries", "json.dumps"),
    "csv_as_json": (CSV_ROWS, "json jsonl", "begins with 'text,label'", "name it after its format"),
    "json_as_csv": (JSON_ROWS, "csv", "JSON under the name of CSV", "end in .json"),
    "title": ("Export of 2024\n" + CSV_ROWS, "csv", "the first row has 1 cells, all rows below have 2", "name every column"),
    "parquet": (b"PAR1" + bytes(50), "csv json", "a Parquet file", "end in .parquet"),
    "no_keys": ("{t: 1}\n{t: 2}\n", "jsonl json", "no line of its beginning is one JSON object", "on one line"),
    "records": ('\x1e{"t": 1}\n\x1e{"t": 2}\n', "json", "it begins with", "name it after its format"),
    "split_columns": (json.dumps({"columns": ["t"], "data": [["a"]]}), "json", "of columns", 'orient="records"'),
    "binary": (bytes(range(256)) * 9, "csv jsonl", "a binary file", "name a file of rows"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "suffix"), [(case, one) for case in WHOLE_FILES for one in WHOLE_FILES[case][1].split()]
)
def test_a_file_that_is_something_else_is_named_with_what_to_do(tmp_path, case, suffix):
    content, _, what, hint = WHOLE_FILES[case]
    message = refusal(tmp_path, f"raw.{suffix}", content, unreadable="reject")
    assert message.startswith(f"raw.{suffix}:")
    assert what in message
    assert hint in message.partition("; ")[2]
    assert "unreadable" not in message
    assert "\n" not in message


SEPARATED = {
    "semicolons.csv": 'text;label\r\n"one; or so";calm\r\ntwo;angry\r\n',
    "comma_in_head.csv": "text;label\n1;a\n2,5;b\n",
    "sep.csv": "sep=;\ntext;label\none;calm\ntwo;angry\n",
    "sep_comma.csv": "sep=,\n" + CSV_ROWS,
    "tabs.csv": CSV_ROWS.replace(",", "\t"),
    "tabs.tsv": CSV_ROWS.replace(",", "\t"),
    "one_column.tsv": "text\none\n",
    "bars.csv": CSV_ROWS.replace(",", "|"),
}


@pytest.mark.parametrize("name", SEPARATED)
def test_cells_are_separated_by_what_the_file_shows_and_a_line_says_so(tmp_path, name, capsys):
    path = tmp_path / name
    path.write_bytes(SEPARATED[name].encode())
    rows = list(readers.read_rows(path))
    assert not any(row.error for row in rows)
    assert rows[0].row["text" if name != "comma_in_head.csv" else "label"] in ("one", "one; or so", "a")
    assert rows[0].line == (3 if name.startswith("sep") else 2)
    told = name.endswith(".csv") and name != "sep_comma.csv"
    assert ("cells are separated by" in capsys.readouterr().err) == told


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.json.gz"])
def test_gzipped_files_are_read_like_what_is_in_them(tmp_path, name):
    plain, packed = tmp_path / name.removesuffix(".gz"), tmp_path / name
    plain.write_text({"l": JSON_ROWS, "v": CSV_ROWS, "n": json.dumps([{"t": 1}])}[plain.name[-1]])
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(readers.read_rows(packed)) == list(readers.read_rows(plain))
    plain.write_text("a,a\n" if ".csv" in name else "[{}, {" if ".json." in name else PRETTY_ROW)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(UserError) as caught:
        list(readers.read_rows(packed))
    assert str(caught.value).startswith(f"{packed}:"), "the name that people know"


def test_a_workbook_is_read_by_the_first_row_of_its_first_sheet_with_rows(tmp_path, capsys):
    book = openpyxl.Workbook()
    book.active.title = "Empty"
    for row in (
        [],
        ["text", "score", "day", None],
        ["one", 7, datetime(2026, 11, 1)],
        [],
        [None, 0.5, None],
        [1, 2, 3, 4],
    ):
        book.create_sheet("Rows") if "Rows" not in book.sheetnames else None
        book["Rows"].append(row)
    book.create_sheet("Notes").append(["x"])
    book.save(tmp_path / "rows.xlsx")
    first, second, third = readers.read_rows(tmp_path / "rows.xlsx")
    assert first == (3, {"text": "one", "score": 7, "day": "2026-11-01T00:00:00"}, None)
    assert second == (5, {"text": None, "score": 0.5, "day": None}, None)
    assert (third.line, third.error) == (6, "4 cells, but the first row names 3 columns")
    assert "read is sheet 'Rows'; not read: 'Notes'" in capsys.readouterr().err


def test_a_small_workbook_of_a_large_text_takes_little_memory_and_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(value_limits, "_PIECE_MB", 40)
    book = openpyxl.Workbook()
    book.active.append(["text"])
    book.save(tmp_path / "plain.xlsx")
    with zipfile.ZipFile(tmp_path / "plain.xlsx") as plain, zipfile.ZipFile(tmp_path / "rows.xlsx", "w") as packed:
        for name in plain.namelist():
            content = plain.read(name)
            if name.endswith("sheet1.xml"):
                content = content.replace(b"<t>text</t>", b"<t>" + b"x" * 100_000_000 + b"</t>")
            packed.writestr(name, content, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "rows.xlsx").stat().st_size < 200_000
    with pytest.raises(UserError, match=r"rows\.xlsx: (takes more than 4\d MB of memory|not an Excel workbook)"):
        list(readers.read_rows(tmp_path / "rows.xlsx"))


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("one_row.json", '{"data": [{"t": 1}]}', 1),  # a conversation is such a row, too
        ("long_row.jsonl", '{"messages": [{"t": "' + "x" * 99_999 + '"}]}\n{"messages": []}\n', 2),
        ("scores.jsonl", '{"by": {"0": 1}}\n{"by": {"0": 2}}\n', 2),
        ("one_column.csv", "text\na;b\nc;d\n", 2),
        ("semicolons_in_texts.csv", "text,label\na;b,c\nd;e,f\n", 2),
        ("nul.csv", "text,label\na\0b,c\nd,e\n", 2),
        ("header_lists.csv", "text,label\n[a],b\n{c},d\n", 2),
    ],
)
def test_a_file_that_looks_a_little_like_something_else_is_read(tmp_path, name, content, count):
    assert len(fetch(tmp_path, (name, content))) == count


def test_weights_are_looked_at_as_well():
    header = b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    whole = len(header).to_bytes(8, "little") + header + bytes(36)
    assert detect_file_kind(whole, ".safetensors") is None
    assert detect_file_kind(b"GGUF" + bytes(99), ".gguf") is None
    for suffix in (".safetensors", ".gguf", ""):
        assert detect_file_kind(LFS.encode(), suffix).name == "git_lfs_pointer"


def test_values_that_json_has_no_place_for_are_named_and_stop_nothing(tmp_path):
    infinite = parquet({"x": ["a", "b"], "raw": [None, b"\x00"], "n": [float("inf"), 1.0]})
    assert [row["row"] for row in fetch(tmp_path, ("a.parquet", infinite))] == [
        {"x": "a", "raw": None, "n": {NOT_TEXT: "an infinite number"}},
        {"x": "b", "raw": {NOT_TEXT: "bytes"}, "n": 1.0},
    ]
    lines = '{"x": "a", "n": NaN, "m": [-Infinity, 1e999]}\n{"x": "b", "y": "\\ud83d", "\\ude00": 1}\n'
    half = {NOT_TEXT: "text with half of a surrogate pair"}
    for name, content in [("a.jsonl", lines), ("a.json", f"[{','.join(lines.split(chr(10))[:2])}]")]:
        assert [row["row"] for row in fetch(tmp_path, (name, content))] == [
            {"x": "a", "n": None, "m": [{NOT_TEXT: "an infinite number"}] * 2},
            {"x": "b", "y": half, "\\ude00": 1},
        ]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("v1,v2,,,\ncalm,one,,,\nangry,two,,,\n", [{"v1": "calm", "v2": "one"}, {"v1": "angry", "v2": "two"}]),
        ("v1,v2\ncalm,one,\n", [{"v1": "calm", "v2": "one"}]),
        (",v1,,v2\n0,calm,,one\n1,angry,x,two\n", [
            {"column 1": "0", "v1": "calm", "v2": "one"},
            {"column 1": "1", "column 3": "x", "v1": "angry", "v2": "two"},
        ]),
    ],
)  # fmt: skip
def test_csv_columns_without_a_name_are_left_out_or_called_by_their_place(tmp_path, content, rows):
    assert [row["row"] for row in fetch(tmp_path, ("a.csv", content))] == rows


def test_a_cell_behind_the_named_columns_is_a_broken_row(tmp_path):
    assert refusal(tmp_path, "a.csv", "v1,v2,,\ncalm,one,,\ncalm,two, too,\n").startswith("a.csv:3: 4 cells, but the")


LABELED = [
    {"t": "007", "label": "angry", "all": ["calm", "angry"]},
    {"t": "NA", "label": "calm", "all": []},
    {"t": "c", "label": None, "all": ["angry"]},
]


def labeled_dataset():
    import datasets

    names = datasets.ClassLabel(names=["calm", "angry"])
    features = datasets.Features({"t": datasets.Value("string"), "label": names, "all": datasets.List(names)})
    rows = {"t": ["007", "NA", "c"], "label": [1, 0, -1], "all": [[0, 1], [], [1]]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_labels_of_a_dataset_keep_their_names(tmp_path):
    path = tmp_path / "a.parquet"
    labeled_dataset().to_parquet(path)
    assert [row["row"] for row in fetch_source(tmp_path, {"files": ["a.parquet"]}, [path])] == LABELED


def test_json_lines_stream(tmp_path):
    """50 MB of rows are read one at a time: the first comes before the last, broken one is met."""
    path = tmp_path / "large.jsonl"
    path.write_text('{"t": "' + "x" * 1_000_000 + '"}\n', encoding="utf-8")
    with open(path, "a", encoding="utf-8") as file:
        for _ in range(49):
            file.write('{"t": "' + "x" * 1_000_000 + '"}\n')
    code = (
        f"import sys, resource; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from pathlib import Path; from lib.data.readers import read_rows\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"assert sum(1 for _ in read_rows(Path({str(path)!r}))) == 50\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 25


def test_package_file_is_read_like_any_other(tmp_path, monkeypatch):
    asked = {"name": "some-data", "version": "1.0", "sha256": "0" * 64, "file": "some/rows.csv"}

    def package_file(name, version, sha256, file, into):
        assert {"name": name, "version": version, "sha256": sha256, "file": file} == asked
        (into / "rows.csv").write_text("t\nx\n")
        return into / "rows.csv"

    monkeypatch.setattr(pypi, "fetch_package_file", package_file)
    rows = fetch_source(tmp_path, {"package": asked}, [])
    assert rows == [{"file": "some-data:some/rows.csv", "line": 2, "number": 1, "row": {"t": "x"}}]


def fetch_hub(hub: FakeHub, tmp_path: Path, revision: str = COMMIT, split: str = "train", **environment: str):
    source = {"hub": {"id": "team/rows", "revision": revision, "split": split}}
    settings = json.dumps({"source": source, "unreadable": "error"})
    words = [sys.executable, SCRIPT, "--settings", settings, "--output", tmp_path / "rows.jsonl"]
    return subprocess.run(
        [*words, "--log", tmp_path / "log"],
        env=hub.environment(tmp_path / "cache", **environment),
        capture_output=True,
        text=True,
    )


def hub_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    labeled_dataset().to_parquet(buffer)
    return {"train-00000-of-00001.parquet": buffer.getvalue(), "README.md": b"---\n---\n"}


def test_hub_rows_at_their_commit(hub, tmp_path):
    repository = hub.add("datasets/team/rows", hub_files(), token="hf_secret")
    done = fetch_hub(hub, tmp_path, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    rows = list(read_jsonl(tmp_path / "rows.jsonl"))
    assert places(rows) == list(enumerate(LABELED, start=1))
    assert rows[0]["file"] == f"team/rows@{repository.commit}:train"
    assert "hf_secret" not in (tmp_path / "rows.jsonl").read_text() + (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("case", "reason"),
    [("revision", "doesn't exist"), ("split", 'Unknown split "nope"'), ("hash", "came with hash"), ("cut", "failed")],
)
def test_hub_that_does_not_deliver_is_one_clear_line(hub, tmp_path, case, reason):
    repository = hub.add("datasets/team/rows", hub_files())
    arguments = {"revision": {"revision": "f" * 40}, "split": {"split": "nope"}}.get(case, {})
    if case == "hash":
        repository.corrupt.add("train-00000-of-00001.parquet")
    if case == "cut":
        repository.cut["train-00000-of-00001.parquet"] = 50
    done = fetch_hub(hub, tmp_path, **arguments)
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "unexpected" not in done.stderr
    assert not (tmp_path / "rows.jsonl").exists()
    if case in ("hash", "cut"):  # and once the hub is well, the same command works
        repository.mend()
        assert fetch_hub(hub, tmp_path).returncode == 0


@pytest.mark.parametrize("name", ["deep.json", "deep.jsonl"])
@pytest.mark.parametrize("depth", [101, 500])
def test_a_row_that_is_nested_deeply_is_a_fault_of_its_own(tmp_path, name, depth):
    deep = '{"t": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"
    fair = '{"t": ' + "[" * 99 + "]" * 99 + "}"
    content = f"{fair}\n{deep}\n{fair}\n" if name.endswith("l") else f"[{fair},\n{deep},\n{fair}]"
    (tmp_path / name).write_text(content)
    errors = [row.error for row in readers.read_rows(tmp_path / name)]
    assert errors == [None, "nested more than 100 deep", None]


def test_a_line_nested_deeper_than_python_reads_is_a_fault_of_its_own(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"t": 1}\n' + "[" * 100_000 + "\n")
    assert [row.error for row in readers.read_rows(tmp_path / "rows.jsonl")] == [None, "not JSON: nested too deeply"]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet"])
def test_a_row_larger_than_the_limit_is_a_fault_of_its_own(tmp_path, monkeypatch, name):
    monkeypatch.setattr(readers, "MOST_CHARACTERS", 1000)
    rows = [{"t": "a"}, {"t": "b" * 2000}, {"t": "c"}]
    texts = {
        ".json": json.dumps(rows),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".csv": "t\n" + "".join(row["t"] + "\n" for row in rows),
    }
    path = tmp_path / name
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(texts[path.suffix])
    assert [row.error is None for row in readers.read_rows(path)] == [True, False, True]
    assert [row.error for row in readers.read_rows(path)][1].endswith("characters")


def parquet_bomb(path: Path, kind: str) -> None:
    """A file of some KB: a value of 2 MB alone, one of 60 behind small ones, or 1 MB that is there 20,000 times."""
    if kind == "repeated":
        texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20_000, pyarrow.int32()), ["x" * 1_000_000])
    else:
        texts = pyarrow.array(["x" * 2_000_000] if kind == "alone" else [*["ok"] * 999, "x" * 60_000_000])
    table = pyarrow.table({"t": texts})
    pyarrow.parquet.write_table(
        table, path, compression="zstd", use_dictionary=kind == "repeated", write_statistics=False
    )
    assert path.stat().st_size < 50_000


@pytest.mark.parametrize("kind", ["alone", "hidden", "repeated"])
def test_a_small_parquet_file_of_large_values_takes_little_memory_and_is_one_line(tmp_path, monkeypatch, kind):
    from lib.data import parquet

    monkeypatch.setattr(value_limits, "_PIECE_MB", 40)
    monkeypatch.setattr(parquet, "MOST_BYTES", 1_000_000)
    parquet_bomb(tmp_path / "rows.parquet", kind)
    what = "a value of column 't' has 2 MB" if kind == "alone" else "take more than 40 MB of memory"
    with pytest.raises(UserError, match=rf"rows\.parquet(:\d+)?: .*{what}"):
        list(readers.read_rows(tmp_path / "rows.parquet"))


def test_a_hidden_value_is_refused_before_its_memory_is_taken(tmp_path):
    """In a process of its own: Arrow's allocator had reserved 1 GB, so that a limit on more than that held nothing."""
    parquet_bomb(tmp_path / "rows.parquet", "hidden")
    code = f"""
from pathlib import Path
from lib.core.cli import UserError
from lib.data import parquet, value_limits
value_limits._PIECE_MB = 40
rows, _ = parquet.read_parquet(Path({str(tmp_path / "rows.parquet")!r}))
def peak():  # of this program: ru_maxrss counts from its parent on
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
try:
    list(rows)
except UserError:
    print((peak() - before) // 1000)
"""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert int(done.stdout) <= 10


def test_a_key_twice_among_many_is_found_at_once(tmp_path):
    """By counting each of them it took a minute for each MB."""
    count = 60_000
    pairs = ", ".join(f'"k{number}": 0' for number in range(count))
    (tmp_path / "rows.jsonl").write_text(f'{{{pairs}, "k7": 1}}\n')
    (tmp_path / "rows.csv").write_text(",".join(f"k{number}" for number in range(count)) + ",k7\n")
    start = time.process_time()
    assert [row.error for row in readers.read_rows(tmp_path / "rows.jsonl")] == ["the key 'k7' occurs twice"]
    with pytest.raises(UserError, match="the column 'k7' occurs twice"):
        list(readers.read_rows(tmp_path / "rows.csv"))
    assert time.process_time() - start < 3
