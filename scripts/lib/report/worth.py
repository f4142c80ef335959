"""Is it worth it against the baselines? How sure is that?"""

from collections.abc import Sequence
from typing import Any

from lib.data.template_inversion import find_word_places
from lib.evaluation.metrics import find_main_baseline
from lib.report import findings, plots
from lib.report.evidence import Evidence, format_measured
from lib.report.formatting import (
    format_gap,
    format_heading,
    format_interval,
    format_metric,
    format_number,
    format_p_value,
    format_term,
)
from lib.report.page import Block, Figure, Section, Table


def show_worth(evidence: Evidence) -> Section:
    summary, columns = evidence.summary, evidence.columns
    compared = {format_heading(name): splits["test"] for name, splits in summary["baselines"].items()}
    compared |= {format_heading("base"): summary["base"]["test"], "The model": summary["model"]["test"]}
    rows = [(name, *(format_measured(key, quality) for key in columns)) for name, quality in compared.items()]
    on = evidence.measured_on("test")
    return Section(
        "worth",
        "Is it worth it against the baselines?",
        findings.describe_worth(evidence.task, summary, on),
        [
            " ".join(findings.describe_rivals(evidence.task, summary)),
            *draw_quality(compared, evidence.main, "The model"),
            Table(
                f"Quality on {on}, with 95 % intervals", ("", *map(format_heading, columns)), rows, strong=len(rows) - 1
            ),
            _rivals_table(evidence),
            *_without_label_word(evidence),
        ],
    )


def show_uncertainty(evidence: Evidence) -> Section:
    summary, task = evidence.summary, evidence.task
    quality, rival = summary["model"]["test"], find_main_baseline(task, summary["baselines"])
    rows = evidence.rows_measured("test")
    return Section(
        "sure",
        "How sure is that?",
        findings.describe_uncertainty(task, quality, rows),
        [
            findings.describe_power(task, summary["model"]["compared"][rival], rows, format_term(rival)),
            "An interval covers the luck of the rows, not that of the training seed: one training says nothing about"
            " another. The test rows chose nothing: checkpoint and variant were chosen on validation rows, where the"
            " score of the chosen variant is a little too good for that reason.",
            findings.free_answers(task, quality, evidence.score["answered"]),
            _rows_table(evidence),
        ],
    )


def draw_quality(stages: dict[str, dict[str, Any]], name: str, best: str) -> list[Figure]:
    """Draw the quality of stages, but of those whose metric is undefined (no free answers)."""
    dots = [
        plots.Dot(stage, quality[name], format_metric(name, quality[name]), quality[f"{name}_ci95"], stage == best)
        for stage, quality in stages.items()
        if quality[name] is not None
    ]
    if not dots:
        return []
    caption = f"{format_heading(name)} with its 95 % interval; the filled dot is the chosen model."
    rows = [(dot.name, dot.text, format_interval(name, stages[dot.name])) for dot in dots]
    table = Table(
        f"Numbers of this plot: {format_term(name)} by stage", ("", format_heading(name), "95 % interval"), rows
    )
    return [Figure(plots.draw_dot_and_whisker(dots, format_heading(name)), caption, table)]


def _rivals_table(evidence: Evidence) -> Table:
    """Return how far the model is above each rival, paired on the same rows."""
    compared = evidence.summary["model"]["compared"]
    differences = compared[find_main_baseline(evidence.task, compared)]["difference"]
    metrics = [name for name in differences if name in evidence.columns]
    rows = [
        (
            format_heading(rival),
            *(format_gap(name, against["difference"][name], against["difference_ci95"][name]) for name in metrics),
            format_number(against["wins"]),
            format_number(against["losses"]),
            format_p_value(against["mcnemar_p"]),
        )
        for rival, against in compared.items()
    ]
    head = ("Rival", *map(format_heading, metrics), "Rows won", "Rows lost", _test_name(evidence.task))
    caption = "The model minus each rival on the same test rows, in points with 95 % intervals"
    return Table(caption, head, rows)


def _rows_table(evidence: Evidence) -> Table:
    """Return how many rows each comparison has, and how many would settle it."""
    summary = evidence.summary
    rows: list[Sequence[str]] = [
        _show_verdict(f"The model against {format_term(rival)}", against, evidence, "test")
        for rival, against in summary["model"]["compared"].items()
    ]
    for run_name, facts in evidence.shown_runs.items():
        for stage, one in facts["stages"].items():
            if one["validation"]:
                against = one["validation"]["against"]
                rows.append(
                    _show_verdict(f"{run_name}: {stage} against {against['name']}", against, evidence, "validation")
                )
    caption = (
        f"How many rows show a difference in {format_term(evidence.main)} like the one seen here, 4 times in 5"
        " (estimated from the rows on which the two differ, Connor 1987)"
    )
    return Table(caption, ("Comparison", "Split", "Rows", "Shown", "Rows needed"), rows, folded=evidence.many)


def _show_verdict(name: str, against: dict[str, Any], evidence: Evidence, split: str) -> Sequence[str]:
    shown = "yes" if findings.is_significant(against, evidence.main) else "no"
    return name, split, format_number(evidence.rows_measured(split)), shown, format_number(against["rows_needed"])


def _test_name(task: str) -> str:
    return "McNemar, exact" if task == "classification" else "Sign test, exact"


def _without_label_word(evidence: Evidence) -> list[Block]:
    """Return a model that only finds the label's word in the text has learned nothing: how is it without?"""
    if evidence.task != "classification":
        return []
    found = evidence.baselines["extra"]["without_label_word"]["test"]
    kept = [
        row["predicted"] == row["label"]
        for _, text, row in evidence.examples
        if not find_word_places(row["label"], text)
    ]
    if len(kept) == len(evidence.examples):
        return ["No test row holds the word of its own label, so no score rests on that."]
    if not kept:
        return ["Every test row holds the word of its own label: finding that word would be enough."]
    rows = [(format_heading(name), format_metric("accuracy", value)) for name, value in found["accuracy"].items()]
    rows.append(("The model", format_metric("accuracy", sum(kept) / len(kept))))
    caption = f"Accuracy on the {len(kept):,} test rows whose text does not hold the word of their own label"
    return [Table(caption, ("", "Accuracy"), rows, strong=len(rows) - 1)]
