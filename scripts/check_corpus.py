"""Refuse, before the training, lengths that the model cannot read and calibration rows that fill no sequence.

Both follow from the corpus and the base model's configuration. So they are checked as soon as these are there, in
seconds, and not when hours of training are done. Which variants can be built, `check_build` tries.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.layout import SCORED_SPLITS, SPLITS
from lib.data.corpus import load_template, read_corpus
from lib.data.templates import UNSURE
from lib.data.tokenizer import Tokenizer, encode_pairs, load_tokenizer, read_max_tokens
from lib.evaluation.scoring import answer_limit, encode_choices
from lib.onnx.calibration_rows import encode_alone, pack_ids, sample_calibration_rows
from lib.provenance.manifests import read_manifest


def main(args: argparse.Namespace) -> None:
    read_manifest(args.tokenizer)
    settings, tokenizer = args.settings, load_tokenizer(args.tokenizer)
    template, longest = load_template(args.template), read_max_tokens(args.tokenizer)
    rows = {split: read_corpus(getattr(args, split)) for split in SPLITS}
    check_labels(template["labels"] or [], settings)
    for name, calibration in settings["calibrations"].items():
        check_calibration(name, calibration, rows["train"], tokenizer, settings["seed"])
    choices = encode_choices(tokenizer, template, [rows["test"][0]["prompt"]])[0][1] if template["labels"] else []
    limit = answer_limit(template, choices, settings["evaluate"]["max_new_tokens"])
    for split in SCORED_SPLITS:
        check_lengths(getattr(args, split), rows[split], tokenizer, limit, longest)
    prompts = rows["validation"][: settings["benchmark"]["prompts"]]
    check_lengths(args.validation, prompts, tokenizer, settings["benchmark"]["new_tokens"], longest)
    report_progress(f"check_corpus: all rows and answers fit the model's {longest} tokens")


def check_labels(labels: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for a label that the answer below the threshold of `decision` could be mistaken for."""
    if "decision" in settings and UNSURE in labels:
        fail(f"a label is called {UNSURE!r}, as the answer below the threshold of decision:", "rename the label")


def check_calibration(
    name: str, calibration: Mapping[str, int], rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, seed: int
) -> None:
    """Raise `UserError` when the calibration rows fill no sequence."""
    length, count = calibration["length"], calibration["rows"]
    chosen = sample_calibration_rows(rows, count, seed)
    if not pack_ids(encode_alone(tokenizer, chosen), length):
        what = f"variants.{name}: its {len(chosen)} calibration rows fill no sequence of {length} tokens"
        fail(what, "lower calibration.length or raise calibration.rows")


def check_lengths(
    file: Path, rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, new_tokens: int, limit: int
) -> None:
    """Raise `UserError`, naming the row, when prompt and answer are longer than what the model reads.

    new_tokens: of the longest free answer.
    """
    pairs = encode_pairs(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    for line, (prompt, completion) in enumerate(pairs, start=1):
        answer = max(len(completion), new_tokens)
        if len(prompt) + answer > limit:
            what = f"a prompt of {len(prompt)} tokens and an answer of up to {answer} exceed the model's {limit}"
            fail(what, "lower corpus.max_length, evaluate.max_new_tokens or benchmark.new_tokens", at=file, line=line)


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument(
        "--settings", type=parse_settings, required=True, help="seed, calibrations, evaluate, benchmark, versions"
    )
    arguments.add_argument("--tokenizer", type=Path, required=True, help="folder of the base model's tokenizer")
    for split in SPLITS:
        arguments.add_argument(f"--{split}", type=Path, required=True, help=f"corpus/{split}.jsonl")
    arguments.add_argument("--template", type=Path, required=True, help="corpus/template.json")
    run(arguments, main)
