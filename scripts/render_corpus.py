"""Write the corpus: each kept row as prompt and completion, once, for training, scoring and use.

Nothing after this formats text. The three files and the template appear together, the template last.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lib.core.cli import UserError, build_parser, fail, parse_settings, report_progress, run
from lib.core.files import dump_jsonl_line, hash_text, parse_jsonl_line, publish_file, read_json, read_lines
from lib.core.layout import SCORED_SPLITS, SPLITS
from lib.core.processes import map_in_order
from lib.data.rows import format_place
from lib.data.templates import (
    Segment,
    Template,
    compile_rows,
    render_chats,
    render_completion,
    render_prompt,
    set_up_chat,
)
from lib.data.token_counts import TokenCounter
from lib.data.tokenizer import Tokenizer, encode_completion, load_tokenizer
from lib.data.truncation import shorten_values
from lib.data.value_limits import batch_by_size

_MOST_CHOICES, _FEW_CHOICES = 200, 1  # labels that are all put behind each prompt; of more, so many behind each
_MOST_SEAMS = 100_000  # that are remembered
_CHAT_ROWS = 1000  # rows that are compared with the tokenizer's own chat template, at least


def main(args: argparse.Namespace) -> None:
    task, data, corpus = (args.settings[key] for key in ("task", "data", "corpus"))
    tokenizer = set_up_chat(load_tokenizer(args.tokenizer), corpus)
    labels = read_json(args.audit)["labels"]
    template = compile_rows(data, corpus, tokenizer, task=task, labels=labels)
    split = read_json(args.split)
    limits: dict[str, Any] = {"max_length": corpus["max_length"], "truncation": corpus["truncation"]}
    if data.get("optional_columns"):
        limits["optional_columns"] = data["optional_columns"]
    if "conversation" in data:  # for who renders one without the base model
        chat = {"template": tokenizer.chat_template, "variables": tokenizer.variables, "bos": tokenizer.bos or ""}
        limits["conversation"] = {"column": data["conversation"], **chat}
    places = {id_: sys.intern(name) for id_, name in split.pop("rows").items()}  # a text each in the file, three here
    dropped = set(split.get("dropped", ()))
    tools = TokenCounter(tokenizer), Seams(tokenizer, template)
    work = Renderer(args.kept, args.split, tokenizer, template, args.settings, places, dropped, *tools)
    with ExitStack() as stack:
        # The first to enter is the last to be renamed.
        whole = stack.enter_context(publish_file(args.template))
        whole.write_text(json.dumps({**template, **limits}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial = {split: stack.enter_context(publish_file(getattr(args, split))) for split in SPLITS}
        files = {split: stack.enter_context(open(path, "w", encoding="utf-8")) for split, path in partial.items()}
        count = 0
        batches = batch_by_size(read_lines(args.kept), lambda numbered: len(numbered[1]))
        for records in map_in_order(work.render, batches, args.processes):
            for name, line in records:
                files[name].write(line)
            count += len(records)
    report_progress(f"render_corpus: {count} rows")


@dataclass(frozen=True)
class Renderer:
    """Hold what each of several processes needs to write rows as text.

    kept, split: files that errors name. split_of: the split of each row, by its id. dropped: ids of rows in none.
    """

    kept: Path
    split: Path
    tokenizer: Tokenizer
    template: Template
    settings: dict[str, Any]
    split_of: dict[str, str]
    dropped: set[str]
    counter: TokenCounter
    seams: "Seams"

    def render(self, lines: Sequence[tuple[int, str]]) -> list[tuple[str, str]]:
        """Return, for some numbered lines of kept rows, the split of each row and its line in the split's file."""
        rows = [parse_jsonl_line(self.kept, line, number) for number, line in lines]
        data, is_labeled = self.settings["data"], self.settings["task"] == "classification"
        found = []
        for text in self._render_texts(rows, lines[0][0] - 1):
            row = text.row
            if row["id"] in self.dropped:
                continue
            if row["id"] not in self.split_of:
                fail(f"has no row {row['id']}", "it is of another run: make it again", at=self.split)
            label = {"label": row["target"]} if is_labeled else {}
            more: dict[str, Any] = {name: row[name] for name in ("groups", "other_answers", "spans") if name in row}
            records = [{"id": row["id"], "prompt": text.prompt, "completion": text.completion, **label, **more}]
            if data.get("answers") == "each" and self.split_of[row["id"]] == "train":
                records += self._repeat_with_other_answers(text, records[0])
            found += [(self.split_of[row["id"]], dump_jsonl_line(one)) for one in records]
        return found

    def _render_texts(self, rows: Sequence[dict[str, Any]], before: int) -> list["Text"]:
        """Return rows with prompt and completion, checked. before: how many rows stand before these."""
        tokenizer, template, corpus = self.tokenizer, self.template, self.settings["corpus"]
        values = _fit_values(rows, tokenizer, self.counter, template, corpus)
        if "separators" not in template and corpus.get("template") == "chat" and before < _CHAT_ROWS:
            _check_chat(rows, values, tokenizer, template, corpus)
        texts = [
            Text(row, render_prompt(template, inputs), render_completion(template, row["target"]))
            for row, inputs in zip(rows, values, strict=True)
        ]
        self.seams.check(texts)
        choices = [render_completion(template, label) for label in template["labels"] or []]
        self.seams.check(
            text._replace(completion=choice)
            for place, text in enumerate(texts, start=before)
            if self.split_of.get(text.row["id"]) in SCORED_SPLITS
            for choice in _choices_of_prompt(choices, place)
        )
        return texts

    def _repeat_with_other_answers(self, text: "Text", record: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a training row once more for each other answer that is right, but for those that are too long."""
        records = []
        for answer in text.row.get("other_answers", ()):
            other = text._replace(completion=render_completion(self.template, answer))
            self.seams.check([other])
            if len(self.tokenizer.encode(other.prompt + other.completion)) <= self.settings["corpus"]["max_length"]:
                records.append({**record, "id": hash_text(record["id"] + answer), "completion": other.completion})
        return records


def locate(row: dict[str, Any]) -> str:
    """Return where a kept row stands in its file."""
    return format_place(row["file"], row["line"], row["number"])


class Text(NamedTuple):
    """A row as prompt and completion."""

    row: dict[str, Any]
    prompt: str
    completion: str


class Seams:
    """Refuses rows whose prompt joins with what follows: the row's own completion, or a label that scoring asks for.

    Where the template writes something between the last value and the seam, a completion is tried once behind each sign
    that this text follows: what stands further away decides nothing in the tokenizers that there are. Training and
    scoring, which encode every row, refuse what would slip through.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        self._tokenizer = tokenizer
        self._end = _find_fixed_end(template["prompt"])
        self._tried: set[tuple[str, str]] = set()

    def check(self, texts: Iterable[Text]) -> None:
        """Raise `UserError` with the first row whose prompt and completion join at their seam."""
        for some in batch_by_size(filter(self._is_new, texts), lambda text: len(text.prompt) + len(text.completion)):
            heads = self._tokenizer.encode_batch([text.prompt for text in some])
            wholes = self._tokenizer.encode_batch([text.prompt + text.completion for text in some])
            for text, head, whole in zip(some, heads, wholes, strict=True):
                try:
                    encode_completion(text.prompt, text.completion, head, whole)
                except UserError as error:
                    fail(str(error), at=locate(text.row))

    def _is_new(self, text: Text) -> bool:
        if not self._end:
            return True
        seam = text.prompt[-1 - len(self._end) :], text.completion
        is_new = seam not in self._tried
        if is_new and len(self._tried) < _MOST_SEAMS:
            self._tried.add(seam)
        return is_new


def _find_fixed_end(segments: Sequence[Segment]) -> str:
    """Return the text that every prompt ends with."""
    end = ""
    for segment in reversed(segments):
        if "column" in segment or "if" in segment:
            break
        end = segment["text"] + end
    return end


def _fit_values(
    rows: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    counter: TokenCounter,
    template: Template,
    corpus: dict[str, Any],
) -> list[dict[str, str]]:
    """Return the input values of each row, those of too long ones shortened."""

    def text(row: dict[str, Any], values: dict[str, str]) -> str:
        return render_prompt(template, values) + render_completion(template, row["target"])

    max_length, side = corpus["max_length"], corpus["truncation"]
    limits: dict[str, Any] = {"max_length": max_length, "side": side, "count": counter.count_one}
    values = [row["values"] for row in rows]
    counts = counter.count([text(row, row["values"]) for row in rows])
    for place, row in enumerate(rows):
        if side != "reject" and counts[place] > max_length:
            short = shorten_values(tokenizer, template, row["values"], row["target"], **limits)
            if short is None:
                what = "the row does not fit into corpus.max_length"
                fail(what, "audit the data again", at=locate(row))
            values[place] = short
        elif counts[place] > max_length:
            what = f"{counts[place]} tokens, corpus.max_length is {max_length}"
            fail(what, "audit the data again", at=locate(row))
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
            fail(what, "use corpus.text_template", at=locate(row))


def _choices_of_prompt(choices: Sequence[str], place: int) -> Sequence[str]:
    """Return the answers to try behind a prompt: all, or of many a few, other ones behind the next prompt."""
    if len(choices) <= _MOST_CHOICES:
        return choices
    start = place * _FEW_CHOICES % len(choices)
    return choices[start : start + _FEW_CHOICES]


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="JSON: task, data, corpus")
    arguments.add_argument("--audit", type=Path, required=True)
    arguments.add_argument("--kept", type=Path, required=True)
    arguments.add_argument("--split", type=Path, required=True)
    arguments.add_argument("--tokenizer", type=Path, required=True, help="folder of the base model's tokenizer")
    for name in SPLITS:
        arguments.add_argument(f"--{name}", type=Path, required=True)
    arguments.add_argument("--template", type=Path, required=True)
    arguments.add_argument("--processes", type=int, default=1)
    run(arguments, main)
