"""The head of a GGUF file, its keys and the places of its tensors: each length must fit into the file.

The library's reader (gguf.GGUFReader) trusts the lengths, and loops for ever over an array of 2^62 numbers in a file of
53 bytes; for the keys of a large vocabulary it takes a minute, and this one a second.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import re
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib.core.cli import fail

# The largest models have 2 million values (three lists of a vocabulary, and its merges) and 10 MB of texts.
_MOST_VALUES = 8 << 20
_LARGEST_HEAD = 256 << 20
_MOST_DIMENSIONS = 4
# Letters of struct and numpy for the types of numbers, by their number in the file.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class Head(NamedTuple):
    """The values of a file's keys, and type (as gguf names it) and number of elements of each tensor."""

    keys: dict[str, Any]
    tensors: dict[str, tuple[str, int]]


def read_head(path: Path, label: str) -> Head:
    """Read the head of a GGUF file.

    Raises `UserError` when lengths do not fit into the file, or a key or a tensor is listed twice.
    """
    try:
        size = path.stat().st_size
        if size < 24:
            raise ValueError("it is too short")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content, size).read()
    except (ValueError, KeyError, struct.error) as error:
        fail(f"{path.name} is not a whole GGUF file: {error}", "fetch it again", at=label)


def check_layers(metadata: Mapping[str, Any], tensors: Collection[str], path: Path, label: str) -> None:
    """Raise `UserError` unless the file holds tensors for as many layers as it says, and for one at least."""
    stated = metadata.get(f"{metadata.get('general.architecture')}.block_count")
    found = {match[1] for name in tensors if (match := re.match(r"blk\.(\d+)\.", name))}
    if type(stated) is not int or stated != len(found) or not found:
        what = f"{path.name} says that it has {stated!r:.20} layers (block_count), and has tensors of {len(found)}"
        fail(what, "fetch it again, or choose the safetensors of this model", at=label)


class _Reader:
    """A place in the head of a file, which goes on with what is read. Raises `ValueError` for what does not fit."""

    def __init__(self, content: mmap.mmap, size: int) -> None:
        self._content, self._size = content, size
        self._end = min(size, _LARGEST_HEAD)
        self._place, self._values = 8, 0
        if content[:4] != b"GGUF":
            raise ValueError("it begins with other signs")
        # As gguf's own reader tells them apart: a version is a small number.
        self._order = "<" if struct.unpack_from("<I", content, 4)[0] & 0xFFFF else ">"

    def read(self) -> Head:
        tensors, keys = self._number("Q"), self._number("Q")
        values: dict[str, Any] = {}
        for _ in range(self._fitting(keys)):
            name = self._text()
            _check_new("key", name, values)
            values[name] = self._value(self._number("I"))
        found: dict[str, tuple[str, int]] = {}
        ends = [0]
        for _ in range(self._fitting(tensors)):
            name = self._text()
            _check_new("tensor", name, found)
            kind, elements, end = self._tensor(name)
            found[name] = kind, elements
            ends.append(end)
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r:.20}")
        if (end := -(-self._place // alignment) * alignment + max(ends)) > self._size and found:
            raise ValueError(f"it has {self._size} bytes, its tensors end at {end}")
        return Head(values, found)

    def _tensor(self, name: str) -> tuple[str, int, int]:
        """Return type and number of elements of a tensor, and where it ends among the data."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        dimensions = self._number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name[:80]!r} has {dimensions} dimensions")
        elements = math.prod(self._number("Q") for _ in range(dimensions))
        kind, offset = GGMLQuantizationType(self._number("I")), self._number("Q")
        block, bytes_of_block = GGML_QUANT_SIZES[kind]
        return kind.name, elements, offset + elements // block * bytes_of_block

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            kind, count = self._number("I"), self._fitting(self._number("Q"))
            if kind == _STRING:
                return [self._text() for _ in range(count)]
            import numpy as np

            form = np.dtype(self._order + _form(kind))
            return np.frombuffer(self._take(count * form.itemsize), form).tolist()
        return self._number(_form(kind))

    def _number(self, form: str) -> Any:
        return struct.unpack(self._order + form, self._take(struct.calcsize(self._order + form)))[0]

    def _text(self) -> str:
        return self._take(self._number("Q")).decode("utf-8")

    def _take(self, size: int) -> bytes:
        start = self._place
        if size > self._end - start:
            raise ValueError(f"a length of {size} at byte {start} leads behind its end")
        self._place += size
        return self._content[start : self._place]

    def _fitting(self, count: int) -> int:
        self._values += count
        if count > self._end - self._place or self._values > _MOST_VALUES:
            raise ValueError(f"it counts {count} values at byte {self._place}")
        return count


def _form(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"it has values of the type {kind}")
    return _NUMBERS[kind]


def _check_new(what: str, name: str, known: Collection[str]) -> None:
    if name in known:
        raise ValueError(f"{what} {name[:80]!r} is listed twice")
