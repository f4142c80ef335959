"""Raw rows from files, hub and package: every row with its exact place, every fault in one clear line."""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

import fetch_data
import pytest
from fake_hub import COMMIT, FakeHub
from workspaces import HOSTILE

from lib import packages
from lib.cli import UserError
from lib.files import read_jsonl

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
    "nan.jsonl": (b'{"t": 1}\n{"t": NaN}\n{"t": 3}\n', 2, "NaN is not JSON"),
    "infinite.json": (b'[{"t": 1},\n{"t": 1e999},\n{"t": 3}]', 2, "1e999 is too large"),
    "list.jsonl": (b'{"t": 1}\n["t"]\n{"t": 3}\n', 2, "not an object"),
    "text.json": (b'[{"t": 1},\n"t",\n{"t": 3}]', 2, "not an object"),
    "bytes.jsonl": (b'{"t": 1}\n{"t": "\xff"}\n{"t": 3}\n', 2, "not UTF-8"),
    "half.jsonl": (b'{"t": 1}\n{"t": "\\ud83d"}\n{"t": 3}\n', 2, "surrogate"),
    "deep.jsonl": (b'{"t": 1}\n' + b'{"t":' * 100_000 + b'\n{"t": 3}\n', 2, "nested too deeply"),
    "digits.jsonl": (b'{"t": 1}\n{"t": ' + b"9" * 5000 + b'}\n{"t": 3}\n', 2, "not JSON"),
    "few.csv": (b"t,u\n1,1\n2\n3,3\n", 3, "1 cells, but the first row names 2 columns"),
    "many.csv": (b"t,u\n1,1\n2,2,2\n3,3\n", 3, "3 cells"),
    "bytes.csv": (b"t,u\n1,1\n\xe9,2\n3,3\n", 3, "not UTF-8"),
    "quote.csv": (b't,u\n1,1\n"2"x,2\n3,3\n', 3, "not CSV"),
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_broken_row_stops_with_its_line_or_is_set_aside(tmp_path, name):
    content, line, reason = BROKEN_ROWS[name]
    message = refusal(tmp_path, name, content)
    assert message.startswith(f"{name}:{line}: ")
    assert reason in message
    assert "data.unreadable: reject" in message
    assert "\n" not in message
    rows = fetch(tmp_path, (name, content), unreadable="reject")
    assert ["error" in row for row in rows] == [False, True, False]
    assert rows[1]["line"] == line
    assert reason in rows[1]["error"]


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
    "bytes.json": (b'[{"t": "a"},\n{"t": "\xff"}]', "bytes.json:2: not UTF-8"),
    "twice.csv": ("t,t\n1,2\n", "twice.csv:1: the column 't' occurs twice"),
    "rows.txt": ("x", "not a format"),
    "rows.parquet": ("x" * 100, "rows.parquet: not Parquet"),
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


def parquet(columns: dict) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def test_parquet_rows_are_numbered_and_become_json(tmp_path):
    from datetime import date

    columns = {
        "text": ["007", "NA", None],
        "n": [1.5, float("nan"), 2.0],
        "nested": [{"a": 1}, {"a": 2}, {"a": 3}],
        "day": [date(2024, 1, 2)] * 3,
    }
    assert places(fetch(tmp_path, ("a.parquet", parquet(columns)))) == [
        (1, {"text": "007", "n": 1.5, "nested": {"a": 1}, "day": "2024-01-02"}),
        (2, {"text": "NA", "n": None, "nested": {"a": 2}, "day": "2024-01-02"}),
        (3, {"text": None, "n": 2.0, "nested": {"a": 3}, "day": "2024-01-02"}),
    ]


def test_a_parquet_file_is_known_by_its_name_and_not_by_a_pattern(tmp_path):
    """`datasets` takes `*`, `?` and `[]` for patterns, of which other files may be the better match."""
    assert "its name holds ::" in refusal(tmp_path, "a::b.parquet", parquet({"x": ["y"]}))
    other = tmp_path / "a1 b.parquet"
    other.write_bytes(parquet({"x": ["wrong"]}))
    for name in ("a[1]?b.parquet", "a*b.parquet", f"{HOSTILE.replace('::', '')}.parquet"):
        assert [row["row"] for row in fetch(tmp_path, (name, parquet({"x": [name]})))] == [{"x": name}]


def test_parquet_value_that_json_cannot_hold_names_its_row(tmp_path):
    content = parquet({"x": [b"ok".decode(), "y"], "raw": [None, b"\x00"]})
    assert refusal(tmp_path, "a.parquet", content).startswith("a.parquet:2: the row holds bytes")
    assert "error" in fetch(tmp_path, ("a.parquet", content), unreadable="reject")[1]


def test_json_lines_stream(tmp_path):
    """50 MB of rows are read one at a time: the first comes before the last, broken one is met."""
    path = tmp_path / "large.jsonl"
    path.write_text('{"t": "' + "x" * 1_000_000 + '"}\n', encoding="utf-8")
    with open(path, "a", encoding="utf-8") as file:
        for _ in range(49):
            file.write('{"t": "' + "x" * 1_000_000 + '"}\n')
    code = (
        f"import sys, resource; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from pathlib import Path; from lib.readers import read_rows\n"
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

    monkeypatch.setattr(packages, "package_file", package_file)
    rows = fetch_source(tmp_path, {"package": asked}, [])
    assert rows == [{"file": "some-data:some/rows.csv", "line": 2, "row": {"t": "x"}}]


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


def fetch_hub(hub: FakeHub, tmp_path: Path, revision: str = COMMIT, split: str = "train", **environment: str):
    source = {"hub": {"id": "team/rows", "revision": revision, "split": split, "config": None}}
    settings = json.dumps({"source": source, "unreadable": "error"})
    words = [sys.executable, SCRIPT, "--settings", settings, "--output", tmp_path / "rows.jsonl"]
    return subprocess.run(
        [*words, "--log", tmp_path / "log"],
        env=hub.environment(tmp_path / "cache", **environment),
        capture_output=True,
        text=True,
    )


def hub_files() -> dict[str, bytes]:
    return {"train-00000-of-00001.parquet": parquet({"t": ["007", "NA"]}), "README.md": b"---\n---\n"}


def test_hub_rows_at_their_commit(hub, tmp_path):
    repository = hub.add("datasets/team/rows", hub_files(), token="hf_secret")
    done = fetch_hub(hub, tmp_path, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    rows = list(read_jsonl(tmp_path / "rows.jsonl"))
    assert places(rows) == [(1, {"t": "007"}), (2, {"t": "NA"})]
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
