"""Write the corpus: each kept row as prompt and completion, once, for training, scoring and use.

Nothing after this formats text. The three files and the template appear together, the template last.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lib.cli import UserError, fail, parser, progress, run, settings_argument
from lib.data.limits import batched_by_size
from lib.files import published, read_json, read_jsonl
from lib.templates import Template, compile_template, render_chats, render_completion, render_prompt
from lib.tokens import Tokenizer, encode_pairs, load_tokenizer
from lib.truncation import shortened

SPLITS = ("train", "validation", "test")
_MOST_CHOICES, _FEW_CHOICES = 200, 1  # labels that are all put behind each prompt; of more, so many behind each
_CHAT_ROWS = 1000  # rows that are compared with the tokenizer's own chat template, at least


def main(args: argparse.Namespace) -> None:
    task, data, corpus = (args.settings[key] for key in ("task", "data", "corpus"))
    tokenizer = load_tokenizer(args.base)
    labels = read_json(args.audit)["labels"]
    template = compile_template(corpus, tokenizer, task=task, target=data["target"], labels=labels)
    split_of = read_json(args.split)["rows"]
    limits = {"max_length": corpus["max_length"], "truncation": corpus["truncation"]}
    if data.get("optional_columns"):
        limits["optional_columns"] = data["optional_columns"]
    with ExitStack() as stack:
        # The first to enter is the last to be renamed.
        whole = stack.enter_context(published(args.template))
        whole.write_text(json.dumps({**template, **limits}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial = {split: stack.enter_context(published(getattr(args, split))) for split in SPLITS}
        files = {split: stack.enter_context(open(path, "w", encoding="utf-8")) for split, path in partial.items()}
        rows = read_jsonl(args.kept)
        count = 0
        for batch in batched_by_size(rows, lambda row: len(row["target"]) + sum(map(len, row["values"].values()))):
            values = _fitting_values(batch, tokenizer, template, corpus)
            if corpus["template"] == "chat" and count < _CHAT_ROWS:
                _check_chat(batch, values, tokenizer, template, corpus)
            pairs = [
                (render_prompt(template, inputs), render_completion(template, row["target"]))
                for row, inputs in zip(batch, values, strict=True)
            ]
            _check_tokens(batch, pairs, tokenizer, corpus["max_length"])
            _check_choices(batch, pairs, tokenizer, template, split_of)
            for row, (prompt, completion) in zip(batch, pairs, strict=True):
                if row["id"] not in split_of:
                    fail(f"has no row {row['id']}", "it is of another run: make it again", at=args.split)
                label = {"label": row["target"]} if task == "classification" else {}
                record = {"id": row["id"], "prompt": prompt, "completion": completion, **label}
                files[split_of[row["id"]]].write(json.dumps(record, ensure_ascii=False) + "\n")
            count += len(batch)
    progress(f"render_corpus: {count} rows")


def _fitting_values(
    rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, template: Template, corpus: dict[str, Any]
) -> list[dict[str, str]]:
    """Input values of each row, those of too long ones shortened."""
    values = [row["values"] for row in rows]
    if corpus["truncation"] == "reject":
        return values
    limits = {"max_length": corpus["max_length"], "side": corpus["truncation"]}
    texts = [render_prompt(template, row["values"]) + render_completion(template, row["target"]) for row in rows]
    for place, ids in enumerate(tokenizer.encode_batch(texts)):
        if len(ids) > corpus["max_length"]:
            row = rows[place]
            short = shortened(tokenizer, template, row["values"], row["target"], **limits)
            if short is None:
                what = "the row does not fit into corpus.max_length"
                fail(what, "audit the data again", at=row["file"], line=row["line"])
            values[place] = short
    return values


def _check_chat(
    rows: Sequence[dict[str, Any]],
    values: Sequence[dict[str, str]],
    tokenizer: Tokenizer,
    template: Template,
    corpus: dict[str, Any],
) -> None:
    """Compare with the tokenizer's own chat template, which may do more with a value than insert it."""
    chats = render_chats(corpus, tokenizer, [(ours, row["target"]) for row, ours in zip(rows, values, strict=True)])
    for row, inputs, theirs in zip(rows, values, chats, strict=True):
        ours = render_prompt(template, inputs) + render_completion(template, row["target"])
        if tokenizer.bos and not theirs.startswith(tokenizer.bos):
            theirs = tokenizer.bos + theirs
        # Theirs may go on behind the end token; ours may have an end token where theirs has none.
        if not (theirs.startswith(ours) or ours == theirs + tokenizer.eos):
            what = "the tokenizer's chat template changes the text of this row"
            fail(what, "use corpus.text_template", at=row["file"], line=row["line"])


def _check_tokens(
    rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, max_length: int
) -> None:
    """Raise `UserError` with the row whose prompt and answer join at their seam, or that is too long."""
    for row, (prompt, completion) in zip(rows, _encoded(rows, pairs, tokenizer), strict=True):
        tokens = len(prompt) + len(completion)
        if tokens > max_length:
            what = f"{tokens} tokens, corpus.max_length is {max_length}"
            fail(what, "audit the data again", at=row["file"], line=row["line"])


def _check_choices(
    rows: Sequence[dict[str, Any]],
    pairs: Sequence[tuple[str, str]],
    tokenizer: Tokenizer,
    template: Template,
    split_of: dict[str, str],
) -> None:
    """Raise `UserError` with the row whose prompt joins with some label: scoring asks for the probability of each.

    Of many labels each prompt gets a few, in turn: those that begin alike join alike. Scoring refuses what slipped
    through.
    """
    choices = [render_completion(template, label) for label in template["labels"] or []]
    asked = [
        (row, prompt)
        for row, (prompt, _) in zip(rows, pairs, strict=True)
        if split_of.get(row["id"]) in ("validation", "test")
    ]
    scored = [
        (row, (prompt, choice))
        for place, (row, prompt) in enumerate(asked)
        for choice in _choices_of_prompt(choices, place)
    ]
    for _ in _encoded([row for row, _ in scored], [pair for _, pair in scored], tokenizer):
        pass


def _choices_of_prompt(choices: Sequence[str], place: int) -> Sequence[str]:
    """Return the answers to try behind a prompt: all, or of many a few, other ones behind the next prompt."""
    if len(choices) <= _MOST_CHOICES:
        return choices
    start = place * _FEW_CHOICES % len(choices)
    return choices[start : start + _FEW_CHOICES]


def _encoded(
    rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[int]]]:
    try:
        yield from encode_pairs(tokenizer, pairs)
    except UserError:
        for row, pair in zip(rows, pairs, strict=True):
            try:
                encode_pairs(tokenizer, [pair])
            except UserError as error:
                fail(str(error), at=row["file"], line=row["line"])
        raise


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--settings", type=settings_argument, required=True, help="JSON: task, data, corpus")
    arguments.add_argument("--audit", type=Path, required=True)
    arguments.add_argument("--kept", type=Path, required=True)
    arguments.add_argument("--split", type=Path, required=True)
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    for name in SPLITS:
        arguments.add_argument(f"--{name}", type=Path, required=True)
    arguments.add_argument("--template", type=Path, required=True)
    run(arguments, main)
