"""The training rows that `algo_config: auto_round` learns the rounding on."""

import random
from collections.abc import Sequence
from typing import Any

from lib.data.tokenizer import Tokenizer, encode_pairs


def sample_calibration_rows(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Draw at most `count` of the training rows by the seed."""
    return random.Random(seed).sample(list(rows), min(count, len(rows)))


def pack_ids(tokenizer: Tokenizer, rows: Sequence[dict[str, Any]], length: int) -> list[list[int]]:
    """Put prompts with their answers one behind the other and cut them into sequences of `length` ids.

    A shorter rest is left off.
    """
    pairs = encode_pairs(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    ids = [id_ for prompt, answer in pairs for id_ in prompt + answer]
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
