"""Fetch the demo data: tweets rated for sentiment by people (Hutto & Gilbert, ICWSM 2014).

They stand in the sdist of vaderSentiment (MIT) as id, mean rating from -4 to 4, and text. The mean
becomes a label by cut-offs of our own at -0.5 and 0.5, so rows near these are noisy. The rows are
not part of this repository; package and file are checked by sha256 on the way.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, run
from lib.core.files import hash_file, publish_file
from lib.sources.pypi import fetch_package_file

PACKAGE: dict[str, Any] = {
    "name": "vaderSentiment",
    "version": "3.3.2",
    "sha256": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "file": "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/tweets_GroundTruth.txt",
}
FILE_SHA256 = "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f"
CUT = 0.5


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = fetch_package_file(**PACKAGE, into=Path(scratch))
        if (found := hash_file(source)) != FILE_SHA256:
            fail(f"{source.name} has sha256 {found}, not {FILE_SHA256}", "the package was changed: do not use it")
        rows = [parse_tweet(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with publish_file(args.output) as partial:
        # One row a line, so that the line numbers of the audit mean something.
        lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
        partial.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def parse_tweet(line: str) -> dict[str, str]:
    """Return one row of the source: `id TAB mean rating TAB text`."""
    id_, rating, text = line.split("\t", maxsplit=2)
    return {"id": id_, "text": text, "sentiment": classify_rating(float(rating))}


def classify_rating(rating: float) -> str:
    """Return positive from 0.5 up, negative from -0.5 down, neutral between."""
    return "positive" if rating >= CUT else "negative" if rating <= -CUT else "neutral"


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    run(arguments, main)
