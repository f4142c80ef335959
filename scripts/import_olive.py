"""Convert a fine-tuning configuration of Microsoft Olive into slmflow's.

    python scripts/import_olive.py olive-config.json > mine.yaml

Reads what `olive run --config` takes, JSON or YAML, of Olive 0.6 to 0.13; single blocks, too, as pages show them. What
it becomes is valid and goes to standard output. Comments say what changed its meaning, what you have to fill in, what
belongs to a profile, and what was not carried over. Exits with 1 when the file has no training pass; the rest of it is
converted all the same.
"""

import argparse
from pathlib import Path

from lib.core.cli import build_parser, fail, run
from lib.core.escaping import escape_controls
from lib.olive.convert import convert_document, find_folder_beside
from lib.olive.document import read_document


def main(args: argparse.Namespace) -> None:
    found = convert_document(
        read_document(args.config),
        str(args.config),
        pass_name=args.training_pass,
        is_folder=find_folder_beside(args.config),
    )
    for line in found.text.splitlines():
        print(escape_controls(line))
    if not found.has_training:
        fail(
            "it has no training pass (LoRA, QLoRA, DoRA, LoftQ, LoHa, LoKr)",
            "what else could be carried over was printed; set the section finetune yourself",
            at=args.config,
        )


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("config", type=Path, help="Olive's configuration")
    arguments.add_argument("--pass", dest="training_pass", help="name of the training pass, where there are several")
    run(arguments, main)
