"""A configuration out of bounds is one line with its place, at once, and nothing is built of it."""

import os
import time
from pathlib import Path

import pytest
import run
import yaml

from lib.config.loader import check_yaml, load_config
from lib.core.cli import UserError, format_error
from lib.core.yaml_files import find_fault, load_yaml
from support.paths import ROOT

SHIPPED = (ROOT / "config.yaml").read_text()
TENS = "".join(f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))

REFUSED = {
    'a: "x\\0y"': "1: a text holds a NUL character",
    "a: x\0y": "1: not YAML: control characters are not allowed",
    "? [a]: b": "1: a key is not plain text",
    "? {a: b}\n: c": "1: a key is not plain text",
    "a: &x b\n*x : c": "2: a key is not plain text",
    "a: &x [*x]": "1: the alias *x stands inside of what it names",
    "a: &x {b: *x}": "1: the alias *x stands inside of what it names",
    "a: *x": "1: the alias *x names nothing above it",
    "a: &x 1\nb: &x 2": "2: the anchor &x occurs twice",
    "a: " + "[" * 500 + "]" * 500: "1: nested deeper than 40 levels",
    "a: " + "{a: " * 500 + "}" * 500: "1: nested deeper than 40 levels",
    "".join(" " * depth + "a:\n" for depth in range(500)): "41: nested deeper than 40 levels",
    "[" * 10**6: "1: n",
    'a: "\\ud800"': "1: not YAML: found invalid Unicode character escape code",
    f"b0: &a0 [{'x,' * 10}]\n{TENS}": "6: holds more than 200,000 values, aliases written out",
    "a: [" + "x," * 250_000 + "]": "1: holds more than 200,000 values",
    f"a: {'9' * 5000}": "1: a number of 5000 characters; quote it",
    "a: 2024-99-99": "1: YAML reads '2024-99-99' as a timestamp and cannot; quote it",
    "a: =": "1: YAML reads '=' as a value and cannot",
    "a: !!bool x": "1: YAML reads 'x' as a bool and cannot",
    "a: !!int x": "1: YAML reads 'x' as a int and cannot",
    "a: !!python/object/apply:os.system [x]": "1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not read",
    "!x\na: b": "1: the tag '!x' is not read here",
    "a: !!binary x": "1: the tag 'tag:yaml.org,2002:binary' is not read here",
    "a: 1\n---\nb: 2": "2: holds several documents",
    "a: 1\n__use_yte__: true": "2: __use_yte__ would run code that is in the file; remove it",
    "a: &x {__use_yte__: true}\n<<: *x": "1: __use_yte__ would run code that is in the file",
    "<<: 3": "1: not YAML: expected a mapping",
    "a: 1\na: 2": "2: a occurs twice (first in line 1); remove one",
    "a:\n\t- b": "2: not YAML: found character that cannot start any token",
    "a: \x07": "1: not YAML: control characters",
    'a: "' + "x" * 5_000_000 + '"': " holds 5 MB; 4 MB is the most that is read",
    "": "1: not a mapping of keys to values",
    "- a": "1: not a mapping of keys to values",
    "-": "1: not a mapping",
    ":": "1: not YAML",
}


def refusal(path: Path) -> str:
    begin = time.monotonic()
    with pytest.raises(UserError) as told:
        check_yaml(path)
    assert time.monotonic() - begin < 20
    assert format_error(told.value).isprintable()
    return str(told.value)


@pytest.mark.parametrize(("text", "said"), REFUSED.items(), ids=lambda text: ascii(text[:20]))
def test_a_file_out_of_bounds_is_one_line_at_once(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    assert refusal(tmp_path / "c.yaml").startswith(f"{tmp_path}/c.yaml:{said}")


def test_what_is_no_readable_file_is_one_line_and_never_waited_for(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "utf-16").write_text("a: b", encoding="utf-16")
    hints = {
        "folder": "not a file",
        "pipe": "not a file",
        "loop": "Too many levels of symbolic links",
        "utf-16": "not UTF-8",
    }
    for name, said in hints.items():
        assert refusal(tmp_path / name).startswith(f"{tmp_path}/{name}: {said}")
    assert refusal(Path("/dev/zero")).startswith("/dev/zero: not a file")
    assert "embedded null byte" in refusal(Path("a\0b"))
    assert "no such configuration file" in refusal(tmp_path / "gone")


ACCEPTED = {
    "a byte order mark": "\ufeff" + SHIPPED,
    "JSON with a character beyond 16 bits": '{"a": "\\ud83d\\ude00", "b": "\\\\ud83d"}',
    "aliases and merges": "a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: *x",
    "many labels": "labels:\n" + "".join(f"  - label {number}\n" for number in range(5_000)),
    "a link": SHIPPED,
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_people_write_is_read(tmp_path, kind):
    path = tmp_path / "c.yaml"
    path.write_text(ACCEPTED[kind])
    if kind == "a link":
        path = tmp_path / "link.yaml"
        path.symlink_to("c.yaml")
    check_yaml(path)
    if kind.startswith("JSON"):
        assert load_yaml(path) == {"a": "\U0001f600", "b": "\\ud83d"}


def deep(levels: int) -> list:
    return [deep(levels - 1)] if levels else []


def tens(levels: int) -> list:
    return [tens(levels - 1)] * 10 if levels else []


def recursive() -> dict:
    value: dict = {}
    value["a"] = [value]
    return value


VALUES = {
    "nested deeper than 40 levels": [deep(50), {"a": deep(50)}, recursive()],
    "more than 200,000 values": [tens(9)],
    "a text in it holds a NUL character": ["a\0", {"a\0": 1}, [["\0"]]],
    "a lone surrogate": ["\ud800", {"x": "a\udfff"}],
    "a number in it is too large": [10**5000, -(10**41)],
    "is neither text, number, list nor mapping": [b"x", {1, 2}, object()],
}


@pytest.mark.parametrize("said", VALUES)
def test_a_value_of_the_command_line_has_the_same_bounds(said):
    for value in VALUES[said]:
        begin = time.monotonic()
        assert said in (find_fault(value) or "")
        with pytest.raises(UserError, match="^--config: cannot be read: "):
            load_config({"finetune": value}, [])
        assert time.monotonic() - begin < 5


def test_values_of_every_shipped_configuration_are_within_bounds():
    for path in (ROOT / "config.yaml", *(ROOT / "examples").glob("*.yaml")):
        assert find_fault(yaml.safe_load(path.read_text())) is None


@pytest.mark.parametrize(
    "option", ["--configfile={}", "--configfile {}", "--configfiles other.yaml {}", "-n --configfile {}"]
)
def test_make_run_refuses_before_snakemake_reads_it(tmp_path, monkeypatch, capfd, option):
    """Snakemake evaluates such a file when it reads it, before any line of the Snakefile."""
    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text("a: 1")
    Path("evil.yaml").write_text(f'__use_yte__: true\n?open("{tmp_path}/OWNED", "w"):\n  a: 1\n')
    assert run.main(option.format("evil.yaml").split(" ")) == 1
    assert capfd.readouterr().err == "error: evil.yaml:1: __use_yte__ would run code that is in the file; remove it\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.yaml", "other.yaml"]
