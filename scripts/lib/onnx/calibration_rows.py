"""The training rows by which `algo_config: gptq` and `auto_round` round weights."""

import random
from collections.abc import Sequence
from typing import Any

from lib.data.tokenizer import Tokenizer, encode_pairs


def sample_calibration_rows(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Draw at most `count` of the training rows by the seed."""
    return random.Random(seed).sample(list(rows), min(count, len(rows)))


def encode_alone(tokenizer: Tokenizer, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Return the ids of each row, prompt and answer, as a sequence of its own."""
    return [
        prompt + answer
        for prompt, answer in encode_pairs(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    ]


def pack_ids(rows: Sequence[list[int]], length: int) -> list[list[int]]:
    """Put the ids of rows one behind the other and cut them into sequences of `length` ids.

    A shorter rest is left off.
    """
    ids = [id_ for row in rows for id_ in row]
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
