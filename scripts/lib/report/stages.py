"""What did quantization cost? And every stage before it, in quality, size and speed, on validation rows."""

from typing import Any

from lib.report import findings, plots
from lib.report.evidence import Evidence, format_measured
from lib.report.formatting import format_gap, format_heading, format_interval, format_number, format_p_value
from lib.report.page import Block, Figure, Fold, Section, Table
from lib.report.worth import draw_quality

_NOT_A_SIZE = ("adapter", "merged-original", "merged-dequantized")  # `merged` is one of the two, and as large


def show_quantization_cost(evidence: Evidence) -> Section:
    blocks: list[Block] = []
    for run_name, facts in evidence.shown_runs.items():
        found = _run(evidence, run_name, facts)
        blocks += [Fold(f"Run {run_name}", found)] if evidence.is_folded(run_name) else found
    if hidden := len(evidence.summary["runs"]) - len(evidence.shown_runs):
        blocks.append(f"The numbers of {hidden:,} further runs, whose best variants score lower, are in summary.json.")
    answer = findings.describe_quantization(evidence.task, evidence.summary)
    return Section("quantization", "What did quantization cost?", answer, blocks)


def _run(evidence: Evidence, run_name: str, facts: dict[str, Any]) -> list[Block]:
    """Return every scored stage of a run; one that was only quantized has none before its ONNX builds."""
    stages = {name: stage for name, stage in facts["stages"].items() if stage["validation"]}
    qualities = {"base": evidence.summary["base"]["validation"]}
    qualities |= {name: stage["validation"] for name, stage in stages.items()}
    chosen = evidence.chosen if evidence.summary["selected"]["run"] == run_name else ""
    strong = [*qualities].index(chosen) if chosen else None
    caption = f"Run {run_name}: quality on {evidence.measured_on('validation')}, with 95 % intervals"
    rows = [(name, *(format_measured(key, quality) for key in evidence.columns)) for name, quality in qualities.items()]
    return [
        *(findings.describe_stage_cost(evidence.task, name, qualities[name]) for name in stages),
        *([findings.merge_choice(run_name, facts["merge"])] if facts["merge"] else []),
        *draw_quality(qualities, evidence.main, chosen),
        Table(caption, ("Stage", *map(format_heading, evidence.columns)), rows, strong=strong),
        _comparison_table(run_name, qualities),
        *_show_speed(evidence, run_name, facts["stages"], chosen),
    ]


def _comparison_table(run_name: str, qualities: dict[str, dict[str, Any]]) -> Table:
    """Return each stage against the one before: paired differences, then the rows behind them."""
    against_of = {name: quality["against"] for name, quality in qualities.items() if quality["against"]}
    metrics = list(next(iter(against_of.values()))["difference"])
    rows = [
        (
            name,
            against["name"],
            *(format_gap(key, against["difference"][key], against["difference_ci95"][key]) for key in metrics),
            format_number(qualities[name]["flips"]),
            format_number(qualities[name]["kl"], 4),
            format_number(against["wins"]),
            format_number(against["losses"]),
            format_p_value(against["mcnemar_p"]),
        )
        for name, against in against_of.items()
    ]
    head = (
        "Stage",
        "Against",
        *map(format_heading, metrics),
        "Flips",
        "KL (nats)",
        "Rows won",
        "Rows lost",
        "Paired test",
    )
    caption = f"Run {run_name}: each stage minus the one that it was made from, in points with 95 % intervals"
    return Table(caption, head, rows)


def _show_speed(evidence: Evidence, run_name: str, stages: dict[str, dict[str, Any]], chosen: str) -> list[Block]:
    base_size = evidence.summary["base"]["size_mb"]
    rows = [("base", format_number(base_size, 1), "–", "–", "–", "–", "–")]
    for name, stage in stages.items():
        size = format_number(stage["size_mb"], 1)
        rows.append(
            (
                name,
                f"+ {size}" if name == "adapter" else size,  # it is used on top of the base model
                format_number(stage["load_s"], 2),
                format_number(stage["first_token_ms"], 0),
                format_number(stage["tokens_per_second"], 1),
                format_number(stage["peak_rss_mb"], 0),
                {True: "yes", False: "no", None: "–"}[stage["verified"]],
            )
        )
    head = ("Stage", "Size (MB)", "Load (s)", "First token (ms)", "Tokens/s", "Peak memory (MB)", "Run here")
    strong = 1 + [*stages].index(chosen) if chosen else None
    table = Table(f"Run {run_name}: size and speed, one prompt at a time on this machine", head, rows, strong=strong)
    return [table, *_size_plot(evidence, stages, chosen)]


def _size_plot(evidence: Evidence, stages: dict[str, dict[str, Any]], chosen: str) -> list[Block]:
    name = evidence.main
    points = [
        plots.Point(stage, one["size_mb"], quality[name], quality[f"{name}_ci95"], stage == chosen)
        for stage, one in stages.items()
        if stage not in _NOT_A_SIZE and (quality := one["validation"]) and quality[name] is not None
    ]
    if not points:
        return []
    rows = [
        (
            point.name,
            format_number(point.x, 1),
            format_number(point.y),
            format_interval(name, stages[point.name]["validation"]),
        )
        for point in points
    ]
    table = Table("Numbers of this plot", ("Stage", "Size (MB)", format_heading(name), "95 % interval"), rows)
    caption = (
        f"{format_heading(name)} on validation rows against size: up and left is better; the filled dot is the chosen"
        " one."
    )
    return [Figure(plots.draw_scatter(points, "size in MB", format_heading(name)), caption, table)]
