"""How llama.cpp itself reads the tokenizers of GGUF files: `make test-gguf`.

Writes `golden/gguf.json`, which test_gguf.py compares, and compares thousands of random texts by every
name of a pre-tokenizer. What llama.cpp only approximates is left out (`is_approximated`).
"""

import ctypes
import json
import random
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as library
from tokenizers.decoders import ByteLevel

from lib.models.gguf_pretokenizers import PRE_TOKENIZERS
from lib.models.gguf_tokenizer import load_gguf_tokenizer, split_pieces
from support.gguf_files import END, USER, VOCABULARIES, byte_level, write_vocabulary
from support.paths import GOLDEN

TABLE = GOLDEN / "gguf.json"
TEXTS = [
    *("A list:\n\n1. one", "Total:  10", "x  24\n\n7", "a 1 b 22 333 4444", "12345678", "3.14 1,000.50", "A1b2"),
    *(
        "½Ⅷ ٣ ² १२",
        "1'2",
        "don't DON'T we'Ve",
        "it'sx",
        "'s'S 'll'LL",
        " two  spaces  ",
        "trail \n",
        "\n\n\n",
        " \n \n x",
    ),
    *("\t\ttab\tx", "a\r\nb\r\n\r\nc", "a\r\rb", "n\u00a0b\u2003 x", "\u3000全", "camelCase HTTPServer", "__a_b"),
    *("a+b==c != d", "$5 €10 £", "#tag @user", "</b>//x/\\y", "!?... --- …", "(a)[b]{c}", '"You "', "`c` ~x^2|y"),
    *("日本語テスト中文", "한국어 글", "ไทย ខ្មែរ", "हिन्दी", "عربى", "Привет, МИР", "e\u0301 n\u0303", "\u0301x"),
    *("👩\u200d👧🏳️\u200d🌈🙂", "a🙂 1", "\u200b\ufeff", "\0\a\x7f", "\u0085\u2028", "«q» “q” ‘q’", "。，！？；"),
    *("a...b. c", "x=1;\n\ty=2", "a.b/c?d=e&f", "1 234", "99%\n", "...\n\n...", "the  123abc", "𝐀𠀀", "ﬁ ǅ ʰ々〇"),
]
ID_TEXTS = [
    "hello  hello 12",
    f"a{END}b{USER} c",
    f" {END} \n{END} hello",
    "<|im_start|>    <tool> x     y",
    "",
    "  ",
    "héllo",
]
ID_TEXTS += ["the world", " the world", "<s>hello</s>\n the<|end|>  hello", "<s> <s>", "x    y", "é🙂\n\n", "<unk>a"]
CASED = ("tekken", "gpt-4o", "kanana2", "llama4", "minimax-m2", "talkie")


class LlamaCpp:
    """The vocabulary of a GGUF file in llama.cpp."""

    def __init__(self, path: Path) -> None:
        options = library.llama_model_default_params()
        options.vocab_only = True
        self.model = library.llama_model_load_from_file(str(path).encode(), options)
        assert self.model, "llama.cpp cannot load it"
        self.vocabulary = library.llama_model_get_vocab(self.model)
        self.adds_bos = bool(library.llama_vocab_get_add_bos(self.vocabulary))

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        ids = (library.llama_token * (2 * len(data) + 16))()
        count = library.llama_tokenize(self.vocabulary, data, len(data), ids, len(ids), False, True)
        return list(ids[:count])


def is_approximated(name: str, text: str) -> bool:
    """Whether llama.cpp's own regular expression is another one than that of the original tokenizer.json.

    It knows capitals of ASCII alone, forgets combining marks, has no spaces in the ranges of ideographs, and
    behind the control tokens of Phi-3 it strips spaces of ASCII alone.
    """
    foreign = [sign for sign in text if ord(sign) > 127]
    if name in CASED:
        return any(unicodedata.category(sign) in ("Lu", "Ll", "Lt", "Mn", "Mc", "Me") for sign in foreign)
    return name in ("deepseek-llm", "deepseek-coder", "Phi-3") and any(sign.isspace() for sign in foreign)


def golden(folder: Path) -> dict[str, Any]:
    """What llama.cpp says: begin tokens it adds, words it keeps whole, pieces of each text, ids."""
    pieces = {name: pieces_of(folder, name) for name in PRE_TOKENIZERS}
    families: dict[str, list[str]] = {}
    for name, by_text in pieces.items():
        families.setdefault(json.dumps(by_text), []).append(name)
    probes = {name: byte_level(name, ["h e"], ["hello"]) for name in PRE_TOKENIZERS}
    adds_bos = [name for name, keys in probes.items() if asked(folder, keys, lambda file: file.adds_bos)]
    whole = [name for name, keys in probes.items() if asked(folder, keys, lambda file: len(file.encode("hello")) == 1)]
    return {
        "adds_bos": adds_bos,
        "ignores_merges": whole,
        "families": {names[0]: " ".join(names) for names in families.values()},
        "splits": {text: grouped({names[0]: pieces[names[0]][text] for names in families.values()}) for text in TEXTS},
        "ids": {
            name: asked(folder, keys, lambda file: {text: file.encode(text) for text in ID_TEXTS})
            for name, keys in VOCABULARIES.items()
        },
    }


def asked(folder: Path, keys: dict[str, Any], question: Callable[[LlamaCpp], Any]) -> Any:
    """Ask llama.cpp about a vocabulary."""
    file = LlamaCpp(write_vocabulary(folder / "x.gguf", keys))
    answer = question(file)
    library.llama_model_free(file.model)
    return answer


def pieces_of(folder: Path, name: str) -> dict[str, list[str] | None]:
    """Pieces of each text: the tokens, where merges make one of any part of a text."""
    keys = byte_level(name, all_merges())
    tokens = keys["tokenizer.ggml.tokens"]
    ids = asked(folder, keys, lambda file: {text: file.encode(text) for text in TEXTS})
    return {
        text: None if is_approximated(name, text) else [ByteLevel().decode([tokens[id_]]) for id_ in ids[text]]
        for text in TEXTS
    }


def grouped(by_name: dict[str, list[str] | None]) -> dict[str, list[str]]:
    """The different splits of one text by the names that split so."""
    names: dict[str, list[str]] = {}
    for name, pieces in by_name.items():
        if pieces is not None:
            names.setdefault(json.dumps(pieces), []).append(name)
    return {" ".join(group): json.loads(pieces) for pieces, group in names.items()}


@cache
def all_merges() -> list[str]:
    merges: dict[str, None] = {}
    for text in TEXTS:
        letters = "".join(split_pieces(()).pre_tokenize_str(text)[0][0])
        cuts = range(len(letters) + 1)
        for start in cuts:
            for middle in cuts[start + 1 :]:
                merges |= dict.fromkeys(f"{letters[start:middle]} {letters[middle:end]}" for end in cuts[middle + 1 :])
    return list(merges)


def random_texts(count: int, seed: int, *others: str) -> list[str]:
    """Parts of the texts, other parts, and signs of any script, in any order."""
    draw = random.Random(seed)
    parts = [part for text in TEXTS for part in (text, *text.split(" "), *text)] + [" ", "  ", "\n", *others]
    signs = [chr(code) for start, end in ((32, 0x3100), (0x1F300, 0x1F6FF)) for code in range(start, end)]
    return [
        "".join(draw.choice(parts if draw.random() < 0.8 else signs) for _ in range(draw.randint(1, 10)))
        for _ in range(count)
    ]


def trained_merges() -> list[str]:
    """Merges that pass over every border: spaces, digits, signs."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.train_from_iterator(random_texts(3000, 1), trainers.BpeTrainer(vocab_size=5000, show_progress=False))
    return [" ".join(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]


def differing(folder: Path, name: str, keys: dict[str, Any], texts: list[str]) -> list[str]:
    """Texts whose ids differ between llama.cpp and this project."""
    tokenizer = load_gguf_tokenizer(keys, name).backend_tokenizer
    normalize = tokenizer.normalizer.normalize_str if "tokenizer.ggml.merges" in keys and tokenizer.normalizer else str
    compared = [text for text in texts if not is_approximated(name, text)]
    ours = [encoding.ids for encoding in tokenizer.encode_batch(compared, add_special_tokens=False)]
    theirs = asked(folder, keys, lambda file: [file.encode(normalize(text)) for text in compared])
    return [text for text, one, other in zip(compared, ours, theirs, strict=True) if one != other]


@library.llama_log_callback
def silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def as_text(value: dict[str, dict[str, Any]]) -> str:
    """JSON with one line for each name or text, so that a change shows as a line."""
    parts = []
    for key, entries in value.items():
        items = entries.items() if isinstance(entries, dict) else ()
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in items)
        parts.append(f" {json.dumps(key)}: " + (f"{{\n{lines}\n }}" if items else json.dumps(entries)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    library.llama_log_set(silent, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        TABLE.write_text(as_text(golden(folder)))
        merges = trained_merges()
        texts = random_texts(3000, 0, END, USER, "<|im_start|>", "    ", "<tool>", "</s>", "<|end|>")
        trained = {pre: byte_level(pre, merges, ["hello", "camelC"]) for pre in PRE_TOKENIZERS}
        found = {name: differing(folder, name, keys, texts) for name, keys in (trained | VOCABULARIES).items()}
    for name, differences in found.items():
        print(f"{name}: {len(differences)} of {len(texts)} random texts differ", *map(ascii, differences[:2]))
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
