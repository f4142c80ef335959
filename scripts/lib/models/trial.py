"""The trial model: a small random model with the base model's architecture and tokenizer, and its test prompts.

The pre-flight trains, merges and builds it before any weight of the base model is fetched. Its vocabulary is cut, so it
is asked with ids and not with texts.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lib.core.cli import explain_errors, fail, tell_by_name
from lib.core.files import read_json, write_json
from lib.models.loading import choose_attention
from lib.models.small_config import shrink_config

# Of prompts, in tokens: within a sliding window, a little and far behind it.
LENGTHS = (8, 20, 40, 200)
HINT = (
    "take another base model: Qwen/Qwen3-0.6B, meta-llama/Llama-3.2-1B-Instruct and"
    " HuggingFaceTB/SmolLM2-360M-Instruct work, docs/models.md lists more"
)
COMPLETIONS = ((11,), (12, 13), (14, 15, 16))
_LOWEST_ID = 10  # below lie control tokens


@contextmanager
def explain_failures(name: str, what: str, trial: Path) -> Iterator[None]:
    """Turn whatever a library raises for a trial model into one line. name: the base model's; what: that failed."""
    with tell_by_name(trial, "the small model"), explain_errors(what, HINT, at=name):
        yield


def make_trial_model(tokenizer: Path, folder: Path) -> Any:
    """Write a trial model into `folder`, in float32, and return it. tokenizer: the base model's small files."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(tokenizer, trust_remote_code=False)
    if missing := {"num_attention_heads", "num_hidden_layers", "hidden_size"} - config.to_dict().keys():
        fail(f"{(config.architectures or ['?'])[0]} is of a kind that cannot be tried: no {min(missing)}", HINT)
    config = shrink_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=choose_attention(config)
        )
        draw_weights(model)
    for file in tokenizer.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copyfile(file, folder / file.name)
    ends = config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=config.pad_token_id)
    model.save_pretrained(folder)
    if ends is None:  # generation_config.json names it alone, with an id of the whole vocabulary
        write_json(folder / "generation_config.json", {"eos_token_id": config.vocab_size - 1})
    return model.eval()


def store_trial_model(merged: Path, folder: Path, tokenizer: Path) -> None:
    """Copy a merged trial model into `folder`, its weights in the number format of the base model's.

    What rounds once more on the way to ONNX shows only where weights are stored as the base model's are.
    """
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(tokenizer, trust_remote_code=False).dtype or torch.float32
    for file in merged.iterdir():
        if file.suffix == ".safetensors":
            content = {name: weight.to(dtype) for name, weight in load_file(file).items()}
            save_file(content, folder / file.name, metadata={"format": "pt"})
        elif file.is_file():
            shutil.copyfile(file, folder / file.name)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": str(dtype).removeprefix("torch.")})


def draw_weights(model: Any) -> None:
    """Draw all weights: matrices so that signals keep their size, and norms and biases unlike those that a graph may
    leave out.
    """
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() < 2:
                weight.add_(0.1 * torch.randn(weight.shape))
            else:
                weight.copy_(torch.randn(weight.shape) / weight.shape[-1] ** 0.5)


def draw_prompts(folder: Path, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Return prompts of a trial model, as ids; the first ones begin alike."""
    config = read_json(folder / "config.json")
    special = {id_ for name, value in config.items() if name.endswith("_token_id") for id_ in np.ravel(value or 0)}
    usable = [id_ for id_ in range(_LOWEST_ID, config["vocab_size"]) if id_ not in special]
    ids = np.random.default_rng(0).choice(usable, max(lengths)).tolist()
    return [ids[: length // 2] + ids[::-1][: length - length // 2] for length in lengths]


@torch.inference_mode()
def compute_logits(model: Any, ids: Sequence[int], count: int = 1) -> np.ndarray:
    """Return the logits behind the last `count` tokens of a text alone, [count, vocabulary]."""
    found: np.ndarray = model(torch.tensor([ids], device=model.device)).logits[0, -count:].float().cpu().numpy()
    return found


def score_alone(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Return the log probability of an answer behind a prompt, of one text without a cache."""
    logits = compute_logits(model, [*prompt, *answer], len(answer) + 1)[:-1].astype(np.float64)
    norm = np.log(np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)) + logits.max(axis=-1)
    return float((logits[np.arange(len(answer)), list(answer)] - norm).sum())
