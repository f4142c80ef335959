"""How long did it take, and how big is it?"""

from collections.abc import Sequence
from typing import Any

from lib.evaluation.registry import SELECTED_BY
from lib.report import plots
from lib.report.evidence import Evidence
from lib.report.formatting import (
    format_duration,
    format_heading,
    format_megabytes,
    format_metric,
    format_number,
    format_percent,
    format_term,
    format_value,
    join_words,
)
from lib.report.page import Block, Figure, Fold, Section, Table
from lib.report.timings import ANOTHER_SESSION, RuleTime, sum_by_rule, sum_known, sum_whole_run

_TITLE = "How long did it take, and how big is it?"
_IN_PLOT = 8  # rules


def show_cost(evidence: Evidence) -> Section:
    rules = sum_by_rule(evidence.jobs)
    total = sum(one.seconds for one in rules)
    model = evidence.summary["model"]
    size = (
        f"the model has {format_megabytes(model['size_mb'])} and needs {format_megabytes(model['peak_rss_mb'])} of"
        " memory."
    )
    if not rules:
        answer = f"No timings were kept; {size}"
        return Section("time", _TITLE, answer, _show_training(evidence))
    answer = (
        f"All {len(evidence.jobs):,} jobs together took {format_duration(total)}, most of it {rules[0].rule}"
        f" ({format_percent(rules[0].seconds / total)}); {size}"
    )
    blocks = [*_whole(evidence), *_plot(rules), _table(rules, total), *_show_training(evidence)]
    return Section("time", _TITLE, answer, blocks)


def _whole(evidence: Evidence) -> list[str]:
    """Say how long the run took, from the start of the first job to the end of the last."""
    found = sum_whole_run(evidence.jobs)
    if not found:
        unknown = sum(job.started is None for job in evidence.jobs)
        return [f"The logs of {unknown:,} of {len(evidence.jobs):,} jobs do not say when they started: time between"
                " jobs is not known."]  # fmt: skip
    side_by_side = sum(job.seconds for job in evidence.jobs) - found.busy
    text = (
        "From its first job to the last one before this report the run took"
        f" {format_duration(found.busy + found.between)}: for {format_duration(found.busy)} jobs ran, for"
        f" {format_duration(found.between)} none did, while Snakemake chose and started the next."
    )
    if side_by_side >= 1:
        text += f" Jobs that ran side by side saved {format_duration(side_by_side)}."
    if found.breaks:
        text += (
            f" It was made in {len(found.breaks) + 1} sessions: pauses of more than {ANOTHER_SESSION // 60} minutes,"
            f" {format_duration(sum(found.breaks))} in all, are not counted."
        )
    return [text]


def _plot(rules: Sequence[RuleTime]) -> list[Figure]:
    bars = [
        plots.Bar(one.rule, (one.work, one.start_up, one.own), format_duration(one.seconds))
        for one in rules[:_IN_PLOT]
        if one.work is not None and one.start_up is not None and one.own is not None
    ]
    if not bars:
        return []
    parts = ("work", "start-up", "Snakemake and shell")
    rows = [(bar.name, *(format_number(part, 1) for part in bar.parts)) for bar in bars]
    table = Table("Numbers of this plot, in seconds", ("Rule", *(part.capitalize() for part in parts)), rows)
    caption = f"Seconds by rule, the {len(bars)} longest: work, start-up (imports, loading), and what is around it."
    return [Figure(plots.draw_stacked_bars(bars, parts, "seconds"), caption, table)]


def _table(rules: Sequence[RuleTime], total: float) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            one.rule,
            format_number(one.jobs),
            format_number(one.start_up, 1),
            format_number(one.work, 1),
            format_number(one.own, 1),
            format_number(one.seconds, 1),
            format_percent(one.seconds / total),
            format_number(one.peak_mb, 0),
        )
        for one in rules
    ]
    sums = [sum_known([getattr(one, key) for one in rules]) for key in ("start_up", "work", "own")]
    jobs = sum(one.jobs for one in rules)
    rows.append(
        (
            "all",
            format_number(jobs),
            *(format_number(one, 1) for one in sums),
            format_number(total, 1),
            format_percent(1.0),
            "–",
        )
    )
    head = ("Rule", "Jobs", "Start-up (s)", "Work (s)", "Snakemake (s)", "Seconds", "Share", "Peak memory (MB)")
    caption = "Seconds and memory by rule, this report not counted; memory is sampled, so short peaks are missed"
    return Table(caption, head, rows, strong=len(rows) - 1)


def _show_training(evidence: Evidence) -> list[Block]:
    blocks: list[Block] = []
    for run_name in evidence.shown_runs:
        if run_name in evidence.training:
            found = _show_learning(run_name, evidence.training[run_name])
            blocks += [Fold(f"Run {run_name}: learning curves", found)] if evidence.is_folded(run_name) else found
    if brought := [name for name in evidence.shown_runs if name not in evidence.training]:
        blocks.append(f"Not trained here: {join_words(brought)}.")
    return blocks


def _show_learning(run_name: str, facts: dict[str, Any]) -> list[Block]:
    """Return what chose the checkpoint, the curves with its step marked, and the facts."""
    best_by = facts.get("best_by", "loss")
    rows = [(key.replace("_", " "), format_value(value)) for key, value in facts.items() if key != "curve"]
    kept = f"at step {facts['best_step']:,} of {facts['steps']:,}; that checkpoint was kept"
    if best_by == "loss":
        text = f"validation loss is lowest, {facts['best_validation_loss']:.4f}, {kept}."
    else:
        value = format_metric(best_by, facts["best_value"])
        text = f"validation {format_term(best_by)} is highest, {value}, {kept}, whatever its loss."
    blocks: list[Block] = [f"Run {run_name}: {text}", _losses(run_name, facts)]
    blocks += [_scores(run_name, name, facts) for name in SELECTED_BY.values() if _points(facts, f"eval_{name}")]
    return [*blocks, Table(f"Run {run_name}: facts about the training", ("", "Value"), rows, folded=True)]


def _losses(run_name: str, facts: dict[str, Any]) -> Figure:
    train, validation = _points(facts, "loss"), _points(facts, "eval_loss")
    steps = sorted({step for step, _ in (*train, *validation)})
    losses = [
        (format_number(step), *(format_number(dict(part).get(step), 4) for part in (train, validation)))
        for step in steps
    ]
    caption = f"Numbers of this plot: losses of run {run_name} by step"
    table = Table(caption, ("Step", "Training", "Validation"), losses)
    figure = plots.draw_learning_curve(train, validation, facts["best_step"], "loss")
    return Figure(figure, "Training loss (solid) and validation loss (dashed, squares).", table)


def _scores(run_name: str, name: str, facts: dict[str, Any]) -> Figure:
    """Return a metric on validation rows while training."""
    found = _points(facts, f"eval_{name}")
    caption = f"Numbers of this plot: {format_term(name)} of run {run_name} by step"
    table = Table(
        caption,
        ("Step", format_heading(name)),
        [(format_number(step), format_metric(name, value)) for step, value in found],
    )
    figure = plots.draw_learning_curve([], found, facts["best_step"], format_heading(name))
    return Figure(figure, f"{format_heading(name)} on validation rows (dashed, squares).", table)


def _points(facts: dict[str, Any], key: str) -> list[tuple[float, float]]:
    return [(point["step"], point[key]) for point in facts["curve"] if key in point]
