"""Fit the temperature of the selected model's probabilities, and choose its threshold, both on validation rows.

The validation predictions that chose the model are read again; no model is run. Labels, accuracy and comparisons of
stages stay what they are.
"""

import argparse
from pathlib import Path

from lib.core.cli import build_parser, parse_settings, report_progress, run
from lib.core.files import read_jsonl, write_json
from lib.core.layout import add_results_argument
from lib.evaluation.selection import load_selection
from lib.evaluation.temperature import (
    choose_threshold,
    find_sureness,
    fit_temperature,
    measure_answers,
    measure_probabilities,
    read_scores,
)


def main(args: argparse.Namespace) -> None:
    settings, selection = args.settings, load_selection(args.selection)
    predictions = args.results.predictions(selection["run"], f"onnx-{selection['variant']}")
    scored = read_scores(list(read_jsonl(predictions)))
    draw = {"seed": settings["seed"], "samples": settings["evaluate"]["bootstrap_samples"]}
    temperature = fit_temperature(scored)
    quality = {
        name: measure_probabilities(scored, value, **draw) for name, value in (("before", 1.0), ("after", temperature))
    }
    result = {"temperature": temperature, "validation": quality}
    said = ""
    if decision := settings.get("decision"):
        sureness, right = find_sureness(scored, temperature)
        threshold = choose_threshold(sureness, right, decision)
        answered = measure_answers(sureness, right, threshold, **draw)
        result |= {"decision": decision, "threshold": threshold, "coverage": answered["coverage"]}
        quality["answered"] = answered
        said = f"; threshold {threshold:.3f}" if threshold is not None else "; no threshold reaches the precision"
    write_json(args.output, result)
    report_progress(f"fit_temperature: {temperature:.3f}{said}")


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument(
        "--settings", type=parse_settings, required=True, help="seed, evaluate, decision if there is one"
    )
    arguments.add_argument("--selection", type=Path, required=True, help="selection.json")
    add_results_argument(arguments)
    arguments.add_argument("--output", type=Path, required=True, help="temperature.json")
    run(arguments, main)
