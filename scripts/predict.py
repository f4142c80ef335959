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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, run
from lib.core.escaping import escape_controls
from lib.data.readers import is_readable, read_rows
from lib.data.rows import format_place
from lib.data.tokenizer_trial import TRIED_TEXTS, join_values
from lib.onnx.packaged import explain_tokenizer_errors, load_packaged_tokenizer, read_packaged_template
from lib.onnx.runtime import explain_runtime_errors, load_onnx
from lib.serving.answers import classify, generate
from lib.serving.inputs import Input, check_values, render_conversation, render_fitting_prompt

# What files of some formats are read with; datasets for those that it wrote itself.
_LIBRARIES = {".parquet": ("pyarrow", "datasets"), ".xlsx": ("openpyxl",)}


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


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="folder of the packaged model")
    arguments.add_argument("text", nargs="*", metavar="TEXT", help="inputs, where the model takes one column")
    arguments.add_argument("--file", type=Path, help="inputs: text lines, .jsonl, .json, .csv or .parquet")
    arguments.add_argument("--json", action="store_true", help="one JSON object per input")
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    run(arguments, main)
