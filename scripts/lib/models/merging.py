"""Adding a low-rank adapter to the base weights: W + scale * B A, in float32, rounded once.

DoRA's rows are then scaled to their learned length. The base's files are copied and the adapted weights written over
theirs, one at a time: memory holds a matrix, not the model, and shards, tied weights, generation config and tokenizer
stay as they are.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lib.core.cli import fail
from lib.core.files import read_json
from lib.models.adapters import map_adapted_weights
from lib.models.loading import Quantization, list_linear_weights, round_to_4_bits
from lib.models.safetensors_streaming import (
    build_empty_model,
    compute_last_logits,
    locate_weights,
    read_weight,
    stream_model,
)

# Largest difference of logits, relative to the largest logit: float32 sums in another order, and the
# one rounding to the base's storage dtype (8 significant bits in bfloat16, 11 in float16).
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}


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
    base: Path, adapter: Path, merged: Path, prompts: Sequence[list[int]], quantization: Quantization | None = None
) -> float:
    """Return largest difference of logits on the last position of some prompts, relative to the largest logit."""
    # peft's own forward, not the formula above
    expected = compute_last_logits(stream_model(base, adapter, quantization), prompts)
    found = compute_last_logits(stream_model(merged), prompts)
    return float((expected - found).abs().max() / expected.abs().max())
