"""What somebody asks a packaged model, under the rules of the training data: rows become prompts, or are refused."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lib.core.cli import fail
from lib.data.conversations import TURNS, ConversationError, list_texts, read_question, read_tools, render_question
from lib.data.rows import MISSING, convert_to_text, describe_value, get_column
from lib.data.templates import Template, render_completion, render_prompt
from lib.data.tokenizer import Tokenizer
from lib.data.truncation import shorten_values
from lib.data.value_limits import compute_max_characters, cut_value


@dataclass(frozen=True)
class Input:
    """One input: its columns as given, and where it stands (file and line, or the command line)."""

    row: Mapping[str, Any]
    at: Path | str
    line: int | None = None


def render_conversation(one: Input, chat: dict[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """Return the turns of an input as the training data has them. Raises `UserError` for what is no conversation.

    A text is the one turn of a user.
    """
    control = re.compile("|".join(map(re.escape, tokenizer.control)) or r"(?!)")
    try:
        text = one.row.get(TURNS)
        messages = read_question(
            {chat["column"]: [{"role": "user", "content": text}]} if isinstance(text, str) else one.row, chat["column"]
        )
        for one_text in list_texts([messages, read_tools(one.row)]):
            if found := control.search(one_text) or re.search("\0", one_text):
                raise ConversationError(f"it contains {found[0]!r}, which no text of the training had")
        return {TURNS: render_question(chat, messages, read_tools(one.row))}
    except ConversationError as error:
        fail(str(error), "give turns with roles and texts, the last one the user's", at=one.at, line=one.line)


def check_values(
    one: Input, columns: Sequence[str], tokenizer: Tokenizer, optional: Sequence[str] = ()
) -> dict[str, str]:
    """Return the model's columns as text, under the rules of the training data. Raises `UserError`."""
    control = re.compile("|".join(map(re.escape, tokenizer.control)) or r"(?!)")
    values = {}
    for name in columns:
        value = get_column(one.row, name)
        if value is MISSING and name in optional:
            value = ""
        if value is MISSING:
            fail(f"no column {name!r}", f"it has {', '.join(one.row) or 'none'}", at=one.at, line=one.line)
        text = convert_to_text(value)
        if text is None:
            fail(f"column {name!r} is {describe_value(value)}", "give text", at=one.at, line=one.line)
        if not text and name not in optional:
            fail("empty text", f"the model needs something in {name!r}", at=one.at, line=one.line)
        if "\0" in text:
            what = f"{name!r} contains a NUL character"
            fail(what, "take it out: no text of the training had one", at=one.at, line=one.line)
        if found := control.search(text):
            what = f"{name!r} contains the control token {found[0]!r}"
            fail(what, "take it out: the model would read it as a command, not as text", at=one.at, line=one.line)
        values[name] = text
    if not any(values.values()):
        fail("empty text", "at least one of the columns needs some", at=one.at, line=one.line)
    return values


def render_fitting_prompt(one: Input, values: dict[str, str], template: dict[str, Any], tokenizer: Tokenizer) -> str:
    """Return the prompt; an input longer than in training is cut as there, or refused with `UserError`."""
    filled = cast(Template, template)
    values = _bound_values(one, values, template)
    answers = template["labels"] or [""]
    longest = max(answers, key=lambda answer: len(tokenizer.encode(render_completion(filled, answer))))
    limit = template["max_length"]
    tokens = len(tokenizer.encode(render_prompt(filled, values) + render_completion(filled, longest)))
    if tokens <= limit:
        return render_prompt(filled, values)
    cut = None
    if template["truncation"] != "reject":
        cut = shorten_values(tokenizer, filled, values, longest, max_length=limit, side=template["truncation"])
    if cut is None:
        fail(f"{tokens} tokens with its answer, the model takes {limit}", "shorten the text", at=one.at, line=one.line)
    return render_prompt(filled, cut)


def _bound_values(one: Input, values: dict[str, str], template: dict[str, Any]) -> dict[str, str]:
    """Return the values without what the model has no room for, before a tokenizer reads them."""
    limit, side = template["max_length"], template["truncation"]
    for name, text in values.items():
        if side == "reject" and len(text) > compute_max_characters(limit):
            what = f"{name!r} has {len(text):,} characters, the model takes {limit} tokens with its answer"
            fail(what, "shorten the text", at=one.at, line=one.line)
    return {name: cut_value(text, limit, side) for name, text in values.items()}
