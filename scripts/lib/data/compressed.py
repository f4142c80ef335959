"""Rows of gzip'd files: unpacked beside the temporary files of this machine, and read there like any other file."""

import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from lib.core.cli import fail, tell_by_name

T = TypeVar("T")
_PIECE = 1 << 20
# Rows shrink to a fifth or a tenth of their size; what claims to be a thousand times its own size was made to hurt.
_MOST_RATIO, _ALWAYS = 100, 100_000_000


def read_gzip(path: Path, read: Callable[[Path], Iterator[T]]) -> Iterator[T]:
    """Yield what `read` yields of the file inside. Raises `UserError`, by the name of `path`, while reading too."""
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder, path.stem)
        _unpack(path, inside)
        with tell_by_name(inside, path):
            yield from read(inside)


def _unpack(path: Path, inside: Path) -> None:
    most = _ALWAYS + _MOST_RATIO * path.stat().st_size
    try:
        with gzip.open(path) as packed, open(inside, "wb") as file:
            while piece := packed.read(_PIECE):
                if file.tell() + len(piece) > most:
                    fail(f"unpacks to more than {most / 1e6:,.0f} MB", "unpack it, and name the file inside", at=path)
                file.write(piece)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        fail(f"not a whole gzip file: {error}", "write or fetch it again", at=path)
