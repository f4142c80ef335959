"""Measure an ONNX model in a process of its own: size, load time, first token, tokens per second, memory.

Batch size 1, greedy, real prompts. Times are medians over the prompts, `spread` their 10th and 90th
percentile. Whatever else runs on the machine slows it down, so run nothing else.
"""

import argparse
import time
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.core.cli import build_parser, fail, parse_settings, report_loaded, report_progress, run
from lib.core.files import read_jsonl, write_json
from lib.data.tokenizer import Tokenizer
from lib.hardware.memory import measure_peak_rss_mb
from lib.onnx.packaged import load_packaged_tokenizer
from lib.onnx.runtime import OnnxModel, load_onnx
from lib.provenance.manifests import read_manifest


class Times(NamedTuple):
    """prompt_tokens: ids of the prompt; first_token_ms: from text to first token; tokens_per_second: after it."""

    prompt_tokens: int
    first_token_ms: float
    tokens_per_second: float


def main(args: argparse.Namespace) -> None:
    settings = args.settings["benchmark"]
    manifest = read_manifest(args.model)
    prompts = [row["prompt"] for row in islice(read_jsonl(args.rows), settings["prompts"])]
    if not prompts:
        fail("no rows", "bring more rows, or raise split.validation", at=args.rows)
    begin = time.perf_counter()
    model, tokenizer = load_onnx(args.model, args.threads), load_packaged_tokenizer(args.model)
    load_s = time.perf_counter() - begin
    report_loaded()
    measure(model, tokenizer, prompts[0], settings["new_tokens"])  # the first run allocates and warms caches
    times = [measure(model, tokenizer, prompt, settings["new_tokens"]) for prompt in prompts]
    first, speed = summarize([t.first_token_ms for t in times]), summarize([t.tokens_per_second for t in times])
    result = {
        "size_mb": sum((args.model / name).stat().st_size for name in manifest["files"]) / 1e6,
        "load_s": load_s,
        "first_token_ms": first["median"],
        "tokens_per_second": speed["median"],
        "peak_rss_mb": measure_peak_rss_mb(),
        "prompt_tokens": float(np.median([t.prompt_tokens for t in times])),
        "new_tokens": settings["new_tokens"],
        "prompts": len(prompts),
        "threads": args.threads,
        "spread": {"first_token_ms": first["spread"], "tokens_per_second": speed["spread"]},
    }
    report_progress(f"benchmark_onnx: {first['median']:.0f} ms to the first token, {speed['median']:.1f} tokens/s")
    write_json(args.output, result)


def measure(model: OnnxModel, tokenizer: Tokenizer, prompt: str, new_tokens: int) -> Times:
    """Measure the times of one prompt. The answer goes on to `new_tokens`, end token or not. Raises `UserError` when
    too long.
    """
    begin = time.perf_counter()
    ids = tokenizer.encode(prompt)
    length = len(ids) + new_tokens
    if length > model.context_length:
        fail(
            f"a prompt of {len(ids)} tokens and {new_tokens} new ones exceed the model's {model.context_length}",
            "lower benchmark.new_tokens",
        )
    generator = model.start_generator(max_length=length, min_length=length)
    generator.append_tokens(np.array(ids, dtype=np.int32))
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        generator.generate_next_token()
    last = time.perf_counter()
    return Times(len(ids), 1000 * (first - begin), (new_tokens - 1) / (last - first))


def summarize(values: list[float]) -> dict[str, Any]:
    low, median, high = np.percentile(values, [10, 50, 90])
    return {"median": float(median), "spread": [float(low), float(high)]}


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="benchmark, versions")
    arguments.add_argument("--model", type=Path, required=True, help="folder of the ONNX model")
    arguments.add_argument("--rows", type=Path, required=True, help="corpus rows whose prompts are answered")
    arguments.add_argument("--output", type=Path, required=True, help="file to write")
    arguments.add_argument("--threads", type=int, default=2)
    run(arguments, main)
