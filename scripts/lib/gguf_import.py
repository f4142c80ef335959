"""GGUF files as safetensors: dequantised to float32, with the tokenizer and config that they hold."""

from collections import Counter
from pathlib import Path
from typing import Any

from lib.cli import fail, first_line, progress
from lib.gguf_tokenizer import load_gguf_tokenizer
from lib.model_files import FLOATS, Source, causal_config, check_parameters, read_tokenizer, write_tokenizer


def import_gguf(source: Source, out: Path, parameters: int) -> dict[str, Any]:
    """Dequantise a GGUF file to float32 safetensors. Returns facts for the manifest."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    from lib.checkpoints import check_loading_report
    from lib.streaming import check_finite, stored_weights

    assert source.gguf is not None
    try:
        reader = GGUFReader(source.folder / source.gguf)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError) as error:
        fail(f"{source.gguf} is not a whole GGUF file: {first_line(error)}", "fetch it again", at=source.label)
    if "tokenizer.ggml.tokens" not in metadata:
        fail(f"{source.gguf} holds no tokenizer", "choose a model that ships its tokenizer", at=source.label)
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    check_parameters(sizes.total(), parameters, source.label)
    stored = sizes.most_common(1)[0][0]
    names = [tensor.name for tensor in reader.tensors]
    del reader  # it maps the whole file

    config = causal_config(source)
    tokenizer = load_gguf_tokenizer(metadata, source.label) or read_tokenizer(source, AutoTokenizer)
    write_tokenizer(source, out, config, tokenizer)
    progress(f"dequantising {source.gguf} ({stored}) to float32")
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
    model, report = loaded
    check_loading_report(report, source.label)
    if (used := model.num_parameters()) != sizes.total():  # what it has no place for, transformers passes over
        known = get_gguf_hf_weights_map(model, TensorProcessor(config={}))
        foreign = ", ".join(sorted(set(names) - known.keys())[:3])
        fail(
            f"transformers reads {used} of the {sizes.total()} parameters of {source.gguf}; it leaves out {foreign}",
            "choose the safetensors of this model",
            at=source.label,
        )
    model.save_pretrained(out, max_shard_size="4GB")
    check_finite(stored_weights(out), source.label)
    return {
        "source_format": "gguf",
        "weights_were_quantized": None if stored in FLOATS else stored,
        "parameters": model.num_parameters(),
        "dtype": "float32",
    }
