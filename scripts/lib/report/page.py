"""What a page is made of, and how it becomes HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """head names the columns; the first cell of a row is its heading. A cell is text, text with
    a note below it, or text on a grey.

    strong: index of the row in bold. folded: closed until the reader opens it.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    style: str = "numbers"
    strong: int | None = None
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot. table: its numbers, folded below it."""

    svg: Markup
    caption: str
    table: Table


@dataclass(frozen=True)
class Fold:
    """Blocks that are closed until the reader opens them."""

    title: str
    blocks: Sequence["Block"]


Block = str | Table | Figure | Fold


@dataclass(frozen=True)
class Section:
    """A question, the one sentence that answers it, and the evidence."""

    id: str
    title: str
    answer: str
    blocks: Sequence[Block]


def render(sections: Sequence[Section], head: dict[str, Any]) -> str:
    """Return the whole page. head: title, subtitle, verdict, good, cards, gate."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(sections=sections, **head)
