"""Score an ONNX model on the rows of one split, as `score_checkpoint` scores a PyTorch one.

The tokenizer in the model's folder, which those who use it have, must give the ids of the training.
Then, row by row: the probability of each label (generation: of the reference), end token included,
and a free greedy answer on the first rows.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, report_loaded, report_progress, run
from lib.core.layout import SPLITS
from lib.data.corpus import load_template, read_corpus
from lib.data.templates import Template
from lib.data.tokenizer import Tokenizer, encode_pairs, find_first_difference, load_tokenizer
from lib.evaluation.onnx_scorer import open_scorer
from lib.evaluation.scoring import answer_limit, answer_text, describe_references, encode_choices, write_score
from lib.onnx.packaged import load_packaged_tokenizer
from lib.onnx.runtime import OnnxModel, Reader, load_onnx
from lib.provenance.manifests import read_manifest

Row = dict[str, Any]


def main(args: argparse.Namespace) -> None:
    for folder in (args.model, args.tokenizer):
        read_manifest(folder)
    template, tokenizer = load_template(args.template), load_tokenizer(args.tokenizer)
    rows = read_corpus(args.rows)
    model = load_onnx(args.model, args.threads)
    report_loaded()
    check_shipped_tokenizer(load_packaged_tokenizer(args.model), tokenizer, args.rows, rows)
    score = predict_labels if template["task"] == "classification" else predict_texts
    predictions = list(report_each(score(model, tokenizer, template, rows, args.settings["evaluate"]), len(rows)))
    write_score(
        output=args.output,
        predictions_file=args.predictions,
        predictions=predictions,
        stage=args.stage,
        split=args.split,
        settings=args.settings,
        template=template,
        inputs={"rows": args.rows, "model": args.model, "template": args.template},
    )


def check_shipped_tokenizer(shipped: Tokenizer, trained: Tokenizer, file: Path, rows: Sequence[Row]) -> None:
    """Raise `UserError` naming the first row whose ids differ between the two tokenizers."""
    for texts in ([row["prompt"] for row in rows], [row["prompt"] + row["completion"] for row in rows]):
        pairs = zip(trained.encode_batch(texts), shipped.encode_batch(texts), strict=True)
        for line, (expected, found) in enumerate(pairs, start=1):
            place = find_first_difference(expected, found)
            if place is not None:
                fail(
                    f"the model's tokenizer reads token {place} as {shipped.describe(found, place)},"
                    f" the training tokenizer as {trained.describe(expected, place)}",
                    "its scores would be of other prompts: delete the model's folder and run again",
                    at=file,
                    line=line,
                )


def predict_labels(
    model: OnnxModel, tokenizer: Tokenizer, template: Template, rows: Sequence[Row], evaluate: dict[str, Any]
) -> Iterator[Row]:
    """Log probability of every label, row by row."""
    labels = template["labels"] or []
    encoded = encode_choices(tokenizer, template, [row["prompt"] for row in rows])
    limit = answer_limit(template, encoded[0][1], evaluate["max_new_tokens"])
    reader = Reader(model, max(len(prompt) + max(limit, *map(len, choices)) for prompt, choices in encoded))
    scorer = open_scorer(model)
    scores = scorer.log_probs(encoded) if scorer else (reader.log_probs(reader.read(p), c) for p, c in encoded)
    for index, (row, (prompt, _), values) in enumerate(zip(rows, encoded, scores, strict=True)):
        answer, stopped = None, None
        if index < evaluate["greedy_rows"]:
            reader.read(prompt)
            answer, stopped = answer_text(tokenizer, template, reader.answer(limit))
        log_probs = dict(zip(labels, values, strict=True))
        yield {
            "id": row["id"],
            "label": row["label"],
            "predicted": max(log_probs, key=lambda label: log_probs[label]),
            "log_probs": log_probs,
            "answer": answer,
            "stopped": stopped,
        }


def predict_texts(
    model: OnnxModel, tokenizer: Tokenizer, template: Template, rows: Sequence[Row], evaluate: dict[str, Any]
) -> Iterator[Row]:
    """Log probability of each reference answer with its number of tokens, row by row."""
    pairs = encode_pairs(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    limit = answer_limit(template, [], evaluate["max_new_tokens"])
    reader = Reader(model, max(len(prompt) + max(limit, len(completion)) for prompt, completion in pairs))
    scorer = open_scorer(model)
    for index, (row, (prompt, completion)) in enumerate(zip(rows, pairs, strict=True)):
        answer, stopped = None, None
        if index < evaluate["greedy_rows"]:
            reader.read(prompt)
            answer, stopped = answer_text(tokenizer, template, reader.answer(limit))
        if scorer:
            log_prob = scorer.log_prob(prompt, completion)
        else:
            (log_prob,) = reader.log_probs(reader.read(prompt), [completion])
        yield {
            "id": row["id"],
            **describe_references(row, template),
            "answer": answer,
            "stopped": stopped,
            "log_prob": log_prob,
            "tokens": len(completion),
        }


def report_each(predictions: Iterator[Row], count: int) -> Iterator[Row]:
    """Yield `predictions`, with a line about progress now and then."""
    said = time.monotonic()
    for number, prediction in enumerate(predictions, start=1):
        if time.monotonic() - said > 20:
            report_progress(f"score_onnx: {number} of {count} rows")
            said = time.monotonic()
        yield prediction


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="task, seed, evaluate, versions")
    arguments.add_argument("--model", type=Path, required=True, help="folder of the ONNX model")
    arguments.add_argument("--tokenizer", type=Path, required=True, help="folder of the base model's tokenizer")
    arguments.add_argument("--rows", type=Path, required=True, help="corpus/SPLIT.jsonl")
    arguments.add_argument("--template", type=Path, required=True, help="corpus/template.json")
    arguments.add_argument("--stage", required=True, help="name of the stage, for the score file")
    arguments.add_argument("--split", required=True, choices=SPLITS)
    arguments.add_argument("--output", type=Path, required=True, help="score to write")
    arguments.add_argument("--predictions", type=Path, required=True, help="predictions of every row, to write")
    arguments.add_argument("--threads", type=int, default=2)
    run(arguments, main)
