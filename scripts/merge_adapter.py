"""Add a LoRA adapter to the base weights: W + scale * B A, in float32, rounded once.

DoRA's rows are then scaled to their learned length. An adapter that was trained on a 4-bit base (QLoRA) is added
either to the original weights or to what the 4 bits stand for, which is what it was trained on: `settings.into`.

The base's files are copied and the adapted weights written over theirs, one at a time: memory holds a
matrix, not the model, and shards, tied weights, generation config and tokenizer stay as they are.
Before the merged model is published its logits are compared with those of base and adapter on real
prompts, in a forward pass that reads each layer's weights when it comes to it.
"""

import argparse
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lib.core.cli import build_parser, fail, parse_settings, report_loaded, report_progress, run
from lib.core.files import hash_file, publish_directory, read_json
from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.hardware.device import use_threads
from lib.hardware.memory import LIBRARIES_MB, require_memory, return_freed_memory
from lib.models.adapters import map_adapted_weights
from lib.models.loading import Quantization, list_linear_weights, round_to_4_bits
from lib.models.safetensors_streaming import build_empty_model, locate_weights, read_weight, stream_model
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest

_CHECKED_ROWS = 8
# Largest difference of logits, relative to the largest logit: float32 sums in another order, and the
# one rounding to the base's storage dtype (8 significant bits in bfloat16, 11 in float16).
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}


def main(args: argparse.Namespace) -> None:
    return_freed_memory()
    use_threads(args.threads)
    for folder in (args.base, args.adapter):
        read_manifest(folder)
    if read_manifest(args.adapter)["inputs"]["base"] != hash_file(build_manifest_path(args.base)):
        fail("it was trained on another base model", "merge it into that one, or train it again", at=args.adapter)
    report_loaded()
    matrix = 4 * max(weight.elements for weight in locate_weights(args.base).values())
    require_memory(LIBRARIES_MB + matrix / 1e6, "merge_adapter")
    quantization = read_manifest(args.adapter)["quantization"] if args.settings["into"] == "dequantized" else None
    with publish_directory(args.merged) as folder:
        changed, dtype = merge(args.base, args.adapter, folder, quantization)
        difference = measure_logit_difference(args.base, args.adapter, folder, args.rows, quantization)
        report_progress(f"merge_adapter: {changed} weights changed, logits differ by {difference:.1e} of the largest")
        if not difference <= _TOLERANCE[dtype]:
            fail(
                f"the merged model differs from base and adapter by {difference:.1e} of the largest logit"
                f" (allowed {_TOLERANCE[dtype]:.0e} for {dtype})",
                "this is a fault of the merge, not of your data: report it",
                at=args.adapter,
            )
    write_manifest(
        args.merged,
        inputs={"base": build_manifest_path(args.base), "adapter": build_manifest_path(args.adapter)},
        settings=args.settings,
        extra={"dtype": str(dtype).removeprefix("torch."), "weights_changed": changed},
    )


def merge(base: Path, adapter: Path, output: Path, quantization: Quantization | None = None) -> tuple[int, torch.dtype]:
    """Write the merged checkpoint to `output`.

    quantization: the linear weights, also those without an adapter, are first rounded as a 4-bit base has them.
    Returns the number of weights changed and the dtype they are stored in. Raises `UserError` when a
    part of the adapter fits no weight of the base.
    """
    scale = compute_adapter_scale(read_json(adapter / "adapter_config.json"))
    stored, parts = locate_weights(base), locate_weights(adapter)
    try:
        adapted = map_adapted_weights(set(parts))
    except ValueError as unknown:
        fail(
            f"it holds {unknown}, which is not a low-rank matrix",
            "only LoRA, rsLoRA and DoRA can be merged",
            at=adapter,
        )
    if left := adapted.keys() - stored.keys():
        fail(f"{min(left)} of the adapter is not in the base model", "train on this base model", at=adapter)
    rounded = list_linear_weights(build_empty_model(base)) & stored.keys() if quantization else set()
    for file in sorted(base.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            shutil.copyfile(file, output / file.name)
    dtype = torch.float32
    for name in sorted(adapted.keys() | rounded):
        original = read_weight(stored[name], name)
        weight, dtype = original.float(), original.dtype
        if quantization and name in rounded:
            weight = round_to_4_bits(weight, quantization)
        if name in adapted:
            a, b, *magnitude = (read_weight(parts[part], part) for part in adapted[name] if part)
            weight = add_low_rank(weight, a, b, scale, *magnitude)
        with open(output / stored[name].file.name, "r+b") as content:
            content.seek(stored[name].start)
            weight.to(dtype).contiguous().view(torch.uint8).numpy().tofile(content)
    return len(adapted.keys() | rounded), dtype


def compute_adapter_scale(config: dict[str, Any]) -> float:
    """Return lora_alpha / r, or lora_alpha / sqrt(r) for rank-stabilized LoRA (Kalajdzievski 2023)."""
    rank = config["r"]
    return config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)


def add_low_rank(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, magnitude: torch.Tensor | None = None
) -> torch.Tensor:
    """Return W + scale * B A in float32; with a magnitude m, rows get length m (DoRA, Liu et al. 2024, eq. 5)."""
    merged = torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)
    if magnitude is None:
        return merged
    return merged * (magnitude.float() / merged.norm(dim=1))[:, None]


def measure_logit_difference(
    base: Path, adapter: Path, merged: Path, rows: Path, quantization: Quantization | None = None
) -> float:
    """Return largest difference of logits on the last position of some prompts, relative to the largest logit."""
    tokenizer = load_tokenizer(merged)
    prompts = tokenizer.encode_batch([row["prompt"] for row in read_corpus(rows)[:_CHECKED_ROWS]])
    # peft's own forward, not the formula above
    expected = compute_last_logits(stream_model(base, adapter, quantization), prompts)
    found = compute_last_logits(stream_model(merged), prompts)
    return float((expected - found).abs().max() / expected.abs().max())


@torch.inference_mode()
def compute_last_logits(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """Return logits behind each prompt, [prompts, vocabulary], in one pass.

    Prompts are filled up on the right, where a causal model does not look back from.
    """
    ends = [len(ids) - 1 for ids in prompts]
    ids = pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
    kept = sorted(set(ends))
    logits = model(ids, logits_to_keep=torch.tensor(kept)).logits
    return logits[torch.arange(len(ends)), torch.tensor([kept.index(end) for end in ends])]


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="into, versions")
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    arguments.add_argument("--adapter", type=Path, required=True, help="folder of the adapter")
    arguments.add_argument("--rows", type=Path, required=True, help="corpus rows whose prompts are compared")
    arguments.add_argument(
        "--merged", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    arguments.add_argument("--threads", type=int, default=2)
    run(arguments, main)
