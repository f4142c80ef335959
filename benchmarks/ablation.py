"""What each trick of the training gains alone: a training step with it and without it, in turn.

    .venv/bin/snakemake --cores 2 --configfile benchmarks/chat.yaml -- results-chat/corpus/train.jsonl
    .venv/bin/python benchmarks/ablation.py --corpus results/corpus results-chat/corpus

One process holds the model. For each trick the same batches go through a step twice, once with all tricks and once with
all but this one, in changing order: forward, backward, clipping, optimizer. The table shows seconds without it by
seconds with it, median (lowest to highest); 1.02 is what a trick must gain to stay.
"""

import argparse
import ctypes
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench import machine, markdown_table, write_table
from training import BATCH, FINETUNE, LEARNING_RATE

from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.hardware import onednn
from lib.hardware.device import measure_matmul_peak, use_threads
from lib.hardware.memory import keep_freed_memory
from lib.models.loading import load_model
from lib.training import batching, packing
from lib.training.adapter import build_lora_model
from lib.training.batching import IGNORED, Example
from lib.training.fused_lora import fuse_lora

Batch = Sequence[Example]


class Step:
    """A training step with all tricks, each of which a context below takes away."""

    def __init__(self, base: Path, rows: Batch, pad_id: int, dtype: str) -> None:
        torch.manual_seed(0)
        self.model = build_lora_model(load_model(base, getattr(torch, dtype)), FINETUNE)
        self.collate: Callable[[Batch], dict[str, Any]] = packing.PackingCollator()
        self.padded = batching.Collator(pad_id)
        assert packing.can_pack(self.model.base_model.model, rows, pad_id)
        onednn.use_onednn(self.model)
        self.plain = {layer: layer.__dict__.get("forward") for layer in self.model.modules()}
        fuse_lora(self.model)
        keep_freed_memory()
        self.parameters = [part for part in self.model.parameters() if part.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, fused=True)
        self.model.train()

    def run(self, examples: Batch) -> float:
        """Return the seconds of one step."""
        began = time.perf_counter()
        batch = self.collate(examples)
        batch.pop("real_tokens")
        labels = batch.pop("labels")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.model.dtype == torch.bfloat16):
            loss = batching.compute_completion_loss(self.model(**batch, use_cache=False), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began


@contextmanager
def replace_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def without_packing(step: Step) -> Iterator[None]:
    with packing.disable_packing(step.model.base_model.model), replace_attribute(step, "collate", step.padded):
        yield


def without_shared_prefix(step: Step) -> Any:
    return replace_attribute(packing, "find_shared_prefix", lambda rows: 0)


def without_dropping_last_tokens(step: Step) -> Any:
    """Let the collator drop one more token that stands behind the last."""
    collate = step.collate

    def keep(examples: Batch) -> dict[str, Any]:
        return collate([{"input_ids": [*one["input_ids"], 0], "labels": [*one["labels"], IGNORED]} for one in examples])

    return replace_attribute(step, "collate", keep)


def without_plain_products(step: Step) -> Any:
    return replace_attribute(packing, "SHORT", 0)


@contextmanager
def without_kept_memory(step: Step) -> Iterator[None]:
    """Give the C library its own thresholds (glibc), for the step and until it is over."""
    library = ctypes.CDLL(None)
    library.mallopt(-3, 128 * 1024)
    library.mallopt(-1, 128 * 1024)
    library.malloc_trim(0)
    try:
        yield
    finally:
        keep_freed_memory()


@contextmanager
def without_fused_lora(step: Step) -> Iterator[None]:
    fused = {layer: layer.__dict__.get("forward") for layer in step.plain}
    _set_forward(step.plain)
    try:
        yield
    finally:
        _set_forward(fused)


def _set_forward(forwards: dict[Any, Any]) -> None:
    for layer, forward in forwards.items():
        if forward is None:
            layer.__dict__.pop("forward", None)
        else:
            layer.forward = forward


def without_onednn(step: Step) -> Any:
    return replace_attribute(onednn, "_has_kernel", lambda weight: False)


TRICKS: dict[str, Callable[[Step], Any]] = {
    "packing, with all that rests on it": without_packing,
    "shared prefix once": without_shared_prefix,
    "no last tokens": without_dropping_last_tokens,
    "short attention by plain products": without_plain_products,
    "freed memory kept": without_kept_memory,
    "fused LoRA": without_fused_lora,
    "oneDNN products": without_onednn,
}


def measure(step: Step, trick: Callable[[Step], Any], batches: Sequence[Batch]) -> list[float]:
    """Return seconds without the trick by seconds with it, for each batch after one to warm up."""
    found = []
    for number, batch in enumerate(batches):
        seconds = {}
        for is_on in (True, False) if number % 2 else (False, True):
            if is_on:
                seconds[is_on] = step.run(batch)
            else:
                with trick(step):
                    seconds[is_on] = step.run(batch)
        found.append(seconds[False] / seconds[True])
    return found[1:]


GROUPS = {  # of PyTorch's operations by name; what none names is "other"
    "products of matrices": ("aten::mm", "aten::addmm_", "aten::addmm", "mkldnn::_linear_pointwise"),
    "attention's batched products, softmax, gathering": (
        *("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data"),
        *("aten::index_select", "aten::scatter_add_", "aten::index_add_"),
    ),
    "optimizer": ("aten::_fused_adamw_", "Optimizer.step#AdamW.step"),
}
RANK_SIDE = 64  # a product is LoRA's where a side is narrower


def profile_step(step: Step, batches: Sequence[Batch]) -> list[list[str]]:
    """Return a line for each kind of operation: milliseconds a step, their share, and GFLOP/s of products."""
    for batch in batches[:2]:
        step.run(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as found:
        for batch in batches[2:]:
            step.run(batch)
    microseconds, operations = Counter[str](), Counter[str]()
    for event in found.key_averages(group_by_input_shape=True):
        kind = next((kind for kind, names in GROUPS.items() if event.key in names), "other")
        if kind == "products of matrices":
            sides = [[math.prod(shape[:-1]), shape[-1]] for shape in event.input_shapes if len(shape) > 1][-2:]
            kind = "LoRA's thin products" if min(map(min, sides)) < RANK_SIDE else "products with frozen weights"
            rows, inner = sides[0]
            columns = sides[1][1] if sides[1][0] == inner else sides[1][0]
            operations[kind] += 2 * rows * inner * columns * event.count
        microseconds[kind] += event.self_cpu_time_total
    steps, total = len(batches) - 2, sum(microseconds.values())
    return [
        [
            kind,
            f"{spent / steps / 1000:.0f}",
            f"{100 * spent / total:.0f} %",
            f"{operations[kind] / spent / 1000:.0f}" if kind in operations else "",
        ]
        for kind, spent in microseconds.most_common()
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--base", type=Path, default=Path("results/base"))
    arguments.add_argument("--corpus", type=Path, nargs="+", default=[Path("results/corpus")])
    arguments.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    arguments.add_argument("--batches", type=int, default=7)
    arguments.add_argument("--profile", action="store_true", help="print where the time of a step goes, and no table")
    arguments.add_argument("--output", type=Path, default=Path("benchmarks/ablation.md"))
    args = arguments.parse_args()
    use_threads(2)
    tokenizer = load_tokenizer(args.base)
    columns: list[str] = []
    cells: dict[str, list[str]] = {name: [] for name in TRICKS}
    for corpus in args.corpus:
        rows = batching.encode_rows(tokenizer, read_corpus(corpus / "train.jsonl"), loss="completion", max_length=512)
        batches = [rows[start : start + BATCH] for start in range(0, BATCH * args.batches, BATCH)]
        for dtype in args.dtypes:
            step = Step(args.base, rows, min(tokenizer.end_ids), dtype)
            columns.append(f"{corpus}, {dtype}")
            if args.profile:
                peak = measure_matmul_peak(getattr(torch, dtype)) / 1e9
                head = [f"{columns[-1]}, peak {peak:.0f} GFLOP/s", "ms a step", "share", "GFLOP/s"]
                print(markdown_table(head, profile_step(step, batches)))
                continue
            for name, trick in TRICKS.items():
                ratios = measure(step, trick, batches)
                cells[name].append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
                print(columns[-1], name, cells[name][-1], flush=True)
            del step
    if args.profile:
        return
    table = markdown_table(["without it, the step takes", *columns], [[name, *cells[name]] for name in TRICKS])
    note = f"{machine('torch', 'transformers', 'peft')} 2 threads; batches of {BATCH} rows, LoRA r {FINETUNE['r']}."
    write_table(args.output, f"# Ablation of the training\n\n{__doc__}\n{note}\n\n{table}\n")


if __name__ == "__main__":
    main()
