"""Foreign model folders and GGUF files: read in a child with limits before this process opens them.

A config.json can ask for a billion layers, and each class of tokenizers runs the program that its files are. The child
does with small files and headers what is done here afterwards; the weights themselves are only numbers.
"""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 (see below)
import torch
import transformers.masking_utils
import transformers.modeling_layers
import transformers.modeling_utils  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lib.core.cli import UserError
from lib.core.limits import FaultError, Limits, run_limited
from lib.data.tokenizer_trial import HARD_TEXTS
from lib.models.import_checkpoint import ModelSource, load_causal_config, read_matched_headers, read_tokenizer
from lib.models.import_gguf import build_tokenizer, read_gguf
from lib.models.safetensors_streaming import build_empty_model

# Each child would import again what the server has not: so what all models need stands above, though unused.

# The largest vocabularies, of 262,144 tokens, take a minute and 1 GB out of a GGUF file, and seconds otherwise.
LIMITS = Limits(seconds=900, megabytes=4096)


def try_configuration(source: ModelSource) -> None:
    """Have a child read the configuration alone. Raises as `try_model`."""
    _try(_read_configuration, source)


def try_tokenizer(source: ModelSource) -> None:
    """Have a child read configuration and tokenizer of a model folder, without its weights. Raises as `try_model`."""
    _try(_read_small_files, source)


def try_model(source: ModelSource) -> None:
    """Have a child read configuration, tokenizer and headers, and build the model without weights.

    Raises `UserError` when that fails, crashes, does not come to an end, or needs more memory than real models do.
    """
    _try(_read_gguf if source.gguf else _read_folder, source)


def _try(function: Callable[..., None], source: ModelSource) -> None:
    stamps = [
        [name, status.st_size, status.st_mtime_ns, status.st_ino]
        for name in source.files
        if (source.folder / name).is_file()
        for status in [(source.folder / name).stat()]
    ]
    run_limited(
        function,
        *(str(source.folder.absolute()), source.label, source.weights, source.gguf, stamps),
        limits=LIMITS,
        what="reading its configuration and tokenizer",
        hint="choose another model or revision",
        at=source.label,
    )


def _source(folder: str, label: str, weights: list[str], gguf: str | None, _stamps: list[Any]) -> ModelSource:
    return ModelSource(Path(folder), label, weights, gguf, {})


# What follows runs in the child alone. Its `UserError`s count: with the memory at hand here they might be no error.


def _read_configuration(*parts: Any) -> None:
    load_causal_config(_source(*parts))


def _read_folder(*parts: Any) -> None:
    source = _source(*parts)
    config = load_causal_config(source)
    read_matched_headers(source, config)
    build_empty_model(source.folder, config)
    _read_tokenizers(source)


def _read_small_files(*parts: Any) -> None:
    source = _source(*parts)
    load_causal_config(source)
    _read_tokenizers(source)


def _read_tokenizers(source: ModelSource) -> None:
    for tokenizer_class in (AutoTokenizer, PreTrainedTokenizerFast):
        with suppress(UserError):  # one of the two is enough
            _use(read_tokenizer(source, tokenizer_class))


def _read_gguf(*parts: Any) -> None:
    source = _source(*parts)
    metadata, tensors = read_gguf(source)
    config = load_causal_config(source)
    _use(build_tokenizer(source, metadata))
    with torch.device("meta"):
        described = AutoModelForCausalLM.from_config(config, dtype=torch.float32).num_parameters()
    stored = sum(elements for _, elements in tensors.values())
    if described > 2 * stored:  # what is missing would be made up, in memory
        raise FaultError(f"finds {described} parameters by its keys, and {stored} in its tensors")


def _use(tokenizer: Any) -> None:
    for text in HARD_TEXTS:
        tokenizer(text, add_special_tokens=False)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
