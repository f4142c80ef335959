"""Constrained scoring against whole sequences one at a time, on the same engine, in turn.

    .venv/bin/python benchmarks/scoring.py --results results --run lora --variant int4-mixed

Scores rows whose prompts have 30 tokens or more, with the task's own labels, with eight of one token each
and with eight of up to three; once as slmflow does (prompt once, rows in batches), once with a forward for
each whole sequence of prompt and label. Writes the table to benchmarks/scoring.md.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import machine, markdown_table, write_table

from lib.data.corpus import load_template, read_corpus
from lib.data.templates import Template
from lib.data.tokenizer import Tokenizer, load_tokenizer
from lib.evaluation.onnx_scorer import Scorer
from lib.evaluation.scoring import encode_choices
from lib.evaluation.torch_scorer import score_labels as score_torch
from lib.hardware.device import measure_matmul_peak, use_threads
from lib.hardware.onednn import use_onednn
from lib.models.loading import load_model
from lib.onnx.runtime import OnnxModel, Reader, compute_log_softmax, load_onnx

PRODUCTS = ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm")
EIGHT = ["art", "business", "food", "health", "law", "music", "science", "travel"]
EIGHT_LONGER = ["anger", "boredom", "calm", "disgust", "fear", "joy", "sadness", "surprise"]
LEAST_TOKENS = 30
Row = dict[str, Any]
Way = Callable[[Sequence[Row]], list[list[float]]]


def whole_torch(model: Any, tokenizer: Tokenizer, template: Template, rows: Sequence[Row]) -> list[list[float]]:
    """Log probability of each label from a forward of its own over prompt and label."""
    result = []
    for prompt, answers in encode_choices(tokenizer, template, [row["prompt"] for row in rows]):
        sums = []
        for answer in answers:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            sums.append(logits.float().log_softmax(-1)[range(len(answer)), answer].sum().item())
        result.append(sums)
    return result


def whole_onnx(model: OnnxModel, tokenizer: Tokenizer, template: Template, rows: Sequence[Row]) -> list[list[float]]:
    """Score as `whole_torch` does, in ONNX Runtime GenAI; one generator serves all, each sequence from its start."""
    encoded = encode_choices(tokenizer, template, [row["prompt"] for row in rows])
    room = max(len(prompt) + max(map(len, answers)) for prompt, answers in encoded)
    generator = Reader(model, room)._generator
    result = []
    for prompt, answers in encoded:
        sums = []
        for answer in answers:
            generator.rewind_to(0)
            generator.append_tokens(np.array([*prompt, *answer], dtype=np.int32))
            logits = compute_log_softmax(generator.get_output("logits")[0, len(prompt) - 1 : -1])
            sums.append(float(logits[np.arange(len(answer)), answer].sum()))
        result.append(sums)
    return result


def compare(ours: Way, whole: Way, rows: Sequence[Row], rounds: int) -> tuple[list[float], list[float], float]:
    """Rows per second of both and the largest difference of a probability; one round first to warm up."""
    size = len(rows) // (rounds + 1)
    speeds: tuple[list[float], list[float]] = ([], [])
    difference = 0.0
    for number in range(rounds + 1):
        part = rows[number * size : (number + 1) * size]
        scores = []
        for way, speed in zip((ours, whole), speeds, strict=True):
            start = time.perf_counter()
            scores.append(way(part))
            if number:
                speed.append(size / (time.perf_counter() - start))
        difference = max(
            difference,
            *(
                abs(math.exp(one) - math.exp(other))
                for pair in zip(*scores, strict=True)
                for one, other in zip(*pair, strict=True)
            ),
        )
    return *speeds, difference


def measure_products(checkpoint: Any, tokenizer: Tokenizer, template: Template, rows: Sequence[Row], batch: int) -> str:
    """Return the share of the time of scoring in PyTorch that products with weights take, and their speed."""
    score_torch(checkpoint, tokenizer, template, rows, batch)
    peak = measure_matmul_peak(torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as found:
        score_torch(checkpoint, tokenizer, template, rows, batch)
    events = found.key_averages(group_by_input_shape=True)
    products = [event for event in events if event.key in PRODUCTS]
    operations = sum(
        2 * math.prod(event.input_shapes[0]) * event.input_shapes[1][0] * event.count for event in products
    )
    spent, whole = (sum(event.self_cpu_time_total for event in part) for part in (products, events))
    return (
        f"PyTorch, {len(rows)} rows: products with weights take {100 * spent / whole:.0f} % of the time, at"
        f" {operations / spent / 1000:.0f} of {peak / 1e9:.0f} GFLOP/s"
    )


def main(args: argparse.Namespace) -> None:
    use_threads(args.threads)
    tokenizer, template = load_tokenizer(args.results / "base"), load_template(args.results / "corpus/template.json")
    rows = [
        row
        for row in read_corpus(args.results / "corpus/validation.jsonl")
        if len(tokenizer.encode(row["prompt"])) >= LEAST_TOKENS
    ][: args.rows]
    run = args.results / "runs" / args.run
    checkpoint, onnx = load_model(run / "merged", torch.float32), load_onnx(run / "onnx" / args.variant, args.threads)
    scorer = Scorer(onnx.folder, args.threads)
    use_onednn(checkpoint.requires_grad_(False))  # as score_checkpoint does
    if args.profile:
        print(measure_products(checkpoint, tokenizer, template, rows, args.batch))
        return
    lines = []
    for labels in (template["labels"] or [], EIGHT, EIGHT_LONGER):
        asked: Template = {**template, "labels": labels}
        tokens = [len(ids) for ids in encode_choices(tokenizer, asked, [rows[0]["prompt"]])[0][1]]
        for engine, (ours, whole) in engines(checkpoint, onnx, scorer, tokenizer, asked, args.batch).items():
            fast, slow, difference = compare(ours, whole, rows, args.rounds)
            ratios = [own / other for own, other in zip(fast, slow, strict=True)]
            lines.append(
                [
                    *(engine, str(len(labels)), f"{min(tokens)} to {max(tokens)}"),
                    *(f"{statistics.median(fast):.1f}", f"{statistics.median(slow):.1f}"),
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    *(f"{statistics.median(ratios) / len(labels):.2f}", f"{difference:.1e}"),
                ]
            )
            print(lines[-1], flush=True)
    write_table(Path(__file__).with_suffix(".md"), report(args, len(rows), lines))


def engines(
    checkpoint: Any, onnx: OnnxModel, scorer: Scorer, tokenizer: Tokenizer, asked: Template, batch: int
) -> dict[str, tuple[Way, Way]]:
    """slmflow's way and whole sequences on each engine, with models that are loaded already."""

    def encode(rows: Sequence[Row]) -> Any:
        return encode_choices(tokenizer, asked, [row["prompt"] for row in rows])

    def values(predictions: Any) -> list[list[float]]:
        return [list(prediction["log_probs"].values()) for prediction in predictions]

    return {
        "PyTorch, float32": (
            lambda part: values(score_torch(checkpoint, tokenizer, asked, part, batch)),
            lambda part: whole_torch(checkpoint, tokenizer, asked, part),
        ),
        f"ONNX Runtime, {onnx.folder.name}": (
            lambda part: list(scorer.log_probs(encode(part))),
            lambda part: whole_onnx(onnx, tokenizer, asked, part),
        ),
    }


def report(args: argparse.Namespace, rows: int, lines: list[list[str]]) -> str:
    head = [
        *("engine", "labels", "tokens of a label, with its end", "rows/s", "whole sequences: rows/s"),
        *("faster by", "for each label", "largest difference"),
    ]
    options = f"--results {args.results} --run {args.run} --variant {args.variant} --rows {args.rows}"
    return f"""# Constrained scoring

    .venv/bin/python benchmarks/scoring.py {options}

{machine("torch", "transformers", "onnxruntime-genai", threads=args.threads)}

{args.rounds} rounds in turn after one to warm up, {rows // (args.rounds + 1)} rows in each, prompts of
{LEAST_TOKENS} tokens or more, in PyTorch batches of {args.batch} rows.
Rival: a forward for each whole sequence of prompt and label, one at a time, on the same
loaded model. Medians; the largest difference is that of a label's probability between the two ways.

{markdown_table(head, lines)}

A token of a label costs us a token of computing and the rival its share of a whole sequence, so the gain for
each label falls where labels are long beside the prompt. int4 kernels round activations to 8 bits: a last bit that
differs can move a probability by more than 1e-4; in float32 ONNX it does not (`tests/evaluation/test_onnx_scorer.py`).
"""


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", type=Path, default=Path("results"), help="results of a finished run")
    arguments.add_argument("--run", default="lora")
    arguments.add_argument("--variant", default="int4-mixed")
    arguments.add_argument("--rows", type=int, default=96)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--profile", action="store_true", help="print what products take in PyTorch, and no table")
    arguments.add_argument("--threads", type=int, default=2)
    main(arguments.parse_args())
