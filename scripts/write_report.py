"""Write the evidence for a reader: one HTML file that needs no network, every number also in a table.

Its headings are the questions that somebody asks who has to decide about the model, in that order; each is
answered by one sentence, then come the numbers. Sentences follow from the numbers, whatever these turn out to be.
"""

import argparse
from pathlib import Path

from lib.core.cli import parser, run, settings_argument
from lib.core.files import published
from lib.core.layout import results_argument
from lib.report.choice import head, which_model
from lib.report.cost import how_long_and_how_big
from lib.report.data_quality import what_is_wrong_with_the_data
from lib.report.errors import what_is_wrong
from lib.report.evidence import read_evidence
from lib.report.origin import which_bytes
from lib.report.page import render
from lib.report.stages import what_quantization_cost
from lib.report.worth import how_sure, worth_it

QUESTIONS = (
    which_model,
    worth_it,
    how_sure,
    what_quantization_cost,
    what_is_wrong,
    what_is_wrong_with_the_data,
    how_long_and_how_big,
    which_bytes,
)


def main(args: argparse.Namespace) -> None:
    evidence = read_evidence(args)
    html = render([question(evidence) for question in QUESTIONS], head(evidence))
    with published(args.output) as partial:
        partial.write_text(html, encoding="utf-8")


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--settings", type=settings_argument, required=True, help="the whole configuration")
    for name, what in {
        "summary": "summary.json",
        "selection": "selection.json",
        "audit": "audit.json",
        "split": "split.json",
        "leakage": "leakage.json",
        "baselines": "baselines.json",
        "model-score": "score of the packaged model on test rows",
        "model-predictions": "its predictions",
        "rows": "the test rows",
        "template": "template.json",
        "timings": "folder of Snakemake's benchmark files, one folder a rule",
        "logs": "folder of the logs, whose last lines say what took how long",
        "output": "report.html",
    }.items():
        arguments.add_argument(f"--{name}", type=Path, required=True, help=what)
    arguments.add_argument("--calibrated", nargs="*", default=[], metavar="VARIANT", help="whose weights were rounded")
    results_argument(arguments)
    run(arguments, main)
