"""GGUF files as safetensors: dequantized to float32, with the tokenizer and config that they hold."""

from collections import Counter
from pathlib import Path
from typing import Any

from lib.core.cli import extract_first_line, fail, report_progress
from lib.models.gguf_head import Head, check_layers, read_head
from lib.models.gguf_tokenizer import load_gguf_tokenizer
from lib.models.import_checkpoint import (
    FLOATS,
    ModelSource,
    check_parameters,
    load_causal_config,
    read_tokenizer,
    write_tokenizer,
)


def import_gguf(source: ModelSource, out: Path, parameters: int) -> dict[str, Any]:
    """Dequantize a GGUF file to float32 safetensors. Returns facts for the manifest."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    from lib.models.loading import check_loading_report
    from lib.models.model_trial import try_model
    from lib.models.safetensors_streaming import check_finite, locate_weights

    assert source.gguf is not None
    metadata, tensors = read_gguf(source)
    try_model(source)
    sizes: Counter[str] = Counter()
    for kind, elements in tensors.values():
        sizes[kind] += elements
    check_parameters(sizes.total(), parameters, source.label)
    stored = sizes.most_common(1)[0][0]

    config = load_causal_config(source)
    write_tokenizer(source, out, config, build_tokenizer(source, metadata))
    report_progress(f"dequantizing {source.gguf} ({stored}) to float32")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=config,
            gguf_file=source.gguf,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to report them with the others
        )
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError) as error:  # such as heads that divide no weight
        what = f"the tensors of {source.gguf} do not fit its keys: {extract_first_line(error)}"
        fail(what, "fetch it again, or choose the safetensors of this model", at=source.label)
    model, report = loaded
    check_loading_report(report, source.label)
    if (used := model.num_parameters()) != sizes.total():  # what it has no place for, transformers passes over
        known = get_gguf_hf_weights_map(model, TensorProcessor(config={}))
        foreign = ", ".join(sorted(tensors.keys() - known.keys())[:3])
        fail(
            f"transformers reads {used} of the {sizes.total()} parameters of {source.gguf}; it leaves out {foreign}",
            "choose the safetensors of this model",
            at=source.label,
        )
    model.save_pretrained(out, max_shard_size="4GB")
    check_finite(locate_weights(out), source.label)
    return {
        "source_format": "gguf",
        "weights_were_quantized": None if stored in FLOATS else stored,
        "parameters": model.num_parameters(),
        "dtype": "float32",
    }


def import_gguf_tokenizer(source: ModelSource, out: Path) -> None:
    """Write configuration and tokenizer of a GGUF file alone, with the bytes that `import_gguf` writes."""
    import torch
    from transformers import AutoModelForCausalLM

    from lib.models.model_trial import try_model

    metadata, _ = read_gguf(source)
    try_model(source)
    config = load_causal_config(source)
    write_tokenizer(source, out, config, build_tokenizer(source, metadata))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config.architectures = [type(model).__name__]  # as save_pretrained does
    model.config.save_pretrained(out)


def read_gguf(source: ModelSource) -> Head:
    """Read the head of a GGUF file.

    Raises `UserError` when it is cut, or holds no tokenizer or no layers.
    """
    assert source.gguf is not None
    path = source.folder / source.gguf
    metadata, tensors = read_head(path, source.label)
    if "tokenizer.ggml.tokens" not in metadata:
        fail(f"{path.name} holds no tokenizer", "choose a model that ships its tokenizer", at=source.label)
    check_layers(metadata, tensors, path, source.label)
    return Head(metadata, tensors)


def build_tokenizer(source: ModelSource, metadata: dict[str, Any]) -> Any:
    """Return the tokenizer of a GGUF file, from the values of its keys, as transformers' `PreTrainedTokenizerFast`."""
    from transformers import AutoTokenizer

    return load_gguf_tokenizer(metadata, source.label) or read_tokenizer(source, AutoTokenizer)
