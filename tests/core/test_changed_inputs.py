"""A library that fails in the middle of an input: where the input is not what was made, that is what is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.core.files import publish_directory, read_json, read_jsonl
from lib.provenance.manifests import write_manifest
from support.paths import SCRIPTS

SCRIPT = """
import sys
sys.path.insert(0, {scripts!r})
from pathlib import Path
from lib.core.cli import build_parser, run

def main(args):
    raise ValueError("header too large")

arguments = build_parser("")
arguments.add_argument("--model", type=Path)
arguments.add_argument("--more", type=Path, nargs="*")
run(arguments, main)
"""


@pytest.fixture
def model(tmp_path) -> Path:
    with publish_directory(tmp_path / "model") as partial:
        (partial / "config.json").write_text("{}")
        (partial / "weights").write_bytes(bytes(100))
    write_manifest(tmp_path / "model", inputs={}, settings={})
    return tmp_path / "model"


def fail_with(folder: Path, *words: str) -> str:
    script = folder.parent / "script.py"
    script.write_text(SCRIPT.format(scripts=str(SCRIPTS)))
    command = [sys.executable, script, *words, "--log", folder.parent / "log.txt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("option", ["--model", "--more"])
@pytest.mark.parametrize("change", ["cut", "other", "gone"])
def test_a_changed_file_is_named_instead_of_what_a_library_makes_of_it(model, option, change):
    weights = model / "weights"
    {"cut": lambda: weights.write_bytes(b""), "other": lambda: weights.write_text("x"), "gone": weights.unlink}[
        change
    ]()
    told = f"error: {weights}: it is not the file that was made; delete the folder and its manifest, then run again\n"
    assert fail_with(model, option, str(model)) == told


def test_where_every_input_is_as_it_was_made_the_fault_is_ours(model):
    assert fail_with(model, "--model", str(model)).startswith("error: script: unexpected ValueError: header too large;")


def test_another_rows_file_is_named_by_the_first_key_that_it_lacks(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "1"}\n{"id": "2"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl: it has no 'prompt', which such a file has; remove it and run"):
        [row["prompt"] for row in read_jsonl(path)]


@pytest.mark.parametrize(
    "use", [lambda value: value["key"], lambda value: value.get("key"), lambda value: value.items()]
)
def test_a_list_in_the_place_of_an_object_names_its_file(tmp_path, use):
    path = tmp_path / "audit.json"
    path.write_text("[1, 2]")
    assert read_json(path) == [1, 2]
    assert read_json(path)[1:] == [2]
    with pytest.raises(UserError, match=r"audit\.json: it holds a list, not an object; remove it and run"):
        use(read_json(path))


@pytest.mark.parametrize("text", ["null", "17", '"text"', "true"])
def test_json_that_is_no_object_names_its_file(tmp_path, text):
    for name, read in {"a.json": read_json, "a.jsonl": lambda path: list(read_jsonl(path))}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}(:1)?: it holds n"):
            read(tmp_path / name)
