"""Rows that are conversations: turns in OpenAI's form (`role`, `content`) or ShareGPT's (`from`, `value`).

What comes before the last turn of the assistant becomes one column, `TURNS`, as the tokenizer's own chat template
renders it; the last turn is the target. Where earlier turns of the assistant are trained too, `spans` says where they
stand: the boundaries are found by rendering the conversation up to each turn.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lib.core.cli import fail
from lib.data.chat_templates import render_each_conversation
from lib.data.rows import MISSING, get_column
from lib.data.tokenizer import Tokenizer

TURNS = "turns"
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool", "developer": "system"}
_FORMS = (("role", "content"), ("from", "value"))
_NEXT = {
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}

Message = dict[str, Any]


class ConversationError(ValueError):
    """Why a row is no conversation that can be trained on."""


class Rendered(NamedTuple):
    """A conversation as text. spans: the earlier supervised turns, as character ranges of `prompt`."""

    prompt: str
    completion: str
    spans: list[tuple[int, int]]


def find_conversation(row: Mapping[str, Any]) -> str | None:
    """Return the column of a row that holds a conversation, or None."""
    for name, value in row.items():
        if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
            if any(set(form) <= turn.keys() for form in _FORMS for turn in value[:1]):
                return name
        elif isinstance(value, dict) and (inner := find_conversation(value)):
            return f"{name}.{inner}"
    return None


def read_messages(row: Mapping[str, Any], column: str) -> list[Message]:
    """Return the messages of a row, in OpenAI's form and with their text joined.

    Raises `ConversationError` for what is no conversation, and for roles or turns that cannot follow each other.
    """
    turns = get_column(row, column)
    if turns is MISSING or not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ConversationError(f"{column!r} holds no list of turns")
    messages = [_read_turn(turn, number) for number, turn in enumerate(turns, start=1)]
    before = "the start"
    allowed = {"system", "user"}
    for number, message in enumerate(messages, start=1):
        if message["role"] not in allowed:
            raise ConversationError(f"turn {number} is of the role {message['role']!r}, behind {before}")
        before, allowed = repr(message["role"]), _NEXT[message["role"]]
    if not messages or messages[-1]["role"] != "assistant":
        raise ConversationError("the last turn is not the assistant's")
    return messages


def read_question(row: Mapping[str, Any], column: str) -> list[Message]:
    """Return the messages of a conversation that asks for an answer. Raises `ConversationError` for another."""
    turns = get_column(row, column)
    if not isinstance(turns, list) or not turns:
        raise ConversationError(f"{column!r} holds no list of turns")
    answered = {**row, column: [*turns, {"role": "assistant", "content": "?"}]}
    return read_messages(answered, column)[:-1]


def render_question(chat: Mapping[str, Any], messages: Sequence[Message], tools: Any) -> str:
    """Render a conversation that asks for an answer. chat: `conversation` of template.json.

    Raises `ConversationError` when the chat template refuses it.
    """
    (text,) = render_each_conversation(chat["template"], [(messages, tools)], chat["variables"])
    if isinstance(text, dict):
        raise ConversationError(f"the chat template refuses it: {text['error']}")
    return text if text.startswith(chat["bos"]) else chat["bos"] + text


def _read_turn(turn: Mapping[str, Any], number: int) -> Message:
    form = next((form for form in _FORMS if form[0] in turn), None)
    if form is None:
        raise ConversationError(f"turn {number} has no role")
    role = str(turn[form[0]]).lower()
    role = _ROLES.get(role, role)
    if role not in _NEXT:
        raise ConversationError(f"turn {number} is of the unknown role {turn[form[0]]!r}")
    content = _read_content(turn.get(form[1]), number)
    calls = _read_calls(turn.get("tool_calls"), number) if role == "assistant" else None
    if not content and not calls:
        raise ConversationError(f"turn {number} is empty")
    more = {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    return {"role": role, "content": content, **({"tool_calls": calls} if calls else {}), **more}


def read_tools(row: Mapping[str, Any]) -> Any:
    """Return the tools that a row offers, as templates take them; some data sets keep the list as a text."""
    tools = row.get("tools")
    return _decode(tools) if isinstance(tools, str) else tools


def _read_calls(calls: Any, number: int) -> list[dict[str, Any]] | None:
    """Return the calls of a turn with their arguments as objects: OpenAI's form has them as text, templates do not."""
    if not calls:
        return None
    if not isinstance(calls, list) or not all(_name_tool(call) for call in calls):
        raise ConversationError(f"turn {number} has tool_calls that name no function")
    return [_decode_arguments(call) for call in calls]


def _decode_arguments(call: dict[str, Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), dict):
        return {**call, "function": _decode_arguments(call["function"])}
    return {key: _decode(value) if key == "arguments" else value for key, value in call.items()}


def _decode(value: Any) -> Any:
    """Return the list or object that a text holds, or the value as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list | dict) else value


def _read_content(content: Any, number: int) -> str:
    """Return the text of a turn, which may be a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content).strip()
    raise ConversationError(f"turn {number} is not text")


def list_texts(value: Any) -> Iterator[str]:
    """Yield every text in turns or tools, the names and arguments of calls among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from list_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from list_texts(inner)


def find_unwritten_tool(messages: Sequence[Message], tools: Any, text: str) -> str | None:
    """Return the name of a tool that is called or offered, and that the chat template leaves out; None without one."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    offered = tools if isinstance(tools, list) else []
    names = [found for one in (*calls, *offered) if (found := _name_tool(one))]
    return next((name for name in names if name not in text), None)


def _name_tool(value: Any) -> str | None:
    """Return the name in a call or in the description of a tool: in `function`, or beside its parameters."""
    if not isinstance(value, dict):
        return None
    inner = value["function"] if isinstance(value.get("function"), dict) else value
    return inner["name"] if isinstance(inner.get("name"), str) else None


def render_messages(
    tokenizer: Tokenizer, conversations: Sequence[tuple[Sequence[Message], Any]], *, only_last: bool
) -> list[Rendered | str]:
    """Render conversations, each with its tools or None; a text says why one cannot be rendered.

    only_last: the last turn alone is supervised. Raises `UserError` when the tokenizer has no chat template, or one
    that renders earlier turns otherwise once later ones follow: they would be trained in a form that is never asked.
    """
    if tokenizer.chat_template is None:
        fail("data.conversation needs a chat template, and the tokenizer has none", "choose a chat model")
    asked: list[tuple[Sequence[Message], Any]] = []
    places: list[list[int]] = []
    for messages, tools in conversations:
        ends = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        places.append(ends[-1:] if only_last else ends)
        for end in places[-1]:
            asked += [(messages[:end], tools), (messages[: end + 1], tools)]
    texts = iter(render_each_conversation(tokenizer.chat_template, asked, tokenizer.variables))
    result: list[Rendered | str] = []
    for ends in places:
        pairs = [(next(texts), next(texts)) for _ in ends]
        errors = [text["error"] for pair in pairs for text in pair if isinstance(text, dict)]
        result.append(errors[0] if errors else _join_turns(tokenizer, [(str(one), str(other)) for one, other in pairs]))
    return result


def _join_turns(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> Rendered | str:
    """Return a conversation by the texts up to each supervised turn, and with it."""
    prompt, whole = pairs[-1]
    spans = []
    for number, (before, after) in enumerate(pairs, start=1):
        end = len(before) + _find_end(tokenizer, after[len(before) :])
        if not after.startswith(before) or not whole.startswith(after[:end]):
            fail(
                f"the chat template renders the assistant's turn {number} otherwise once later ones follow",
                "set corpus.turns: last",
            )
        spans.append((len(before), end))
    completion = whole[len(prompt) : spans[-1][1]]
    bos = tokenizer.bos or ""
    shift = 0 if prompt.startswith(bos) else len(bos)
    return Rendered(bos * bool(shift) + prompt, completion, [(start + shift, end + shift) for start, end in spans[:-1]])


def _find_end(tokenizer: Tokenizer, text: str) -> int:
    """Return where the first end token of a turn ends, or its text where the template writes none."""
    ends = sorted((tokenizer.token(id_) for id_ in tokenizer.end_ids), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, ends)), text)
    return found.end() if found else len(text.rstrip())


def list_separators(tokenizer: Tokenizer) -> list[str]:
    """Return the texts that the chat template writes between turns, longest first: what is no text of a person."""
    marks = {role: f"\ue000{role}\ue001" for role in ("system", "user", "assistant")}
    turns = [{"role": role, "content": marks[role]} for role in ("system", "user", "assistant", "user")]
    assert tokenizer.chat_template is not None
    tried = [(turns, None), (turns[1:], None)]
    found = [
        text
        for text in render_each_conversation(tokenizer.chat_template, tried, tokenizer.variables)
        if isinstance(text, str)
    ]
    pieces = {piece for text in found for piece in re.split("\ue000[a-z]+\ue001", text) if piece.strip()}
    return sorted(pieces, key=lambda piece: (-len(piece), piece))
