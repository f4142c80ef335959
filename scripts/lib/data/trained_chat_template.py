"""The chat template that renders the trained prompt: what a packaged model is asked by programs that know only chats.

A base model's own template would ask something else than what was trained, without any error: one turn of the user
becomes the prompt here, its fixed text around it. With one column, the turn is its value. With several, it is what
stands in the prompt from the first column to the last, or a list of text parts, one for each column in the order of
`template.json`. Whatever was not trained is refused: system turns, earlier turns, another number of parts.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lib.data.templates import Segment, render

CHAT_TEMPLATE = "chat_template.jinja"
_ONE_QUESTION = "this model was trained on one question: give one turn of the user, and no other"
_PARTS = "give a text, or one text part for each of: "


def render_trained_chat_template(template: Mapping[str, Any]) -> str:
    """Return Jinja source that turns one message of the user, and perhaps its answer, into the trained text.

    template: `template.json`. Of conversations it is the chat template that they were rendered with.
    """
    if chat := template.get("conversation"):
        source: str = chat["template"]
        return source
    segments, columns = _always_written(template), template["columns"]
    before, between, behind = split_around_columns(segments)
    question = "content | trim" if len(columns) == 1 else "content"
    names = ", ".join(columns)
    return "".join(
        [
            "{%- if messages | length > 2 or messages[0]['role'] != 'user'",
            " or (messages | length == 2 and messages[1]['role'] != 'assistant') -%}",
            f"{{{{- raise_exception({_quote(_ONE_QUESTION)}) -}}}}",
            "{%- endif -%}",
            "{%- set content = messages[0]['content'] -%}",
            f"{{{{- {_quote(_text(before))} -}}}}",
            "{%- if content is string -%}",
            f"{{{{- {question} -}}}}",
            f"{{%- elif content | length == {len(columns)} -%}}",
            *(_write_part(segment, columns) for segment in between),
            "{%- else -%}",
            f"{{{{- raise_exception({_quote(_PARTS + names)}) -}}}}",
            "{%- endif -%}",
            f"{{{{- {_quote(_text(behind))} -}}}}",
            "{%- if messages | length == 2 -%}",
            *(_write_answer(segment) for segment in template["completion"]),
            "{%- endif -%}",
        ]
    )


def find_question(template: Mapping[str, Any], prompt: str) -> str:
    """Return the user's turn that a prompt of the corpus is rendered from."""
    before, _, behind = split_around_columns(_always_written(template))
    start, end = _text(before), _text(behind)
    return prompt[len(start) : len(prompt) - len(end)]


def split_around_columns(segments: Sequence[Segment]) -> tuple[list[Segment], list[Segment], list[Segment]]:
    """Return the fixed text before the first column, all from there to the last one, and the fixed text behind it."""
    variable = [place for place, segment in enumerate(segments) if "column" in segment or "if" in segment]
    first, last = variable[0], variable[-1] + 1
    return list(segments[:first]), list(segments[first:last]), list(segments[last:])


def _always_written(template: Mapping[str, Any]) -> list[Segment]:
    """Return the prompt's segments; what depends on the only column is always there, since an input is never empty."""
    if len(template["columns"]) > 1:
        return list(template["prompt"])
    return [{key: value for key, value in segment.items() if key != "if"} for segment in template["prompt"]]


def _text(segments: Sequence[Segment]) -> str:
    return render(list(segments), {})


def _write_part(segment: Segment, columns: Sequence[str]) -> str:
    """Write a segment between the first and the last column, for content that is a list of text parts."""

    def part(column: str) -> str:
        return f"(content[{columns.index(column)}]['text'] | trim)"

    written = _quote(segment["text"]) if "text" in segment else part(segment["column"])
    if "if" in segment:
        return f"{{%- if {part(segment['if'])} -%}}{{{{- {written} -}}}}{{%- endif -%}}"
    return f"{{{{- {written} -}}}}"


def _write_answer(segment: Segment) -> str:
    written = _quote(segment["text"]) if "text" in segment else "messages[1]['content'] | trim"
    return f"{{{{- {written} -}}}}"


def _quote(text: str) -> str:
    """Write a text as a string of Jinja, in which JSON's escapes mean the same; other signs stand for themselves."""
    return json.dumps(text, ensure_ascii=False)
