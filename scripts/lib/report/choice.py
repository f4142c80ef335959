"""The head of the page, and: which model?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.metrics import BASELINE
from lib.report import findings
from lib.report.evidence import Evidence
from lib.report.page import Block, Section, Table
from lib.report.words import check_name, gap, interval, listed, metric, named, number, p_value, said


def head(evidence: Evidence) -> dict[str, Any]:
    """Title, verdict and the numbers that a reader asks for first."""
    summary, task = evidence.summary, evidence.task
    model, gate, rival = summary["model"], summary["gate"], BASELINE[task]
    quality = model["test"]
    verdict, good = findings.verdict(task, summary)
    cards = [(named(name), metric(name, quality[name]), interval(name, quality)) for name in evidence.columns[:2]]
    cards += [
        (named(rival), metric(evidence.main, summary["baselines"][rival]["test"][evidence.main]), named(evidence.main)),
        ("Size", f"{number(model['size_mb'], 1)}\u00a0MB", "on disk"),
        ("First token", f"{number(model['first_token_ms'], 0)}\u00a0ms", "after a prompt"),
        ("Speed", number(model["tokens_per_second"], 1), "tokens per second"),
        ("Memory", f"{number(model['peak_rss_mb'], 0)}\u00a0MB", "peak of its process"),
    ]
    return {
        "title": f"{evidence.settings['data']['target']} with {_base_name(evidence.settings['base_model'])}",
        "subtitle": f"slmflow report of a {task} model. Quality on {quality['n']:,} test rows that chose nothing;"
        " size and speed on the machine that made it.",
        "verdict": verdict,
        "good": good,
        "cards": cards,
        "gate": _gate_table(gate["checks"]) if gate["checks"] else None,
    }


def which_model(evidence: Evidence) -> Section:
    summary = evidence.summary
    selected, selection = summary["selected"], evidence.settings["selection"]
    limits = [f"{name} {value:g}" for name, value in selection.items() if name != "metric" and value is not None]
    blocks: list[Block] = [
        f"Variants were compared by {said(evidence.metric)} on {evidence.measured_on('validation')};"
        f" the constraints were {listed(limits) or 'none'}. Of variants that these rows cannot tell apart the"
        " smallest is taken.",
        *(findings.told_apart(evidence.metric, one) for one in selected["compared"]),
    ]
    if selected["compared"]:
        blocks.append(_compared_table(evidence))
    if selected["rejected"]:
        rows = [(f"{one['run']}/{one['variant']}", one["reason"]) for one in selected["rejected"]]
        blocks.append(Table("Rejected", ("Variant", "Reason"), rows, style="wide"))
    unscored = [
        f"{run_name}/{stage.removeprefix('onnx-')}"
        for run_name, facts in summary["runs"].items()
        for stage, one in facts["stages"].items()
        if not one["validation"]
    ]
    if unscored:
        blocks.append(f"Built but not scored here, so never chosen: {listed(unscored)}.")
    return Section("model", "Which model?", findings.chosen(summary), blocks)


def _compared_table(evidence: Evidence) -> Table:
    rows = [
        (
            f"{one['run']}/{one['variant']}",
            gap(evidence.metric, one["difference"], one["difference_ci95"]),
            "yes" if one["told_apart"] else "no",
            number(evidence.rows_measured("validation")),
            number(one["rows_needed"]),
        )
        for one in evidence.summary["selected"]["compared"]
    ]
    head = ("Other variant", f"Chosen minus other, {said(evidence.metric)}", "Told apart", "Rows", "Rows needed")
    return Table("The chosen variant against the others, in points with 95 % intervals", head, rows)


def _gate_table(checks: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (
            check_name(check["name"]),
            metric(check["name"].partition("_above_")[0], check["value"]),
            metric(check["name"].partition("_above_")[0], check["limit"]),
            "passed" if check["passed"] else "FAILED",
            p_value(check["mcnemar_p"]) if "mcnemar_p" in check else "–",
        )
        for check in checks
    ]
    return Table("The gate, on test rows", ("Check", "Value", "Limit", "Verdict", "Paired test"), rows)


def _base_name(source: dict[str, Any]) -> str:
    return source["hub"]["id"] if source["hub"] else Path(source["path"] or source["package"]["file"]).stem
