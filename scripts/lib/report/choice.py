"""The head of the page, and: which model?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.evaluation.metrics import main_baseline
from lib.report import findings, plots
from lib.report.evidence import SHOWN, Evidence
from lib.report.formatting import check_name, gap, interval, listed, metric, named, number, p_value, points_of, said
from lib.report.page import Block, Figure, Section, Table


def head(evidence: Evidence) -> dict[str, Any]:
    """Title, verdict and the numbers that a reader asks for first."""
    summary, task = evidence.summary, evidence.task
    model, gate = summary["model"], summary["gate"]
    rival = main_baseline(task, summary["baselines"])
    quality = model["test"]
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
        "verdict": summary["verdict"]["text"],
        "good": summary["verdict"]["ship"],
        "cards": cards,
        "gate": _gate_table(gate["checks"]) if gate["checks"] else None,
    }


def which_model(evidence: Evidence) -> Section:
    summary = evidence.summary
    selected, selection = summary["selected"], evidence.settings["selection"]
    limits = [f"{name} {value:g}" for name, value in selection.items() if name != "metric" and value is not None]
    few = selected["compared"] if len(selected["compared"]) <= findings.NAMED else []  # else the table is enough
    blocks: list[Block] = [
        f"Variants were compared by {said(evidence.metric)} on {evidence.measured_on('validation')};"
        f" the constraints were {listed(limits) or 'none'}. Of variants that these rows cannot tell apart the"
        " smallest is taken; sizes within 5 % count as one, and there the better metric decides.",
        *_front(evidence),
        *(findings.describe_significance(evidence.metric, one) for one in few),
        *_compared_table(evidence),
        *_rejected_table(evidence),
        *_ranking(evidence),
    ]
    return Section("model", "Which model?", findings.chosen(summary), blocks)


def _front(evidence: Evidence) -> list[Block]:
    """Quality against size: the chosen variant, what is on the Pareto front, and the best of the others."""
    scored = [one for one in evidence.candidates if one["value"] is not None]
    if len(scored) < 2:
        return []
    order = sorted(scored, key=lambda one: (not one["chosen"], not one["pareto"], -one["value"]))
    spots = [
        plots.Spot(_name(one), one["size_mb"], one["value"], one["feasible"], one["pareto"], one["chosen"])
        for one in order[:SHOWN]
    ]
    head = ("Variant", named(evidence.metric), "Size (MB)", "First token (ms)", "Tokens/s", "Memory (MB)", "Front")
    rows = [
        (
            _name(one),
            {"text": metric(evidence.metric, one["value"]), "note": _ends(evidence.metric, one["value_ci95"])},
            number(one["size_mb"], 1),
            number(one["first_token_ms"], 0),
            number(one["tokens_per_second"], 1),
            number(one["peak_rss_mb"], 0),
            _place(one),
        )
        for one in order
    ]
    some = f" Shown are {SHOWN} of {len(scored):,}: the chosen one, the front, then the best." if scored[SHOWN:] else ""
    caption = (
        f"{named(evidence.metric)} on validation rows against size: up and left is better; the ring is the chosen one."
        " Filled dots are the Pareto front: no other variant that keeps the constraints is as good in quality, size,"
        " speed, time to the first token and memory, and better in one. The line joins the best quality for each size."
        f" Both compare the values as they are, noise and all; their intervals are in the table.{some}"
    )
    table = Table("Numbers of this plot, with 95 % intervals, for every variant", head, rows)
    return [Figure(plots.front(spots, "size in MB", named(evidence.metric)), caption, table)]


def _place(one: dict[str, Any]) -> str:
    if not one["feasible"]:
        return "breaks a constraint"
    return "on it" if one["pareto"] else f"below {one['dominated_by']}"


def _compared_table(evidence: Evidence) -> list[Table]:
    rows = [
        (
            _name(one),
            gap(evidence.metric, one["difference"], one["difference_ci95"]),
            "yes" if one["is_significant"] else "no",
            number(evidence.rows_measured("validation")),
            number(one["rows_needed"]),
        )
        for one in evidence.summary["selected"]["compared"]
    ]
    head = ("Other variant", f"Chosen minus other, {said(evidence.metric)}", "Told apart", "Rows", "Rows needed")
    caption = "The chosen variant against the others, in points with 95 % intervals"
    return _best_first(caption, head, rows)


def _rejected_table(evidence: Evidence) -> list[Table]:
    """Why not X? For every X."""
    rows = [(_name(one), one["reason"]) for one in evidence.summary["selected"]["rejected"]]
    folded = len(rows) > SHOWN
    caption = f"Rejected: why each of the {len(rows):,} other variants was not chosen" if folded else "Rejected"
    return [Table(caption, ("Variant", "Reason"), rows, style="wide", folded=folded)] if rows else []


def _ranking(evidence: Evidence) -> list[Block]:
    """Settings by their mean over seeds."""
    ranking, name = evidence.summary["ranking"], evidence.metric
    if not ranking:
        return []
    rows = [
        (
            f"{one['group']}/{one['variant']}",
            number(len(one["seeds"])),
            metric(name, one["mean"]),
            metric(name, one["sd"]),
            gap(name, one["difference"], one["difference_ci95"]),
            {None: "–", True: "yes", False: "no"}[one["is_significant"]],
        )
        for one in ranking
    ]
    head = ("Setting and variant", "Seeds", f"Mean {said(name)}", "Standard deviation", "Minus the best", "Told apart")
    caption = f"Ranking by the mean over seeds; differences in {points_of(name)} with 95 % intervals"
    return [findings.ranked(name, ranking), *_best_first(caption, head, rows)]


def _best_first(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Table]:
    """A table; of a long one the first rows, and all of them folded."""
    if len(rows) <= SHOWN:
        return [Table(caption, head, rows)] if rows else []
    best = Table(f"{caption}: the first {SHOWN}", head, rows[:SHOWN])
    return [best, Table(f"{caption}: all {len(rows):,}", head, rows, folded=True)]


def _ends(name: str, ci95: Sequence[float]) -> str:
    return f"{metric(name, ci95[0])} to {metric(name, ci95[1])}"


def _name(one: dict[str, Any]) -> str:
    return f"{one['run']}/{one['variant']}"


def _gate_table(checks: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (
            check_name(check["name"]) + (", by the paired test" if check.get("required") == "shown" else ""),
            metric(check["name"].partition("_above_")[0], check["value"]),
            metric(check["name"].partition("_above_")[0], check["limit"]),
            "passed" if check["passed"] else "FAILED",
            p_value(check["mcnemar_p"]) if "mcnemar_p" in check else "–",
        )
        for check in checks
    ]
    return Table("The gate, on test rows", ("Check", "Value", "Limit", "Verdict", "Paired test"), rows)


def _base_name(source: dict[str, Any]) -> str:
    if source["hub"]:
        return source["hub"]["id"]
    if address := source.get("source"):
        *_, name, kind, last = address.rstrip("/").split("/")  # models/NAME/versions/N, or a path in a datastore
        return name if kind.lower() == "versions" else Path(last).stem
    return Path(source["path"] or source["package"]["file"]).stem
