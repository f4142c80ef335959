"""A model's files as every rule expects them: safetensors, config, generation config and tokenizer, checked.

No code of a model is run and no pickle is opened.
"""

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.cli import UserError, fail, first_line
from lib.files import read_json, write_json
from lib.tokens import Tokenizer, load_tokenizer

INDEX = "model.safetensors.index.json"
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
    *VOCABULARIES,
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# Texts on which two readers of one tokenizer are likely to differ.
HARD_TEXTS = (
    "Plain words, don't they're: 3.14 12345 x  24 7\t8   9",
    "tab\there\r\nCRLF\n\n\nlines  \n  indented   text ",
    " leading and trailing  ",
    "ünïcödé cafe\u0301 ﬁ Ⅷ ½ ٣ ²",
    "日本語のテキスト 中文字符 한국어 ไทย",
    "عربى עברית \u200f\u200emixed",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e🙂e",
    "\u0000\u0007\u00a0\u2028\ufeff\u200b",
    "<b>{json: [1, 2]}</b> a_b-c/d\\e #tag @user http://x.y/?z=1&amp;",
    "",
)


@dataclass(frozen=True)
class Source:
    """Where the files are: `gguf` names the one file that holds everything, or `weights` the safetensors.

    label: how messages name it. extra: facts for the manifest. shared: the hub's cache, whose files
    may be hard-linked, since nobody changes them.
    """

    folder: Path
    label: str
    weights: list[str]
    gguf: str | None
    extra: dict[str, Any]
    shared: bool = False


@dataclass(frozen=True)
class Tensor:
    """What a safetensors header says of one tensor."""

    file: str
    dtype: str
    elements: int


def weight_files(names: list[str], label: str) -> tuple[list[str], str | None]:
    """The safetensors files, or the one GGUF file, that hold the weights.

    Raises `UserError` when there are none, or several GGUF files to choose from.
    """
    if "model.safetensors" in names:
        return ["model.safetensors"], None
    other = ("consolidated", "adapter_")  # the same weights in the maker's own layout; a LoRA adapter
    if shards := sorted(name for name in names if name.endswith(".safetensors") and not name.startswith(other)):
        return shards, None
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if len(ggufs) == 1:
        return [], ggufs[0]
    if ggufs:
        fail(
            f"it holds {len(ggufs)} GGUF files ({', '.join(ggufs[:4])} ...)",
            "give base_model.path: the one file",
            at=label,
        )
    if pickles := sorted(name for name in names if name.endswith(PICKLES)):
        fail(
            f"its weights are only in {pickles[0]}",
            "only safetensors and GGUF are loaded, since other formats can run code: choose a model or revision with"
            " safetensors",
            at=label,
        )
    fail("it holds no weights (*.safetensors or *.gguf)", "choose the folder or repository of a whole model", at=label)


def import_safetensors(source: Source, out: Path, parameters: int) -> dict[str, Any]:
    """Copy a model as it is; drop a second copy of tied weights. Returns facts for the manifest."""
    config = causal_config(source)
    tensors = read_headers(source)
    tied = {head: body for head, body in tied_weights(config).items() if head in tensors and body in tensors}
    count = sum(tensor.elements for name, tensor in tensors.items() if name not in tied)
    check_parameters(count, parameters, source.label)
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.elements
    dtype = sizes.most_common(1)[0][0]
    if dtype not in FLOATS:
        fail(
            f"its weights are stored as {dtype}, so they are quantized", "choose the unquantized model", at=source.label
        )

    import_tokenizer(source, out, config)
    files = {tensor.file for tensor in tensors.values()}
    for name in files:
        place_file(source.folder / name, out / target_name(name, files), link=source.shared)
    tensors = {name: Tensor(target_name(t.file, files), t.dtype, t.elements) for name, t in tensors.items()}
    for head, body in tied.items():
        drop_tied_copy(out, tensors, head, body, source.label)
    if len(files) > 1:
        weight_map = {name: tensors[name].file for name in sorted(tensors)}
        write_json(out / INDEX, {"metadata": {"total_parameters": count}, "weight_map": weight_map})
    raw = read_json(source.folder / "config.json")
    raw.pop("auto_map", None)  # names code files that are neither copied nor ever run
    write_json(out / "config.json", raw)
    return {"source_format": "safetensors", "weights_were_quantized": None, "parameters": count, "dtype": FLOATS[dtype]}


def causal_config(source: Source) -> Any:
    """The model's config (PreTrainedConfig). Raises `UserError` unless it is a causal LM that transformers knows."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    extra = {"gguf_file": source.gguf} if source.gguf else {}
    if not source.gguf:
        if not (source.folder / "config.json").is_file():
            fail("it has no config.json", "choose the folder or repository of a whole model", at=source.label)
        raw = read_json(source.folder / "config.json")
        check_model_type(raw, source.label)
    try:
        config = transformers.AutoConfig.from_pretrained(source.folder, trust_remote_code=False, **extra)
    except Exception as error:  # every model's config class has its own checks
        fail(
            f"its config cannot be read: {first_line(error)}",
            "choose a model of a kind that transformers supports",
            at=source.label,
        )
    expected = CAUSAL.get(config.model_type, "")
    named = config.architectures or [expected]
    if not expected or config.is_encoder_decoder or expected not in named or "ConditionalGeneration" in expected:
        fail(
            f"it is not a decoder-only language model (model_type {config.model_type}, {', '.join(named)})",
            "choose a causal language model, such as Phi-3, Llama, Qwen or SmolLM2",
            at=source.label,
        )
    return config


def check_model_type(raw: dict[str, Any], label: str) -> None:
    import transformers

    kind = raw.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        why = "it needs code of its own (auto_map), which is never run" if "auto_map" in raw else "it is unknown"
        fail(
            f"transformers {transformers.__version__} has no model_type {kind!r}: {why}",
            "choose a model that transformers supports itself",
            at=label,
        )
    if quantization := raw.get("quantization_config"):
        method = quantization.get("quant_method", "an unknown method")
        fail(f"its weights are quantized ({method})", "choose the unquantized model: variants quantize later", at=label)


def tied_weights(config: Any) -> dict[str, str]:
    """Weights that are the same as another one, by name: usually `lm_head.weight` of the embedding."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if not config.tie_word_embeddings:
        return {}
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return dict(model_class._tied_weights_keys or {})


def read_headers(source: Source) -> dict[str, Tensor]:
    """All tensors of the model by name, from the headers of its files.

    Raises `UserError` when a file is cut, the index names what is not there, or a tensor is twice there.
    """
    from safetensors import SafetensorError, safe_open

    index = read_json(source.folder / INDEX)["weight_map"] if (source.folder / INDEX).is_file() else {}
    files = source.weights if source.weights == ["model.safetensors"] or not index else sorted(set(index.values()))
    tensors: dict[str, Tensor] = {}
    for name in files:
        if not (source.folder / name).is_file():
            fail(f"{name} is missing, which {INDEX} names", "fetch the whole model", at=source.label)
        try:
            with safe_open(source.folder / name, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    if key in tensors:
                        fail(
                            f"{key} is in {tensors[key].file} and in {name}",
                            "leave one model in the folder",
                            at=source.label,
                        )
                    view = file.get_slice(key)
                    elements = 1
                    for side in view.get_shape():
                        elements *= side
                    tensors[key] = Tensor(name, view.get_dtype(), elements)
        except SafetensorError as error:
            fail(f"{name} is not a whole safetensors file: {first_line(error)}", "fetch it again", at=source.label)
    if files != ["model.safetensors"] and (lost := sorted(set(index) - set(tensors))):
        fail(
            f"{len(lost)} tensors of {INDEX} are in no file, such as {lost[0]}",
            "fetch the whole model",
            at=source.label,
        )
    return tensors


def target_name(name: str, files: set[str]) -> str:
    """A model in one file is called model.safetensors, so that every library finds it."""
    return "model.safetensors" if len(files) == 1 else name


def place_file(source: Path, target: Path, *, link: bool) -> None:
    """Hard-link where that is allowed and possible, since weights are large; else copy."""
    if link:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:
            pass  # another file system, or one without links
    shutil.copyfile(source, target)


def drop_tied_copy(out: Path, tensors: dict[str, Tensor], head: str, body: str, label: str) -> None:
    """Remove the tensor `head` from its file: it equals `body`, and tied weights are stored once.

    Raises `UserError` when the two differ: transformers then does not tie them, whatever the config says.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(out / tensors[body].file, framework="pt") as file:
        original = file.get_tensor(body)
    path = out / tensors[head].file
    content = load_file(path)
    if not torch.equal(content.pop(head), original):
        fail(f"{head} and {body} are tied in config.json but differ", "set tie_word_embeddings: false there", at=label)
    partial = path.with_suffix(".partial")  # not in place: it may be a hard link into the hub's cache
    save_file(content, partial, metadata={"format": "pt"})
    os.replace(partial, path)
    del tensors[head]


def check_parameters(count: int, stated: int, label: str) -> None:
    """Memory and time of later rules follow from the stated number, so it must be right within 1 %."""
    if abs(count - stated) > 0.01 * stated:
        fail(
            f"it has {count} parameters, the configuration states {stated}",
            f"write base_model.parameters: {count}",
            at=label,
        )


def import_tokenizer(source: Source, out: Path, config: Any, tokenizer: Any = None) -> None:
    """Write the tokenizer as transformers understands it, and the generation config; check both.

    tokenizer: a PreTrainedTokenizer where another module has built it; else transformers loads it.
    """
    import transformers

    if not source.gguf and not any((source.folder / name).is_file() for name in VOCABULARIES):
        fail("it has no tokenizer (tokenizer.json)", "choose a model that ships its tokenizer", at=source.label)
    extra = {"gguf_file": source.gguf} if source.gguf else {}
    try:
        if tokenizer is None:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, **extra)
    except Exception as error:  # each tokenizer class fails in its own way
        fail(
            f"its tokenizer cannot be loaded: {first_line(error)}",
            "choose a model with a tokenizer.json",
            at=source.label,
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest and tokenizer.model_max_length > 1e9:  # transformers' way to say "not known"
        tokenizer.model_max_length = longest
    tokenizer.save_pretrained(out)
    clean_tokenizer_config(out / "tokenizer_config.json")
    if not source.gguf:
        if (source.folder / "generation_config.json").is_file():
            shutil.copyfile(source.folder / "generation_config.json", out / "generation_config.json")
        else:
            transformers.GenerationConfig.from_model_config(config).save_pretrained(out)
        shutil.copyfile(source.folder / "config.json", out / "config.json")
    else:
        transformers.GenerationConfig.from_model_config(config).save_pretrained(out)
    try:
        check_tokenizer(source, load_tokenizer(out), tokenizer, config.vocab_size)
    except UserError as error:
        # People know the source, not the unfinished folder.
        message = str(error).replace(str(out), source.label)
        raise UserError(message if source.label in message else f"{source.label}: {message}") from None


def clean_tokenizer_config(path: Path) -> None:
    """Drop what says how the tokenizer was loaded here, and code that is never run."""
    config = read_json(path)
    for key in ("is_local", "local_files_only", "name_or_path", "auto_map"):
        config.pop(key, None)
    write_json(path, config)


def check_tokenizer(source: Source, ours: Tokenizer, theirs: Any, vocabulary: int) -> None:
    """The written tokenizer gives the ids of transformers, and those of the source's own tokenizer.json.

    theirs: a PreTrainedTokenizer. vocabulary: rows of the embedding.
    """
    controls = [text for token in ours.control for text in (token, f"a{token}b", f" {token} \n{token}")]
    texts = [*HARD_TEXTS, *controls]
    readers = {"transformers": [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]}
    if not source.gguf and (source.folder / "tokenizer.json").is_file():
        import tokenizers

        original = tokenizers.Tokenizer.from_file(str(source.folder / "tokenizer.json"))
        original.no_truncation()
        original.no_padding()
        readers["its own tokenizer.json"] = [original.encode(text, add_special_tokens=False).ids for text in texts]
    for reader, expected in readers.items():
        for text, ids, wanted in zip(texts, ours.encode_batch(texts), expected, strict=True):
            if ids != wanted:
                fail(
                    f"its tokenizer is ambiguous: {text!r} is {ids[:8]} as saved, {wanted[:8]} for {reader}",
                    "choose another revision or model",
                    at=source.label,
                )
    if (largest := max(ours.backend.get_vocab().values())) >= vocabulary:
        fail(
            f"its tokenizer has id {largest}, its embedding only {vocabulary} rows",
            "the two do not belong together",
            at=source.label,
        )
    for id_ in ours.end_ids:
        ours.token(id_)  # raises where the tokenizer has no such token
