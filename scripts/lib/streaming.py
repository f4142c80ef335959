"""Weights read from safetensors files one at a time: a model of any size passes through little memory."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from lib.checkpoints import load_adapter, load_model


class Stored(NamedTuple):
    """A weight in a safetensors file: `elements` numbers, whose bytes begin at `start`."""

    file: Path
    start: int
    elements: int


def stored_weights(folder: Path) -> dict[str, Stored]:
    """Where each weight of a model lies, by name, from the headers of its files alone."""
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(length))
        header.pop("__metadata__", None)
        for name, facts in header.items():
            elements = int(torch.Size(facts["shape"]).numel())
            weights[name] = Stored(file, 8 + length + facts["data_offsets"][0], elements)
    return weights


def read_weight(stored: Stored, name: str) -> torch.Tensor:
    """The weight, in the dtype it is stored in.

    The file is opened anew for each: the pages of an open one stay in memory.
    """
    with safe_open(stored.file, framework="pt") as file:
        return file.get_tensor(name)


def streamed_model(folder: Path, adapter: Path | None = None) -> Any:
    """The model, perhaps with an adapter, on the CPU and holding no weight: each layer reads its own when it runs.

    Memory holds one weight at a time, so a pass costs the time to read all files. Models whose modules
    have other names than their files (transformers fuses the experts of a mixture) are loaded whole.
    """
    from accelerate import init_empty_weights
    from accelerate.hooks import attach_align_device_hook
    from accelerate.utils import OffloadedWeightsLoader
    from peft import PeftConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    stored = stored_weights(folder)
    tied = {name: source for name, source in model.all_tied_weights_keys.items() if name not in stored}
    if not stored.keys() >= {tied.get(name, name) for name, _ in model.named_parameters()}:
        whole = load_model(folder).cpu()
        return load_adapter(whole, adapter) if adapter else whole
    if adapter:
        model = get_peft_model(model, PeftConfig.from_pretrained(str(adapter)))
        stored |= stored_weights(adapter)
    index = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        source = name.replace(".default.", ".")  # peft's name for a first adapter, in modules and not in files
        if source not in stored:
            source = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            source = tied.get(source, source)
        index[name] = {"safetensors_file": str(stored[source].file), "weight_name": source, "dtype": "float32"}
    attach_align_device_hook(model, "cpu", offload=True, weights_map=OffloadedWeightsLoader(index=index))
    return model.eval()
