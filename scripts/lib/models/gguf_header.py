"""The head of a GGUF file, walked through before a library reads it: each length must fit into the file.

A reader that trusts the lengths loops for ever over an array of 2^62 numbers in a file of 53 bytes.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import re
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from lib.cli import fail

# The largest models have 2 million values (three lists of a vocabulary, and its merges) and 10 MB of texts.
_MOST_VALUES = 8 << 20
_LARGEST_HEAD = 256 << 20
_MOST_DIMENSIONS = 4
_ELEMENTS_PER_BYTE = 8  # of the smallest quantized type some 5 fit into a byte
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of a number, by its type
_STRING, _ARRAY = 8, 9


def check_head(path: Path, label: str) -> None:
    """Raise `UserError` when lengths of a GGUF file do not fit into it, or a key or a tensor stands there twice."""
    size = path.stat().st_size
    if size < 24:
        _refuse(path, label, "it is too short")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            _Walk(content, size).walk()
        except (ValueError, struct.error, OverflowError) as error:
            _refuse(path, label, str(error))


def check_layers(metadata: Mapping[str, Any], tensors: Collection[str], path: Path, label: str) -> None:
    """Raise `UserError` unless the file holds tensors for as many layers as it says, and for one at least."""
    stated = metadata.get(f"{metadata.get('general.architecture')}.block_count")
    found = {match[1] for name in tensors if (match := re.match(r"blk\.(\d+)\.", name))}
    if type(stated) is not int or stated != len(found) or not found:
        what = f"{path.name} says that it has {stated!r:.20} layers (block_count), and has tensors of {len(found)}"
        fail(what, "fetch it again, or choose the safetensors of this model", at=label)


def _refuse(path: Path, label: str, what: str) -> NoReturn:
    fail(f"{path.name} is not a whole GGUF file: {what}", "fetch it again", at=label)


class _Walk:
    """A place in the head of a file, which goes on with what is read. Raises `ValueError` for what does not fit."""

    def __init__(self, content: mmap.mmap, size: int) -> None:
        self._content, self._size = content, size
        self._end = min(size, _LARGEST_HEAD)
        self._place, self._values = 8, 0
        if content[:4] != b"GGUF":
            raise ValueError("it begins with other signs")
        # As gguf's own reader tells them apart: a version is a small number.
        self._order = "<" if struct.unpack_from("<I", content, 4)[0] & 0xFFFF else ">"

    def walk(self) -> None:
        tensors, keys = self._number("Q"), self._number("Q")
        known: set[bytes] = set()
        for _ in range(self._fitting(keys)):
            self._unique("key", self._text(), known)
            self._skip_value(self._number("I"))
        known = set()
        for _ in range(self._fitting(tensors)):
            name = self._text()
            self._unique("tensor", name, known)
            dimensions = self._number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"tensor {name[:80]!r} has {dimensions} dimensions")
            shape = [self._number("Q") for _ in range(dimensions)]
            if math.prod(shape) > _ELEMENTS_PER_BYTE * self._size:
                raise ValueError(f"tensor {name[:80]!r} of shape {shape} is larger than the file")
            self._skip(4 + 8)  # type and offset

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._text()
        elif kind == _ARRAY:
            kind, count = self._number("I"), self._fitting(self._number("Q"))
            if kind == _STRING:
                for _ in range(count):
                    self._text()
            else:
                self._skip(count * self._size_of(kind))
        else:
            self._skip(self._size_of(kind))

    def _size_of(self, kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"it has values of the type {kind}")
        return _SIZES[kind]

    def _number(self, form: str) -> int:
        start = self._place
        self._skip(struct.calcsize(form))
        number: int = struct.unpack_from(self._order + form, self._content, start)[0]
        return number

    def _text(self) -> bytes:
        start = self._place + 8
        self._skip(self._number("Q"))
        return self._content[start : self._place]

    def _skip(self, size: int) -> None:
        if size > self._end - self._place:
            raise ValueError(f"a length of {size} at byte {self._place} leads behind its end")
        self._place += size

    def _fitting(self, count: int) -> int:
        self._values += count
        if count > self._end - self._place or self._values > _MOST_VALUES:
            raise ValueError(f"it counts {count} values at byte {self._place}")
        return count

    def _unique(self, what: str, name: bytes, known: set[bytes]) -> None:
        if name in known:
            raise ValueError(f"{what} {name[:80].decode('utf-8', 'replace')!r} stands there twice")
        known.add(name)
