"""Ask a packaged model.

    python scripts/predict.py --model results/model "What a lovely day" "Nobody came"
    python scripts/predict.py --model results/model --file inputs.csv --json

Prints label and probability (task generation: the answer), one line per input and in their order;
line breaks, tabs and control characters in an answer are written as JSON writes them (\\n, \\t, ...).
With --json one JSON object per line, which holds the exact text.
A file is plain text with one input a line (it ends at \\n or \\r\\n and nowhere else), or .jsonl, .json,
.csv or .parquet with the columns of the template. Every input is checked before the first is answered.
Needs onnxruntime-genai, numpy, tokenizers and jinja2, for Parquet also pyarrow and datasets; neither torch nor
transformers.
"""

import argparse
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from lib.core.cli import build_parser, fail, run
from lib.core.escaping import escape_controls
from lib.data.conversations import TURNS, ConversationError, list_texts, read_question, read_tools, render_question
from lib.data.readers import is_readable, read_rows
from lib.data.rows import MISSING, convert_to_text, describe_value, format_place, get_column
from lib.data.templates import UNSURE, Template, render_completion, render_prompt
from lib.data.tokenizer import Tokenizer
from lib.data.tokenizer_trial import TRIED_TEXTS, join_values
from lib.data.truncation import shorten_values
from lib.data.value_limits import compute_max_characters, cut_value
from lib.evaluation.scoring import answer_text, encode_choices
from lib.evaluation.temperature import compute_shares
from lib.onnx.packaged import explain_tokenizer_errors, load_packaged_tokenizer, read_packaged_template
from lib.onnx.runtime import OnnxModel, Reader, explain_runtime_errors, load_onnx

# What files of some formats are read with; datasets for those that it wrote itself.
_LIBRARIES = {".parquet": ("pyarrow", "datasets"), ".xlsx": ("openpyxl",)}


@dataclass(frozen=True)
class Input:
    """One input: its columns as given, and where it stands (file and line, or the command line)."""

    row: Mapping[str, Any]
    at: Path | str
    line: int | None = None


def main(args: argparse.Namespace) -> None:
    template = read_packaged_template(args.model)
    inputs = list(read_inputs(args.text, args.file, template["columns"]))
    first = inputs[:TRIED_TEXTS]
    tokenizer = load_packaged_tokenizer(args.model, [join_values(one.row) for one in first])
    if not inputs:
        fail("nothing to answer", 'give a text, as in: predict.py --model MODEL "text", or --file with some lines')
    optional = template.get("optional_columns", ())
    if chat := template.get("conversation"):
        values = [render_conversation(one, chat, tokenizer) for one in inputs]
    else:
        values = [check_values(one, template["columns"], tokenizer, optional) for one in inputs]
    with explain_tokenizer_errors(args.model):
        prompts = [
            render_fitting_prompt(one, given, template, tokenizer) for one, given in zip(inputs, values, strict=True)
        ]
    model = load_onnx(args.model, args.threads)
    ask = classify if template["task"] == "classification" else generate
    with explain_tokenizer_errors(args.model), explain_runtime_errors("cannot run it", at=args.model):
        for given, result in zip(values, ask(model, tokenizer, template, prompts), strict=True):
            print(format_json(given, result) if args.json else format_line(result), flush=True)


def format_json(given: dict[str, str], result: dict[str, Any]) -> str:
    """Return an answer with its input as one line of JSON."""
    asked = next(iter(given.values())) if len(given) == 1 else given
    return escape_controls(json.dumps({"input": asked, **result}, ensure_ascii=False))


def format_line(result: dict[str, Any]) -> str:
    """Return an answer as a person reads it, always in one line."""
    if "label" in result:
        return f"{escape_controls(result['label'])}\t{result['probability']:.4f}"
    return escape_controls(result["answer"])


def read_inputs(texts: Sequence[str], file: Path | None, columns: Sequence[str]) -> Iterator[Input]:
    """Yield the texts of the command line, then those of the file."""
    tabular = file is not None and is_readable(file)
    if len(columns) != 1 and (texts or (file and not tabular)):
        fail(f"the model takes the columns {', '.join(columns)}", "give them in a .jsonl or .csv with --file")
    for number, text in enumerate(texts, start=1):
        yield Input({columns[0]: text}, f"text {number}")
    if file is None:
        return
    if not tabular:
        for number, line in enumerate(read_lines(file), start=1):
            yield Input({columns[0]: line}, file, number)
        return
    suffix = file.suffix.lower()
    missing = [name for name in _LIBRARIES.get(suffix, ()) if importlib.util.find_spec(name) is None]
    if missing:
        what = f"{suffix} is read with {missing[0]}, which is not installed"
        fail(what, f"pip install {' '.join(missing)}, or save as .csv", at=file)
    for number, source in enumerate(read_rows(file), start=1):
        place = format_place(file, source.line, number)
        if source.error:
            fail(source.error, "mend or remove the row", at=place)
        yield Input(source.row, place)


def read_lines(file: Path) -> list[str]:
    r"""Return the lines of a text file, which end at \n or \r\n. Raises `UserError` when it is none.

    str.splitlines would also break a text at form feeds, U+0085 and U+2028, and answer its pieces.
    """
    try:
        raw = file.read_bytes()
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        fail("no such file", "check the path", at=file)
    except IsADirectoryError:
        fail("not a file", "check the path", at=file)
    except UnicodeDecodeError as error:
        fail("not UTF-8", "save the file as UTF-8", at=file, line=raw.count(b"\n", 0, error.start) + 1)
    if "\r" in text and "\n" not in text:
        fail("its lines end with carriage returns alone", "save it with line ends \\n or \\r\\n", at=file)
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


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


def classify(
    model: OnnxModel, tokenizer: Tokenizer, template: dict[str, Any], prompts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the most probable label of each prompt, and the probability of each label, corrected by the temperature."""
    labels = template["labels"]
    encoded = encode_choices(tokenizer, cast(Template, template), prompts)
    reader = Reader(model, max(len(prompt) + max(map(len, choices)) for prompt, choices in encoded))
    for prompt, choices in encoded:
        log_probs = np.array([reader.log_probs(reader.read(prompt), choices)])
        shares = compute_shares(log_probs, template.get("temperature", 1.0))[0].tolist()
        yield choose_answer(dict(zip(labels, shares, strict=True)), template)


def choose_answer(probabilities: dict[str, float], template: dict[str, Any]) -> dict[str, Any]:
    """Return the answer: the most probable label, or that none is probable enough."""
    label = max(probabilities, key=lambda one: probabilities[one])
    answer = {"label": label, "probability": probabilities[label], "probabilities": probabilities}
    if "threshold" in template and (template["threshold"] is None or probabilities[label] < template["threshold"]):
        return {**answer, "label": UNSURE, "best": label}
    return answer


def generate(
    model: OnnxModel, tokenizer: Tokenizer, template: dict[str, Any], prompts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the greedy answer to each prompt, at most as long as the longest row of the training data."""
    encoded = tokenizer.encode_batch(prompts)
    longest = max(map(len, encoded))
    limit = min(template["max_length"], model.context_length - longest)
    reader = Reader(model, longest + limit)
    for prompt in encoded:
        reader.read(prompt)
        answer, stopped = answer_text(tokenizer, cast(Template, template), reader.answer(limit))
        yield {"answer": answer, "stopped": stopped}


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="folder of the packaged model")
    arguments.add_argument("text", nargs="*", metavar="TEXT", help="inputs, where the model takes one column")
    arguments.add_argument("--file", type=Path, help="inputs: text lines, .jsonl, .json, .csv or .parquet")
    arguments.add_argument("--json", action="store_true", help="one JSON object per input")
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    run(arguments, main)
