r"""How many tokens texts have, with each distinct word tokenized once: that is a fifth of the work.

A tokenizer that splits texts before every lone space (one with no other white space beside it) reads what lies between
two of them by itself, so the counts of these pieces add up to that of the text. The expressions here do so: none of
their parts goes on over a lone space, since what may follow the first sign of a match is letters, digits or signs, or
white space behind white space; and a part that looks ahead (`\s+(?!\S)`) looks at white space, which neither begins nor
ends a piece but for the lone space. Digits and control tokens that are split off first leave a space alone at most,
and then in the piece as in the text. NFC composes nothing with a space. Other tokenizers read whole texts.
"""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lib.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = (
    # GPT-2 and many after it, Llama 3, Qwen 2 to 3
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS_AND_SPACES}",
    rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SIGNS_AND_SPACES}",
)
_MOST_KNOWN = 200_000  # pieces, some 150 bytes each
_LONGEST_KNOWN = 32  # characters: a longer one will hardly come again, as a text in a script without spaces
_UNEVEN = re.compile(r"\s\s|\A\s|\s\Z")
_LONE_SPACE = re.compile(r"(?<=\S) (?=\S)")


class TokenCounter:
    """Counts the tokens of texts, and remembers words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._adds_up = is_split_at_lone_spaces(tokenizer.backend)
        self._known: dict[str, int] = {}  # pieces behind a lone space

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return of each text how many ids the tokenizer gives for it."""
        cut = [_cut(text) if self._adds_up else [text] for text in texts]
        learned = self._learn(cut)
        firsts = dict.fromkeys(own[0] for own in cut)
        counts = dict(zip(firsts, self._count_each(list(firsts)), strict=True))
        found = [counts[first] + sum(map(self._known.__getitem__, later)) for first, *later in cut]
        for piece in learned:
            if len(piece) > _LONGEST_KNOWN:
                del self._known[piece]
        return found

    def count_one(self, text: str) -> int:
        return self.count([text])[0]

    def _learn(self, pieces: Sequence[list[str]]) -> list[str]:
        """Count the tokens of the pieces that are not known, and return these."""
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        # One by one: to take the keys of a dictionary off a set, Python goes through all keys.
        new = [piece for piece in set().union(*(own[1:] for own in pieces)) if piece not in self._known]
        self._known.update(zip(new, self._count_each([" " + piece for piece in new]), strict=True))
        return new

    def _count_each(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._tokenizer.encode_batch(texts)]


def _cut(text: str) -> list[str]:
    """Return what lies between the lone spaces of a text."""
    return _LONE_SPACE.split(text) if _UNEVEN.search(text) else text.split(" ")


def is_split_at_lone_spaces(backend: "tokenizers.Tokenizer") -> bool:
    """Return whether a tokenizer is known to split texts before every lone space."""
    from tokenizers.models import BPE

    if not isinstance(backend.model, BPE) or backend.model.dropout or backend.pre_tokenizer is None:
        return False
    if backend.normalizer is not None and json.loads(backend.normalizer.__getstate__()) != {"type": "NFC"}:
        return False
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word or re.search(r"\s", token.content) for token in added):
        return False
    split = json.loads(backend.pre_tokenizer.__getstate__())
    steps = split["pretokenizers"] if split["type"] == "Sequence" else [split]
    return all(_splits_words(step) or _splits_less(step) for step in steps) and any(map(_splits_words, steps))


def _splits_words(step: dict[str, Any]) -> bool:
    """Return whether a step splits before lone spaces."""
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"]) and not step["add_prefix_space"]
    return _isolates(step, _WORDS)


def _splits_less(step: dict[str, Any]) -> bool:
    """Return whether a step splits digits, or nothing."""
    if step["type"] == "ByteLevel":
        return not (step["use_regex"] or step["add_prefix_space"])
    return step["type"] == "Digits" or _isolates(step, (r"\p{N}",))


def _isolates(step: dict[str, Any], patterns: Sequence[str]) -> bool:
    form = {"type": "Split", "behavior": "Isolated", "invert": False}
    return any(step == {**form, "pattern": {"Regex": pattern}} for pattern in patterns)
