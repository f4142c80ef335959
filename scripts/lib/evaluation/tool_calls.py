"""Calls of tools in a text, whatever a chat template writes around them: JSON objects with a name and arguments.

Llama 3 calls the arguments `parameters`; OpenAI's form puts both into `function`, with the arguments as a text.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from lib.core.files import dump_canonical_json

_ARGUMENTS = ("arguments", "parameters")


class ToolCall(NamedTuple):
    """A call. arguments: canonical JSON, so that equal arguments are equal texts."""

    name: str
    arguments: str


def _read_number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value  # 1 and 1.0 are one number in JSON


_DECODER = json.JSONDecoder(parse_float=_read_number)


def parse_tool_calls(text: str) -> list[ToolCall]:
    """Return the calls in a text, sorted: those that are made at once have no order."""
    return sorted(_find_calls(text))


def _find_calls(text: str) -> Iterator[ToolCall]:
    place = text.find("{")
    while place >= 0:
        try:
            value, end = _DECODER.raw_decode(text, place)
            call = _as_call(value)
        except (ValueError, RecursionError):
            call, end = None, place + 1
        if call:
            yield call
        # A call may stand within another object.
        place = text.find("{", end if call else place + 1)


def _as_call(value: Any) -> ToolCall | None:
    """Return the call that an object is, or None."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    key = next((key for key in _ARGUMENTS if key in value), None)
    if key is None:
        return None
    arguments = value[key]
    if isinstance(arguments, str):
        try:
            arguments = _DECODER.decode(arguments)
        except (ValueError, RecursionError):
            return ToolCall(value["name"], arguments)  # no JSON: compared as it is
    return ToolCall(value["name"], dump_canonical_json(arguments))
