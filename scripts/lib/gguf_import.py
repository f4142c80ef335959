"""GGUF files as safetensors: dequantised to float32, with the tokenizer and config that they hold."""

from collections import Counter
from pathlib import Path
from typing import Any

from lib.cli import fail, first_line, progress
from lib.gguf_tokenizer import load_gguf_tokenizer
from lib.model_files import FLOATS, Source, causal_config, check_parameters, import_tokenizer


def import_gguf(source: Source, out: Path, parameters: int) -> dict[str, Any]:
    """Dequantise a GGUF file to float32 safetensors. Returns facts for the manifest."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, GgufConfig

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
    del reader  # it maps the whole file

    config = causal_config(source)
    import_tokenizer(source, out, config, load_gguf_tokenizer(metadata, source.label))
    progress(f"dequantising {source.gguf} ({stored}) to float32")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.folder,
        config=config,
        gguf_file=source.gguf,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):  # transformers makes random ones instead
        fail(f"{source.gguf} lacks {len(missing)} tensors, such as {missing[0]}", "fetch it again", at=source.label)
    model.save_pretrained(out, max_shard_size="4GB")
    return {
        "source_format": "gguf",
        "weights_were_quantized": None if stored in FLOATS else stored,
        "parameters": model.num_parameters(),
        "dtype": "float32",
    }
