"""What the audit reads in the texts of rows: how many tokens they have, and what the model will see of them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lib.data.label_words import WordHasher
from lib.data.row_values import CheckedRow, Reason
from lib.data.signatures import SignedTexts, Signer
from lib.data.template_inversion import InputReader
from lib.data.templates import Template, render_completion, render_prompt
from lib.data.token_counts import TokenCounter
from lib.data.tokenizer import Tokenizer, is_cut_between_tokens
from lib.data.truncation import shorten_values


class ReadTexts(NamedTuple):
    """Some rows as the model sees them.

    tokens: of each row, by its number, before truncation. set_aside: the reasons of rows that cannot be used.
    words: what a `WordHasher` gives of the others, for classification. signed: what finds the like of the others.
    """

    tokens: list[tuple[int, int]]
    set_aside: list[tuple[int, str]]
    words: NDArray[np.int32] | None
    signed: SignedTexts


class TextReader:
    """Reads the texts of rows; several processes can share the work."""

    def __init__(self, tokenizer: Tokenizer, template: Template, corpus: dict[str, Any], signer: Signer) -> None:
        self._tokenizer, self._template, self._corpus, self._signer = tokenizer, template, corpus, signer
        self._inputs, self._counter, self._words = InputReader(template), TokenCounter(tokenizer), WordHasher()

    def read(self, checked: Iterable[CheckedRow]) -> ReadTexts:
        """Count the tokens of usable rows, find those that are too long, and sign the others.

        As the leakage check reads them from the corpus: rows that truncation makes alike are alike.
        """
        rows = list(checked)
        inputs = [get_inputs(row, self._template) for row in rows]
        prompts = [render_prompt(self._template, values) for values in inputs]
        texts = [
            prompt + render_completion(self._template, get_target(row, self._template))
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        tokens, set_aside, words, seen = [], [], [], []
        for row, values, prompt, count in zip(rows, inputs, prompts, self._counter.count(texts), strict=True):
            tokens.append((row.number, count))
            text = self._read_one(row, values, prompt, count)
            if isinstance(text, Reason):
                set_aside.append((row.number, text.reason))
                continue
            seen.append(text)
            words.append("\n".join(values.values()))
        is_classified = self._template["task"] == "classification"
        return ReadTexts(tokens, set_aside, self._words.hash(words) if is_classified else None, self._signer.sign(seen))

    def _read_one(self, row: CheckedRow, values: dict[str, str], prompt: str, tokens: int) -> str | Reason:
        """Return what the model will see of a row's input, or why the row cannot be used."""
        if row.spans and not is_cut_between_tokens(self._tokenizer, prompt, row.spans):
            return explain_cut_token()
        if tokens > (longest := self._corpus["max_length"]):
            if (short := self._shorten(row, values)) is None:
                return explain_length(tokens, longest)
            prompt = render_prompt(self._template, short)
        return self._inputs.extract(prompt)

    def _shorten(self, row: CheckedRow, values: dict[str, str]) -> dict[str, str] | None:
        side = self._corpus["truncation"]
        if side == "reject":
            return None
        limits: dict[str, Any] = {
            "max_length": self._corpus["max_length"],
            "side": side,
            "count": self._counter.count_one,
        }
        return shorten_values(self._tokenizer, self._template, values, get_target(row, self._template), **limits)


def get_inputs(row: CheckedRow, template: Template) -> dict[str, str]:
    assert not isinstance(row.values, Reason)
    return {name: row.values[name] for name in template["columns"]}


def get_target(row: CheckedRow, template: Template) -> str:
    assert not isinstance(row.values, Reason)
    return row.values[template["target"]]


def explain_length(tokens: int, max_length: int) -> Reason:
    return Reason("too_long", f"{tokens} tokens, corpus.max_length is {max_length}")


def explain_cut_token() -> Reason:
    return Reason("conversation", "a supervised turn begins or ends inside a token")
