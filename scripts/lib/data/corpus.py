"""Reading what `render_corpus` wrote."""

from pathlib import Path
from typing import Any

from lib.core.cli import fail
from lib.core.files import read_json, read_jsonl
from lib.data.templates import Template


def load_template(path: Path) -> Template:
    return read_json(path)


def read_corpus(path: Path) -> list[dict[str, Any]]:
    """Return all rows of a corpus file. Raises `UserError` when there is none."""
    rows = list(read_jsonl(path))
    if not rows:
        fail("no rows", "lower split.validation and split.test or bring more rows", at=path)
    return rows
