"""A model's files as every rule expects them: safetensors, config, generation config and tokenizer, checked.

No code of a model is run and no pickle is opened.
"""

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lib.core.cli import UserError, extract_first_line, fail
from lib.core.files import SAFETENSORS_INDEX, is_lfs_pointer, write_json
from lib.core.forms import allow_open_object, read_form
from lib.core.paths import check_bare_name
from lib.data.tokenizer import Tokenizer, load_tokenizer
from lib.data.tokenizer_trial import HARD_TEXTS, check_tokenizer_file
from lib.models.model_config import check_generation_config, check_layer_counts, check_model_type, read_config
from lib.models.text_part import find_text_part, load_text_config, name_text_weights

if TYPE_CHECKING:  # brings torch, and which files to download is chosen without
    from lib.models.safetensors_streaming import Stored

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
    SAFETENSORS_INDEX,
    *VOCABULARIES,
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class ModelSource:
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

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files that may be read; not each of them is there."""
        return (self.gguf,) if self.gguf else (*self.weights, *SMALL_FILES)


def find_weight_files(names: list[str], label: str) -> tuple[list[str], str | None]:
    """Return the safetensors files, or the one GGUF file, that hold the weights.

    Raises `UserError` when there are none, or several GGUF files to choose from.
    """
    weights, gguf = _choose_weights(names, label)
    for name in [gguf] if gguf else weights:
        check_bare_name(name, at=label)
    return weights, gguf


def _choose_weights(names: list[str], label: str) -> tuple[list[str], str | None]:
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


def check_no_pointers(folder: Path, names: Iterable[str], label: str) -> None:
    """Raise `UserError` for a file that Git LFS has not fetched; names of files that are not there are passed over."""
    for name in names:
        if is_lfs_pointer(folder / name):
            fail(f"{name} is a git-lfs pointer, not the file itself", "run git lfs pull where it was cloned", at=label)


def import_safetensors(source: ModelSource, out: Path, parameters: int) -> dict[str, Any]:
    """Copy a model as it is; drop a second copy of tied weights. Returns facts for the manifest."""
    from lib.models.model_trial import try_model
    from lib.models.safetensors_streaming import (
        check_finite,
        copy_tensors,
        drop_tied_copy,
        locate_weights,
    )

    try_model(source)
    config = load_causal_config(source)
    stored, names = read_matched_headers(source, config)
    tensors = {names[name]: tensor for name, tensor in stored.items()}
    tied = {head: body for head, body in find_tied_weights(config).items() if head in tensors and body in tensors}
    count = sum(tensor.elements for name, tensor in tensors.items() if name not in tied)
    check_parameters(count, parameters, source.label)
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        if tensor.dtype in FLOATS:  # others are read by nobody
            sizes[tensor.dtype] += tensor.elements
    dtype = sizes.most_common(1)[0][0]

    import_small_files(source, out, config)
    files = {tensor.file.name for tensor in stored.values()}
    for name in files:
        target = out / ("model.safetensors" if len(files) == 1 else name)  # in one file it has this name, always
        here = {old: new for old, new in names.items() if stored[old].file.name == name}
        if find_text_part(read_config(source.folder)) or any(old != new for old, new in here.items()):
            copy_tensors(source.folder / name, target, here)
        else:
            place_file(source.folder / name, target, link=source.shared)
    check_finite(locate_weights(out), source.label)
    for head, body in tied.items():
        drop_tied_copy(out, head, body, source.label)
    if len(files) > 1:
        weight_map = {name: weight.file.name for name, weight in sorted(locate_weights(out).items())}
        write_json(out / SAFETENSORS_INDEX, {"metadata": {"total_parameters": count}, "weight_map": weight_map})
    return {"source_format": "safetensors", "weights_were_quantized": None, "parameters": count, "dtype": FLOATS[dtype]}


def read_matched_headers(source: ModelSource, config: Any) -> tuple[dict[str, "Stored"], dict[str, str]]:
    """Return the stored tensors of a model by their names in its files, and the model's own name of each.

    Of a multimodal model those of its language model alone. Raises `UserError` as `match_tensors`.
    """
    from lib.models.safetensors_streaming import read_headers

    stored = read_headers(source.folder, source.weights, source.label)
    texts = {name: name for name in stored}
    if find_text_part(read_config(source.folder)):
        texts = name_text_weights(stored)
        stored = {name: stored[name] for name in texts}
    names = match_tensors(config, {texts[name]: tensor for name, tensor in stored.items()}, source.label)
    return stored, {name: names[texts[name]] for name in stored}


def import_tokenizer(source: ModelSource, out: Path) -> None:
    """Copy configuration and tokenizer alone, as `import_safetensors` does; the weights need not be here."""
    from lib.models.model_trial import try_tokenizer

    try_tokenizer(source)
    import_small_files(source, out, load_causal_config(source))


def load_causal_config(source: ModelSource) -> Any:
    """Return the model's config (PreTrainedConfig). Raises `UserError` unless it is a causal LM that transformers
    knows.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    extra = {"gguf_file": source.gguf} if source.gguf else {}
    if not source.gguf:
        if not (source.folder / "config.json").is_file():
            fail("it has no config.json", "choose the folder or repository of a whole model", at=source.label)
        raw = read_config(source.folder)
        check_model_type(raw, source.label)
        check_layer_counts(raw, source)
    try:
        config = transformers.AutoConfig.from_pretrained(source.folder, trust_remote_code=False, **extra)
    except Exception as error:  # every model's config class has its own checks
        fail(
            f"its config cannot be read: {extract_first_line(error)}",
            "choose a model of a kind that transformers supports",
            at=source.label,
        )
    if not source.gguf and find_text_part(raw):
        return load_text_config(config, raw, source.label)
    expected = CAUSAL.get(config.model_type, "")
    named = config.architectures or [expected]
    if not expected or config.is_encoder_decoder or expected not in named or "ConditionalGeneration" in expected:
        fail(
            f"it is not a decoder-only language model (model_type {config.model_type}, {', '.join(named)})",
            "choose a causal language model, such as Phi-3, Llama, Qwen or SmolLM2",
            at=source.label,
        )
    return config


def match_tensors(config: Any, tensors: Mapping[str, "Stored"], label: str) -> dict[str, str]:
    """Return the model's own name for each stored tensor; only the prefix of the inner model may be more or less.

    Raises `UserError` unless they are exactly the tensors that transformers loads, by name, shape and dtype.
    """
    from lib.models.loading import check_loading_report, simulate_loading

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        model, report = simulate_loading(config, shapes)
    except Exception as error:  # an expert that is missing in a mixture, or sizes of which no model can be made
        fail(
            f"its tensors cannot be put together: {extract_first_line(error)}",
            "fetch or save the whole model again",
            at=label,
        )
    check_loading_report(report, label)
    if other := {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype not in FLOATS}:
        _, report = simulate_loading(config, {name: shape for name, shape in shapes.items() if name not in other})
        if needed := report["missing_keys"] & {name for name, _ in model.named_parameters()}:
            fail(
                f"{len(needed)} tensors are stored as {', '.join(sorted(set(other.values())))}, such as {min(needed)}",
                "choose the unquantized model, in float32, float16 or bfloat16",
                at=label,
            )
    expected, prefix = model.state_dict(), f"{model.base_model_prefix}."
    names: dict[str, str] = {}
    for name in tensors:
        same = (name, prefix + name, name.removeprefix(prefix))
        names[name] = next((other for other in same if other in expected), name)
    if len(set(names.values())) < len(names):
        twice, _ = Counter(names.values()).most_common(1)[0]
        fail(f"{twice} is stored twice, with and without {prefix}", "leave one model in the folder", at=label)
    return names


def find_tied_weights(config: Any) -> dict[str, str]:
    """Return weights that are the same as another one, by name: usually `lm_head.weight` of the embedding."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if not config.tie_word_embeddings:
        return {}
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return dict(model_class._tied_weights_keys or {})


def place_file(source: Path, target: Path, *, link: bool) -> None:
    """Hard-link where that is allowed and possible, since weights are large; else copy."""
    if link:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:
            pass  # another file system, or one without links
    shutil.copyfile(source, target)


def check_parameters(count: int, stated: int, label: str) -> None:
    """Raise `UserError` unless the stated number of parameters, on which later rules rely, is right within 1 %."""
    if abs(count - stated) > 0.01 * stated:
        fail(
            f"it has {count} parameters, the configuration states {stated}",
            f"write base_model.parameters: {count}",
            at=label,
        )


def import_small_files(source: ModelSource, out: Path, config: Any) -> None:
    """Write configuration and generation config, and the tokenizer as transformers understands it; check them."""
    import transformers

    if not any((source.folder / name).is_file() for name in VOCABULARIES):
        fail("it has no tokenizer (tokenizer.json)", "choose a model that ships its tokenizer", at=source.label)
    try:
        write_tokenizer(source, out, config, read_tokenizer(source, transformers.AutoTokenizer))
    except UserError:
        if not (source.folder / "tokenizer.json").is_file():
            raise
        # Some classes of transformers read otherwise than the file that they load (Llama 2's): the file decides.
        write_tokenizer(source, out, config, read_tokenizer(source, transformers.PreTrainedTokenizerFast))
    raw = read_config(source.folder)
    if find_text_part(raw):
        raw = config.to_diff_dict() | {"architectures": config.architectures}
    raw.pop("auto_map", None)  # names code files that are neither copied nor ever run
    write_json(out / "config.json", raw)


def read_tokenizer(source: ModelSource, tokenizer_class: Any) -> Any:
    """Load the tokenizer with a class of transformers. Raises `UserError` where that cannot read it."""
    extra = {"gguf_file": source.gguf} if source.gguf else {}
    try:
        tokenizer = tokenizer_class.from_pretrained(source.folder, trust_remote_code=False, **extra)
        math.isfinite(tokenizer.model_max_length)  # raises for anything but a number
        return tokenizer
    except MemoryError:
        raise  # no fault of the class: it must not be taken for one where memory is limited (try_model)
    except Exception as error:  # each tokenizer class fails in its own way
        refuse_tokenizer(source, error)


def write_tokenizer(source: ModelSource, out: Path, config: Any, tokenizer: Any) -> None:
    """Write a PreTrainedTokenizer and the generation config; check both."""
    import transformers

    longest = getattr(config, "max_position_embeddings", None)
    if longest and tokenizer.model_max_length > 1e9:  # transformers' way to say "not known"
        tokenizer.model_max_length = longest
    tokenizer.save_pretrained(out)
    clean_tokenizer_config(out / "tokenizer_config.json")
    if not source.gguf and (source.folder / "tokenizer.json").is_file():  # saved again it may read other texts
        shutil.copyfile(source.folder / "tokenizer.json", out / "tokenizer.json")
    if not source.gguf:
        if (source.folder / "generation_config.json").is_file():
            check_generation_config(source)
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


def refuse_tokenizer(source: ModelSource, error: Exception) -> NoReturn:
    """Raise `UserError` for a tokenizer that cannot be loaded, with what makes it loadable."""
    pieces = [name for name in VOCABULARIES if name.endswith(".model") and (source.folder / name).is_file()]
    if pieces and not (source.folder / "tokenizer.json").is_file():
        fail(
            f"its tokenizer is a SentencePiece file alone ({pieces[0]}), which cannot be read",
            "write its tokenizer.json once, in an environment with transformers and sentencepiece:"
            " AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
            at=source.label,
        )
    fail(
        f"its tokenizer cannot be loaded: {extract_first_line(error)}",
        "choose a model with a tokenizer.json",
        at=source.label,
    )


def clean_tokenizer_config(path: Path) -> None:
    """Drop what says how the tokenizer was loaded here, and code that is never run."""
    config = read_form(path, allow_open_object())
    for key in ("is_local", "local_files_only", "name_or_path", "auto_map"):
        config.pop(key, None)
    write_json(path, config)


def check_tokenizer(source: ModelSource, ours: Tokenizer, theirs: Any, vocabulary: int) -> None:
    """Raise `UserError` unless the written tokenizer gives the ids of transformers and of the source's own file.

    theirs: a PreTrainedTokenizer. vocabulary: rows of the embedding.
    """
    controls = [text for token in ours.control for text in (token, f"a{token}b", f" {token} \n{token}")]
    texts = [*HARD_TEXTS, *controls]
    readers = {"transformers": [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]}
    if not source.gguf and (source.folder / "tokenizer.json").is_file():
        import tokenizers

        check_tokenizer_file(source.folder / "tokenizer.json", source.label)
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
    # Control tokens never come out of a row: audit_data sets aside what holds one. Gemma 3 1B has one for images.
    written = {token: id_ for token, id_ in ours.backend.get_vocab().items() if token not in ours.control}
    if (largest := max(written.values())) >= vocabulary:
        fail(
            f"its tokenizer has id {largest}, its embedding only {vocabulary} rows",
            "the two do not belong together",
            at=source.label,
        )
    for id_ in ours.end_ids:
        ours.token(id_)  # raises where the tokenizer has no such token
