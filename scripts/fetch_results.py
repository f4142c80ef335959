"""Bring results from the storage of a run that ran elsewhere: what a person reads, some of it, or all.

The run itself calls it at its end (`--shown`). What is here with the size and time of the storage is not fetched again.
"""

import argparse
import os
from pathlib import Path

from lib.azure import blobs
from lib.core.cli import build_parser, fail, report_progress, run
from lib.provenance.manifests import STAMP

SHOWN = (
    "lineage.json",
    "report.html",
    "summary.json",
    "metrics.json",
    "plots/",
    "selection.json",
    "gate.json",
    "gate.passed",
)


def main(args: argparse.Namespace) -> None:
    if args.account:
        os.environ[blobs.ACCOUNT] = args.account
    below = SHOWN if args.shown else [name.rstrip("/") for name in args.only] or ("",)
    folder = blobs.place(args.storage)
    with blobs.explain_storage_errors(args.storage):
        found = {path: size for path, size in blobs.list_blobs(folder, below).items() if Path(path).name != STAMP}
        for name in () if args.shown else below:
            if not any(path.startswith(name) for path in found):
                hint = "give your profile's default-storage-prefix and the results folder, and what is in it"
                fail(f"there is no {name}" if name else "there is nothing", hint, at=args.storage)
        fetched = [path for path, size in found.items() if _bring(folder, path, size, args.results / path)]
    report_progress(f"fetch_results: {len(fetched)} of {len(found)} files were new; they are in {args.results}")


def _bring(folder: blobs.Place, path: str, size: int, target: Path) -> bool:
    """Fetch one file unless it is here already."""
    written = folder.container.get_blob_client(folder.name(path)).get_blob_properties().last_modified.timestamp()
    if target.is_file() and (target.stat().st_size, target.stat().st_mtime) == (size, written):
        return False
    blobs.download(folder, path, target)
    os.utime(target, (written, written))
    return True


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--storage", required=True, help="az://CONTAINER/PREFIX/results")
    arguments.add_argument("--results", type=Path, default=Path("results"), help="folder to write to")
    arguments.add_argument("--account", help=f"storage account; left out: {blobs.ACCOUNT}")
    which = arguments.add_mutually_exclusive_group()
    which.add_argument("--shown", action="store_true", help="report and numbers, without models")
    which.add_argument("--only", nargs="+", default=[], metavar="PATH", help="such as model, or runs/lora/adapter")
    run(arguments, main)
