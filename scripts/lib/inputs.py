"""What the baselines and the report look at: the text of a row without what the template adds to it."""

import re
from collections.abc import Sequence

from lib.cli import fail
from lib.templates import Segment, Template


def input_text(template: Template, prompt: str) -> str:
    """The column values that a prompt was rendered from, one a line. Raises `UserError` as `_values`."""
    return _values(template["prompt"], prompt)


def target_text(template: Template, completion: str) -> str:
    """The answer that a completion was rendered from. Raises `UserError` as `_values`."""
    return _values(template["completion"], completion)


def word_places(word: str, text: str) -> list[int]:
    """Where `word` stands in `text` as a word of its own, whatever its case."""
    return [match.start() for match in re.finditer(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", text.casefold())]


def _values(segments: Sequence[Segment], text: str) -> str:
    """Raises `UserError` when `text` was not rendered from `segments`."""
    pattern = "".join("(.*?)" if "column" in segment else re.escape(segment["text"]) for segment in segments)
    match = re.fullmatch(pattern, text, re.DOTALL)
    if match is None:
        fail(f"{text[:60]!r} does not follow the template", "rows and template are of different runs: make both again")
    return "\n".join(match.groups())
