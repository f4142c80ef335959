"""The tokenizer of a GGUF file, built from the file's keys so that it gives the ids of llama.cpp.

transformers' converter loses what changes ids: most pre-tokenizers, words that no merge reaches
(`ignore_merges`), begin tokens that the file leaves to its pre-tokenizer, control tokens with signs
outside ASCII, user-defined tokens with spaces, and the space that SentencePiece puts before a text.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

from lib.core.cli import fail, report_progress
from lib.models.gguf_pretokenizers import PRE_TOKENIZERS, PreTokenizer

if TYPE_CHECKING:
    import tokenizers

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # values of `tokenizer.ggml.token_type`
ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
SENTENCEPIECE_IDS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}  # llama.cpp's, where the file names none
HINT = "use the safetensors of this model"


def load_gguf_tokenizer(metadata: dict[str, Any], label: str) -> Any:
    """Return the file's tokenizer as transformers' `PreTrainedTokenizerFast`.

    None means that transformers' own converter reads it rightly.

    metadata: the values of the file's keys. label: how messages name the file.
    Raises `UserError` when the tokenizer is of a kind that cannot be read as llama.cpp reads it, or broken.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gemma4":
        return None
    if kind not in ("gpt2", "llama"):
        fail(f"its tokenizer is of the kind {kind!r} (tokenizer.ggml.model), which cannot be read", HINT, at=label)
    tokens = read_tokens(metadata, label)
    roles = read_special_tokens(metadata, tokens, label)
    if kind == "gpt2":
        family = find_pre_tokenizer(metadata, label)
        backend, adds_bos = build_byte_level_bpe(metadata, tokens, family, label), family.adds_bos
    else:
        backend, adds_bos = build_sentencepiece_bpe(metadata, tokens, roles, label), True
    backend.add_tokens(list_whole_tokens(metadata, tokens, label))
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", adds_bos)
    if adds_bos and "bos_token" not in roles:
        fail("its tokenizer begins texts with a token that it does not name (bos_token_id)", HINT, at=label)
    return wrap_with_roles(backend, metadata, roles, adds_bos)


def read_array(metadata: dict[str, Any], name: str, length: int | None, label: str) -> list[Any]:
    """Return a list among the tokenizer's keys. Raises `UserError` when it is missing or of another length."""
    values = metadata.get(f"tokenizer.ggml.{name}")
    if values is None or length not in (None, len(values)):
        found = "none" if values is None else f"{len(values)} for {length} tokens"
        fail(f"its tokenizer is broken: tokenizer.ggml.{name}: {found}", HINT, at=label)
    return values


def read_tokens(metadata: dict[str, Any], label: str) -> list[str]:
    """Return texts of the tokens by id; llama.cpp, too, gives names to empty ones."""
    texts = read_array(metadata, "tokens", None, label)
    tokens = [token or f"[EMPTY_{id_}]" for id_, token in enumerate(texts)]
    token, count = Counter(tokens).most_common(1)[0]
    if count > 1:
        fail(f"its tokenizer is broken: the token {token!r} occurs {count} times", HINT, at=label)
    return tokens


def read_special_tokens(metadata: dict[str, Any], tokens: list[str], label: str) -> dict[str, str]:
    """Return texts of the special tokens by role, as transformers names the roles."""
    defaults = SENTENCEPIECE_IDS if metadata["tokenizer.ggml.model"] == "llama" else {}
    ids = {role: metadata.get(f"tokenizer.ggml.{key}", defaults.get(role)) for role, key in ROLES.items()}
    for role, id_ in ids.items():
        if id_ is not None and id_ >= len(tokens):
            fail(f"its tokenizer is broken: {role} {id_} of {len(tokens)} tokens", HINT, at=label)
    if ids["eos_token"] is None:
        fail("its tokenizer names no end token (tokenizer.ggml.eos_token_id)", HINT, at=label)
    return {role: tokens[id_] for role, id_ in ids.items() if id_ is not None}


def find_pre_tokenizer(metadata: dict[str, Any], label: str) -> PreTokenizer:
    """Look up the file's pre-tokenizer; a file without one gets llama.cpp's default, and a line says so."""
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name == "default":
        report_progress(
            f"{label}: names no pre-tokenizer (tokenizer.ggml.pre), as old files do: llama.cpp's default is used,"
            " which may split texts otherwise than in the training of the model"
        )
    if name not in PRE_TOKENIZERS:
        fail(f"its pre-tokenizer (tokenizer.ggml.pre) is {name!r}, which is unknown here", HINT, at=label)
    return PRE_TOKENIZERS[name]


def build_byte_level_bpe(
    metadata: dict[str, Any], tokens: list[str], family: PreTokenizer, label: str
) -> "tokenizers.Tokenizer":
    """Build a tokenizer with the merges of the file and a pre-tokenizer by its name."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    merges = read_merges(metadata, vocabulary, label)
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=family.ignore_merges))
    if family.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split_pieces(family.regexes)
    backend.decoder = decoders.ByteLevel()
    return backend


def read_merges(metadata: dict[str, Any], vocabulary: dict[str, int], label: str) -> list[tuple[str, str]]:
    """Return pairs of tokens that make a token; of any other the library `tokenizers` does not fail but crash."""
    merges = []
    for merge in read_array(metadata, "merges", None, label):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            fail(f"its tokenizer is broken: no tokens for the merge {merge!r}", HINT, at=label)
        merges.append((left, right))
    return merges


def split_pieces(regexes: tuple[str, ...]) -> Any:
    """Build a pre-tokenizer of Split alone: ONNX Runtime GenAI ignores others such as Digits."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in regexes]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build_sentencepiece_bpe(
    metadata: dict[str, Any], tokens: list[str], roles: dict[str, str], label: str
) -> "tokenizers.Tokenizer":
    """Build a tokenizer whose merges follow from the scores. A space comes before the text and behind control
    tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers.tokenization_utils_base import generate_merges

    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    scores = read_array(metadata, "scores", len(tokens), label)
    merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    model = models.BPE(vocabulary, merges, unk_token=roles["unk_token"], fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    prefix: list[Any] = [normalizers.Prepend("▁")]
    strip: list[Any] = [decoders.Strip(" ", left=1)]
    if not metadata.get("tokenizer.ggml.add_space_prefix", True):
        prefix, strip = [], []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*decoding, *strip])
    return backend


def list_whole_tokens(metadata: dict[str, Any], tokens: list[str], label: str) -> list["tokenizers.AddedToken"]:
    """Return tokens that are found in a text before anything else."""
    from tokenizers import AddedToken

    kinds = read_array(metadata, "token_type", len(tokens), label)
    name = metadata.get("general.name", "").lower()
    is_phi3 = "phi-3" in name or "phi3" in name  # which swallows spaces; no key says so, llama.cpp goes by the name
    keeps_spaces = {"<unk>", "<s>", "<|endoftext|>"} if is_phi3 else set(tokens)
    return [
        AddedToken(token, normalized=False, special=kind != USER_DEFINED, rstrip=token not in keeps_spaces)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def wrap_with_roles(
    backend: "tokenizers.Tokenizer", metadata: dict[str, Any], roles: dict[str, str], adds_bos: bool
) -> Any:
    """Wrap the tokenizer with the roles of its special tokens and the chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=adds_bos,
        add_eos_token=metadata.get("tokenizer.ggml.add_eos_token", False),
        **roles,
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer
