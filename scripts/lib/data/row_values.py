"""A row's columns as text, under the rules of the training data, or the reason why it is set aside."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lib.core.files import hash_text, parse_jsonl_line
from lib.data.conversations import (
    TURNS,
    ConversationError,
    Message,
    Rendered,
    find_unwritten_tool,
    list_texts,
    read_messages,
    read_tools,
    render_messages,
)
from lib.data.given_splits import NoSplitError, read_given_split, read_groups
from lib.data.labels import map_spellings
from lib.data.rows import MISSING, convert_to_text, describe_value, get_column, normalize
from lib.data.template_inversion import extract_answer
from lib.data.templates import Template, format_placeholder, render_completion
from lib.data.tokenizer import Tokenizer
from lib.data.value_limits import batch_by_size, compute_max_characters, cut_value

REASONS = (
    "unreadable",
    "missing_column",
    "not_text",
    "null_character",
    "control_token",
    "empty_value",
    "unknown_label",
    "no_split",
    "conversation",
    "label_conflict",
    "exact_duplicate",
    "too_long",
)


class Reason(NamedTuple):
    """Why a row is set aside: one of `REASONS`, and what a person needs to find it."""

    reason: str
    detail: str


class CheckedRow(NamedTuple):
    """The row with a number, as `fetch_data` wrote it, and its columns as text or why they cannot be used.

    spelling: the target as it stands in the row, of which `data.labels` may make another label.
    split: the one that the row was given, or nothing. groups: those of `split.groups`, as `COLUMN=VALUE`.
    other_answers: where the target is a list of right answers, those behind the first. spans: of a conversation, its
    earlier supervised turns.
    """

    number: int
    read: dict[str, Any]
    values: dict[str, str] | Reason
    spelling: str | None = None
    split: str = ""
    groups: Sequence[str] = ()
    other_answers: Sequence[str] = ()
    spans: Sequence[tuple[int, int]] = ()


class RowChecker:
    """Reads the rows of `fetch_data` as text, or says why they cannot be used.

    A value longer than `CHARACTERS_PER_TOKEN` allows is cut here as truncation would cut it, or the row is set aside:
    nothing after this sees the rest.
    path: the file that errors name. split: `column`, `values` and `groups` of the configuration, those that are set.
    """

    def __init__(
        self,
        path: Path,
        data: dict[str, Any],
        template: Template,
        tokenizer: Tokenizer,
        corpus: dict[str, Any],
        split: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._path, self._data, self._template = path, data, template
        self._tokenizer, self._corpus, self._split = tokenizer, corpus, split
        self._control = re.compile("|".join(map(re.escape, tokenizer.control)) or r"(?!)")
        self._labels = map_spellings(data["labels"]) if data.get("labels") else None

    def check(self, lines: Iterable[tuple[int, str]]) -> Iterator[CheckedRow]:
        """Yield the rows of some lines of the file, which are numbered from 1."""
        rows = ((number - 1, parse_jsonl_line(self._path, line, number)) for number, line in lines)
        if "conversation" in self._data:
            with_template = self._template, self._tokenizer, self._control, self._corpus
            checked = _check_conversations(rows, self._data, *with_template)
        else:
            checked = _check_columns(rows, self._data, self._template, self._control, self._corpus)
        for one in checked:
            yield one if isinstance(one.values, Reason) else self._place(one)

    def _place(self, one: CheckedRow) -> CheckedRow:
        """Return a row with its label, its split and its groups, or why it has none."""
        assert not isinstance(one.values, Reason)
        split, labels, target = self._split, self._labels, self._data["target"]
        spelling = one.values[target]
        try:
            given = read_given_split(one.read, split.get("column"), split.get("values", {}))
            groups = [*read_groups(one.read["row"], split.get("groups", ())), *one.groups]
        except NoSplitError as error:
            return CheckedRow(one.number, one.read, Reason("no_split", str(error)), spelling)
        if labels is not None and spelling not in labels:
            what = Reason("unknown_label", f"{spelling!r} is not in data.labels")
            return CheckedRow(one.number, one.read, what, spelling)
        values = one.values if labels is None else {**one.values, target: labels[spelling]}
        return CheckedRow(one.number, one.read, values, spelling, given, groups, one.other_answers, one.spans)


def _check_columns(
    rows: Iterable[tuple[int, dict[str, Any]]],
    data: dict[str, Any],
    template: Template,
    control: re.Pattern[str],
    corpus: dict[str, Any],
) -> Iterator[CheckedRow]:
    names, target = [*template["columns"], data["target"]], data["target"]
    for index, read in rows:
        if "error" in read:
            yield CheckedRow(index, read, Reason("unreadable", read["error"]))
            continue
        row, others = _take_answers(read["row"], target) if template["task"] == "generation" else (read["row"], [])
        values = _values(row, names, data.get("optional_columns") or (), control, data["special_tokens"])
        if others:
            cleaned = [_clean(text, target, control, data["special_tokens"]) for text in others]
            others = [text for text in cleaned if isinstance(text, str) and text]
            values = next((one for one in cleaned if isinstance(one, Reason)), values)
        if not isinstance(values, Reason):
            values = _bound_values(values, target, corpus)
        yield CheckedRow(index, read, values, other_answers=others)


def _check_conversations(
    rows: Iterable[tuple[int, dict[str, Any]]],
    data: dict[str, Any],
    template: Template,
    tokenizer: Tokenizer,
    control: re.Pattern[str],
    corpus: dict[str, Any],
) -> Iterator[CheckedRow]:
    """Yield rows whose columns are the earlier turns of a conversation, as rendered, and its last one."""
    for batch in batch_by_size(rows, lambda row: len(str(row[1]))):
        found = [_read_conversation(read, data, control, corpus["max_length"]) for _, read in batch]
        good = [(messages, read_tools(read["row"])) for (_, read), messages in zip(batch, found, strict=True)
                if not isinstance(messages, Reason)]  # fmt: skip
        rendered = iter(render_messages(tokenizer, good, only_last="turns" in corpus))
        for (index, read), messages in zip(batch, found, strict=True):
            if isinstance(messages, Reason):
                yield CheckedRow(index, read, messages)
                continue
            one = next(rendered)
            if isinstance(one, str):
                yield CheckedRow(index, read, Reason("conversation", f"the chat template refuses it: {one}"))
                continue
            if tool := find_unwritten_tool(messages, read_tools(read["row"]), one.prompt + one.completion):
                what = f"the chat template does not write the tool {tool!r}: choose a model that knows tools"
                yield CheckedRow(index, read, Reason("conversation", what))
                continue
            first = next(message["content"] for message in messages if message["role"] == "user")
            yield CheckedRow(
                index,
                read,
                _take_last_turn(one, template),
                groups=[f"first turn {hash_text(normalize(first).casefold())[:16]}"],
                spans=one.spans,
            )


def _read_conversation(
    read: dict[str, Any], data: dict[str, Any], control: re.Pattern[str], max_length: int
) -> list[Message] | Reason:
    """Return the turns of a row without control tokens, or why it cannot be used."""
    if "error" in read:
        return Reason("unreadable", read["error"])
    try:
        messages = read_messages(read["row"], data["conversation"])
    except ConversationError as error:
        return Reason("conversation", str(error))
    for number, message in enumerate(messages, start=1):
        cleaned = _clean(message["content"], f"turn {number}", control, data["special_tokens"])
        if isinstance(cleaned, Reason):
            return cleaned
        message["content"] = cleaned
    # What a program wrote: nothing is taken out of it.
    calls = [{key: value for key, value in message.items() if key not in ("role", "content")} for message in messages]
    others = [*calls, read_tools(read["row"])]
    for text in list_texts(others):
        if isinstance(reason := _clean(text, "a call or a tool", control, "reject"), Reason):
            return reason
    characters = sum(len(message["content"]) for message in messages) + sum(map(len, list_texts(others)))
    most = compute_max_characters(max_length)
    if characters > most:
        what = f"the turns have {characters:,} characters, corpus.max_length {max_length} has room for {most:,} at most"
        return Reason("too_long", what)
    return messages


def _take_last_turn(one: Rendered, template: Template) -> dict[str, str] | Reason:
    """Return the columns of a rendered conversation, or why its last turn is not what the template writes elsewhere."""
    answer = extract_answer(template, one.completion)
    if not answer:
        return Reason("empty_value", "the last turn is empty")
    wanted = render_completion(template, answer)
    if wanted != one.completion and wanted.removesuffix(template["completion"][-1]["text"]) != one.completion:
        return Reason("conversation", "the chat template writes the last turn otherwise than a single one")
    return {TURNS: one.prompt, template["target"]: answer}


def _take_answers(row: dict[str, Any], target: str) -> tuple[dict[str, Any], list[str]]:
    """Return a row whose target is the first text of a list of right answers, and the others; or the row as it is."""
    found = get_column(row, target)
    if not isinstance(found, list):
        return row, []
    answers = [convert_to_text(one) for one in found]
    if None in answers:
        return row, []
    texts = [text for text in dict.fromkeys(answers) if text]
    return {**row, target: texts[0] if texts else ""}, texts[1:]


def _bound_values(values: dict[str, str], target: str, corpus: dict[str, Any]) -> dict[str, str] | Reason:
    """Return the values without what no row of `max_length` tokens has room for, or why the row is too long."""
    most, side = compute_max_characters(corpus["max_length"]), corpus["truncation"]
    if all(len(text) <= most for text in values.values()):
        return values
    for name, text in values.items():
        if len(text) > most and (side == "reject" or name == target):
            what = f"{name!r} has {len(text):,} characters, corpus.max_length {corpus['max_length']}"
            return Reason("too_long", f"{what} has room for {most:,} at most")
    return {name: cut_value(text, corpus["max_length"], side) for name, text in values.items()}


def _values(
    row: dict[str, Any], names: Sequence[str], optional: Sequence[str], control: re.Pattern[str], special_tokens: str
) -> dict[str, str] | Reason:
    """Return the named columns as text, the target last, or why the row has not all of them.

    optional: columns that may be empty or missing.
    """
    values: dict[str, str] = {}
    for name in names:
        value = get_column(row, name)
        if value is MISSING and name not in optional:
            return Reason("missing_column", f"no {name!r}")
        text = "" if value is MISSING else convert_to_text(value)
        if text is None:
            hint = f", whose first value is {format_placeholder(f'{name}.0')}" if isinstance(value, list) else ""
            return Reason("not_text", f"{name!r} is {describe_value(value)}{hint}")
        cleaned = _clean(text, name, control, special_tokens)
        if isinstance(cleaned, Reason):
            return cleaned
        text = cleaned
        if not text and name not in optional:
            return Reason("empty_value", f"{name!r} is empty")
        values[name] = text
    if not any(values[name] for name in names[:-1]):
        return Reason("empty_value", "every input is empty")
    return values


def _clean(text: str, name: str, control: re.Pattern[str], special_tokens: str) -> str | Reason:
    """Return a text without control tokens, or why it cannot be used."""
    # Tokenizers written in C end a text here. They read the other control characters as `tokenizers` does (tried
    # with ONNX Runtime GenAI for U+0001 to U+00A0), so those stay what they are: text.
    if "\0" in text:
        return Reason("null_character", f"{name!r} contains the character NUL (U+0000)")
    while found := control.search(text):
        if special_tokens == "reject":
            return Reason("control_token", f"{name!r} contains {found[0]!r}")
        text = control.sub("", text).strip()  # again, for what is left may join to another
    return text
