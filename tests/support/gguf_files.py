"""GGUF files for tests, written as llama.cpp's converter does: a whole tiny model, or a vocabulary alone."""

import json
from pathlib import Path
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
END, USER = "<｜end▁of▁text｜>", "<｜User｜>"  # control tokens are not all ASCII


def byte_level(pre: str | None, merges: list[str], words: list[str] | None = None, **keys: Any) -> dict[str, Any]:
    """Keys of a byte-level BPE tokenizer with control tokens and two user-defined ones.

    words: tokens that no merge reaches.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    special = dict.fromkeys([END, "<|im_start|>", USER], CONTROL) | dict.fromkeys(["    ", "<tool>"], USER_DEFINED)
    joined = [merge.replace(" ", "") for merge in merges]
    tokens = list(dict.fromkeys([*sorted(ByteLevel.alphabet()), *joined, *(words or [])]))
    tokens = [token for token in tokens if token not in special]
    end = len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        **({"tokenizer.ggml.pre": pre} if pre else {}),
        "tokenizer.ggml.tokens": [*tokens, *special],
        "tokenizer.ggml.token_type": [NORMAL] * len(tokens) + list(special.values()),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": end + 1,
        "tokenizer.ggml.eos_token_id": end,
        **keys,
    }


def sentencepiece(**keys: Any) -> dict[str, Any]:
    """Keys of a SentencePiece tokenizer: bytes, a few pieces with scores, control and user-defined tokens."""
    special = {"<unk>": UNKNOWN, **dict.fromkeys(["<s>", "</s>", "<|endoftext|>", "<|end|>"], CONTROL)}
    special["   "] = USER_DEFINED
    data = {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    pieces = ["▁t", "he", "▁the", "▁▁", "ll", "▁he", "llo", "▁hello", "▁w", "or", "▁wor", "ld", "▁world", "é"]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzABC0123456789.,!?'<>|\n"]
    kinds = special | data | dict.fromkeys(pieces, NORMAL)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(kinds),
        "tokenizer.ggml.token_type": list(kinds.values()),
        "tokenizer.ggml.scores": [0.0] * (len(special) + len(data)) + [-float(rank) for rank in range(len(pieces))],
        **keys,
    }


# What is compared with llama.cpp by ids, beside the splits.
VOCABULARIES = {
    "byte-level": byte_level("gpt-2", ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ Ġ", "1 2"]),
    "words without merges": byte_level("llama-bpe", ["h e", "l l"], ["hello", "Ġhello", "<tool"]),
    "words that merges make": byte_level("smollm", ["h e", "l l"], ["hello", "Ġhello", "<tool"]),
    "SentencePiece": sentencepiece(),
    "SentencePiece without the space": sentencepiece(**{"tokenizer.ggml.add_space_prefix": False}),
    "Phi-3": sentencepiece(**{"general.name": "Phi-3 mini"}),
}


def write_vocabulary(path: Path, keys: dict[str, Any]) -> Path:
    """A GGUF file without tensors."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
        add[type(value)](key, value)
    return close(writer, path)


def write_gguf(
    model: Path, path: Path, *, without: str = "", more: str = "", pre: str = "smollm", kind: str = "Q8_0"
) -> Path:
    """The model of a folder as a GGUF file. kind: of its matrices, by its name in GGUF."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((model / "config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    vocabulary = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((model / "chat_template.jinja").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(model / "model.safetensors").items():
        if ".q_proj." in name or ".k_proj." in name:  # llama.cpp keeps the two halves of a rotation side by side
            count = heads if ".q_proj." in name else kv_heads
            tensor = tensor.reshape(count, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        if target == without:
            continue
        if tensor.ndim == 1:
            writer.add_tensor(target, tensor.astype(np.float32))
        else:
            stored = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(target, gguf.quantize(tensor.astype(np.float32), stored), raw_dtype=stored)
    if more:
        writer.add_tensor(more, np.ones(8, dtype=np.float32))
    return close(writer, path)


def close(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
