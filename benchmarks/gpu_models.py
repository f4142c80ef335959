"""The models of benchmarks/gpu.py with the shapes of published ones, and what is measured on them."""

import gc
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_checks import NOT_RUN, Result
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Phi3Config

from lib.hardware.device import measure_matmul_peak

LLAMA, PHI3 = "Llama-3.2-1B", "Phi-3-mini"


@dataclass(frozen=True)
class Plan:
    """Settings of the measurements on this machine. device: `cuda`, or `cpu` with small shapes.

    lengths: tokens of the longest row; batch_tokens: of a step, by model, if no row were shorter; seconds: of each
    measurement after the warm-up; peak: FLOP/s of the best bfloat16 matmul.
    """

    device: str
    lengths: tuple[int, ...]
    batch_tokens: dict[str, int]
    seconds: float
    warm_up: int
    peak: float
    deadline: float

    def title(self, name: str) -> str:
        """Return the name of a model's shape, and whether it is a small one."""
        return name if self.device == "cuda" else f"{name}, small"

    def is_over(self) -> bool:
        """Return whether too little time is left for another measurement."""
        return time.monotonic() + 3 * self.seconds > self.deadline


def make_plan(device: str, deadline: float) -> Plan:
    """Choose shapes and times for a card or, all of them small, for a CPU, and measure the matmul peak."""
    if device == "cpu":
        batch_tokens = {LLAMA: 1024, PHI3: 1024}
        return Plan(device, (64, 128, 256), batch_tokens, 0.5, 1, measure_matmul_peak(torch.bfloat16), deadline)
    peak = measure_matmul_peak(torch.bfloat16)
    return Plan(device, (512, 2048, 4096), {LLAMA: 16384, PHI3: 8192}, 4.0, 3, peak, deadline)


def build_config(name: str, device: str) -> Any:
    """Return the configuration of a model's shape, on a CPU of a small one of the same family."""
    tokens: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_position_embeddings": 4096}
    if device == "cpu":
        size: dict[str, Any] = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        size |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    elif name == LLAMA:
        size = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        size |= {"num_attention_heads": 32, "num_key_value_heads": 8}
    else:
        size = {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32}
        size |= {"num_attention_heads": 32, "num_key_value_heads": 32}
    if name == LLAMA:
        return LlamaConfig(**size, **tokens, tie_word_embeddings=True)
    # As the 4k model has it: the longest rows are twice as long.
    window = 127 if device == "cpu" else 2047
    return Phi3Config(**size, **tokens, sliding_window=window, tie_word_embeddings=False)


def build_model(name: str, device: str) -> Any:
    """Return a model with random bfloat16 weights, drawn on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            build_config(name, device), dtype=torch.bfloat16, attn_implementation="sdpa"
        )


def write_model(name: str, device: str, tokenizer: Path, folder: Path) -> Iterator[Result]:
    """Write such a model with the tokenizer of another one, whose ids are all in its vocabulary.

    Yields a result only when the disk has no room for it and a merged copy.
    """
    model = build_model(name, device)
    needed = 2.2 * model.num_parameters() * model.dtype.itemsize
    if shutil.disk_usage(tokenizer).free < needed:
        yield Result(f"{name}: write", NOT_RUN, f"it takes {needed / 1e9:.0f} GB for temporary files; set TMPDIR")
        return
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    del model
    free_memory()


def is_written(folder: Path) -> bool:
    """Return whether `write_model` has written this folder whole."""
    return (folder / "tokenizer.json").is_file()


def free_memory() -> None:
    """Give back the memory of models that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize() -> None:
    """Wait until the card has done what it was told; otherwise a clock measures the telling."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
