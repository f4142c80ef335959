"""Texts of strangers on a terminal, in Markdown and in spreadsheets."""

import ast
import csv
import json
import re
import sys

import pytest
from markdown_it import MarkdownIt

from lib.core import cli
from lib.core.cli import UserError, format_error
from lib.core.escaping import escape_controls, escape_formula, escape_markdown
from support.paths import SCRIPTS

ORDINARY = [
    "joy", "very happy", "very_happy", "a-b", "-1", "+1.5", "1e-4", "0.5", "Ünï côde 🙂", "it's", "50 %", "(a) b", "C#",
    "#happy", "a [b]", "['q_proj', 'v_proj']", "x > y", "p < 0.05", "a <= b", "R&D", "C:\\temp", "שלום", "mailto", "1.5 and 2", "a/b", "",
]  # fmt: skip
CONTROLS = [chr(code) for code in (*range(32), *range(127, 160), 0x2028, 0x2029, 0x202E, 0x2066, 0xD800)]
ACTING = [
    "<script>alert(1)</script>", "<!--", "-rf", "<http://x.y>", "[x](javascript:alert(1))", "![x](http://y/z.png)", "[x]: /y",
    "**bold**", "*a*", "_a_", "__a__", "~~a~~", "`code`", "```", "# head", "## head", "> quote", "- item", "+ item",
    "* item", "1. item", "1) item", "---", "===", "***", "| a | b |", "&lt;", "&#60;", "a\nb\n# c", "\\*a\\*",
    "line\r\n- item", "\\", "$x$", "a\\", "[a][b]",
]  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_keeps_its_bytes(text):
    assert escape_controls(text) == text
    assert escape_markdown(text) == text
    assert escape_formula(text) == text


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_no_control_character_reaches_a_terminal(control, capfd, monkeypatch):
    monkeypatch.setattr(cli, "_terminal", sys.stderr)
    cli.report_progress(f"a label: {control}]0;title")
    said = capfd.readouterr().err
    assert said.endswith("title\n")
    assert said.count("\n") == 1
    for line in (said.rstrip("\n"), format_error(UserError(f"FILE: {control}x")), escape_markdown(control)):
        assert line.isprintable()
    assert json.loads(f'"{escape_controls(control)}"') == control


def test_every_print_of_a_script_escapes():
    """What passes on the output of other programs, or says nothing of a file, is named here."""
    plain = {
        "run.py",
        "predict.py",
        "adopt.py",
        "render_generated.py",
        "pypi.py",
        "helpers.py",
        "builder.py",
        "cli.py",
        "speed.py",
    }
    prints = [
        (file.name, ast.unparse(node))
        for file in SCRIPTS.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    unescaped = {
        (name, text)
        for name, text in prints
        if name not in plain and "escape_controls(" not in text and "or_exit(main" not in text
    }
    # These print numbers, and names that were escaped before.
    assert {name for name, _ in unescaped} <= {"clean.py", "compare_results.py", "snakemake_metadata.py"}


@pytest.mark.parametrize("text", ACTING, ids=ascii)
@pytest.mark.parametrize("around", ["{}", "- {}: x", "**{}**", "- key: {}", "| {} |\n|---|\n| x |"])
def test_markdown_shows_the_text_and_does_nothing(text, around):
    page = MarkdownIt("gfm-like", {"linkify": False})
    found = page.render(around.format(escape_markdown(text)))
    expected = page.render(around.format("word"))
    assert re.sub(">[^<]*<", "><", found) == re.sub(">[^<]*<", "><", expected)  # the same tags


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\tx", "\rx", "\n=x", "＝x", "'=x", "--1", "-1+2"])
def test_no_cell_is_a_formula(cell, tmp_path):
    from write_plots import write_table

    write_table(tmp_path / "table.csv", ["label", "value"], [[cell, -1.5], [None, "-2"]])
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["label", "value"], [f"'{cell}", "-1.5"], ["", "-2"]]


def test_two_labels_stay_two():
    labels = ["=x", "'=x", "''=x", "x", "'x"]
    assert len({escape_formula(label) for label in labels}) == len(labels)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "https://a.blob.core.windows.net/c?sv=1&sig=aB%2F9: not found",
            "https://a.blob.core.windows.net/c?sv=1&sig=…",
        ),
        ("https://me:pass@host/simple: 401", "https://…@host/simple: 401"),
        ("AccountName=a;AccountKey=abc==;x", "AccountName=a;AccountKey=…;x"),
        ("config.yaml:3: learning_rate=0.1 at https://host:8080/a@b", "learning_rate=0.1 at https://host:8080/a@b"),
    ],
)
def test_an_error_repeats_no_secret_of_an_address(said, shown):
    assert shown in format_error(said)
