"""Weights read from safetensors files one at a time: a model of any size passes through little memory."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from lib.core.cli import extract_first_line, fail
from lib.core.files import SAFETENSORS_INDEX
from lib.core.forms import TEXT, allow_object_of, allow_open_object, read_form
from lib.core.paths import check_bare_name
from lib.models.loading import (
    ADAPTER_HINT,
    Quantization,
    check_loading_report,
    check_tensors,
    choose_attention,
    list_linear_weights,
    load_adapter,
    load_model,
    round_to_4_bits,
    simulate_loading,
)

_LONGEST_HEADER = 100_000_000  # bytes, of the safetensors library
Replacements = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
"""What a model gets instead of the weights in its files, by a parameter's name: made of the weight that is there."""


class Stored(NamedTuple):
    """A weight in a safetensors file, whose bytes begin at `start`; dtype: as its header writes it."""

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def locate_weights(folder: Path) -> dict[str, Stored]:
    """Return where each weight of a model lies, by name, from the headers of its files alone."""
    return {name: weight for file in sorted(folder.glob("*.safetensors")) for name, weight in _weights_of(file).items()}


def read_headers(folder: Path, files: Sequence[str], label: str | Path) -> dict[str, Stored]:
    """Find where each weight of a model lies that others saved, by name.

    files: the safetensors files of the folder that may belong to it; an index tells which do. Raises `UserError` when
    a file is cut, the index names what is not there, or a weight is twice there.
    """
    index = {} if files == ["model.safetensors"] else read_index(folder, label)  # every library prefers the one file
    weights: dict[str, Stored] = {}
    for name in sorted(set(index.values())) or files:
        if name not in files:  # it is not in the folder, or the index leads out of it
            fail(f"{name} is missing, which {SAFETENSORS_INDEX} names", "fetch the whole model", at=label)
        for key, weight in read_header(folder / name, label).items():
            if key in weights:
                fail(f"{key} is in {weights[key].file.name} and in {name}", "leave one model in the folder", at=label)
            weights[key] = weight
    if lost := sorted(set(index) - set(weights)):
        fail(
            f"{len(lost)} tensors of {SAFETENSORS_INDEX} are in no file, such as {lost[0]}",
            "fetch the whole model",
            at=label,
        )
    return weights


def read_index(folder: Path, label: str | Path) -> dict[str, str]:
    """Read which file holds which tensor; nothing where the folder has no index.

    Raises `UserError` unless each is a safetensors file beside the index.
    """
    file = folder / SAFETENSORS_INDEX
    if not file.is_file():
        return {}
    form = allow_open_object({"weight_map": allow_object_of(TEXT)})
    index: dict[str, str] = read_form(file, form, "fetch the whole model")["weight_map"]
    for name in set(index.values()):
        if not check_bare_name(name, at=file).endswith(".safetensors"):
            fail(f"{name}, which {SAFETENSORS_INDEX} names, is not a safetensors file", "do not use it", at=label)
    return index


def read_header(file: Path, label: str | Path) -> dict[str, Stored]:
    """Find the weights of one file that others saved. Raises `UserError` when it is cut or no safetensors file."""
    try:
        with safe_open(file, framework="numpy"):
            return _weights_of(file)
    except SafetensorError as error:
        fail(f"{file.name} is not a whole safetensors file: {extract_first_line(error)}", "fetch it again", at=label)


def _weights_of(file: Path) -> dict[str, Stored]:
    with open(file, "rb") as content:
        header = _parse_header(content)
        data = content.tell()
    header.pop("__metadata__", None)
    try:
        return {
            name: Stored(file, data + facts["data_offsets"][0], tuple(facts["shape"]), facts["dtype"])
            for name, facts in header.items()
        }
    except (KeyError, IndexError, TypeError) as error:
        fail(f"not a safetensors file: its header lacks {extract_first_line(error)}", "make or fetch it again", at=file)


def copy_tensors(source: Path, target: Path, names: Mapping[str, str]) -> None:
    """Copy some tensors of a safetensors file under other names; their bytes stay as they are.

    names: the new name of each that is copied, by its name in the file.
    """
    with open(source, "rb") as old, open(target, "wb") as new:
        header = _parse_header(old)
        data = old.tell()
        kept = sorted((name for name in header if name in names), key=lambda name: header[name]["data_offsets"])
        written, end = {}, 0
        for name in kept:
            start, stop = header[name]["data_offsets"]
            written[names[name]] = {**header[name], "data_offsets": [end, end + stop - start]}
            end += stop - start
        text = json.dumps({"__metadata__": {"format": "pt"}, **written}, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)  # the format asks that data begin at a multiple of 8
        new.write(len(text).to_bytes(8, "little") + text)
        for name in kept:
            start, stop = header[name]["data_offsets"]
            old.seek(data + start)
            _copy_bytes(old, new, stop - start)


def _copy_bytes(old: BinaryIO, new: BinaryIO, count: int) -> None:
    while count:
        part = old.read(min(count, 1 << 24))
        if not part:
            raise EOFError("the file ends within a tensor")
        new.write(part)
        count -= len(part)


def _parse_header(content: BinaryIO) -> dict[str, Any]:
    """Read the header of a safetensors file; what follows are the data.

    Raises `UserError` for one that is longer than the format allows, or no JSON.
    """
    length = int.from_bytes(content.read(8), "little")
    try:
        if length > _LONGEST_HEADER:
            raise ValueError(f"its header says that it is {length} bytes long")
        header: dict[str, Any] = json.loads(content.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
    except (ValueError, RecursionError) as error:
        fail(f"not a safetensors file: {extract_first_line(error)}", "make or fetch it again", at=content.name)
    return header


def drop_tied_copy(folder: Path, head: str, body: str, label: str | Path) -> None:
    """Remove the tensor `head` from its file: it equals `body`, and tied weights are stored once.

    Raises `UserError` when the two differ: transformers then does not tie them, whatever the config says.
    """
    stored = locate_weights(folder)
    path = stored[head].file
    content = load_file(path)
    if not torch.equal(content.pop(head), read_weight(stored[body], body)):
        fail(f"{head} and {body} are tied in config.json but differ", "set tie_word_embeddings: false there", at=label)
    partial = path.with_suffix(".partial")  # not in place: it may be a hard link into the hub's cache
    save_file(content, partial, metadata={"format": "pt"})
    os.replace(partial, path)


def check_finite(weights: Mapping[str, Stored], label: str | Path) -> None:
    """Raise `UserError` when a weight holds a number that is not finite; memory holds one weight at a time."""
    for name, stored in weights.items():
        weight = read_weight(stored, name)
        if weight.is_floating_point() and not torch.stack(weight.aminmax()).isfinite().all():
            fail(f"{name} holds numbers that are not finite", "choose another revision, or train it again", at=label)


def read_weight(stored: Stored, name: str) -> torch.Tensor:
    """Return the weight, in the dtype it is stored in.

    The file is opened again for each: the pages of an open one stay in memory.
    """
    with safe_open(stored.file, framework="pt") as file:
        return file.get_tensor(name)


class _Replaced(Mapping[str, torch.Tensor]):
    """Weights by name, those of `replace` as its functions make them."""

    def __init__(self, weights: Mapping[str, torch.Tensor], replace: Replacements) -> None:
        self._weights, self._replace = weights, replace

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self._weights[name]
        return self._replace[name](weight) if name in self._replace else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def build_empty_model(folder: Path, config: Any = None) -> Any:
    """Return the model of a folder without its weights. config: another configuration than that of the folder."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = config or AutoConfig.from_pretrained(folder, trust_remote_code=False)
    attention = choose_attention(config)
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)


def stream_model(
    folder: Path,
    adapter: Path | None = None,
    quantization: Quantization | None = None,
    replace: Replacements | None = None,
) -> Any:
    """Return the model, perhaps with an adapter, on the CPU and holding no weight: each layer reads its own when it
    runs.

    quantization: the linear layers are those of a 4-bit base, computed in float32. replace: other weights instead.
    Memory holds one weight at a time, so a pass costs the time to read all files. Models whose modules have other names
    than their files (transformers fuses the experts of a mixture) are loaded whole. Raises `UserError` unless the files
    hold exactly the weights of model and adapter.
    """
    from accelerate.hooks import attach_align_device_hook
    from accelerate.utils import OffloadedWeightsLoader

    model: Any = build_empty_model(folder)
    linear = list_linear_weights(model)
    stored = locate_weights(folder)
    check_loading_report(simulate_loading(model.config, {name: one.shape for name, one in stored.items()})[1], folder)
    tied = {name: source for name, source in model.all_tied_weights_keys.items() if name not in stored}
    if not stored.keys() >= {tied.get(name, name) for name, _ in model.named_parameters()}:
        return _load_whole(folder, adapter, quantization, replace or {})
    if adapter:
        model = add_adapter(model, adapter, adapter)
        parts = locate_weights(adapter)
        check_adapter(model, parts, adapter)
        stored |= parts
    replaced = dict(replace or {})
    index = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        source = _name_in_files(name)
        if quantization and source in linear:
            replaced[name] = partial(round_to_4_bits, quantization=quantization)
        source = tied.get(source, source)
        index[name] = {"safetensors_file": str(stored[source].file), "weight_name": source, "dtype": "float32"}
    weights: Any = _Replaced(OffloadedWeightsLoader(index=index), replaced)
    # A LoRA layer of peft reads the weights of its parts itself, so they must be there when it runs.
    attach_align_device_hook(model, "cpu", offload=True, weights_map=weights, preload_module_classes=["Linear"])
    return model.eval()


def _load_whole(folder: Path, adapter: Path | None, quantization: Quantization | None, replace: Replacements) -> Any:
    whole = load_model(folder, quantization=quantization).cpu()
    for name, weight in whole.named_parameters():
        if name in replace:
            weight.data = replace[name](weight.data)
    return load_adapter(whole, adapter) if adapter else whole


@torch.inference_mode()
def compute_last_logits(model: Any, prompts: Sequence[list[int]]) -> torch.Tensor:
    """Return logits behind each prompt, [prompts, vocabulary], in one pass.

    Prompts are filled up on the right, where a causal model does not look back from.
    """
    ends = [len(ids) - 1 for ids in prompts]
    ids = pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
    kept = sorted(set(ends))
    logits = model(ids, logits_to_keep=torch.tensor(kept)).logits
    return logits[torch.arange(len(ends)), torch.tensor([kept.index(end) for end in ends])].float()


def add_adapter(model: Any, adapter: Path, label: Path) -> Any:
    """Put the layers of an adapter on a model, without its weights. Raises `UserError` when they fit nowhere."""
    from peft import PeftConfig, get_peft_model

    try:
        return get_peft_model(model, PeftConfig.from_pretrained(str(adapter)))
    except Exception as error:  # its configuration is somebody's, and peft checks little of it
        hint = "name the base model that it was trained on, or save it again with peft"
        fail(f"peft cannot put it on the base model: {extract_first_line(error)}", hint, at=label)


def check_adapter(model: Any, parts: Mapping[str, Stored], label: Path) -> None:
    """Raise `UserError` unless an adapter's files hold each weight that a peft model has of it, and nothing else."""
    wanted = {_name_in_files(name): tuple(part.shape) for name, part in model.named_parameters() if ".lora_" in name}
    other = [
        (name, parts[name].shape, wanted[name]) for name in wanted.keys() & parts if parts[name].shape != wanted[name]
    ]
    check_tensors(wanted.keys() - parts.keys(), parts.keys() - wanted.keys(), other, label, ADAPTER_HINT)


def _name_in_files(parameter: str) -> str:
    """Name of a parameter of a peft model in the files of adapter or base; `default` is peft's first adapter."""
    if ".lora_" in parameter:
        return parameter.replace(".default.", ".").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
    return parameter.removeprefix("base_model.model.").replace(".base_layer.", ".")
