"""Chat templates of tokenizers: Jinja programs that the maker of a model wrote, rendered in a child with limits."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any

from jinja2 import Template as JinjaTemplate
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lib.core.cli import fail
from lib.core.limits import Limits, run_limited

# A real template renders a thousand short conversations in a tenth of a second, with some 10 MB.
LIMITS = Limits(seconds=60, megabytes=1024)
_BATCH_CHARACTERS = 4 << 20  # of what one child gets: long rows must not come near the limits
_HINT = "use corpus.text_template"

Conversation = Sequence[Mapping[str, Any]]  # its messages, each with `role` and `content`
_DATE_FORMAT = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
_DATE_HINT = "it asks for the date of today: write corpus.chat_date, such as 2026-01-31, the same for all rows"


def set_chat_variables(source: str, options: Mapping[str, bool | int | str], day: str | None) -> str:
    """Return a chat template whose variables are set: by Jinja at its beginning, so that they go wherever it goes.

    options: values of variables that it reads, such as `enable_thinking`. day: YYYY-MM-DD, what it is told when it asks
    for the date of today; None: it is told that nobody knows. Raises `UserError` for a variable that it does not read.
    """
    for name in options:
        if not re.search(rf"\b{re.escape(name)}\b", source):
            what = f"corpus.chat_options: the tokenizer's chat template has no variable {name}"
            fail(what, "take it out, or look the name up in the template")
    lines = [f"{{%- set {name} = {_write_value(value)} %}}" for name, value in options.items()]
    formats = {found[1] or found[2] or "" for found in _DATE_FORMAT.finditer(source)}
    if day is not None and not formats:
        what = "corpus.chat_date: the tokenizer's chat template asks for no date, or in a form that it computes"
        fail(what, "take it out; if the template needs a date, use corpus.text_template")
    if day is not None:
        dates = {text: date.fromisoformat(day).strftime(text) for text in sorted(formats)}
        answer = f"{{{{- {json.dumps(dates, ensure_ascii=False)}[format] -}}}}"
        lines.append(f"{{%- macro strftime_now(format) -%}}{answer}{{%- endmacro %}}")
    # The newline ends the last block and is no text: without it a newline that the template begins with would be lost.
    return "".join(lines) + ("\n" if lines else "") + source


def _write_value(value: bool | int | str) -> str:
    """Write a value as Jinja does; JSON's numbers, strings and truth values are the same there."""
    return json.dumps(value, ensure_ascii=False)


def explain_refusal(error: str, hint: str) -> str:
    """Return what to do about a chat template's own error."""
    return _DATE_HINT if "strftime_now" in error else hint


def render_conversations(
    source: str, conversations: Sequence[Conversation], variables: Mapping[str, str], limits: Limits = LIMITS
) -> list[str]:
    """Render each conversation through a chat template as transformers does, in a child within `limits`.

    A conversation that the user has ended asks for the answer (`add_generation_prompt`).
    variables: the special tokens' texts by role. Raises `UserError` when the template refuses one or does not work.
    """
    rendered = render_each_conversation(source, [(one, None) for one in conversations], variables, limits)
    for text in rendered:
        if isinstance(text, dict):
            fail(
                f"the tokenizer's chat template refuses the conversation: {text['error']}",
                explain_refusal(text["error"], f"drop corpus.system or {_HINT}"),
            )
    return [text for text in rendered if isinstance(text, str)]


def render_each_conversation(
    source: str,
    conversations: Sequence[tuple[Conversation, Any]],
    variables: Mapping[str, str],
    limits: Limits = LIMITS,
) -> list[str | dict[str, str]]:
    """Render conversations as `render_conversations` does, each with its tools or None.

    One that the template refuses gives `{"error": why}`. Raises `UserError` when the template does not work.
    """
    what = "the tokenizer's chat template"
    return [
        text
        for batch in _batches(conversations)
        for text in run_limited(_render_here, source, batch, variables, limits=limits, what=what, hint=_HINT)
    ]


def _batches(conversations: Sequence[tuple[Conversation, Any]]) -> Iterator[list[tuple[Conversation, Any]]]:
    batch: list[tuple[Conversation, Any]] = []
    characters = 0
    for messages, tools in conversations:
        batch.append((messages, tools))
        characters += sum(len(message["content"]) for message in messages)
        if characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _render_here(source: str, conversations: Sequence[Any], variables: Mapping[str, str]) -> list[Any]:
    """Render in this process: for the child alone. What a template makes of strange calls or tools may be any error."""
    try:
        template = _compile(source)
    except TemplateError as error:
        return [{"error": str(error)} for _ in conversations]
    rendered: list[Any] = []
    for messages, tools in conversations:
        try:
            text = template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=messages[-1]["role"] != "assistant",
                **variables,
            )
            rendered.append(text)
        except TemplateError as error:
            rendered.append({"error": str(error)})
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            rendered.append({"error": f"{type(error).__name__}: {error}"})
    return rendered


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for transformers; to the text it adds nothing."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it as an instance variable)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str) -> JinjaTemplate:
    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # Jinja's own escapes HTML
    # No `strftime_now`: the corpus of tomorrow must equal that of today. Templates fall back to a date of their own, or
    # are told one by `set_chat_variables`.
    return environment.from_string(source)
