"""Put adapter and merged model of the selected run where they stay when those of all runs are dropped."""

import argparse
from pathlib import Path

from lib.core.cli import build_parser, report_progress, run
from lib.core.files import publish_directory
from lib.core.layout import add_results_argument
from lib.data.corpus import load_template
from lib.data.trained_chat_template import CHAT_TEMPLATE, render_trained_chat_template
from lib.evaluation.selection import load_selection
from lib.provenance.manifests import build_manifest_path, link_files, read_manifest, write_manifest


def main(args: argparse.Namespace) -> None:
    selection = load_selection(args.selection)
    folders = {name: args.results.folder(selection["run"], name) for name in ("adapter", "merged")}
    there = {name: folder for name, folder in folders.items() if folder.is_dir()}
    with publish_directory(args.output) as output:
        for name, folder in there.items():
            (output / name).mkdir()
            files = set(read_manifest(folder)["files"])
            link_files(folder, sorted(files - {CHAT_TEMPLATE}), output / name)
            if CHAT_TEMPLATE in files:  # the base model's: other programs would ask what was not trained
                source = render_trained_chat_template(load_template(args.template))
                (output / name / CHAT_TEMPLATE).write_text(source, encoding="utf-8")
    write_manifest(
        args.output,
        inputs={name: build_manifest_path(folder) for name, folder in there.items()}
        | {"selection": args.selection, "template": args.template},
        settings={},
        extra={"run": selection["run"]},
    )
    report_progress(f"keep_selected: {' and '.join(there) or 'nothing to keep'} of run {selection['run']}")


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--selection", type=Path, required=True, help="selection.json")
    add_results_argument(arguments)
    arguments.add_argument("--template", type=Path, required=True, help="corpus/template.json")
    arguments.add_argument(
        "--output", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    run(arguments, main)
