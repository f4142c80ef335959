"""Write the evidence for a reader: one HTML file that needs no network, every number also in a table.

Its headings are the questions that somebody asks who has to decide about the model, in that order; each is
answered by one sentence, then come the numbers. Sentences follow from the numbers, whatever these turn out to be.
"""

import argparse
from pathlib import Path

from lib.core.cli import build_parser, parse_settings, run
from lib.core.files import publish_file
from lib.core.layout import add_results_argument
from lib.report.choice import build_head, show_choice
from lib.report.cost import show_cost
from lib.report.data_quality import show_data_quality
from lib.report.errors import show_errors
from lib.report.evidence import read_evidence
from lib.report.origin import show_origin
from lib.report.page import render
from lib.report.probabilities import show_probabilities
from lib.report.stages import show_quantization_cost
from lib.report.worth import show_uncertainty, show_worth

QUESTIONS = (
    show_choice,
    show_worth,
    show_uncertainty,
    show_quantization_cost,
    show_errors,
    show_probabilities,
    show_data_quality,
    show_cost,
    show_origin,
)


def main(args: argparse.Namespace) -> None:
    evidence = read_evidence(args)
    sections = [section for question in QUESTIONS if (section := question(evidence))]
    html = render(sections, build_head(evidence))
    with publish_file(args.output) as partial:
        partial.write_text(html, encoding="utf-8")


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="the whole configuration")
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
    arguments.add_argument(
        "--calibrated", nargs="*", default=[], metavar="VARIANT", help="variants with calibrated weights"
    )
    add_results_argument(arguments)
    run(arguments, main)
