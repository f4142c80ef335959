"""End the workflow with an error when the gate failed, after report and summary are written."""

import argparse
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, report_progress, run
from lib.core.files import publish_file, read_json


def main(args: argparse.Namespace) -> None:
    gate = read_json(args.gate)
    failed = [check for check in gate["checks"] if not check["passed"]]
    for check in failed:
        report_progress(f"gate: {_sentence(check)}")
    if failed:
        report_progress(read_json(args.summary)["verdict"]["text"])
        names = ", ".join(check["name"] for check in failed)
        fail(f"the model does not pass the gate: {names}", f"see {args.report} and {args.summary}", at=args.gate)
    with publish_file(args.output) as partial:
        partial.write_text("passed\n", encoding="utf-8")


def _sentence(check: dict[str, Any]) -> str:
    value, limit = ("unknown" if check[key] is None else f"{check[key]:.4f}" for key in ("value", "limit"))
    if check.get("required") == "shown":
        metric = check["name"].partition("_above_")[0]
        return (
            f"{metric} {value} is not shown to be better than {limit} of {check['rival']}, p = {check['mcnemar_p']:.2g}"
        )
    return f"{check['name']} is {value}, the limit is {limit}"


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--gate", type=Path, required=True, help="gate.json")
    arguments.add_argument("--report", type=Path, required=True, help="named in the error")
    arguments.add_argument("--summary", type=Path, required=True, help="its verdict is told")
    arguments.add_argument("--output", type=Path, required=True, help="gate.passed, written when it did")
    run(arguments, main)
