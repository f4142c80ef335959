"""Character 5-grams of texts as hashes, and bit maps of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Hashes = NDArray[np.uint64]

_SHINGLE = 5  # characters
TEXT_BITS = 56  # of a shingle's hash; the other 8 say of which text it is
MOST_TEXTS = 256  # hashed at once
_CHARACTER_FACTORS = np.random.default_rng(5).integers(0, 1 << 63, size=_SHINGLE, dtype=np.uint64) * 2 + 1
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # the odd number of splitmix64


def hash_shingles(texts: Sequence[str]) -> tuple[Hashes, Numbers]:
    """Return the distinct 5-grams of each text as sorted hashes of 56 bits, text after text, and where each begins.

    A shorter text is one shingle. At most 256 texts.
    """
    padded = [text.ljust(_SHINGLE, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(text) for text in padded])
    hashes = np.zeros(len(codes) - _SHINGLE + 1, dtype=np.uint64)
    for place, factor in enumerate(_CHARACTER_FACTORS):
        hashes += codes[place : place + len(hashes)] * factor
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    hashes >>= np.uint64(64 - TEXT_BITS)
    hashes |= owner[: len(hashes)] << np.uint64(TEXT_BITS)
    hashes = hashes[owner[: len(hashes)] == owner[_SHINGLE - 1 :]]
    hashes.sort()
    hashes = hashes[np.append(True, hashes[1:] != hashes[:-1])]
    starts = np.searchsorted(hashes, np.arange(len(texts), dtype=np.uint64) << np.uint64(TEXT_BITS))
    return hashes & np.uint64((1 << TEXT_BITS) - 1), starts


def mark_odd_numbers(numbers: Numbers, bits: int) -> NDArray[np.uint8]:
    """Return a bit map: for each number below `bits` whether it occurs an odd number of times.

    The maps of two sets differ in as many bits as the sets differ in members, at most.
    """
    odd = np.bincount(numbers, minlength=bits).astype(np.uint8) & 1
    return np.packbits(odd, bitorder="little")
