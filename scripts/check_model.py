"""Collect the results of `check_training` and `check_build`, one entry for each variant.

Before it is there neither the weights are fetched nor anything is trained.
"""

import argparse
from pathlib import Path

from lib.core.cli import build_parser, parse_settings, report_progress, run
from lib.core.files import read_json, write_json


def main(args: argparse.Namespace) -> None:
    builds = {file.stem: read_json(file) for file in args.verdicts}
    write_json(args.output, {"model": args.settings["model"], "builds": builds})
    report_progress(f"check_model: {args.settings['model']} can be trained and built: {', '.join(builds)}")


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="model, versions")
    arguments.add_argument("--verdicts", type=Path, nargs="+", required=True, help="checks/build/VARIANT.json")
    arguments.add_argument("--output", type=Path, required=True, help="what is gathered, to write")
    run(arguments, main)
