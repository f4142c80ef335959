"""The adapter that is trained: peft's layers on the base model, and the folder that it is saved to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lib.core.cli import fail
from lib.models.adapters import write_adapter_config
from lib.training.methods import METHODS


def build_lora_model(model: Any, settings: Mapping[str, Any]) -> Any:
    """Return the base model with fresh, seeded LoRA layers. Raises `UserError` when a target names no layer.

    The layers of all methods are peft's. The experts of a mixture, which are no linear layers, get none: what peft
    adds to them cannot be merged.
    """
    from peft import LoraConfig, get_peft_model

    linear = list_linear_layers(model)
    targets = settings["target_modules"]
    if isinstance(targets, list):
        if unknown := sorted(set(targets) - linear):
            names = ", ".join(sorted(linear))
            fail(f"finetune.target_modules: the base model has no layer {unknown[0]}", f"it has {names}")
    elif has_experts(model):
        targets = sorted(linear)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        target_modules=targets,
        **METHODS[settings["method"]].peft,
    )
    adapted = get_peft_model(model, config)
    if settings["gradient_checkpointing"]:
        adapted.enable_input_require_grads()
    return adapted


def list_linear_layers(model: Any) -> set[str]:
    """Return the names of the linear layers within the model's layers, without the vocabulary head."""
    return {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)} - {
        "lm_head"
    }


def has_experts(model: Any) -> bool:
    """Tell whether a model is a mixture of experts, whose weights transformers keeps in tensors of three dimensions."""
    return any(part.dim() == 3 and "expert" in name for name, part in model.named_parameters())


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter, with the same bytes for the same adapter."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    write_adapter_config(folder)
