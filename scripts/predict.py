"""Ask a packaged model.

    python scripts/predict.py --model results/model "What a lovely day" "Nobody came"
    python scripts/predict.py --model results/model --file inputs.csv --json

Prints label and probability (task generation: the answer), one line per input and in their order;
with --json one JSON object per line. A file is plain text with one input a line, or .jsonl, .json or
.csv with the columns of the template. Every input is checked before the first is answered.
Needs onnxruntime-genai, numpy, tokenizers and jinja2: neither torch nor transformers.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from lib.cli import fail, parser, run
from lib.files import read_json
from lib.onnx_model import OnnxModel, Reader, load_onnx
from lib.readers import read_rows
from lib.records import MISSING, as_text, column
from lib.scoring import answer_text
from lib.templates import Template, render_completion, render_prompt
from lib.tokens import Tokenizer, load_tokenizer
from lib.truncation import shortened

_TABLES = (".json", ".jsonl", ".ndjson", ".csv")


@dataclass(frozen=True)
class Input:
    """One input: its columns as given, and where it stands (file and line, or the command line)."""

    row: Mapping[str, Any]
    at: Path | str
    line: int | None = None


def main(args: argparse.Namespace) -> None:
    if not (args.model / "template.json").is_file():
        fail("not a packaged model: it has no template.json", "name the folder that package_model wrote", at=args.model)
    template = read_json(args.model / "template.json")
    tokenizer = load_tokenizer(args.model)
    inputs = list(read_inputs(args.text, args.file, template["columns"]))
    if not inputs:
        fail("nothing to answer", 'give a text, as in: predict.py --model MODEL "text", or --file with some lines')
    optional = template.get("optional_columns", ())
    values = [checked_values(one, template["columns"], tokenizer, optional) for one in inputs]
    prompts = [fitting_prompt(one, given, template, tokenizer) for one, given in zip(inputs, values, strict=True)]
    model = load_onnx(args.model, args.threads)
    ask = classify if template["task"] == "classification" else generate
    for given, result in zip(values, ask(model, tokenizer, template, prompts), strict=True):
        if args.json:
            single = given[template["columns"][0]] if len(given) == 1 else given
            print(json.dumps({"input": single, **result}, ensure_ascii=False), flush=True)
        elif "label" in result:
            print(f"{result['label']}\t{result['probability']:.4f}", flush=True)
        else:
            print(result["answer"], flush=True)


def read_inputs(texts: Sequence[str], file: Path | None, columns: Sequence[str]) -> Iterator[Input]:
    """The texts of the command line, then those of the file."""
    tabular = file is not None and file.suffix.lower() in _TABLES
    if len(columns) != 1 and (texts or (file and not tabular)):
        fail(f"the model takes the columns {', '.join(columns)}", "give them in a .jsonl or .csv with --file")
    for number, text in enumerate(texts, start=1):
        yield Input({columns[0]: text}, f"text {number}")
    if file is None:
        return
    if tabular:
        for source in read_rows(file):
            if source.error:
                fail(source.error, "mend or remove the line", at=file, line=source.line)
            yield Input(source.row, file, source.line)
        return
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        fail("no such file", "check the path", at=file)
    except UnicodeDecodeError:
        fail("not UTF-8", "save the file as UTF-8", at=file)
    for number, line in enumerate(lines, start=1):
        yield Input({columns[0]: line}, file, number)


def checked_values(
    one: Input, columns: Sequence[str], tokenizer: Tokenizer, optional: Sequence[str] = ()
) -> dict[str, str]:
    """The model's columns as text, under the rules of the training data. Raises `UserError`."""
    control = re.compile("|".join(map(re.escape, tokenizer.control)) or r"(?!)")
    values = {}
    for name in columns:
        value = column(one.row, name)
        if value is MISSING and name in optional:
            value = ""
        if value is MISSING:
            fail(f"no column {name!r}", f"it has {', '.join(one.row) or 'none'}", at=one.at, line=one.line)
        text = as_text(value)
        if text is None:
            fail(f"column {name!r} is a list or an object", "give text", at=one.at, line=one.line)
        if not text and name not in optional:
            fail("empty text", f"the model needs something in {name!r}", at=one.at, line=one.line)
        if found := control.search(text):
            what = f"{name!r} contains the control token {found[0]!r}"
            fail(what, "take it out: the model would read it as a command, not as text", at=one.at, line=one.line)
        values[name] = text
    if not any(values.values()):
        fail("empty text", "at least one of the columns needs some", at=one.at, line=one.line)
    return values


def fitting_prompt(one: Input, values: dict[str, str], template: dict[str, Any], tokenizer: Tokenizer) -> str:
    """The prompt; an input longer than in training is cut as there, or refused with `UserError`."""
    filled = cast(Template, template)
    answers = template["labels"] or [""]
    longest = max(answers, key=lambda answer: len(tokenizer.encode(render_completion(filled, answer))))
    limit = template["max_length"]
    tokens = len(tokenizer.encode(render_prompt(filled, values) + render_completion(filled, longest)))
    if tokens <= limit:
        return render_prompt(filled, values)
    cut = None
    if template["truncation"] != "reject":
        cut = shortened(tokenizer, filled, values, longest, max_length=limit, side=template["truncation"])
    if cut is None:
        fail(f"{tokens} tokens with its answer, the model takes {limit}", "shorten the text", at=one.at, line=one.line)
    return render_prompt(filled, cut)


def classify(
    model: OnnxModel, tokenizer: Tokenizer, template: dict[str, Any], prompts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The most probable label of each prompt, and the share of each label in their probability."""
    labels = template["labels"]
    answers = [render_completion(cast(Template, template), label) for label in labels]
    encoded = [(model.encode(prompt), [model.encode(prompt + answer) for answer in answers]) for prompt in prompts]
    reader = Reader(model, max(len(whole) for _, wholes in encoded for whole in wholes))
    for prompt, wholes in encoded:
        first = reader.read(prompt)
        log_probs = np.array(reader.log_probs(first, [whole[len(prompt) :] for whole in wholes]))
        shares = np.exp(log_probs - log_probs.max())
        shares /= shares.sum()
        best = int(shares.argmax())
        probabilities = dict(zip(labels, shares.tolist(), strict=True))
        yield {"label": labels[best], "probability": probabilities[labels[best]], "probabilities": probabilities}


def generate(
    model: OnnxModel, tokenizer: Tokenizer, template: dict[str, Any], prompts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The greedy answer to each prompt, at most as long as the longest row of the training data."""
    encoded = [model.encode(prompt) for prompt in prompts]
    longest = max(map(len, encoded))
    limit = min(template["max_length"], model.context_length - longest)
    reader = Reader(model, longest + limit)
    for prompt in encoded:
        reader.read(prompt)
        answer, stopped = answer_text(tokenizer, cast(Template, template), reader.answer(limit))
        yield {"answer": answer, "stopped": stopped}


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="folder of the packaged model")
    arguments.add_argument("text", nargs="*", metavar="TEXT", help="inputs, where the model takes one column")
    arguments.add_argument("--file", type=Path, help="inputs: text lines, .jsonl, .json or .csv")
    arguments.add_argument("--json", action="store_true", help="one JSON object per input")
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    run(arguments, main)
