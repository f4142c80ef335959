"""How byte-level BPE tokenizers of GGUF files split texts, by the name in `tokenizer.ggml.pre`.

A GGUF file holds vocabulary and merges, but only the name of its pre-tokenizer. What a name means
stands in llama.cpp: `llm_tokenizer_bpe` and `llama_vocab::impl::load` in src/llama-vocab.cpp. Where
llama.cpp also names the original regular expression of tokenizer.json, that one stands here, since
llama.cpp's own knows upper and lower case of ASCII letters only. tests/gguf_against_llama_cpp.py
compares every name with llama.cpp.

A name that is not here is refused. Left out are splits that llama.cpp approximates or writes as code
(afmoe, cohere2moe, kimi-k2, laguna, superbpe, tiny_aya, youtu), tokenizers that are not byte-level
(gemma4, sarvam-moe, whitespace), encoders (jina-*, modern-bert, roberta-bpe, granite-embed-*), and
splits of models alone that transformers does not load from GGUF (chameleon, exaone-moe, jais-2,
spark2_5, ufakzeka).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """What the name of a pre-tokenizer says beside vocabulary and merges.

    regexes: each splits the pieces of the one before; matches and what lies between them are pieces.
    ignore_merges: a piece that is a token stays one, whatever the merges say.
    adds_bos: whether texts begin with the begin token where the file does not say.
    nfc: texts are normalized to NFC first. llama.cpp does not, but the tokenizers that the models were
    trained with do (transformers' Qwen2Tokenizer, Qwen3_5Tokenizer, CohereTokenizer, GPTNeoXTokenizer).
    """

    regexes: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    nfc: bool = False


CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
IDEOGRAPHS = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
IDEOGRAPHS_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
CASED_LETTERS = (
    "A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)


def join(*alternatives: str) -> str:
    return "|".join(alternatives)


def build_cased_word(suffix: str) -> str:
    """Return the pattern of words that end before a capital behind a small letter: `camelCase` is two."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return join(f"{start}{UPPER}*{LOWER}+{suffix}", f"{start}{UPPER}+{LOWER}*{suffix}")


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = join(CONTRACTION, WORD, r"\p{N}{1,3}", SIGNS, SPACES)
QWEN2 = join(CONTRACTION, WORD, r"\p{N}", SIGNS, SPACES)
QWEN35 = join(CONTRACTION, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", SPACES)
TEKKEN = join(build_cased_word(""), r"\p{N}", SIGNS_AND_SLASHES, SPACES)
GPT4O = join(build_cased_word(CONTRACTION + "?"), r"\p{N}{1,3}", SIGNS_AND_SLASHES, SPACES)
SEED_CODER = join(CONTRACTION, WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", SPACES)
DEEPSEEK3 = join(
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+[\r\n]*",
    SPACES,
)
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{CASED_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    IDEOGRAPHS_AND_HANGUL,
    r"\p{N}+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", IDEOGRAPHS_AND_HANGUL, r"\p{N}")
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")
# Files from before the key: what llama.cpp then uses, with a warning that the model may be the worse for it.
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

_FAMILIES = {
    "default": PreTokenizer(DEFAULT),
    "gpt-2 phi-2 a.x-4.0 exaone4 gigachat granite-docling jais mellum trillion": PreTokenizer((GPT2,)),
    "mpt olmo": PreTokenizer((GPT2,), nfc=True),
    "smollm starcoder codeshell exaone mellum2 minerva-7b refact": PreTokenizer((r"\p{N}", GPT2)),
    "command-r": PreTokenizer((r"\p{N}", GPT2), nfc=True),
    "falcon": PreTokenizer(FALCON),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 lfm2 midm-2.0 pixtral": PreTokenizer(
        (LLAMA3,), ignore_merges=True, adds_bos=True
    ),
    "glm4 glm5": PreTokenizer((LLAMA3,), ignore_merges=True),
    "chatglm-bpe dbrx smaug-bpe": PreTokenizer((LLAMA3,)),
    "qwen2 deepseek-r1-qwen": PreTokenizer((QWEN2,), nfc=True),
    "bailingmoe bailingmoe2 f2llmv2 grok-2 hunyuan kormo llada-moe megrez solar-open stablelm2": PreTokenizer((QWEN2,)),
    "qwen35": PreTokenizer((QWEN35,), nfc=True),
    "tekken": PreTokenizer((TEKKEN,), ignore_merges=True, adds_bos=True),
    "gpt-4o kanana2 llama4 minimax-m2 talkie": PreTokenizer((GPT4O,)),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", LLAMA3), ignore_merges=True),
    "seed-coder": PreTokenizer((SEED_CODER,)),
    "deepseek-llm": PreTokenizer(DEEPSEEK_LLM),
    "deepseek-coder": PreTokenizer(DEEPSEEK_CODER),
    "deepseek-v3 hunyuan-dense hy_v4 joyai-llm": PreTokenizer((r"\p{N}{1,3}", IDEOGRAPHS, DEEPSEEK3)),
    "bloom gpt3-finnish poro-chat": PreTokenizer((BLOOM,)),
    "viking": PreTokenizer((BLOOM, r"\p{N}")),
}
PRE_TOKENIZERS = {name: family for names, family in _FAMILIES.items() for name in names.split()}
