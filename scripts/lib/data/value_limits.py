"""How much of a row is read: the characters that can matter."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

Row = TypeVar("Row")

_BATCH, _BATCH_CHARACTERS = 1000, 500_000
_PIECE_MB, _PIECE_MB_EACH = 500, 12

CHARACTERS_PER_TOKEN = 128
"""Characters of a value that are read for each token of `corpus.max_length`.

The longest tokens of common vocabularies have as many (a run of 128 blanks or dashes in those of GPT-4, Llama 3, Qwen
and Phi-4); on average a token has 3 to 5 characters. So no row is refused or cut that would have fitted.
"""


def compute_max_characters(max_length: int) -> int:
    """Return how many characters of a value can matter to a row of `max_length` tokens."""
    return CHARACTERS_PER_TOKEN * max_length


def compute_piece_mb(path: Path) -> int:
    """Return the MB that reading a piece of a binary file may take beside what is there.

    With the libraries that is no more than data rules ask for (`resources.estimate_data_mb`).
    """
    return int(_PIECE_MB + _PIECE_MB_EACH * path.stat().st_size / 1e6)


def cut_value(text: str, max_length: int, side: str) -> str:
    """Return the part of a value that truncation may leave: its start (`side` right) or its end (left)."""
    most = compute_max_characters(max_length)
    if len(text) <= most:
        return text
    return (text[:most] if side == "right" else text[-most:]).strip()


def batch_by_size(rows: Iterable[Row], size: Callable[[Row], int]) -> Iterator[list[Row]]:
    """Yield rows in batches that a tokenizer takes at once: 1000 of them, or 500,000 characters and a row.

    A tokenizer takes some 230 bytes of memory for each character while it reads.
    """
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += size(row)
        if len(batch) == _BATCH or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
