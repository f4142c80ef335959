"""Loading PyTorch models: always safetensors, never a model's own code."""

import os
from pathlib import Path
from typing import Any, TypedDict

import torch

from lib.cli import fail, progress


class Quantization(TypedDict):
    """How the linear layers of a base are kept in 4 bits (QLoRA, Dettmers et al. 2023), by bitsandbytes' names."""

    quant_type: str
    double_quant: bool


def load_model(folder: Path, dtype: torch.dtype = torch.float32, quantization: Quantization | None = None) -> Any:
    """A causal language model in evaluation mode, on the GPU where there is one.

    quantization: its linear layers, all but the vocabulary head, are rounded to 4 bits and compute in `dtype`. On a
    GPU they stay in 4 bits, which saves memory; on a CPU they hold the values that the 4 bits stand for: bitsandbytes'
    layers repack there when the model is first evaluated, and pass no gradients on from then on.
    Raises `UserError` when transformers does not know the architecture.
    """
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    if os.environ.get("CUDA_VISIBLE_DEVICES") and not on_gpu:
        progress(f"a GPU was given, but torch {torch.__version__} cannot use it: this runs on the CPU")
    options: dict[str, Any] = {"dtype": torch.float32 if quantization else dtype}  # codes do not depend on `dtype`
    if quantization and on_gpu:
        options |= {
            "device_map": {"": torch.cuda.current_device()},
            "quantization_config": bitsandbytes_config(quantization, dtype),
        }
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, attn_implementation="sdpa", **options
        )
    except (ValueError, OSError) as error:
        fail(f"cannot be loaded: {str(error).splitlines()[0]}", "run fetch_model again", at=folder)
    if quantization and on_gpu:
        for part in model.parameters():
            if part.dtype == torch.float32:  # what is not in 4 bits
                part.data = part.data.to(dtype)
        return model.eval()
    if quantization:
        weights = dict(model.named_parameters())
        for name in linear_weights(model):
            weights[name].data = rounded_to_4_bits(weights[name].data, quantization)
    return model.eval().to(device="cuda" if on_gpu else "cpu", dtype=dtype)


def load_adapter(model: Any, adapter: Path) -> Any:
    """`model` with a LoRA adapter put on, in evaluation mode."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).eval()


def rounded_to_4_bits(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """The values that a layer of a 4-bit base computes with: `weight` in float32, through bitsandbytes' codes."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(
        weight.float().contiguous(),
        quant_type=quantization["quant_type"],
        compress_statistics=quantization["double_quant"],
    )
    return dequantize_4bit(codes, state)


def linear_weights(model: Any) -> set[str]:
    """Names of the weights that a 4-bit base rounds: those of all linear layers but the vocabulary head."""
    head = model.get_output_embeddings()
    return {
        f"{name}.weight"
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and part is not head
    }


def bitsandbytes_config(quantization: Quantization, dtype: torch.dtype) -> Any:
    """The same for transformers, which puts bitsandbytes' own layers into the model."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization["quant_type"],
        bnb_4bit_use_double_quant=quantization["double_quant"],
        bnb_4bit_compute_dtype=dtype,
    )
