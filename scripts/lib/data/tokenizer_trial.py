"""Foreign tokenizers: read in a child with limits before this process opens them.

Normalizers, patterns and decoders of a `tokenizer.json` are a program: they can multiply a text, search without end, or
abort the process from within native code. What a child has read without trouble is taken for harmless.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lib.core.cli import extract_first_line
from lib.core.files import hash_once
from lib.core.limits import FaultError, Limits, run_limited

# One of 262,144 tokens and 25 MB, with 6,000 control tokens, is loaded and reads all texts in 3 s, with 300 MB.
LIMITS = Limits(seconds=120, megabytes=2048)
TRIED_TEXTS = 100  # as many of the texts at hand are read in the child
_LONGEST_TEXT = 10_000  # characters of each
_MOST_IDS = 1 << 24
_hash_file = hash_once()
# Byte-level tokenizers make one token of a byte at most; normalizers that spell signs out (NFKD) some more.
_MOST_TOKENS_PER_BYTE = 32

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
    "\"You (were) [all] {here} <so> 'twas “quoted” ¡hola! $money +plus =is *star",
    "",
)
# Long runs of one kind of sign, then another: patterns with nested repetition try every way to divide them.
_RUNS = tuple(sign * 300 + end for sign in ("a", "A", "1", " ", "\n", "é", "語", "-", "a ") for end in ("", "!", "a"))


def join_values(row: Mapping[str, Any]) -> str:
    """Return what a child reads of a row: the beginning of its values."""
    return "\n".join(map(str, row.values()))[:_LONGEST_TEXT]


def check_tokenizer_file(path: Path, label: str | Path, texts: Sequence[str] = (), limits: Limits = LIMITS) -> None:
    """Have a child read a `tokenizer.json` and, with it, hard texts and the first of `texts`.

    Raises `UserError` when the library cannot read it, when it crashes, does not come to an end, or needs more memory
    than real ones do. The same file and texts are read once in a process.
    """
    sample = [text[:_LONGEST_TEXT] for text in islice(texts, TRIED_TEXTS)]
    hint = "choose a model whose tokenizer.json other programs read, too"
    run_limited(
        _read_here,
        str(path),
        _hash_file(path),
        sample,
        limits=limits,
        what="its tokenizer (tokenizer.json)",
        hint=hint,
        at=label,
    )


def _read_here(path: str, _digest: str, texts: list[str]) -> None:
    """Read texts in this process: for the child alone."""
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # of the library, without a class of its own
        raise FaultError(f"cannot be read: {extract_first_line(error)}") from None
    backend.no_padding()
    backend.no_truncation()
    ids = backend.get_vocab().values()
    if not ids or max(ids) >= _MOST_IDS:
        raise FaultError(f"has a token with the id {max(ids)}" if ids else "has no tokens")
    control = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    search = re.compile("|".join(map(re.escape, control)) or r"(?!)").search
    around = [text for token in control[:TRIED_TEXTS] for text in (token, f"a{token}b", f" {token} \n{token}")]
    backend.encode("a", add_special_tokens=True)
    for text in [*HARD_TEXTS, *_RUNS, *around, *texts]:
        search(text)
        found = backend.encode(text, add_special_tokens=False).ids
        if len(found) > _MOST_TOKENS_PER_BYTE * (len(text.encode()) + 1):
            raise FaultError(f"makes {len(found)} tokens of a text of {len(text)} characters")
        backend.decode(found, skip_special_tokens=False)
