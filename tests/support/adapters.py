"""Adapters of every fine-tuning method, and their merges, without a training."""

from pathlib import Path
from typing import Any

import torch

from lib.config.training import Finetune
from lib.models.loading import load_model
from lib.training.methods import choose_quantization

IDS = torch.arange(5, 41).view(3, 12)


def taught(base: Path, folder: Path, method: str, **changes: Any) -> tuple[Any, dict[str, Any] | None]:
    """An adapter of `method` that does something, saved to `folder`; the model with it, and its quantization."""
    from lib.training.adapter import build_lora_model, save_adapter

    settings = Finetune.model_validate({"method": method, "r": 4, "lora_alpha": 6, **changes}).model_dump(
        exclude_none=True
    )
    torch.manual_seed(1)
    model = build_lora_model(load_model(base, quantization=choose_quantization(settings)), settings)
    for name, part in model.named_parameters():
        if "lora_B" in name:
            part.data = 0.1 * torch.randn_like(part)
        if "magnitude" in name:
            part.data *= 1 + 0.1 * torch.rand_like(part)
    save_adapter(model, folder)
    return model.eval(), choose_quantization(settings)


def merged(base: Path, adapter: Path, folder: Path, quantization: Any = None) -> Any:
    from lib.models.merging import merge

    folder.mkdir()
    merge(base, adapter, folder, quantization)
    return load_model(folder)


@torch.inference_mode()
def difference(one: Any, other: Any) -> float:
    """Largest difference of logits, relative to the largest logit."""
    logits = [model(IDS).logits for model in (one, other)]
    return float((logits[0] - logits[1]).abs().max() / logits[0].abs().max())
