"""The head of the page, and: which model?"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.evaluation.further_runs import estimate_further_runs
from lib.evaluation.metrics import find_main_baseline
from lib.report import findings, plots
from lib.report.evidence import SHOWN, Evidence
from lib.report.formatting import (
    format_check_name,
    format_gap,
    format_heading,
    format_interval,
    format_metric,
    format_number,
    format_p_value,
    format_term,
    join_words,
    name_points,
)
from lib.report.page import Block, Figure, Section, Table

_FURTHER_RUNS = 10  # that the report weighs after a sample of a sweep


def build_head(evidence: Evidence) -> dict[str, Any]:
    """Return title, verdict and the numbers that a reader asks for first."""
    summary, task = evidence.summary, evidence.task
    model, gate = summary["model"], summary["gate"]
    rival = find_main_baseline(task, summary["baselines"])
    quality = model["test"]
    cards = [
        (format_heading(name), format_metric(name, quality[name]), format_interval(name, quality))
        for name in evidence.columns[:2]
    ]
    cards += [
        (
            format_heading(rival),
            format_metric(evidence.main, summary["baselines"][rival]["test"][evidence.main]),
            format_heading(evidence.main),
        ),
        ("Size", f"{format_number(model['size_mb'], 1)}\u00a0MB", "on disk"),
        ("First token", f"{format_number(model['first_token_ms'], 0)}\u00a0ms", "after a prompt"),
        ("Speed", format_number(model["tokens_per_second"], 1), "tokens per second"),
        ("Memory", f"{format_number(model['peak_rss_mb'], 0)}\u00a0MB", "peak of its process"),
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


def show_choice(evidence: Evidence) -> Section:
    summary = evidence.summary
    selected, selection = summary["selected"], evidence.settings["selection"]
    limits = [f"{name} {value:g}" for name, value in selection.items() if name != "metric" and value is not None]
    few = selected["compared"] if len(selected["compared"]) <= findings.NAMED else []  # else the table is enough
    blocks: list[Block] = [
        f"Variants were compared by {format_term(evidence.metric)} on {evidence.measured_on('validation')};"
        f" the constraints were {join_words(limits) or 'none'}. Of variants that do not differ significantly, the"
        " smallest is taken; sizes within 5 % count as equal, and there the better metric decides.",
        *_front(evidence),
        *(findings.describe_significance(evidence.metric, one) for one in few),
        *_compare_candidates(evidence),
        *_list_rejected(evidence),
        *_rank_settings(evidence),
    ]
    return Section("model", "Which model?", findings.describe_choice(summary), blocks)


def _front(evidence: Evidence) -> list[Block]:
    """Return quality against size: the chosen variant, what is on the Pareto front, and the best of the others."""
    scored = [one for one in evidence.candidates if one["value"] is not None]
    if len(scored) < 2:
        return []
    order = sorted(scored, key=lambda one: (not one["chosen"], not one["pareto"], -one["value"]))
    spots = [
        plots.Spot(_name(one), one["size_mb"], one["value"], one["feasible"], one["pareto"], one["chosen"])
        for one in order[:SHOWN]
    ]
    head = (
        "Variant",
        format_heading(evidence.metric),
        "Size (MB)",
        "First token (ms)",
        "Tokens/s",
        "Memory (MB)",
        "Front",
    )
    rows = [
        (
            _name(one),
            {"text": format_metric(evidence.metric, one["value"]), "note": _ends(evidence.metric, one["value_ci95"])},
            format_number(one["size_mb"], 1),
            format_number(one["first_token_ms"], 0),
            format_number(one["tokens_per_second"], 1),
            format_number(one["peak_rss_mb"], 0),
            _place(one),
        )
        for one in order
    ]
    some = f" Shown are {SHOWN} of {len(scored):,}: the chosen one, the front, then the best." if scored[SHOWN:] else ""
    caption = (
        f"{format_heading(evidence.metric)} on validation rows against size: up and left is better; the ring is the"
        " chosen one. Filled dots are the Pareto front: no other variant that keeps the constraints is as good in"
        " quality, size, speed, time to the first token and memory, and better in one. The line joins the best quality"
        f" for each size. Both compare the values as they are, noise and all; their intervals are in the table.{some}"
    )
    table = Table("Numbers of this plot, with 95 % intervals, for every variant", head, rows)
    return [Figure(plots.draw_front(spots, "size in MB", format_heading(evidence.metric)), caption, table)]


def _place(one: dict[str, Any]) -> str:
    if not one["feasible"]:
        return "breaks a constraint"
    return "on it" if one["pareto"] else f"below {one['dominated_by']}"


def _compare_candidates(evidence: Evidence) -> list[Table]:
    rows = [
        (
            _name(one),
            format_gap(evidence.metric, one["difference"], one["difference_ci95"]),
            "yes" if one["is_significant"] else "no",
            format_number(evidence.rows_measured("validation")),
            format_number(one["rows_needed"]),
        )
        for one in evidence.summary["selected"]["compared"]
    ]
    head = (
        "Other variant",
        f"Chosen minus other, {format_term(evidence.metric)}",
        "Significant",
        "Rows",
        "Rows needed",
    )
    caption = "The chosen variant against the others, in points with 95 % intervals"
    return _best_first(caption, head, rows)


def _list_rejected(evidence: Evidence) -> list[Table]:
    """Return why each other variant was not chosen."""
    rows = [(_name(one), one["reason"]) for one in evidence.summary["selected"]["rejected"]]
    folded = len(rows) > SHOWN
    caption = f"Rejected: why each of the {len(rows):,} other variants was not chosen" if folded else "Rejected"
    return [Table(caption, ("Variant", "Reason"), rows, style="wide", folded=folded)] if rows else []


def _rank_settings(evidence: Evidence) -> list[Block]:
    """Return settings by their mean over seeds."""
    ranking, name = evidence.summary["ranking"], evidence.metric
    if not ranking:
        return []
    rows = [
        (
            f"{one['group']}/{one['variant']}",
            format_number(len(one["seeds"])),
            format_metric(name, one["mean"]),
            format_metric(name, one["sd"]),
            format_gap(name, one["difference"], one["difference_ci95"]),
            {None: "–", True: "yes", False: "no"}[one["is_significant"]],
        )
        for one in ranking
    ]
    head = (
        "Setting and variant",
        "Seeds",
        f"Mean {format_term(name)}",
        "Standard deviation",
        "Minus the best",
        "Significant",
    )
    caption = f"Ranking by the mean over seeds; differences in {name_points(name)} with 95 % intervals"
    return [findings.describe_ranking(name, ranking), *_weigh_further_runs(evidence), *_best_first(caption, head, rows)]


def _weigh_further_runs(evidence: Evidence) -> list[str]:
    """Return what more runs of a sampled grid would be worth."""
    settings, sweep = evidence.settings, evidence.settings["sweep"]
    if "sample" not in sweep:
        return []
    runs = len(evidence.summary["runs"])
    size = math.prod(map(len, sweep["finetune"].values())) * max(1, len(sweep["seed"]))
    further = min(_FURTHER_RUNS, size - runs)
    best: dict[str, float] = {}
    for one in evidence.candidates:
        if one["feasible"]:
            best[one["run"]] = max(best.get(one["run"], one["value"]), one["value"])
    worth = None
    if further and best:
        samples = settings["evaluate"]["bootstrap_samples"]
        worth = estimate_further_runs([*best.values()], runs, further, seed=settings["seed"], samples=samples)
    return [findings.describe_further_runs(evidence.metric, runs, size, further, worth)]


def _best_first(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Table]:
    """Return a table; of a long one the first rows, and all of them folded."""
    if len(rows) <= SHOWN:
        return [Table(caption, head, rows)] if rows else []
    best = Table(f"{caption}: the first {SHOWN}", head, rows[:SHOWN])
    return [best, Table(f"{caption}: all {len(rows):,}", head, rows, folded=True)]


def _ends(name: str, ci95: Sequence[float]) -> str:
    return f"{format_metric(name, ci95[0])} to {format_metric(name, ci95[1])}"


def _name(one: dict[str, Any]) -> str:
    return f"{one['run']}/{one['variant']}"


def _gate_table(checks: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (
            format_check_name(check["name"]) + (", by the paired test" if check.get("required") == "shown" else ""),
            format_metric(check["name"].partition("_above_")[0], check["value"]),
            format_metric(check["name"].partition("_above_")[0], check["limit"]),
            "passed" if check["passed"] else "FAILED",
            format_p_value(check["mcnemar_p"]) if "mcnemar_p" in check else "–",
        )
        for check in checks
    ]
    return Table("The gate, on test rows", ("Check", "Value", "Limit", "Verdict", "Paired test"), rows)


def _base_name(source: dict[str, Any]) -> str:
    if hub := source.get("hub"):
        return hub["id"]
    if address := source.get("source"):
        *_, name, kind, last = address.rstrip("/").split("/")  # models/NAME/versions/N, or a path in a datastore
        return name if kind.lower() == "versions" else Path(last).stem
    return Path(source.get("path") or source["package"]["file"]).stem
