"""Loading PyTorch models: always safetensors, never a model's own code."""

from pathlib import Path
from typing import Any

import torch

from lib.cli import fail


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model in evaluation mode, on the GPU where there is one.

    Raises `UserError` when transformers does not know the architecture.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, attn_implementation="sdpa"
        )
    except (ValueError, OSError) as error:
        fail(f"cannot be loaded: {str(error).splitlines()[0]}", "run fetch_model again", at=folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device)


def load_adapter(model: Any, adapter: Path) -> Any:
    """`model` with a LoRA adapter put on, in evaluation mode."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).eval()
