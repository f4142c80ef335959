"""Loading PyTorch models: always safetensors, never a model's own code, and every tensor or none.

transformers draws what a file lacks at random and leaves out what it does not know, with a warning; peft leaves zeros.
Here either is an error.
"""

import copy
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch

from lib.core.cli import extract_first_line, fail, report_progress

# What a part of a tensor's name comes from, and what to do.
_WRAPPERS = (
    (r"(^|\.)_orig_mod\.", "torch.compile renamed it: save the model inside (model._orig_mod)"),
    (
        r"(^|\.)_(fsdp_wrapped|checkpoint_wrapped|forward)_module\.",
        "a wrapper renamed it (FSDP, activation checkpointing, DeepSpeed): save the model inside",
    ),
    (r"(^|\.)module\.", "DataParallel renamed it: save the model inside (model.module)"),
)
_OTHER_KINDS = (
    (
        r"\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|weight_packed|weight_scale(_inv)?)$|\.quant_state\.",
        "its weights are quantized: choose the unquantized model",
    ),
    (r"(^|\.)language_model\.", "it is the text part of a multimodal model: choose a model of text alone"),
    (
        r"\.(base_layer|lora_\w+|modules_to_save)\.|^base_model\.model\.",
        "it is a peft model that was not merged: save what merge_and_unload returns, or give finetune.adapter",
    ),
)
ADAPTER_HINT = "save configuration and weights of the adapter together (save_pretrained of peft)"
EMPTY = (
    "empty tensors come from saving while ZeRO-3 shards the model: gather first"
    " (stage3_gather_16bit_weights_on_model_save, or zero_to_fp32.py)"
)


class Quantization(TypedDict):
    """How the linear layers of a base are kept in 4 bits (QLoRA, Dettmers et al. 2023), by bitsandbytes' names."""

    quant_type: str
    double_quant: bool


def load_model(folder: Path, dtype: torch.dtype = torch.float32, quantization: Quantization | None = None) -> Any:
    """Return a causal language model in evaluation mode, on the GPU where there is one.

    quantization: its linear layers, all but the vocabulary head, are rounded to 4 bits and compute in `dtype`. On a
    GPU they stay in 4 bits, which saves memory; on a CPU they hold the values that the 4 bits stand for: bitsandbytes'
    layers repack there when the model is first evaluated, and pass no gradients on from then on.
    Raises `UserError` when transformers does not know the architecture, or the tensors are not exactly the model's.
    """
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    if os.environ.get("CUDA_VISIBLE_DEVICES") and not on_gpu:
        report_progress(f"a GPU was given, but torch {torch.__version__} cannot use it: this runs on the CPU")
    options: dict[str, Any] = {"dtype": torch.float32 if quantization else dtype}  # codes do not depend on `dtype`
    if quantization and on_gpu:
        options |= {
            "device_map": {"": torch.cuda.current_device()},
            "quantization_config": build_bitsandbytes_config(quantization, dtype),
        }
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=choose_attention(folder),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to report them with the others
            **options,
        )
    except (ValueError, OSError, RuntimeError) as error:
        fail(f"cannot be loaded: {extract_first_line(error)}", "run fetch_model again", at=folder)
    model, report = loaded
    check_loading_report(report, folder)
    if quantization and on_gpu:
        for part in model.parameters():
            if part.dtype == torch.float32:  # what is not in 4 bits
                part.data = part.data.to(dtype)
        return model.eval()
    if quantization:
        weights = dict(model.named_parameters())
        for name in list_linear_weights(model):
            weights[name].data = round_to_4_bits(weights[name].data, quantization)
    return model.eval().to(device="cuda" if on_gpu else "cpu", dtype=dtype)


def choose_attention(model: Any) -> str:
    """Return the attention implementation that a model is loaded with: `sdpa`, or `eager` where its class has no other.

    model: its folder or its configuration (PreTrainedConfig). Gemma 2 caps scores and GPT-OSS has sinks, which sdpa
    does not know.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False) if isinstance(model, Path) else model
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "sdpa" if model_class._supports_sdpa else "eager"


def load_adapter(model: Any, adapter: Path) -> Any:
    """Return `model` with a LoRA adapter put on, in evaluation mode.

    Raises `UserError` when its tensors are not exactly those that its configuration asks for.
    """
    from peft import PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(str(adapter))
    config.inference_mode = True
    adapted: Any = get_peft_model(model, config)
    # Of another shape is as good as missing: peft leaves its own start values in both.
    result = adapted.load_adapter(adapter, "default", ignore_mismatched_sizes=True)
    check_tensors(result.missing_keys, result.unexpected_keys, [], adapter, ADAPTER_HINT)
    return adapted.eval()


def simulate_loading(config: Any, shapes: Mapping[str, Sequence[int]]) -> tuple[Any, dict[str, Any]]:
    """Load tensors of these shapes as `from_pretrained` would, on the meta device: no weight is read or held.

    What transformers renames or joins on the way (names without the model's prefix, the experts of a mixture) is
    found here as there. Returns the model and transformers' report of missing, unexpected and mismatched keys.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with _no_progress_bar():  # nothing is loaded that anybody would wait for
        loaded: tuple[Any, dict[str, Any]] = model_class.from_pretrained(
            None,
            config=copy.deepcopy(config),
            state_dict={name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()},
            device_map="meta",
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return loaded


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_loading_report(report: Mapping[str, Any], at: str | Path) -> None:
    """Raise `UserError` unless transformers reports that it loaded each tensor, and no other."""
    check_tensors(report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"], at)


def check_tensors(
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]],
    at: str | Path,
    hint: str | None = None,
) -> None:
    """Raise `UserError` with numbers, first names and the likely cause when anything is missing or foreign.

    mismatched: (name, shape in the file, shape in the model). hint: what to do, instead of the likely cause.
    """
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing ({min(missing)} first)")
    if unexpected:
        faults.append(f"{len(unexpected)} foreign ({min(unexpected)} first)")
    if mismatched:
        name, found, wanted = min(mismatched)
        faults.append(f"{len(mismatched)} of another shape ({name} first: {list(found)}, in the model {list(wanted)})")
    if faults:
        hint = hint or guess_cause(missing, unexpected, [found for _, found, _ in mismatched])
        fail(f"its tensors do not fit the model: {', '.join(faults)}", hint, at=at)


def guess_cause(missing: Collection[str], unexpected: Collection[str], shapes: Collection[Sequence[int]]) -> str:
    """Say where tensors that fit badly usually come from, and what to do. shapes: those of mismatched tensors."""
    for pattern, cause in (*_WRAPPERS, *_OTHER_KINDS):
        if any(re.search(pattern, name) for name in unexpected):
            return cause
    if any(0 in shape for shape in shapes):
        return EMPTY
    if shapes:
        return "config.json and weights are of two models, as after resizing the vocabulary: save both together"
    if missing and unexpected:
        return "it was saved as a model of another kind, or renamed: save it with save_pretrained of its own class"
    if unexpected:
        return "more was saved than config.json describes, such as layers or a value head: save both together"
    if all(name.startswith("lm_head.") for name in missing):
        return "if its head is the embedding matrix, config.json must say tie_word_embeddings: true; else save it whole"
    return "a part of it was lost: fetch or save the whole model"


def find_wrapper_cause(name: str) -> str | None:
    """Say which wrapper of a model is in a tensor's name, and what to do; None where none is."""
    return next((cause for pattern, cause in _WRAPPERS if re.search(pattern, name)), None)


def round_to_4_bits(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """Return the values that a layer of a 4-bit base computes with: `weight` in float32, through bitsandbytes'
    codes.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(
        weight.float().contiguous(),
        quant_type=quantization["quant_type"],
        compress_statistics=quantization["double_quant"],
    )
    return dequantize_4bit(codes, state)


def list_linear_weights(model: Any) -> set[str]:
    """Return names of the weights that a 4-bit base rounds: those of all linear layers but the vocabulary head."""
    head = model.get_output_embeddings()
    return {
        f"{name}.weight"
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and part is not head
    }


def build_bitsandbytes_config(quantization: Quantization, dtype: torch.dtype) -> Any:
    """Return the same for transformers, which puts bitsandbytes' own layers into the model."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization["quant_type"],
        bnb_4bit_use_double_quant=quantization["double_quant"],
        bnb_4bit_compute_dtype=dtype,
    )
