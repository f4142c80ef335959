"""Fetch configuration and tokenizer of the base model: all of it that the rows are examined and rendered with.

A folder or repository is asked for its small files alone; a GGUF file holds them and is read whole, its weights are
not. No code of a model is run and no pickle is opened.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, parse_settings, run
from lib.models.base_cache import find_entry, publish_imported
from lib.models.import_checkpoint import import_tokenizer
from lib.models.import_gguf import import_gguf_tokenizer
from lib.models.locate_model import Download, describe_content, drop_stated_hash, locate_model
from lib.provenance.manifests import write_manifest


def main(args: argparse.Namespace) -> None:
    source, versions = args.settings["source"], args.settings["versions"]
    entry = find_entry(args.cache, "tokenizer", partial(describe_content, source, args.path), versions, Path(__file__))
    _, files = publish_imported(args.output, entry, partial(build, source, args.path, args.cache))
    settings = {**args.settings, "source": drop_stated_hash(source)}
    write_manifest(args.output, inputs={}, settings=settings, known=files)


def build(source: dict[str, Any], path: Path | None, cache: Path | None, out: Path) -> dict[str, Any]:
    """Write configuration and tokenizer into the folder `out`; there are no facts to tell about them."""
    with tempfile.TemporaryDirectory() as scratch:
        located = locate_model(source, path, Download(Path(scratch), cache, weights=False))
        (import_gguf_tokenizer if located.gguf else import_tokenizer)(located, out)
    return {}


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="source, versions")
    arguments.add_argument("--path", type=Path, help="where the folder or .gguf file of source.path is")
    arguments.add_argument("--cache", type=Path, help="a folder that keeps what was fetched and imported, work/base")
    arguments.add_argument("--output", type=Path, required=True, help="the folder to write")
    run(arguments, main)
