"""Chat templates of tokenizers: Jinja programs that the maker of a model wrote, rendered in a child with limits."""

import json
from collections.abc import Iterator, Mapping, Sequence
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
_BATCH = 2000
_BATCH_CHARACTERS = 4 << 20  # of what one child gets: long rows must not come near the limits
_HINT = "use corpus.text_template"

Conversation = Sequence[Mapping[str, str]]  # its messages, each with `role` and `content`


def render_conversations(
    source: str, conversations: Sequence[Conversation], variables: Mapping[str, str], limits: Limits = LIMITS
) -> list[str]:
    """Render each conversation through a chat template as transformers does, in a child within `limits`.

    A conversation that the user has ended asks for the answer (`add_generation_prompt`).
    variables: the special tokens' texts by role. Raises `UserError` when the template refuses one or does not work.
    """
    what = "the tokenizer's chat template"
    return [
        text
        for batch in _batches(conversations)
        for text in run_limited(_render_here, source, batch, variables, limits=limits, what=what, hint=_HINT)
    ]


def render_each_conversation(
    source: str,
    conversations: Sequence[tuple[Sequence[Mapping[str, Any]], Any]],
    variables: Mapping[str, str],
    limits: Limits = LIMITS,
) -> list[str | dict[str, str]]:
    """Render conversations as `render_conversations` does, each with its tools or None.

    One that the template refuses gives `{"error": why}`. Raises `UserError` when the template does not work.
    """
    what = "the tokenizer's chat template"
    rendered: list[str | dict[str, str]] = []
    batch: list[tuple[Sequence[Mapping[str, Any]], Any]] = []
    characters = 0
    for messages, tools in conversations:
        batch.append((messages, tools))
        characters += sum(len(message["content"]) for message in messages)
        if characters > _BATCH_CHARACTERS or len(batch) == _BATCH:
            rendered += run_limited(_render_each_here, source, batch, variables, limits=limits, what=what, hint=_HINT)
            batch, characters = [], 0
    if batch:
        rendered += run_limited(_render_each_here, source, batch, variables, limits=limits, what=what, hint=_HINT)
    return rendered


def _render_each_here(source: str, conversations: Sequence[Any], variables: Mapping[str, str]) -> list[Any]:
    """Render in this process: for the child alone."""
    template = _compile(source)
    rendered: list[Any] = []
    for messages, tools in conversations:
        try:
            rendered.append(_render(template, messages, tools, variables))
        except TemplateError as error:
            rendered.append({"error": f"the chat template refuses it: {error}"})
    return rendered


def _render(
    template: JinjaTemplate, messages: Sequence[Mapping[str, Any]], tools: Any, variables: Mapping[str, str]
) -> str:
    return template.render(
        messages=messages,
        tools=tools,
        documents=None,
        add_generation_prompt=messages[-1]["role"] != "assistant",
        **variables,
    )


def _batches(conversations: Sequence[Conversation]) -> Iterator[list[Conversation]]:
    batch: list[Conversation] = []
    characters = 0
    for messages in conversations:
        batch.append(messages)
        characters += sum(len(message["content"]) for message in messages)
        if characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _render_here(source: str, conversations: Sequence[Conversation], variables: Mapping[str, str]) -> list[str]:
    """Render in this process: for the child alone."""
    try:
        template = _compile(source)
        return [_render(template, messages, None, variables) for messages in conversations]
    except TemplateError as error:
        fail(f"the tokenizer's chat template refuses the conversation: {error}", f"drop corpus.system or {_HINT}")


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
    # No `strftime_now`: a template that asks for today's date falls back to its fixed one, and the
    # corpus of tomorrow equals that of today.
    return environment.from_string(source)
