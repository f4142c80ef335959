"""Progress survives what changes nothing: comments, docstrings and layout of the code are not part of its hash."""

from pathlib import Path

import pytest

from lib.provenance.code_closure import hash_code

CODE = '''"""A module."""

import os


def double(value):
    """Return twice the value."""
    return 2 * value
'''


def hash_of(folder: Path, text: str) -> str:
    (folder / "module.py").write_text(text)
    return hash_code([folder / "module.py"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import os", "import os  # a comment"), ('"""A module."""', '"""Another text."""'), ("\n\n\ndef", "\ndef"),
        ('    """Return twice the value."""\n', ""), ("2 * value", "(2 * value)"),
    ],
)  # fmt: skip
def test_what_changes_nothing_keeps_the_hash(tmp_path, old, new):
    assert old in CODE
    assert hash_of(tmp_path, CODE.replace(old, new)) == hash_of(tmp_path, CODE)


@pytest.mark.parametrize(
    ("old", "new"), [("2 *", "3 *"), ("import os", "import sys"), ("value)", "value, more=None)"), ("return", "raise")]
)
def test_what_does_something_else_has_another_hash(tmp_path, old, new):
    assert hash_of(tmp_path, CODE.replace(old, new)) != hash_of(tmp_path, CODE)


def test_a_function_of_a_docstring_alone_is_a_function_that_does_nothing(tmp_path):
    assert hash_of(tmp_path, 'def f():\n    """Text."""\n') == hash_of(tmp_path, "def f():\n    pass\n")
