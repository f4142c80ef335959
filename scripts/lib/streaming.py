"""Weights read from safetensors files one at a time: a model of any size passes through little memory."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from lib.checkpoints import Quantization, linear_weights, load_adapter, load_model, rounded_to_4_bits


class Stored(NamedTuple):
    """A weight in a safetensors file, whose bytes begin at `start`."""

    file: Path
    start: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def stored_weights(folder: Path) -> dict[str, Stored]:
    """Where each weight of a model lies, by name, from the headers of its files alone."""
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(length))
        header.pop("__metadata__", None)
        for name, facts in header.items():
            weights[name] = Stored(file, 8 + length + facts["data_offsets"][0], tuple(facts["shape"]))
    return weights


def read_weight(stored: Stored, name: str) -> torch.Tensor:
    """The weight, in the dtype it is stored in.

    The file is opened anew for each: the pages of an open one stay in memory.
    """
    with safe_open(stored.file, framework="pt") as file:
        return file.get_tensor(name)


class _Rounded(Mapping[str, torch.Tensor]):
    """Weights by name, those of `linear` as a 4-bit base has them."""

    def __init__(self, weights: Mapping[str, torch.Tensor], linear: set[str], quantization: Quantization) -> None:
        self._weights, self._linear, self._quantization = weights, linear, quantization

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self._weights[name]
        return rounded_to_4_bits(weight, self._quantization) if name in self._linear else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def empty_model(folder: Path) -> Any:
    """The model of a folder without its weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def streamed_model(folder: Path, adapter: Path | None = None, quantization: Quantization | None = None) -> Any:
    """The model, perhaps with an adapter, on the CPU and holding no weight: each layer reads its own when it runs.

    quantization: the linear layers are those of a 4-bit base, computed in float32. Memory holds one weight at a
    time, so a pass costs the time to read all files. Models whose modules have other names than their files
    (transformers fuses the experts of a mixture) are loaded whole.
    """
    from accelerate.hooks import attach_align_device_hook
    from accelerate.utils import OffloadedWeightsLoader
    from peft import PeftConfig, get_peft_model

    model: Any = empty_model(folder)
    linear = linear_weights(model)
    stored = stored_weights(folder)
    tied = {name: source for name, source in model.all_tied_weights_keys.items() if name not in stored}
    if not stored.keys() >= {tied.get(name, name) for name, _ in model.named_parameters()}:
        whole = load_model(folder, quantization=quantization).cpu()
        return load_adapter(whole, adapter) if adapter else whole
    if adapter:
        model = get_peft_model(model, PeftConfig.from_pretrained(str(adapter)))
        stored |= stored_weights(adapter)
    index, rounded = {}, set()
    for name, _ in model.named_parameters(remove_duplicate=False):
        # peft's name for a first adapter, in modules and not in files
        source = name.replace(".default.", ".").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
        if source not in stored:
            source = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            if source in linear:
                rounded.add(name)
            source = tied.get(source, source)
        index[name] = {"safetensors_file": str(stored[source].file), "weight_name": source, "dtype": "float32"}
    weights: Any = OffloadedWeightsLoader(index=index)
    if quantization:
        weights = _Rounded(weights, rounded, quantization)
    # A LoRA layer of peft reads the weights of its parts itself, so they must be there when it runs.
    attach_align_device_hook(model, "cpu", offload=True, weights_map=weights, preload_module_classes=["Linear"])
    return model.eval()
