"""Families of base models: what one repository of each on the Hugging Face Hub says of its model, without the weights.

Tests make a small random model of each family and run the workflow on it, with the parts that decide whether a tool
chain works: keys and values of config.json in the style of transformers 4 as the hub has them, special tokens, the way
its tokenizer cuts text, and its chat template. Vocabularies are trained on the spot; nothing is downloaded.

A new family is one entry of `FAMILIES`. The values are from memory, from defaults of transformers' classes and from
configurations quoted in public repositories; where one may be wrong, a comment says so.
"""

import copy
import functools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import chat_templates as templates

from support.tiny_models import TEXTS

VOCABULARY = 900  # of a tokenizer, without the tokens that the hub has at its end
_ROUNDED_TO = 64  # embeddings have a multiple of this many rows


@dataclass(frozen=True)
class Family:
    """A family of base models: what the hub's repository says of it, without its weights."""

    name: str
    model: str  # the hub's name of one model of it
    config: dict[str, Any]  # config.json
    tokenizer: str  # a key of `TOKENIZERS`
    tokenizer_class: str  # of tokenizer_config.json
    template: str | None  # its chat template; None: it has none
    tokens: dict[str, str]  # special tokens by role, as in tokenizer_config.json
    ids: dict[str, int]  # the hub's ids of these and of further added tokens, such as those its template writes
    generation: dict[str, Any] = field(default_factory=dict)  # generation_config.json; {} where the hub has none
    adds_bos: bool = False  # whether its tokenizer puts the first token before a text
    system: bool = True  # whether its template takes a system message
    surplus: tuple[str, ...] = ()  # tokens whose ids lie beyond the embedding
    shards: bool = False  # whether its weights are in several files
    prefix: str = ""  # of the text part's tensors in a multimodal model, in the place of `model.`
    # Lengths of some further tensors of a multimodal model, by name; {last} is its last layer of text.
    others: dict[str, int] = field(default_factory=dict)
    chats: bool = True  # whether its chat template can be trained; else a text template is
    options: dict[str, bool] = field(default_factory=dict)  # variables of the template that are set

    @property
    def controls(self) -> tuple[str, ...]:
        """Return the added tokens that have no role."""
        return tuple(token for token in self.ids if token not in self.tokens.values())


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer, as the parts of its tokenizer.json; without `bytes_as_tokens` it is a byte-level BPE."""

    pre_tokenizer: dict[str, Any] | None
    normalizer: dict[str, Any] | None = None
    decoder: dict[str, Any] = field(default_factory=lambda: dict(_BYTE_LEVEL))
    bytes_as_tokens: bool = False  # as SentencePiece has them (byte_fallback): <0x00> to <0xFF>
    letters: str = ""  # that it has beside those of the training texts
    ignore_merges: bool = False  # whether a whole word of the vocabulary needs no merges
    strips_right: bool = False  # whether control tokens swallow the white space behind them


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_BYTE_LEVEL_WORDS = {**_BYTE_LEVEL, "use_regex": True}  # cuts as GPT-2 does
_NFC = {"type": "NFC"}
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def _sequence(kind: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(parts)}


def _split(*patterns: str) -> dict[str, Any]:
    """Return a pre-tokenizer that cuts by patterns and then turns bytes into letters."""
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return _sequence("pretokenizers", *cuts, _BYTE_LEVEL)


def _decode_spaces(*, strip: bool) -> dict[str, Any]:
    """Return the decoder of SentencePiece's kinds. strip: take the space away that its normalizer put first."""
    parts: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _sequence("decoders", *parts)


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WHITE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_WHITE}"
_QWEN2 = _CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_WHITE}"
)
_O200K = (
    _TEKKEN.replace(f"{_SMALL}+|", f"{_SMALL}+{_ENDINGS}?|")
    .replace(f"{_SMALL}*|", f"{_SMALL}*{_ENDINGS}?|")
    .replace(r"|\p{N}|", r"|\p{N}{1,3}|")
)
# Of DeepSeek-V3, which Hunyuan's small models share: numbers, then Chinese and Japanese, then the rest.
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_WHITE}",
)
_LLAMA2 = Kind(
    None,
    _sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, _SPACES),
    _decode_spaces(strip=True),
    bytes_as_tokens=True,
)

TOKENIZERS: dict[str, Kind] = {
    "llama3": Kind(_split(_CL100K), ignore_merges=True),
    "cl100k": Kind(_split(_CL100K)),
    "qwen2": Kind(_split(_QWEN2), _NFC),
    "qwen35": Kind(_split(_QWEN35), _NFC),
    "gpt2": Kind(_BYTE_LEVEL_WORDS),
    "gpt2_nfc": Kind(_BYTE_LEVEL_WORDS, _NFC),
    "smollm": Kind(_sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, _BYTE_LEVEL_WORDS)),
    "o200k": Kind(_split(_O200K)),
    "tekken": Kind(_split(_TEKKEN), ignore_merges=True),
    "deepseek3": Kind(_split(*_DEEPSEEK3)),
    "llama2": _LLAMA2,
    "phi3": Kind(None, _LLAMA2.normalizer, _LLAMA2.decoder, bytes_as_tokens=True, strips_right=True),
    "metaspace_first": Kind(
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        None,
        _LLAMA2.decoder,
        bytes_as_tokens=True,
    ),
    "gemma": Kind(
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        _SPACES,
        _decode_spaces(strip=False),
        bytes_as_tokens=True,
        letters="\n\t",
    ),
}

# Beside those of `TEXTS`, which are too few words for so many merges.
_MORE_TEXTS = [
    "Every morning the baker opens his little shop before sunrise and sells warm rolls to the workers of the harbour.",
    "Scientists measured the temperature of the ocean at several depths during the whole expedition last summer.",
    "Please summarize the following article in three short sentences and mention the most important numbers.",
    "The committee rejected the proposal because nobody could explain where the additional money should come from.",
    "My grandmother used to tell us stories about wolves, foxes and a clever princess who outwitted both of them.",
    "Although the journey was exhausting, everybody enjoyed the view from the mountain and the quiet evening there.",
    "A customer complains that the delivery was late, the package damaged and the telephone support unfriendly.",
    "Our neighbours bought an old wooden boat, repaired it patiently and sailed around the island with their children.",
    "Knowledge, language, music and mathematics belong together; whoever understands one of them learns the others faster.",
    "Positive reviews praise the friendly service, negative reviews criticize the dirty kitchen and the terrible coffee.",
    "def main(arguments): return [value for value in arguments if value is not None] # a comment in the source code",
    "The weather tomorrow: cloudy with heavy rain in the north, sunny and unusually warm in the southern provinces.",
    "Überraschend schöne Straßen führen durch größere Dörfer; l'été dernier, nous avons mangé à côté du café.",
    "Doctors recommend drinking enough water, sleeping eight hours and walking through the forest every single day.",
    "What would happen if the machine stopped working while the engineers were travelling to another country?",
]
# Added to the vocabulary, but seen as text: they stay when special tokens are left out.
_NOT_SPECIAL = {"<think>", "</think>", "<｜User｜>", "<｜Assistant｜>", "[gMASK]", "<sop>"}


@functools.cache
def _train(kind: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return letters and merges of a kind, most frequent first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    chosen = TOKENIZERS[kind]
    if chosen.bytes_as_tokens:
        # Its merges see a whole text. Those trained here shall not cross words, as few of the real ones do.
        backend = Tokenizer(models.BPE())
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        words = pre_tokenizers.Split("▁", "merged_with_next")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
        )
        letters = sorted({chr(code) for code in range(33, 127)} | {"▁", *chosen.letters})
    else:
        backend = Tokenizer.from_str(_dump(_parts(chosen)))
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=letters, show_progress=False)
    backend.train_from_iterator([*TEXTS, *_MORE_TEXTS], trainer)
    model = json.loads(backend.to_str())["model"]
    merges = tuple((left, right) for left, right in model["merges"])
    made = {left + right for left, right in merges}
    return tuple(sorted(set(model["vocab"]) - made)), merges


def _parts(kind: Kind) -> dict[str, Any]:
    """Return a tokenizer.json with an empty vocabulary."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": kind.normalizer,
        "pre_tokenizer": kind.pre_tokenizer,
        "post_processor": None,
        "decoder": kind.decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": kind.bytes_as_tokens,
            "byte_fallback": kind.bytes_as_tokens,
            "ignore_merges": kind.ignore_merges,
            "vocab": {},
            "merges": [],
        },
    }


def build_tokenizer(family: Family) -> dict[str, Any]:
    """Return the tokenizer.json of a family.

    Tokens that the hub has before the vocabulary come before it here, those behind it behind it, in the same order.
    """
    kind = TOKENIZERS[family.tokenizer]
    letters, merges = _train(family.tokenizer)
    added = sorted(family.ids, key=family.ids.__getitem__)
    tokens = [token for token in added if family.ids[token] < VOCABULARY]
    if kind.bytes_as_tokens:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += letters
    merges = merges[: VOCABULARY - len(tokens)]
    tokens += [left + right for left, right in merges]
    tokens += [token for token in added if token not in tokens and token not in family.surplus]
    if family.surplus:  # as Gemma has them, so that the embedding ends where the vocabulary does
        tokens += [f"<unused{index}>" for index in range(-len(tokens) % _ROUNDED_TO)]
    tokens += family.surplus
    vocabulary = {token: index for index, token in enumerate(tokens)}

    parts = _parts(kind)
    unknown = family.tokens.get("unk_token")
    parts["model"] |= {
        "vocab": vocabulary,
        "merges": [list(pair) for pair in merges],
        "unk_token": unknown if kind.bytes_as_tokens else None,
    }
    parts["added_tokens"] = [_describe_added(token, vocabulary[token], kind) for token in tokens if token in family.ids]
    byte_level = {**_BYTE_LEVEL_WORDS, "trim_offsets": False}
    if family.adds_bos:
        parts["post_processor"] = _put_first(family.tokens["bos_token"], vocabulary)
    elif not kind.bytes_as_tokens:
        parts["post_processor"] = byte_level
    return parts


def _describe_added(token: str, index: int, kind: Kind) -> dict[str, Any]:
    return {
        "id": index,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": kind.strips_right and token not in ("<unk>", "<s>", "<|endoftext|>"),
        "normalized": False,
        "special": token not in _NOT_SPECIAL,
    }


def _put_first(token: str, vocabulary: dict[str, int]) -> dict[str, Any]:
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    single, pair = ({"Sequence": {"id": name, "type_id": number}} for name, number in (("A", 0), ("B", 1)))
    return {
        "type": "TemplateProcessing",
        "single": [first, single],
        "pair": [first, single, first, pair],
        "special_tokens": {token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]}},
    }


def write_description(family: Family, folder: Path) -> Path:
    """Write what a family's repository has beside its weights, and return the folder.

    Ids of tokens are those of the small tokenizer; every other value is the hub's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(family)
    vocabulary = tokenizer["model"]["vocab"]
    config = _replace_ids(family.config, family, vocabulary)
    (folder / "config.json").write_text(_dump(config), encoding="utf-8")
    _write_rest(family, folder, tokenizer)
    return folder


def write_tiny_model(family: Family, folder: Path, config: Any) -> Path:
    """Write a random model in bfloat16 with the family's tokenizer and template, and return the folder.

    config: the small configuration (PreTrainedConfig) of its text model; the size of the vocabulary and the ids of
    special tokens are set here. A multimodal model keeps its configuration around that of its text model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer(family)
    vocabulary = tokenizer["model"]["vocab"]
    whole = _replace_ids(family.config, family, vocabulary)
    config = copy.deepcopy(config)
    config.vocab_size = math.ceil((len(vocabulary) - len(family.surplus)) / _ROUNDED_TO) * _ROUNDED_TO
    if getattr(config, "vocab_size_per_layer_input", None):
        config.vocab_size_per_layer_input = config.vocab_size
    for name, value in whole.get("text_config", whole).items():
        if _is_token_id(name):
            setattr(config, name, value)

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for part in model.parameters():
            if part.ndim == 1:  # zeros and ones would hide that a bias or a norm is lost
                part += 0.1 * torch.randn_like(part)
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    folder.mkdir(parents=True, exist_ok=True)
    if family.prefix:
        _save_multimodal(family, model, whole, folder)
    else:
        size = sum(part.numel() * part.element_size() for part in model.parameters())
        model.save_pretrained(folder, max_shard_size=f"{size // 3000}KB" if family.shards else "5GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    _write_rest(family, folder, tokenizer)
    return folder


def _save_multimodal(family: Family, model: Any, config: dict[str, Any], folder: Path) -> None:
    """Save a text model as a part of a multimodal one, with some tensors of the other parts."""
    import torch
    from safetensors.torch import save_file

    tied = model.config.tie_word_embeddings
    tensors = {
        # The head lies beside the text model, under the same prefix or under none.
        re.sub(r"^model\.", family.prefix, name)
        if name.startswith("model.")
        else family.prefix.removesuffix("model.") + name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name.startswith("lm_head."))
    }
    last = model.config.num_hidden_layers - 1
    for name, length in family.others.items():
        tensors[name.format(last=last)] = torch.randn(length, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = config | {"text_config": json.loads(model.config.to_json_string())}
    (folder / "config.json").write_text(_dump(config), encoding="utf-8")


def _write_rest(family: Family, folder: Path, tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in tokenizer["added_tokens"]}
    settings = {
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        "tokenizer_class": family.tokenizer_class,
        **family.tokens,
    }
    if not family.tokenizer_class.startswith(("PreTrained", "Tokenizers")):
        settings["add_bos_token"] = family.adds_bos
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}
    if family.generation:
        files["generation_config.json"] = _replace_ids(family.generation, family, vocabulary)
    for name, content in files.items():
        (folder / name).write_text(_dump(content), encoding="utf-8")
    if family.template is not None:
        (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")


def _replace_ids(content: dict[str, Any], family: Family, vocabulary: dict[str, int]) -> dict[str, Any]:
    """Return a configuration with the tokenizer's ids in the place of the hub's."""
    places = {number: vocabulary[token] for token, number in family.ids.items()}

    def replace(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replace(key, inner) for key, inner in value.items()}
        if not _is_token_id(name) or value is None:
            return value
        return [places[one] for one in value] if isinstance(value, list) else places[value]

    return {name: replace(name, value) for name, value in content.items()}


def _is_token_id(name: str) -> bool:
    return name.endswith(("_token_id", "_token_index"))


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


_GEMMA_IDS = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
_GEMMA_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
_GEMMA3_IDS = _GEMMA_IDS | {
    "<start_of_turn>": 105,
    "<end_of_turn>": 106,
    "<start_of_image>": 255999,
    "<end_of_image>": 256000,
    "<image_soft_token>": 262144,
}
_LLAMA2_IDS = {"<unk>": 0, "<s>": 1, "</s>": 2}
_LLAMA2_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_PHI3_IDS = _LLAMA2_IDS | {
    "<|endoftext|>": 32000,
    "<|assistant|>": 32001,
    "<|system|>": 32006,
    "<|end|>": 32007,
    "<|user|>": 32010,
}
_PHI3_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<unk>",
}
_QWEN_IDS = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
_QWEN_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_PHI4_LONG = [
    *(1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649),
    *(2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533),
    *(5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651),
    *(14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03),
    *(32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77),
]
# Rounded to two places. The long factors are as published as far as remembered; the short ones only nearly.
_PHI35_LONG = [
    *(1.08, 1.11, 1.14, 1.34, 1.59, 1.6, 1.62, 2.62, 3.23, 3.23, 4.79, 7.4, 7.7, 9.09, 12.2, 17.67),
    *(24.46, 28.57, 30.42, 30.84, 32.59, 32.93, 42.32, 44.96, 50.34, 50.45, 57.55, 57.93, 58.21, 60.14, 62.61, 62.62),
    *(62.71, 63.14, 63.14, 63.77, 63.93, 63.96, 63.97, 64.03, 64.07, 64.08, 64.12, 64.41, 64.48, 64.51, 64.53, 64.84),
]
_PHI35_SHORT = [
    *(1.0, 1.02, 1.03, 1.03, 1.05, 1.05, 1.05, 1.05, 1.05, 1.07, 1.1, 1.11, 1.16, 1.16, 1.17, 1.29),
    *(1.34, 1.68, 1.79, 1.82, 1.85, 1.88, 1.91, 1.94, 1.99, 2.02, 2.02, 2.02, 2.02, 2.02, 2.02, 2.03),
    *(2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.08, 2.09, 2.19, 2.22, 2.59, 2.73, 2.75),
]
_GRANITE4 = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.015625,
    "bos_token_id": 100257,
    "embedding_multiplier": 12,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "init_method": "mup",
    "initializer_range": 0.1,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_proj_bias": False,
    "max_position_embeddings": 32768,
    "model_type": "granitemoehybrid",
    "normalization_function": "rmsnorm",
    "num_experts_per_tok": 0,
    "num_key_value_heads": 4,
    "num_local_experts": 0,
    "output_router_logits": False,
    "pad_token_id": 100256,
    "residual_multiplier": 0.246,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "router_aux_loss_coef": 0.01,
    "shared_intermediate_size": 2048,
    "intermediate_size": 2048,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.56.0",
    "use_cache": True,
    "vocab_size": 100352,
}
_GRANITE4_TOKENS = {
    "bos_token": "<|end_of_text|>",
    "eos_token": "<|end_of_text|>",
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
}
_GRANITE4_IDS = {
    "<|pad|>": 100256,
    "<|end_of_text|>": 100257,
    "<|start_of_role|>": 100264,
    "<|end_of_role|>": 100265,
    "<|unk|>": 100269,  # its id is uncertain
}

FAMILIES: tuple[Family, ...] = (
    Family(
        name="llama32",
        model="meta-llama/Llama-3.2-1B-Instruct",
        config={
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.45.0.dev0",
            "use_cache": True,
            "vocab_size": 128256,
        },
        tokenizer="llama3",
        tokenizer_class="PreTrainedTokenizerFast",
        template=templates.LLAMA3,
        tokens={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ids={
            "<|begin_of_text|>": 128000,
            "<|end_of_text|>": 128001,
            "<|start_header_id|>": 128006,
            "<|end_header_id|>": 128007,
            "<|eom_id|>": 128008,
            "<|eot_id|>": 128009,
        },
        generation={
            "bos_token_id": 128000,
            "do_sample": True,
            "eos_token_id": [128001, 128008, 128009],
            "temperature": 0.6,
            "top_p": 0.9,
            "transformers_version": "4.45.0.dev0",
        },
        adds_bos=True,
        shards=True,
    ),
    Family(
        name="smollm2",
        model="HuggingFaceTB/SmolLM2-360M-Instruct",
        config={
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 960,
            "initializer_range": 0.02,
            "intermediate_size": 2560,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 15,
            "num_hidden_layers": 32,
            "num_key_value_heads": 5,
            "pad_token_id": 2,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.42.3",
            "use_cache": True,
            "vocab_size": 49152,
        },
        tokenizer="smollm",
        tokenizer_class="GPT2Tokenizer",
        template=templates.SMOLLM2,
        tokens={
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
        ids={"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2},
        generation={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "transformers_version": "4.42.3"},
    ),
    Family(
        name="tinyllama",
        model="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        config={
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 5632,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 22,
            "num_key_value_heads": 4,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.35.0",
            "use_cache": True,
            "vocab_size": 32000,
        },
        tokenizer="llama2",
        tokenizer_class="LlamaTokenizer",
        template=templates.ZEPHYR,
        tokens=_LLAMA2_TOKENS | {"pad_token": "</s>"},
        ids=_LLAMA2_IDS,
        generation={
            "bos_token_id": 1,
            "eos_token_id": 2,
            "max_length": 2048,
            "pad_token_id": 0,
            "transformers_version": "4.35.0",
        },
        adds_bos=True,
    ),
    Family(
        name="qwen25",
        model="Qwen/Qwen2.5-0.5B-Instruct",
        config={
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "hidden_act": "silu",
            "hidden_size": 896,
            "initializer_range": 0.02,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 21,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.43.1",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        tokenizer="qwen2",
        tokenizer_class="Qwen2Tokenizer",
        template=templates.QWEN25,
        tokens=_QWEN_TOKENS,
        ids=_QWEN_IDS,
        generation={
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "repetition_penalty": 1.1,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
            "transformers_version": "4.37.0",
        },
        shards=True,
    ),
    Family(
        name="r1_qwen",
        model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        config={
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 151646,
            "eos_token_id": 151643,
            "hidden_act": "silu",
            "hidden_size": 1536,
            "initializer_range": 0.02,
            "intermediate_size": 8960,
            "max_position_embeddings": 131072,
            "max_window_layers": 21,
            "model_type": "qwen2",
            "num_attention_heads": 12,
            "num_hidden_layers": 28,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000,
            "sliding_window": 4096,  # of no layer
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.44.0",
            "use_cache": True,
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        tokenizer="qwen2",
        tokenizer_class="LlamaTokenizerFast",
        template=templates.R1,
        tokens={
            "bos_token": "<｜begin▁of▁sentence｜>",
            "eos_token": "<｜end▁of▁sentence｜>",
            "pad_token": "<｜end▁of▁sentence｜>",
        },
        ids={
            "<｜end▁of▁sentence｜>": 151643,
            "<｜User｜>": 151644,
            "<｜Assistant｜>": 151645,
            "<｜begin▁of▁sentence｜>": 151646,
            "<think>": 151648,
            "</think>": 151649,
        },
        generation={
            "bos_token_id": 151646,
            "do_sample": True,
            "eos_token_id": 151643,
            "temperature": 0.6,
            "top_p": 0.95,
            "transformers_version": "4.39.3",
        },
        adds_bos=True,
        chats=False,  # it asks with a thought that it takes out of the answered turn
    ),
    Family(
        name="qwen3",
        model="Qwen/Qwen3-0.6B",
        config={
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "initializer_range": 0.02,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "model_type": "qwen3",
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.51.0",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        tokenizer="qwen2",
        tokenizer_class="Qwen2Tokenizer",
        template=templates.QWEN3,
        tokens=_QWEN_TOKENS,
        ids=_QWEN_IDS | {"<think>": 151667, "</think>": 151668},
        generation={
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "transformers_version": "4.51.0",
        },
        options={"enable_thinking": False},
    ),
    Family(
        name="qwen3_moe",
        model="Qwen/Qwen3-30B-A3B",
        config={
            "architectures": ["Qwen3MoeForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "decoder_sparse_step": 1,
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 6144,
            "max_position_embeddings": 40960,
            "max_window_layers": 48,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "output_router_logits": False,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.001,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.51.0",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        tokenizer="qwen2",
        tokenizer_class="Qwen2Tokenizer",
        template=templates.QWEN3,
        tokens=_QWEN_TOKENS,
        ids=_QWEN_IDS | {"<think>": 151667, "</think>": 151668},
        generation={
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "transformers_version": "4.51.0",
        },
    ),
    Family(
        name="gemma1",
        model="google/gemma-2b-it",
        config={  # without tie_word_embeddings, which the class takes for true
            "architectures": ["GemmaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "head_dim": 256,
            "hidden_act": "gelu",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 16384,
            "max_position_embeddings": 8192,
            "model_type": "gemma",
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "num_key_value_heads": 1,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.38.0.dev0",
            "use_cache": True,
            "vocab_size": 256000,
        },
        tokenizer="gemma",
        tokenizer_class="GemmaTokenizer",
        template=templates.GEMMA,
        tokens=_GEMMA_TOKENS,
        ids=_GEMMA_IDS | {"<start_of_turn>": 106, "<end_of_turn>": 107},
        generation={"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "transformers_version": "4.38.0.dev0"},
        adds_bos=True,
        system=False,
    ),
    Family(
        name="gemma2",
        model="google/gemma-2-2b-it",
        config={
            "architectures": ["Gemma2ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": 50.0,
            "bos_token_id": 2,
            "cache_implementation": "hybrid",
            "eos_token_id": [1, 107],  # uncertain: 1 in an earlier version of the file
            "final_logit_softcapping": 30.0,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2304,
            "initializer_range": 0.02,
            "intermediate_size": 9216,
            "max_position_embeddings": 8192,
            "model_type": "gemma2",
            "num_attention_heads": 8,
            "num_hidden_layers": 26,
            "num_key_value_heads": 4,
            "pad_token_id": 0,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.42.4",
            "use_cache": True,
            "vocab_size": 256000,
        },
        tokenizer="gemma",
        tokenizer_class="GemmaTokenizer",
        template=templates.GEMMA,
        tokens=_GEMMA_TOKENS,
        ids=_GEMMA_IDS | {"<start_of_turn>": 106, "<end_of_turn>": 107},
        generation={
            "bos_token_id": 2,
            "cache_implementation": "hybrid",
            "eos_token_id": [1, 107],
            "pad_token_id": 0,
            "transformers_version": "4.42.4",
        },
        adds_bos=True,
        system=False,
    ),
    Family(
        name="gemma3",
        model="google/gemma-3-1b-it",
        config={
            "architectures": ["Gemma3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": None,
            "bos_token_id": 2,
            "cache_implementation": "hybrid",
            "eos_token_id": [1, 106],
            "final_logit_softcapping": None,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 1152,
            "initializer_range": 0.02,
            "intermediate_size": 6912,
            "max_position_embeddings": 32768,
            "model_type": "gemma3_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 26,
            "num_key_value_heads": 1,
            "pad_token_id": 0,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0.dev0",
            "use_cache": True,
            "vocab_size": 262144,
        },
        tokenizer="gemma",
        tokenizer_class="GemmaTokenizer",
        template=templates.GEMMA3,
        tokens=_GEMMA_TOKENS,
        ids=_GEMMA3_IDS,
        generation={
            "bos_token_id": 2,
            "cache_implementation": "hybrid",
            "do_sample": True,
            "eos_token_id": [1, 106],
            "pad_token_id": 0,
            "top_k": 64,
            "top_p": 0.95,
            "transformers_version": "4.50.0.dev0",
        },
        adds_bos=True,
        surplus=("<image_soft_token>",),
    ),
    Family(
        name="phi3_4k",
        model="microsoft/Phi-3-mini-4k-instruct",
        config={
            "architectures": ["Phi3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "auto_map": {
                "AutoConfig": "configuration_phi3.Phi3Config",
                "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            },
            "bos_token_id": 1,
            "embd_pdrop": 0.0,
            "eos_token_id": 32000,
            "hidden_act": "silu",
            "hidden_size": 3072,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "max_position_embeddings": 4096,
            "model_type": "phi3",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "original_max_position_embeddings": 4096,
            "pad_token_id": 32000,
            "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "sliding_window": 2047,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.40.2",
            "use_cache": True,
            "vocab_size": 32064,
        },
        tokenizer="phi3",
        tokenizer_class="LlamaTokenizer",
        template=templates.PHI3,
        tokens=_PHI3_TOKENS,
        ids=_PHI3_IDS,
        generation={
            "bos_token_id": 1,
            "eos_token_id": [32000, 32001, 32007],
            "pad_token_id": 32000,
            "transformers_version": "4.40.2",
        },
    ),
    Family(
        name="phi35_128k",
        model="microsoft/Phi-3.5-mini-instruct",
        config={
            "architectures": ["Phi3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "auto_map": {
                "AutoConfig": "configuration_phi3.Phi3Config",
                "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            },
            "bos_token_id": 1,
            "embd_pdrop": 0.0,
            "eos_token_id": 32000,
            "hidden_act": "silu",
            "hidden_size": 3072,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "model_type": "phi3",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "original_max_position_embeddings": 4096,
            "pad_token_id": 32000,
            "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"long_factor": _PHI35_LONG, "short_factor": _PHI35_SHORT, "type": "longrope"},
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.43.3",
            "use_cache": True,
            "vocab_size": 32064,
        },
        tokenizer="phi3",
        tokenizer_class="LlamaTokenizer",
        template=templates.PHI3,
        tokens=_PHI3_TOKENS,
        ids=_PHI3_IDS,
        generation={
            "bos_token_id": 1,
            "eos_token_id": [32007, 32001, 32000],
            "pad_token_id": 32000,
            "transformers_version": "4.43.3",
        },
    ),
    Family(
        name="phi4mini",
        model="microsoft/Phi-4-mini-instruct",
        config={
            "architectures": ["Phi3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "auto_map": {
                "AutoConfig": "configuration_phi3.Phi3Config",
                "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
                "AutoTokenizer": "Xenova/gpt-4o",
            },
            "bos_token_id": 199999,
            "embd_pdrop": 0.0,
            "eos_token_id": 199999,
            "full_attn_mod": 1,
            "hidden_act": "silu",
            "hidden_size": 3072,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "phi3",
            "num_attention_heads": 24,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "original_max_position_embeddings": 4096,
            "pad_token_id": 199999,
            "partial_rotary_factor": 0.75,
            "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"long_factor": _PHI4_LONG, "short_factor": [1.0] * 48, "type": "longrope"},
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.45.0",
            "use_cache": True,
            "vocab_size": 200064,
        },
        tokenizer="o200k",
        tokenizer_class="GPT2Tokenizer",
        template=templates.PHI4MINI,
        tokens=dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
        ids={
            "<|endoftext|>": 199999,
            "<|assistant|>": 200019,
            "<|end|>": 200020,
            "<|user|>": 200021,
            "<|system|>": 200022,
        },
        generation={
            "bos_token_id": 199999,
            "eos_token_id": [200020, 199999],
            "pad_token_id": 199999,
            "transformers_version": "4.45.0",
        },
    ),
    Family(
        name="phi2",
        model="microsoft/phi-2",
        config={
            "architectures": ["PhiForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 50256,
            "embd_pdrop": 0.0,
            "eos_token_id": 50256,
            "hidden_act": "gelu_new",
            "hidden_size": 2560,
            "initializer_range": 0.02,
            "intermediate_size": 10240,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "model_type": "phi",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "partial_rotary_factor": 0.4,
            "qk_layernorm": False,
            "resid_pdrop": 0.1,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.37.0",
            "use_cache": True,
            "vocab_size": 51200,
        },
        tokenizer="gpt2",
        tokenizer_class="CodeGenTokenizer",
        template=None,
        tokens=dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
        ids={"<|endoftext|>": 50256},
        generation={"bos_token_id": 50256, "eos_token_id": 50256, "transformers_version": "4.37.0"},
    ),
    Family(
        name="mistral_v01",
        model="mistralai/Mistral-7B-Instruct-v0.1",
        config={
            "architectures": ["MistralForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.42.0.dev0",
            "use_cache": True,
            "vocab_size": 32000,
        },
        tokenizer="llama2",
        tokenizer_class="LlamaTokenizer",
        template=templates.MISTRAL_V1,
        tokens=_LLAMA2_TOKENS,
        ids=_LLAMA2_IDS,
        generation={"bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.42.0.dev0"},
        adds_bos=True,
    ),
    Family(
        name="mistral_v03",
        model="mistralai/Mistral-7B-Instruct-v0.3",
        config={
            "architectures": ["MistralForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.42.0.dev0",
            "use_cache": True,
            "vocab_size": 32768,
        },
        tokenizer="metaspace_first",
        tokenizer_class="LlamaTokenizer",
        template=templates.MISTRAL_V3,
        tokens=_LLAMA2_TOKENS,
        ids=_LLAMA2_IDS | {"[INST]": 3, "[/INST]": 4},
        generation={"bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.42.0.dev0"},
        adds_bos=True,
        system=False,  # it puts the system text into the last turn of the user, which moves once it is answered
    ),
    Family(
        name="mistral_nemo",
        model="mistralai/Mistral-Nemo-Instruct-2407",
        config={
            "architectures": ["MistralForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": 128,  # not hidden_size / num_attention_heads
            "hidden_act": "silu",
            "hidden_size": 5120,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,  # uncertain: 1024000 in an earlier version of the file
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.43.0.dev0",
            "use_cache": True,
            "vocab_size": 131072,
        },
        tokenizer="tekken",
        tokenizer_class="PreTrainedTokenizerFast",
        template=templates.MISTRAL_NEMO,
        tokens=_LLAMA2_TOKENS | {"pad_token": "<pad>"},
        ids=_LLAMA2_IDS | {"[INST]": 3, "[/INST]": 4, "<pad>": 10},
        generation={"bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.43.0.dev0"},
        adds_bos=True,
        system=False,  # it puts the system text into the last turn of the user, which moves once it is answered
    ),
    Family(
        name="smollm3",
        model="HuggingFaceTB/SmolLM3-3B",
        config={  # without tie_word_embeddings, which the class takes for true
            "architectures": ["SmolLM3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 128000,
            "eos_token_id": 128012,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 11008,
            "layer_types": ["full_attention"] * 36,
            "max_position_embeddings": 65536,
            "max_window_layers": 28,
            "mlp_bias": False,
            "model_type": "smollm3",
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0] * 9,
            "num_attention_heads": 16,
            "num_hidden_layers": 36,
            "num_key_value_heads": 4,
            "pad_token_id": 128004,
            "pretraining_tp": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 5000000.0,
            "sliding_window": None,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.54.0.dev0",
            "use_cache": False,
            "use_sliding_window": False,
            "vocab_size": 128256,
        },
        tokenizer="llama3",
        tokenizer_class="PreTrainedTokenizerFast",
        template=templates.SMOLLM3,
        tokens={"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        ids={
            "<|begin_of_text|>": 128000,
            "<|end_of_text|>": 128001,
            "<think>": 128002,
            "</think>": 128003,
            "<|finetune_right_pad_id|>": 128004,
            "<|im_start|>": 128011,
            "<|im_end|>": 128012,
        },
        generation={
            "bos_token_id": 128000,
            "do_sample": True,
            "eos_token_id": 128012,
            "pad_token_id": 128004,
            "temperature": 0.6,
            "top_p": 0.95,
            "transformers_version": "4.54.0.dev0",
        },
        options={"enable_thinking": False},
    ),
    Family(
        name="granite33",
        model="ibm-granite/granite-3.3-2b-instruct",
        config={
            "architectures": ["GraniteForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attention_multiplier": 0.015625,
            "bos_token_id": 0,
            "embedding_multiplier": 12.0,
            "eos_token_id": 0,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "logits_scaling": 8.0,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "granite",
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 8,
            "pad_token_id": 0,
            "residual_multiplier": 0.22,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.49.0",
            "use_cache": True,
            "vocab_size": 49159,
        },
        tokenizer="smollm",
        tokenizer_class="GPT2Tokenizer",
        template=templates.GRANITE33,
        tokens=dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|end_of_text|>"),
        ids={"<|end_of_text|>": 0, "<|start_of_role|>": 49152, "<|end_of_role|>": 49153},
        generation={"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "transformers_version": "4.49.0"},
    ),
    Family(
        name="granite4_dense",
        model="ibm-granite/granite-4.0-350m",
        config=_GRANITE4
        | {
            "hidden_size": 1024,
            "layer_types": ["attention"] * 28,
            "logits_scaling": 4,
            # Of layers that it has none of; their product is mamba_expand * hidden_size.
            "mamba_d_head": 16,
            "mamba_d_state": 256,
            "mamba_n_heads": 128,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "position_embedding_type": "rope",
            "rope_theta": 10000000,
        },
        tokenizer="cl100k",
        tokenizer_class="GPT2Tokenizer",
        template=templates.GRANITE4,  # uncertain: whether the smallest ones have a default system message
        tokens=_GRANITE4_TOKENS,
        ids=_GRANITE4_IDS,
        generation={
            "bos_token_id": 100257,
            "eos_token_id": 100257,
            "pad_token_id": 100256,
            "transformers_version": "4.56.0",
        },
    ),
    Family(
        name="granite4_hybrid",
        model="ibm-granite/granite-4.0-h-350m",
        config=_GRANITE4
        | {
            "hidden_size": 768,
            "layer_types": ["attention" if index in (10, 13, 17, 27) else "mamba" for index in range(32)],
            "logits_scaling": 3,
            "mamba_d_head": 32,
            "mamba_d_state": 128,
            "mamba_n_heads": 48,
            "num_attention_heads": 12,
            "num_hidden_layers": 32,
            "position_embedding_type": "nope",
            "rope_theta": 10000,
        },
        tokenizer="cl100k",
        tokenizer_class="GPT2Tokenizer",
        template=templates.GRANITE4,
        tokens=_GRANITE4_TOKENS,
        ids=_GRANITE4_IDS,
        generation={
            "bos_token_id": 100257,
            "eos_token_id": 100257,
            "pad_token_id": 100256,
            "transformers_version": "4.56.0",
        },
    ),
    Family(
        name="olmo1",
        model="allenai/OLMo-1B-0724-hf",
        config={
            "architectures": ["OlmoForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "clip_qkv": None,
            "eos_token_id": 50279,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "max_position_embeddings": 4096,
            "model_type": "olmo",
            "num_attention_heads": 16,
            "num_hidden_layers": 16,
            "num_key_value_heads": 16,
            "pad_token_id": 1,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",  # uncertain, as clip_qkv: the hub may have float32
            "transformers_version": "4.43.1",
            "use_cache": True,
            "vocab_size": 50304,
        },
        tokenizer="gpt2_nfc",
        tokenizer_class="GPTNeoXTokenizer",
        template=templates.OLMO1,  # of OLMo-7B-0724-Instruct-hf: the base model has none
        tokens={"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"},
        ids={"<|padding|>": 1, "<|endoftext|>": 50279},
        generation={"eos_token_id": 50279, "pad_token_id": 1, "transformers_version": "4.43.1"},
    ),
    Family(
        name="olmo2",
        model="allenai/OLMo-2-0425-1B-Instruct",
        config={
            "architectures": ["Olmo2ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 100257,
            "eos_token_id": 100257,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "max_position_embeddings": 4096,
            "model_type": "olmo2",
            "num_attention_heads": 16,
            "num_hidden_layers": 16,
            "num_key_value_heads": 16,
            "pad_token_id": 100277,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 500000,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.51.3",
            "use_cache": True,
            "vocab_size": 100352,
        },
        tokenizer="cl100k",
        tokenizer_class="GPT2Tokenizer",
        template=templates.OLMO2,
        tokens=dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>") | {"pad_token": "<|pad|>"},
        ids={"<|endoftext|>": 100257, "<|pad|>": 100277},
        generation={"eos_token_id": 100257, "pad_token_id": 100277, "transformers_version": "4.51.3"},
    ),
    Family(
        name="olmo3",
        model="allenai/Olmo-3-7B-Instruct",
        config={
            "architectures": ["Olmo3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "eos_token_id": 100257,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 11008,
            "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
            "max_position_embeddings": 65536,
            "model_type": "olmo3",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "pad_token_id": 100277,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "yarn",
            },
            "rope_theta": 500000,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.57.1",
            "use_cache": False,
            "vocab_size": 100278,
        },
        tokenizer="cl100k",
        tokenizer_class="GPT2Tokenizer",
        template=templates.OLMO3,
        tokens=dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>") | {"pad_token": "<|pad|>"},
        ids={"<|endoftext|>": 100257, "<|im_start|>": 100264, "<|im_end|>": 100265, "<|pad|>": 100277},
        generation={
            "do_sample": True,
            "eos_token_id": [100265, 100257],
            "pad_token_id": 100277,
            "temperature": 0.6,
            "top_p": 0.95,
            "transformers_version": "4.57.1",
        },
    ),
    Family(
        name="nemotron",
        model="nvidia/Nemotron-Mini-4B-Instruct",
        config={
            "architectures": ["NemotronForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "head_dim": 128,
            "hidden_act": "relu2",
            "hidden_size": 3072,
            "initializer_range": 0.0134,
            "intermediate_size": 9216,
            "max_position_embeddings": 4096,
            "mlp_bias": False,
            "model_type": "nemotron",
            "norm_eps": 1e-05,
            "num_attention_heads": 24,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.44.0",
            "use_cache": True,
            "vocab_size": 256000,
        },
        tokenizer="metaspace_first",  # uncertain
        tokenizer_class="PreTrainedTokenizerFast",
        template=templates.NEMOTRON,
        tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        ids={"<unk>": 0, "<s>": 2, "</s>": 3, "<extra_id_0>": 4, "<extra_id_1>": 5},  # the last two are uncertain
        generation={"bos_token_id": 2, "eos_token_id": 3, "transformers_version": "4.44.0"},
    ),
    Family(
        name="exaone4",
        model="LGAI-EXAONE/EXAONE-4.0-1.2B",
        config={
            "architectures": ["Exaone4ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 361,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 4096,
            "layer_types": ["full_attention"] * 30,
            "max_position_embeddings": 65536,
            "model_type": "exaone4",
            "num_attention_heads": 32,
            "num_hidden_layers": 30,
            "num_key_value_heads": 8,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 16.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 1000000,
            "sliding_window": None,
            "sliding_window_pattern": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.54.0.dev0",
            "use_cache": True,
            "vocab_size": 102400,
        },
        tokenizer="gpt2_nfc",
        tokenizer_class="GPT2Tokenizer",
        template=templates.EXAONE4,  # uncertain: where it puts the empty block of reasoning
        tokens={"bos_token": "[BOS]", "eos_token": "[|endofturn|]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
        ids={
            "[PAD]": 0,
            "[BOS]": 1,
            "[EOS]": 2,
            "[UNK]": 3,
            "[|system|]": 42,  # uncertain, as the next two
            "[|assistant|]": 43,
            "[|user|]": 44,
            "[|endofturn|]": 361,
            "<think>": 362,  # uncertain, as the next one
            "</think>": 363,
        },
        generation={
            "bos_token_id": 1,
            "do_sample": True,
            "eos_token_id": 361,
            "pad_token_id": 0,
            "presence_penalty": 1.5,
            "temperature": 0.6,
            "top_p": 0.95,
            "transformers_version": "4.54.0.dev0",
        },
    ),
    Family(
        name="glm4",
        model="zai-org/GLM-4-9B-0414",
        config={
            "architectures": ["Glm4ForCausalLM"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "eos_token_id": [151329, 151336, 151338],
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 13696,
            "max_position_embeddings": 32768,
            "model_type": "glm4",
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 2,
            "pad_token_id": 151329,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.52.0.dev0",
            "use_cache": True,
            "vocab_size": 151552,
        },
        tokenizer="llama3",
        tokenizer_class="PreTrainedTokenizerFast",
        template=templates.GLM4,
        tokens={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        ids={
            "<|endoftext|>": 151329,
            "[gMASK]": 151331,
            "<sop>": 151333,
            "<|system|>": 151335,
            "<|user|>": 151336,
            "<|assistant|>": 151337,
            "<|observation|>": 151338,
        },
        generation={
            "eos_token_id": [151329, 151336, 151338],
            "pad_token_id": 151329,
            "transformers_version": "4.52.0.dev0",
        },
    ),
    Family(
        name="gpt_oss",
        model="unsloth/gpt-oss-20b-BF16",
        # As of a copy with unquantized weights (unsloth/gpt-oss-20b-BF16): the original has a quantization_config.
        config={
            "architectures": ["GptOssForCausalLM"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "eos_token_id": 200002,
            "experts_per_token": 4,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2880,
            "initial_context_length": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 2880,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "max_position_embeddings": 131072,
            "model_type": "gpt_oss",
            "num_attention_heads": 64,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 24,
            "num_key_value_heads": 8,
            "num_local_experts": 32,
            "output_router_logits": False,
            "pad_token_id": 199999,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            },
            "rope_theta": 150000,
            "router_aux_loss_coef": 0.9,
            "sliding_window": 128,
            "swiglu_limit": 7.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.55.0.dev0",
            "use_cache": True,
            "vocab_size": 201088,
        },
        tokenizer="o200k",
        tokenizer_class="PreTrainedTokenizerFast",
        template=templates.GPT_OSS,
        tokens={"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
        ids={
            "<|startoftext|>": 199998,
            "<|endoftext|>": 199999,
            "<|return|>": 200002,
            "<|constrain|>": 200003,
            "<|channel|>": 200005,
            "<|start|>": 200006,
            "<|end|>": 200007,
            "<|message|>": 200008,
            "<|call|>": 200012,
        },
        generation={
            "bos_token_id": 199998,
            "do_sample": True,
            "eos_token_id": [200002, 199999, 200012],
            "pad_token_id": 199999,
            "transformers_version": "4.55.0.dev0",
        },
    ),
    Family(
        name="ernie45",
        model="baidu/ERNIE-4.5-0.3B-PT",
        config={
            "architectures": ["Ernie4_5ForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 131072,
            "model_type": "ernie4_5",
            "num_attention_heads": 16,
            "num_hidden_layers": 18,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_bias": False,
            "use_cache": False,
            "vocab_size": 103424,
        },
        tokenizer="gemma",  # uncertain: a SentencePiece model of its own, without a space before the text
        tokenizer_class="LlamaTokenizer",  # uncertain
        template=templates.ERNIE45,
        tokens=_LLAMA2_TOKENS
        | {"pad_token": "<unk>", "cls_token": "<|begin_of_sentence|>", "sep_token": "<|end_of_sentence|>"},
        ids=_LLAMA2_IDS | {"<|begin_of_sentence|>": 100273, "<|end_of_sentence|>": 100272},
        generation={
            "bos_token_id": 1,
            "do_sample": True,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "repetition_penalty": 1.0,
            "temperature": 0.8,
            "top_p": 0.8,
        },
        chats=False,  # its "Assistant: " ends in a space, which joins the answer
    ),
    Family(
        name="hunyuan",
        model="tencent/Hunyuan-0.5B-Instruct",
        config={
            "architectures": ["HunYuanDenseV1ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attention_head_dim": 128,
            "bos_token_id": 120000,
            "eod_token_id": 120020,
            "eos_token_id": 120020,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "initializer_range": 0.02,
            "intermediate_size": 3584,
            "max_position_embeddings": 262144,
            "model_type": "hunyuan_v1_dense",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "num_key_value_heads": 8,
            "pad_token_id": 120002,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "alpha": 1000.0,
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "type": "dynamic",
            },
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.56.0.dev0",
            "use_cache": True,
            "use_qk_norm": True,
            "vocab_size": 120818,
        },
        tokenizer="deepseek3",
        tokenizer_class="PreTrainedTokenizerFast",
        template=templates.HUNYUAN,
        tokens={
            "bos_token": "<｜hy_begin▁of▁sentence｜>",
            "eos_token": "<｜hy_place▁holder▁no▁2｜>",
            "pad_token": "<｜hy_▁pad▁｜>",
        },
        ids={  # the second and the fourth to the sixth are uncertain
            "<｜hy_begin▁of▁sentence｜>": 120000,
            "<｜hy_end▁of▁sentence｜>": 120001,
            "<｜hy_▁pad▁｜>": 120002,
            "<｜hy_User｜>": 120006,
            "<｜hy_Assistant｜>": 120007,
            "<｜hy_place▁holder▁no▁3｜>": 120021,
            "<｜hy_place▁holder▁no▁2｜>": 120020,
        },
        generation={
            "do_sample": True,
            "eos_token_id": [120020],
            "pad_token_id": 120002,
            "repetition_penalty": 1.05,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
            "transformers_version": "4.56.0.dev0",
        },
    ),
    Family(
        name="lfm2",
        model="LiquidAI/LFM2-350M",
        config={  # without tie_word_embeddings, which the class takes for true
            "architectures": ["Lfm2ForCausalLM"],
            "block_auto_adjust_ff_dim": True,
            "block_dim": 1024,
            "block_ff_dim": 6656,
            "block_ffn_dim_multiplier": 1.0,
            "block_mlp_init_scale": 1.0,
            "block_multiple_of": 256,
            "block_norm_eps": 1e-05,
            "block_out_init_scale": 1.0,
            "block_use_swiglu": True,
            "block_use_xavier_init": True,
            "bos_token_id": 1,
            "conv_L_cache": 3,
            "conv_bias": False,
            "conv_dim": 1024,
            "conv_dim_out": 1024,
            "conv_use_xavier_init": True,
            "eos_token_id": 7,
            "hidden_size": 1024,
            "initializer_range": 0.02,
            "layer_types": ["full_attention" if index in (2, 5, 8, 10, 12, 14) else "conv" for index in range(16)],
            "max_position_embeddings": 128000,
            "model_type": "lfm2",
            "norm_eps": 1e-05,
            "num_attention_heads": 16,
            "num_heads": 16,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "pad_token_id": 0,
            "rope_theta": 1000000.0,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.54.0.dev0",
            "use_cache": True,
            "use_pos_enc": True,
            "vocab_size": 65536,
        },
        tokenizer="llama3",
        tokenizer_class="PreTrainedTokenizerFast",
        template=templates.LFM2,
        tokens={"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"},
        ids={
            "<|pad|>": 0,
            "<|startoftext|>": 1,
            "<|endoftext|>": 2,
            "<|im_start|>": 6,
            "<|im_end|>": 7,
        },
        generation={"bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0, "transformers_version": "4.54.0.dev0"},
        adds_bos=True,
    ),
    Family(
        name="qwen35",
        model="Qwen/Qwen3.5-0.8B",
        config={
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "image_token_id": 248056,
            "model_type": "qwen3_5",
            "text_config": {
                "attention_bias": False,
                "attention_dropout": 0.0,
                "attn_output_gate": True,
                "dtype": "bfloat16",
                "eos_token_id": 248044,
                "full_attention_interval": 4,
                "head_dim": 256,
                "hidden_act": "silu",
                "hidden_size": 1024,
                "initializer_range": 0.02,
                "intermediate_size": 3584,
                "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 6,
                "linear_conv_kernel_dim": 4,
                "linear_key_head_dim": 128,
                "linear_num_key_heads": 16,
                "linear_num_value_heads": 16,
                "linear_value_head_dim": 128,
                "mamba_ssm_dtype": "float32",
                "max_position_embeddings": 262144,
                "mlp_only_layers": [],
                "model_type": "qwen3_5_text",
                "mtp_num_hidden_layers": 1,
                "mtp_use_dedicated_embeddings": False,
                "num_attention_heads": 8,
                "num_hidden_layers": 24,
                "num_key_value_heads": 2,
                "rms_norm_eps": 1e-06,
                "rope_parameters": {
                    "mrope_interleaved": True,
                    "mrope_section": [11, 11, 10],
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 10000000,
                    "rope_type": "default",
                },
                "tie_word_embeddings": True,
                "use_cache": True,
                "vocab_size": 248320,
            },
            "tie_word_embeddings": True,
            "transformers_version": "4.57.0.dev0",
            "video_token_id": 248057,
            "vision_config": {
                "deepstack_visual_indexes": [],
                "depth": 12,
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_size": 768,
                "in_channels": 3,
                "initializer_range": 0.02,
                "intermediate_size": 3072,
                "model_type": "qwen3_5",  # so in files of the hub; transformers puts it right
                "num_heads": 12,
                "num_position_embeddings": 2304,
                "out_hidden_size": 1024,
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
            "vision_end_token_id": 248054,
            "vision_start_token_id": 248053,
        },
        tokenizer="qwen35",
        tokenizer_class="Qwen2Tokenizer",
        template=templates.QWEN35,
        tokens=_QWEN_TOKENS,
        ids={
            "<|endoftext|>": 248044,
            "<|im_start|>": 248045,
            "<|im_end|>": 248046,
            "<|vision_start|>": 248053,
            "<|vision_end|>": 248054,
            "<|image_pad|>": 248056,
            "<|video_pad|>": 248057,
            "<think>": 248068,  # uncertain, as the next one
            "</think>": 248069,
        },
        generation={  # uncertain: whether this size has the file
            "bos_token_id": 248044,
            "do_sample": True,
            "eos_token_id": [248046, 248044],
            "pad_token_id": 248044,
            "temperature": 1.0,
            "top_k": 20,
            "top_p": 0.95,
            "transformers_version": "4.57.0.dev0",
        },
        prefix="model.language_model.",
        others={
            "model.visual.patch_embed.proj.bias": 768,
            "model.visual.merger.norm.weight": 768,
            "mtp.norm.weight": 1024,  # of the head that predicts further tokens, which transformers leaves out
        },
        options={"enable_thinking": False},
    ),
    Family(
        name="gemma3_4b",
        model="google/gemma-3-4b-it",
        # Few keys: the rest are defaults of the classes, among them vocab_size 262208, so that its embedding has a row
        # for <image_soft_token>, which that of the smaller models lacks.
        config={
            "architectures": ["Gemma3ForConditionalGeneration"],
            "boi_token_index": 255999,
            "eoi_token_index": 256000,
            "eos_token_id": [1, 106],
            "image_token_index": 262144,
            "initializer_range": 0.02,
            "mm_tokens_per_image": 256,
            "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0.dev0",
            "vision_config": {
                "hidden_size": 1152,
                "image_size": 896,
                "intermediate_size": 4304,
                "model_type": "siglip_vision_model",
                "num_attention_heads": 16,
                "num_hidden_layers": 27,
                "patch_size": 14,
                "vision_use_head": False,
            },
        },
        tokenizer="gemma",
        tokenizer_class="GemmaTokenizer",
        template=templates.GEMMA3,
        tokens=_GEMMA_TOKENS,
        ids=_GEMMA3_IDS,
        generation={
            "bos_token_id": 2,
            "cache_implementation": "hybrid",
            "do_sample": True,
            "eos_token_id": [1, 106],
            "pad_token_id": 0,
            "top_k": 64,
            "top_p": 0.95,
            "transformers_version": "4.50.0.dev0",
        },
        adds_bos=True,
        prefix="language_model.model.",
        others={
            "vision_tower.vision_model.embeddings.patch_embedding.bias": 1152,
            "vision_tower.vision_model.post_layernorm.weight": 1152,
            "multi_modal_projector.mm_soft_emb_norm.weight": 1152,
        },
    ),
    Family(
        name="gemma4",
        model="google/gemma-4-E2B-it",
        config={
            "architectures": ["Gemma4ForConditionalGeneration"],
            "audio_config": {  # mostly the defaults of its class, which are of this model
                "attention_chunk_size": 12,
                "attention_context_left": 13,
                "attention_context_right": 0,
                "attention_logit_cap": 50.0,
                "conv_kernel_size": 5,
                "hidden_act": "silu",
                "hidden_size": 1024,
                "model_type": "gemma4_audio",
                "num_attention_heads": 8,
                "num_hidden_layers": 12,
                "output_proj_dims": 1536,
                "rms_norm_eps": 1e-06,
                "subsampling_conv_channels": [128, 32],
                "use_clipped_linears": True,
            },
            "audio_token_id": 258881,
            "boa_token_id": 256000,
            "boi_token_id": 255999,
            "dtype": "bfloat16",
            "eoa_token_index": 258883,
            "eoi_token_id": 258882,
            "eos_token_id": [1, 106],
            "image_token_id": 258880,
            "initializer_range": 0.02,
            "model_type": "gemma4",
            "text_config": {
                "attention_bias": False,
                "attention_dropout": 0.0,
                "attention_k_eq_v": False,
                "bos_token_id": 2,
                "dtype": "bfloat16",
                "enable_moe_block": False,
                "eos_token_id": 1,
                "final_logit_softcapping": 30.0,
                "global_head_dim": 512,
                "head_dim": 256,
                "hidden_activation": "gelu_pytorch_tanh",
                "hidden_size": 1536,
                "hidden_size_per_layer_input": 256,
                "initializer_range": 0.02,
                "intermediate_size": 6144,
                "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
                "max_position_embeddings": 131072,
                "model_type": "gemma4_text",
                "moe_intermediate_size": None,
                "num_attention_heads": 8,
                "num_experts": None,
                "num_global_key_value_heads": None,
                "num_hidden_layers": 35,
                "num_key_value_heads": 1,
                "num_kv_shared_layers": 20,
                "pad_token_id": 0,
                "rms_norm_eps": 1e-06,
                "rope_parameters": {
                    "full_attention": {
                        "partial_rotary_factor": 0.25,
                        "rope_theta": 1000000.0,
                        "rope_type": "proportional",
                    },
                    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
                },
                "sliding_window": 512,
                "tie_word_embeddings": True,
                "top_k_experts": None,
                "use_bidirectional_attention": None,
                "use_cache": True,
                "use_double_wide_mlp": True,
                "vocab_size": 262144,
                "vocab_size_per_layer_input": 262144,
            },
            "tie_word_embeddings": True,
            "transformers_version": "5.5.0.dev0",
            "video_token_id": 258884,
            "vision_config": {
                "attention_bias": False,
                "attention_dropout": 0.0,
                "head_dim": 64,
                "hidden_activation": "gelu_pytorch_tanh",
                "hidden_size": 768,
                "intermediate_size": 3072,
                "max_position_embeddings": 131072,
                "model_type": "gemma4_vision",
                "num_attention_heads": 12,
                "num_hidden_layers": 16,
                "num_key_value_heads": 12,
                "patch_size": 16,
                "pooling_kernel_size": 3,
                "position_embedding_size": 10240,
                "rms_norm_eps": 1e-06,
                "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
                "standardize": False,
                "use_clipped_linears": True,
            },
        },
        tokenizer="gemma",
        tokenizer_class="GemmaTokenizer",
        template=templates.GEMMA4,
        tokens=_GEMMA_TOKENS,
        ids=_GEMMA_IDS
        | {
            "<|think|>": 98,  # uncertain, as the two of the channel
            "<|channel>": 100,
            "<channel|>": 101,
            "<|turn>": 105,
            "<turn|>": 106,
            "<|image>": 255999,
            "<|audio>": 256000,
            "<|image|>": 258880,
            "<|audio|>": 258881,
            "<image|>": 258882,
            "<audio|>": 258883,
            "<|video|>": 258884,
        },
        generation={
            "bos_token_id": 2,
            "do_sample": True,
            "eos_token_id": [1, 106],
            "pad_token_id": 0,
            "temperature": 1.0,
            "top_k": 64,
            "top_p": 0.95,
            "transformers_version": "5.5.0.dev0",
        },
        adds_bos=True,
        prefix="model.language_model.",
        others={
            "model.vision_tower.encoder.layers.0.input_layernorm.weight": 768,
            "model.vision_tower.encoder.layers.0.self_attn.q_norm.weight": 64,
            "model.audio_tower.layers.0.norm_out.weight": 1024,
            # The last layers take keys and values of earlier ones, and transformers leaves out those of their own.
            "model.language_model.layers.{last}.self_attn.k_norm.weight": 256,
        },
    ),
    Family(
        name="ministral3",
        # Instruct-2512 itself is quantized to 8 bits (quantization_config); this is its unquantized twin.
        model="mistralai/Ministral-3-3B-Instruct-2512-BF16",
        config={
            "architectures": ["Mistral3ForConditionalGeneration"],
            "dtype": "bfloat16",
            "image_token_index": 10,
            "model_type": "mistral3",
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu",
            "spatial_merge_size": 2,
            "text_config": {
                "attention_dropout": 0.0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "head_dim": 128,
                "hidden_act": "silu",
                "hidden_size": 3072,
                "initializer_range": 0.02,
                "intermediate_size": 9216,
                "max_position_embeddings": 262144,
                "model_type": "ministral3",
                "num_attention_heads": 32,
                "num_hidden_layers": 26,
                "num_key_value_heads": 8,
                "pad_token_id": 11,
                "rms_norm_eps": 1e-05,
                "rope_parameters": {
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "factor": 16.0,
                    "llama_4_scaling_beta": 0.1,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "original_max_position_embeddings": 16384,
                    "rope_theta": 1000000.0,
                    "rope_type": "yarn",
                    "type": "yarn",
                },
                "sliding_window": None,
                "tie_word_embeddings": True,
                "use_cache": True,
                "vocab_size": 131072,
            },
            "tie_word_embeddings": True,
            "transformers_version": "5.0.0.dev0",
            "vision_config": {
                "attention_dropout": 0.0,
                "head_dim": 64,
                "hidden_act": "silu",
                "hidden_size": 1024,
                "image_size": 1540,
                "initializer_range": 0.02,
                "intermediate_size": 4096,
                "model_type": "pixtral",
                "num_attention_heads": 16,
                "num_channels": 3,
                "num_hidden_layers": 24,
                "patch_size": 14,
                "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            },
            "vision_feature_layer": -1,
        },
        tokenizer="tekken",
        tokenizer_class="TokenizersBackend",
        template=templates.MINISTRAL3,
        tokens=_LLAMA2_TOKENS | {"pad_token": "<pad>"},
        ids=_LLAMA2_IDS
        | {
            "[INST]": 3,
            "[/INST]": 4,
            "[IMG]": 10,
            "<pad>": 11,
            "[IMG_BREAK]": 12,
            "[IMG_END]": 13,
            "[SYSTEM_PROMPT]": 17,
            "[/SYSTEM_PROMPT]": 18,
        },
        generation={
            "bos_token_id": 1,
            "eos_token_id": 2,
            "max_length": 262144,
            "pad_token_id": 11,
            "transformers_version": "5.0.0.dev0",
        },
        adds_bos=True,
        prefix="language_model.model.",  # uncertain: as of the earlier Mistral3 models; transformers reads either
        others={"vision_tower.ln_pre.weight": 1024, "multi_modal_projector.norm.weight": 1024},
    ),
)
