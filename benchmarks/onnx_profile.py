"""Where ONNX Runtime's time goes, for a prompt and for each new token, by its own profiler.

    .venv/bin/python benchmarks/onnx_profile.py results/runs/lora/onnx/int4-gptq

Reads prompts of the validation rows and writes new tokens behind each, batch 1, after one to warm up. Kernels are
summed by kind; `between kernels` is what is left of the time that a call took.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine, markdown_table

from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.hardware.device import use_threads
from lib.onnx.runtime import OnnxModel, open_onnx

KINDS = {
    "MatMulNBits": "products with int4 weights",
    "GroupQueryAttention": "attention",
    "SkipSimplifiedLayerNormalization": "norms",
    "SimplifiedLayerNormalization": "norms",
}
STAGES = ("prompt", "new token")


def answer_prompts(model: OnnxModel, prompts: list[list[int]], new_tokens: int) -> dict[str, list[float]]:
    """Return the milliseconds of each prompt and of each new token."""
    spent: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for prompt in prompts:
        generator = model.start_generator(max_length=len(prompt) + new_tokens, min_length=len(prompt) + new_tokens)
        for number in range(new_tokens):
            began = time.perf_counter()
            if number == 0:
                generator.append_tokens(prompt)
            generator.generate_next_token()
            spent[STAGES[number > 0]].append(1000 * (time.perf_counter() - began))
    return spent


def read_kernels(trace: Path) -> list[tuple[str, str, float]]:
    """Return stage, kind and milliseconds of each kernel in a trace (ONNX Runtime's profiling JSON)."""
    found = []
    stage = STAGES[0]
    for event in json.loads(trace.read_text(encoding="utf-8")):
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        operator = event["args"]["op_name"]
        if operator == "GatherBlockQuantized":  # the first of a pass: [1, tokens] ids
            tokens = next(shape["int64"] for shape in event["args"]["input_type_shape"] if "int64" in shape)[-1]
            stage = STAGES[tokens == 1]
        kind = "vocabulary head" if "lm_head" in event["name"] else KINDS.get(operator, "other kernels")
        found.append((stage, kind, event["dur"] / 1000))
    return found


def profile(folder: Path, prompts: list[list[int]], new_tokens: int, threads: int) -> list[list[str]]:
    """Return a line for each kind: milliseconds a prompt and a new token, with their shares."""
    with tempfile.TemporaryDirectory() as scratch:
        options: dict[str, Any] = {"enable_profiling": f"{scratch}/trace"}
        spent = answer_prompts(open_onnx(folder, threads, options), prompts, new_tokens)
        (trace,) = Path(scratch).glob("trace*")
        kernels = read_kernels(trace)
    sums, calls = Counter[tuple[str, str]](), {stage: len(spent[stage]) for stage in STAGES}
    for stage, kind, milliseconds in kernels:
        sums[stage, kind] += milliseconds / calls[stage]
    whole = {stage: sum(spent[stage]) / calls[stage] for stage in STAGES}
    for stage in STAGES:
        sums[stage, "between kernels"] = whole[stage] - sum(sums[stage, kind] for kind in {kind for _, kind in sums})
    kinds = sorted({kind for _, kind in sums}, key=lambda kind: -sums[STAGES[1], kind])
    return [
        [
            kind,
            *(f"{sums[stage, kind]:.2f} ({100 * sums[stage, kind] / whole[stage]:.0f} %)" for stage in STAGES),
        ]
        for kind in kinds
    ] + [["all", *(f"{whole[stage]:.2f}, median {median(spent[stage]):.2f}" for stage in STAGES)]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path, help="folder of an ONNX model below results/runs")
    arguments.add_argument("--rows", type=Path, default=Path("results/corpus/validation.jsonl"))
    arguments.add_argument("--prompts", type=int, default=20)
    arguments.add_argument("--new-tokens", type=int, default=32)
    arguments.add_argument("--threads", type=int, default=2)
    args = arguments.parse_args()
    use_threads(args.threads)
    tokenizer = load_tokenizer(args.model)
    prompts = tokenizer.encode_batch([row["prompt"] for row in read_corpus(args.rows)[: args.prompts]])
    lines = profile(args.model, prompts, args.new_tokens, args.threads)
    print(machine("onnxruntime", "onnxruntime-genai", threads=args.threads))
    print(f"\n{args.model.name}, prompts of {median(map(len, prompts)):.0f} tokens.\n")
    print(markdown_table([f"{args.model.name}, ms", "a prompt", "a new token"], lines))


if __name__ == "__main__":
    main()
