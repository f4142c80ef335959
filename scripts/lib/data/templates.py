"""Templates: how a row becomes `prompt` and `completion`, once, for training, scoring and use.

A template is plain data: lists of segments, each a fixed `text` or a `column` whose value is put in
as it is. Values are never scanned for placeholders, so braces in them are text. The chat template
of a tokenizer is rendered once, with marks where the values belong, and cut at the marks; so
`predict.py` needs neither Jinja nor transformers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

from lib.core.cli import fail
from lib.data.chat_templates import render_conversations, set_chat_variables
from lib.data.conversations import TURNS, list_separators
from lib.data.tokenizer import Tokenizer

UNSURE = "unsure"  # the answer where no label is probable enough; no label may be called so

# {"text": ...} or {"column": ...}; with "if", the name of a column, it counts only where that column is not empty.
Segment = dict[str, str]


class Template(TypedDict):
    """The rendered form of `corpus:`; `corpus/template.json` holds it for every later reader.

    completion: text before the answer if any, the target's column, text behind it if any, the end token.
    separators: of conversations, what stands between their turns.
    """

    task: str
    target: str
    columns: list[str]
    prompt: list[Segment]
    completion: list[Segment]
    labels: list[str] | None
    separators: NotRequired[list[str]]


# A brace that is text, a quoted name, a plain name (anything without a brace), or a brace that is a mistake.
_BRACES = re.compile(r'(?P<text>\{\{|\}\})|\{\s*(?P<quoted>"(?:[^"\\]|\\.)*")\s*\}|\{(?P<plain>[^{}]*)\}|[{}]')
_PART = re.compile(r"(?P<sign>[?/])(?P<name>.*)", re.DOTALL)
_NOT_PLAIN = re.compile(r"""[":!\[]|^\s*'""")


def parse_segments(text: str) -> list[Segment]:
    """Split `### Text: {phrase}` into segments. `{{` and `}}` stand for braces.

    A template names columns, nothing else: a dot, as in `{user.name}` or `{messages.0.content}`, is part of a name that
    reaches into nested JSON. A name with a brace, `"`, `:`, `!` or `[` in it is written as a JSON string:
    `{"PK [m]"}`. A part from `{?input}` to `{/input}` is written only where the column `input` is not empty. Raises
    `UserError` on empty names, formats, conversions, lonely braces, and parts that do not end or are within others.
    """
    segments: list[Segment] = []
    end, part = 0, None
    for found in _BRACES.finditer(text):
        segments.append(_place({"text": text[end : found.start()]}, part))
        end = found.end()
        if mark := _PART.fullmatch(found["plain"] or ""):
            part = _open_or_close(part, mark)
        else:
            segment = {"text": found["text"][0]} if found["text"] else {"column": _column_name(text, found)}
            segments.append(_place(segment, part))
    if part:
        fail(f"template: the part {{?{part}}} does not end", f"write {{/{part}}} behind it")
    segments.append({"text": text[end:]})
    return _merge_texts([segment for segment in segments if segment.get("text") != ""])


def _place(segment: Segment, part: str | None) -> Segment:
    """Return a segment as a member of the part that is open, if any."""
    return {**segment, "if": part} if part else segment


def _open_or_close(part: str | None, mark: re.Match[str]) -> str | None:
    """Return the part that is open behind a mark. Raises `UserError` when the mark fits none."""
    name = mark["name"].strip()
    if not name:
        fail(f"template: {{{mark[0]}}} names no column", "write the name of a column in braces")
    if mark["sign"] == "?" and part:
        fail(f"template: {{?{name}}} begins within {{?{part}}}", f"end that part before, with {{/{part}}}")
    if mark["sign"] == "/" and part != name:
        fail(f"template: {{/{name}}} ends no part", f"write {{?{name}}} before it")
    return name if mark["sign"] == "?" else None


def format_placeholder(name: str) -> str:
    """Write the placeholder of a column, quoted where its name needs it."""
    is_plain = not (_NOT_PLAIN.search(name) or set(name) & {"{", "}"})
    return f"{{{name if is_plain else json.dumps(name, ensure_ascii=False)}}}"


def _column_name(text: str, found: re.Match[str]) -> str:
    """Return the name in a placeholder. Raises `UserError` when it is none."""
    if found["quoted"]:
        try:
            name = json.loads(found["quoted"])
        except ValueError:
            fail(f"template: {found[0]} is not a quoted name", "write it as a JSON string")
    elif (name := found["plain"]) is None:
        fail(f"template {text[:80]!r}: a single {found[0]}", "write a brace that is text as {{ or }}")
    elif _NOT_PLAIN.search(name):
        what = "has a format or conversion" if re.search("[:!]", name) else "is not a column"
        plain = _NOT_PLAIN.split(name)[0].strip() or "name"
        hint = f"write {{{plain}}}, or quote a name that is written so: {format_placeholder(name)}"
        fail(f"template: {{{name}}} {what}", hint)
    if not name.strip():
        fail(f"template: {found[0]} names no column", "write the name of a column in braces")
    return name


def list_columns(segments: list[Segment]) -> list[str]:
    """Return names of the columns in order of first use, those that parts depend on among them."""
    names = (segment[key] for segment in segments for key in ("if", "column") if key in segment)
    return list(dict.fromkeys(names))


def list_template_columns(corpus: Mapping[str, Any], target: str) -> list[str]:
    """Return input columns that a `corpus:` section uses (without the target). Raises as `parse_segments`."""
    texts = [corpus.get("text_template"), corpus.get("system"), corpus.get("user")]
    names = [name for text in texts if text for name in list_columns(parse_segments(text))]
    return [name for name in dict.fromkeys(names) if name != target]


def compile_template(
    corpus: Mapping[str, Any], tokenizer: Tokenizer, *, task: str, target: str, labels: list[str] | None
) -> Template:
    """Build the template of a `corpus:` section for one tokenizer.

    The prompt starts with the BOS token where the tokenizer wants one, the completion ends with an
    end token. Raises `UserError` when the target is not last in a text template or part of a question,
    when the tokenizer has no chat template, or when no end token follows the answer.
    """
    if corpus.get("text_template"):
        prompt, completion = _text_template(corpus["text_template"], tokenizer, target)
    else:
        prompt, completion = _chat_template(corpus, tokenizer, target)
    if tokenizer.bos and not prompt[0].get("text", "").startswith(tokenizer.bos):
        prompt = _merge_texts([{"text": tokenizer.bos}, *prompt])
    return {
        "task": task,
        "target": target,
        "columns": list_columns(prompt),
        "prompt": prompt,
        "completion": completion,
        "labels": labels,
    }


def set_up_chat(tokenizer: Tokenizer, corpus: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer with the variables of its chat template set as the section `corpus` says."""
    options, day = corpus.get("chat_options") or {}, corpus.get("chat_date")
    if not options and day is None:
        return tokenizer
    if tokenizer.chat_template is None:
        fail("corpus.chat_options and chat_date are for a chat template, and the tokenizer has none", "take them out")
    return replace(tokenizer, chat_template=set_chat_variables(tokenizer.chat_template, options, day))


def compile_rows(
    data: Mapping[str, Any], corpus: Mapping[str, Any], tokenizer: Tokenizer, *, task: str, labels: list[str] | None
) -> Template:
    """Build the template of rows as `data:` describes them: of columns, or conversations. Raises `UserError`."""
    if "conversation" in data:
        return compile_conversation(tokenizer, task=task, target=data["target"], labels=labels)
    return compile_template(corpus, tokenizer, task=task, target=data["target"], labels=labels)


def compile_conversation(tokenizer: Tokenizer, *, task: str, target: str, labels: list[str] | None) -> Template:
    """Build the template of rows that are conversations: their earlier turns, as rendered, and the last one.

    Raises `UserError` as `compile_template` does.
    """
    if tokenizer.chat_template is None:
        fail("data.conversation needs a chat template, and the tokenizer has none", "choose a chat model")
    question = [{"role": "user", "content": "?"}]
    answered = [*question, {"role": "assistant", "content": _ANSWER}]
    asked, whole = _apply_chat_template(tokenizer, [question, answered])
    if not whole.startswith(asked):
        fail("the chat template renders the question differently once it is answered", "use another base model")
    completion = _end_completion(_cut(whole[len(asked) :], {_ANSWER: target}), tokenizer)
    prompt = [{"column": TURNS}]
    names = {"task": task, "target": target, "columns": [TURNS], "prompt": prompt, "completion": completion}
    return {**names, "labels": labels, "separators": list_separators(tokenizer)}  # type: ignore[typeddict-item]


def render(segments: list[Segment], values: Mapping[str, str]) -> str:
    """Return text of `segments` with the values put in. Raises `KeyError` for a column without a value."""
    written = (segment for segment in segments if "if" not in segment or values[segment["if"]])
    return "".join(segment["text"] if "text" in segment else values[segment["column"]] for segment in written)


def list_conditions(segments: list[Segment]) -> list[str]:
    """Return the columns that parts depend on, in order of first use."""
    return list(dict.fromkeys(segment["if"] for segment in segments if "if" in segment))


def render_prompt(template: Template, values: Mapping[str, str]) -> str:
    return render(template["prompt"], values)


def render_completion(template: Template, answer: str) -> str:
    return render(template["completion"], {template["target"]: answer})


def render_chats(
    corpus: Mapping[str, Any], tokenizer: Tokenizer, rows: Sequence[tuple[Mapping[str, str], str]]
) -> list[str]:
    """Render whole conversations through the tokenizer's own Jinja template, as transformers does it.

    rows: the values and the answer of each.
    """
    return _apply_chat_template(tokenizer, [_messages(corpus, values, answer) for values, answer in rows])


_OPEN, _CLOSE = "\ue002", "\ue003"
_MARKS = re.compile(f"([{_OPEN}{_CLOSE}]?)(\ue000[^\ue001]*\ue001)|([^{_OPEN}{_CLOSE}\ue000]+)")
_ANSWER = "\ue000answer\ue001"  # private-use characters: in no template and no vocabulary entry


def _text_template(text: str, tokenizer: Tokenizer, target: str) -> tuple[list[Segment], list[Segment]]:
    segments = parse_segments(text)
    places = [index for index, segment in enumerate(segments) if segment.get("column") == target]
    if len(places) != 1 or any("column" in segment for segment in segments[places[0] + 1 :]):
        fail(
            f"corpus.text_template must name the target {{{target}}} once, as its last placeholder",
            "what stands before it is the prompt, what stands after it ends the answer",
        )
    prompt, completion = segments[: places[0]], segments[places[0] :]
    if conditions := list_conditions(completion):
        fail(f"corpus.text_template: the part {{?{conditions[0]}}} holds the target, or follows it", "end it before")
    if not prompt:
        fail("corpus.text_template has nothing before the target", "put the text that the model is asked before it")
    return prompt, _end_completion(completion, tokenizer)


def _chat_template(corpus: Mapping[str, Any], tokenizer: Tokenizer, target: str) -> tuple[list[Segment], list[Segment]]:
    if tokenizer.chat_template is None:
        fail("corpus.template is chat, but the tokenizer has no chat template", "use corpus.text_template")
    columns = list_template_columns(corpus, target)
    if target in list_columns(parse_segments(f"{corpus.get('system') or ''}{corpus['user']}")):
        fail(f"corpus.user or corpus.system names the target {{{target}}}", "the question must not hold its answer")
    marks = {name: f"\ue000{index}\ue001" for index, name in enumerate(columns)}
    messages = _messages(corpus, marks, _ANSWER, mark_parts=True)
    asked, whole = _apply_chat_template(tokenizer, [messages[:-1], messages])
    if not whole.startswith(asked):
        thinks = "enable_thinking" in tokenizer.chat_template and not corpus.get("chat_options")
        hint = "set corpus.chat_options: {enable_thinking: false}" if thinks else "use corpus.text_template"
        fail("the chat template renders the question differently once it is answered", hint)
    names = {mark: name for name, mark in marks.items()} | {_ANSWER: target}
    return _merge_texts(_cut(asked, names)), _end_completion(_cut(whole[len(asked) :], names), tokenizer)


def _messages(
    corpus: Mapping[str, Any], values: Mapping[str, str], answer: str, *, mark_parts: bool = False
) -> list[dict[str, str]]:
    """Return a question and its answer as a conversation. mark_parts: mark the parts that depend on a column."""
    turns = []
    for role in ("system", "user"):
        if corpus.get(role):
            segments = parse_segments(corpus[role])
            marked = _mark_parts(segments, values) if mark_parts else segments
            turns.append({"role": role, "content": render(marked, values)})
    return [*turns, {"role": "assistant", "content": answer}]


def _mark_parts(segments: list[Segment], marks: Mapping[str, str]) -> list[Segment]:
    """Return segments with a mark before and behind each part: `_OPEN` or `_CLOSE`, then the mark of its column."""
    marked: list[Segment] = []
    part = None
    for segment in [*segments, {}]:
        if segment.get("if") != part:
            marked += [{"text": _CLOSE + marks[part]}] if part else []
            part = segment.get("if")
            marked += [{"text": _OPEN + marks[part]}] if part else []
        marked += [segment] if segment else []
    return marked


def _cut(text: str, names: Mapping[str, str]) -> list[Segment]:
    """Return the segments of a text with marks of columns and parts."""
    segments: list[Segment] = []
    part = None
    for sign, mark, plain in _MARKS.findall(text):
        if sign:
            part = names[mark] if sign == _OPEN else None
        else:
            segments.append(_place({"column": names[mark]} if mark else {"text": plain}, part))
    return segments


def _end_completion(completion: list[Segment], tokenizer: Tokenizer) -> list[Segment]:
    """Cut the completion behind its first end token, or append the tokenizer's own; its last segment is that token.

    Raises `UserError` when no end token is known, or the answer does not stand before it exactly once.
    """
    ends = {tokenizer.token(id_) for id_ in tokenizer.end_ids}
    result, end = _before_end(completion, ends)
    if end is None:
        if tokenizer.eos not in ends:
            fail(
                f"the tokenizer's eos token {tokenizer.eos!r} is not among the ids that end a text {sorted(ends)}",
                "end the answer in the template with one of them",
            )
        end = tokenizer.eos
    answers = sum("column" in segment for segment in result)
    if answers != 1:
        fail(f"the template writes the answer {answers} times before its end token", "use corpus.text_template")
    return [*_merge_texts(result), {"text": end}]


def _before_end(completion: list[Segment], ends: set[str]) -> tuple[list[Segment], str | None]:
    """Return the segments before the first end token, and that token or None."""
    for place, segment in enumerate(completion):
        text = segment.get("text", "")
        # At the same place the longest, as tokenizers read it.
        found = min(((text.find(end), -len(end), end) for end in ends if end in text), default=None)
        if found:
            start, _, end = found
            return completion[:place] + ([{"text": text[:start]}] if start else []), end
    return completion, None


def _merge_texts(segments: list[Segment]) -> list[Segment]:
    """Join neighboring texts, so that equal templates are equal data."""
    result: list[Segment] = []
    for segment in segments:
        if result and "text" in segment and "text" in result[-1] and segment.get("if") == result[-1].get("if"):
            result[-1] = {**segment, "text": result[-1]["text"] + segment["text"]}
        else:
            result.append(segment)
    return result


def _apply_chat_template(tokenizer: Tokenizer, conversations: Sequence[list[dict[str, str]]]) -> list[str]:
    """Render as `transformers.PreTrainedTokenizerBase.apply_chat_template` does, with the same settings."""
    assert tokenizer.chat_template is not None
    return render_conversations(tokenizer.chat_template, conversations, tokenizer.variables)
