"""QLoRA on a CPU: training steps with the values that the 4 bits stand for, with bitsandbytes' own layers, and LoRA's.

    .venv/bin/snakemake --cores 2 -- results/corpus/train.jsonl
    .venv/bin/python benchmarks/qlora.py

All three are the same base model with the same adapter on the same padded batches, forward and backward, in turn in one
process. Writes the table to benchmarks/qlora.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import machine, markdown_table, write_table
from training import FINETUNE
from transformers import AutoModelForCausalLM, set_seed

from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.hardware.device import use_threads
from lib.models.loading import Quantization, build_bitsandbytes_config, load_model
from lib.training import batching
from lib.training.adapter import build_lora_model

QUANTIZATION: Quantization = {"quant_type": "nf4", "double_quant": True}
BATCH = 16


def with_bitsandbytes(base: Path, dtype: torch.dtype) -> Any:
    """The base with bitsandbytes' 4-bit layers, as transformers puts them in."""
    config = build_bitsandbytes_config(QUANTIZATION, dtype)
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=config, device_map="cpu")


WAYS: dict[str, Callable[[Path, torch.dtype], Any]] = {
    "LoRA": load_model,
    "QLoRA, values held (slmflow on a CPU)": lambda base, dtype: load_model(base, dtype, QUANTIZATION),
    "QLoRA, bitsandbytes' layers": with_bitsandbytes,
}


def main(args: argparse.Namespace) -> None:
    use_threads(args.threads)
    rows = batching.encode_rows(
        load_tokenizer(args.base), read_corpus(args.corpus / "train.jsonl"), loss="completion", max_length=8192
    )
    collate = batching.Collator(pad_id=0)
    parts = [collate(rows[start : start + BATCH]) for start in range(0, BATCH * (args.rounds + 1), BATCH)]
    lines = []
    for dtype in (torch.float32, torch.bfloat16):
        models = {}
        for name, load in WAYS.items():
            set_seed(0)
            models[name] = build_lora_model(load(args.base, dtype), FINETUNE).train()
        speeds: dict[str, list[float]] = {name: [] for name in WAYS}
        for number, part in enumerate(parts):
            for name, model in models.items():
                speed = tokens_per_second(model, dict(part))
                if number:  # the first round warms up
                    speeds[name].append(speed)
        for name, values in speeds.items():
            ratios = [value / lora for value, lora in zip(values, speeds["LoRA"], strict=True)]
            shown = f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
            lines.append([str(dtype).removeprefix("torch."), name, shown, f"{statistics.median(ratios):.2f}"])
    write_table(Path(__file__).with_suffix(".md"), text(args, lines))


def tokens_per_second(model: Any, batch: dict[str, Any]) -> float:
    """Real tokens in a second of one forward and backward pass."""
    labels, real = batch.pop("labels"), int(batch.pop("real_tokens"))
    began = time.perf_counter()
    batching.compute_completion_loss(model(**batch), labels, num_items_in_batch=1).backward()
    seconds = time.perf_counter() - began
    model.zero_grad()
    return real / seconds


def text(args: argparse.Namespace, lines: list[list[str]]) -> str:
    return f"""# QLoRA on a CPU

    .venv/bin/python benchmarks/qlora.py

{machine("torch", "peft", "bitsandbytes", threads=args.threads)}

One forward and backward pass of {BATCH} padded rows of the demo, {args.rounds} rounds in turn after one to warm up;
nf4 with double quantization, LoRA r 16 on all linear layers. Median (lowest to highest).

{markdown_table(["dtype", "way", "real tokens/s", "by LoRA's"], lines)}
"""


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--base", type=Path, default=Path("results/base"), help="folder of the base model")
    arguments.add_argument("--corpus", type=Path, default=Path("results/corpus"), help="corpus folder")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=2)
    main(arguments.parse_args())
