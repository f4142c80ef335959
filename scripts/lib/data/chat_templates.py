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
_BATCH_CHARACTERS = 4 << 20  # of what one child gets: long rows must not come near the limits
_HINT = "use corpus.text_template"

Conversation = Sequence[Mapping[str, Any]]  # its messages, each with `role` and `content`


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
                f"drop corpus.system or {_HINT}",
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
    # No `strftime_now`: a template that asks for today's date falls back to its fixed one, and the
    # corpus of tomorrow equals that of today.
    return environment.from_string(source)
