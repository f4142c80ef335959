"""Rows of Parquet files, in pieces of bounded memory.

A file of some KB can hold a value of some GB: its pages are compressed, what repeats is stored once. So the sizes that
the file states are looked at first, and then, since it may state anything, each piece is read under a limit of memory.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.core.cli import extract_first_line, fail
from lib.core.limits import limit_memory_within
from lib.data.value_limits import compute_piece_mb

MOST_BYTES = 64_000_000  # of a value, on average over the values of a column in a row group
_ROWS, _PIECE = 1000, 32_000_000  # rows and stated bytes that are in memory at a time
_HINT = "write it with smaller values and row groups, without columns of files or images"


def read_parquet(path: Path) -> tuple[Iterator[dict[str, Any]], Mapping[str, Any]]:
    """Return the rows, and the features that `datasets` noted. Raises `UserError`, while reading too."""
    # Arrow's own allocator reserves 1 GB when it is loaded, and a limit would take that for memory in use.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    import pyarrow.parquet

    with _explain_errors(path):
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            twice = next(name for place, name in enumerate(names) if name in names[:place])
            raise ValueError(f"the column {twice!r} occurs twice")
        features = _dataset_features(file.schema_arrow.metadata or {})
        sizes = [_row_bytes(file.metadata.row_group(number), path) for number in range(file.num_row_groups)]
    return _rows(file, sizes, path), features


def _row_bytes(group: Any, path: Path) -> float:
    """Return the stated bytes of a row of a row group, on average. Raises `UserError` for a value that is too large."""
    total = 0.0
    for column in map(group.column, range(group.num_columns)):
        each = column.total_uncompressed_size / max(1, column.num_values)
        if each > MOST_BYTES:
            what = (
                f"a value of column {column.path_in_schema!r} has {each / 1e6:,.0f} MB, at most {MOST_BYTES / 1e6:.0f}"
            )
            fail(f"{what} are read", _HINT, at=path)
        total += column.total_uncompressed_size
    return total / max(1, group.num_rows)


def _rows(file: Any, sizes: list[float], path: Path) -> Iterator[dict[str, Any]]:
    most_mb = compute_piece_mb(path)
    first = 1
    with file, _explain_errors(path):
        for group, each in enumerate(sizes):
            rows = max(1, min(_ROWS, int(_PIECE / max(1, each))))
            batches = file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)
            while True:
                try:
                    with limit_memory_within(most_mb):
                        batch = next(batches, None)
                        piece = batch.to_pylist() if batch is not None else None
                except MemoryError:
                    last = first + rows - 1
                    what = f"rows {first} to {last} take more than {most_mb:,.0f} MB of memory"
                    fail(what, _HINT, at=path, line=first)
                if piece is None:
                    break
                first += len(piece)
                yield from piece


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        fail(f"not Parquet: {extract_first_line(error).rstrip('.')}", "write the file again", at=path)


def _dataset_features(metadata: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    """Return what `datasets` wrote into the schema of its file, the names of labels above all."""
    if b"huggingface" not in metadata:
        return {}
    from datasets import Features

    return Features.from_dict(json.loads(metadata[b"huggingface"])["info"]["features"])
