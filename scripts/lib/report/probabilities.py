"""Can its probabilities be acted on?"""

from typing import Any

from lib.evaluation.reliability import measure_reliability
from lib.report import findings, plots
from lib.report.evidence import Evidence
from lib.report.formatting import format_number, format_percent
from lib.report.page import Block, Figure, Section, Table

_TITLE = "Can its probabilities be acted on?"
_MEASURES = {"nll": "Negative log likelihood", "brier": "Brier score", "ece": "Expected calibration error"}


def show_probabilities(evidence: Evidence) -> Section | None:
    found = evidence.summary.get("probabilities")
    if found is None:  # free answers have none
        return None
    blocks: list[Block] = [_show_quality(found), *_show_reliability(evidence, found["temperature"])]
    if "decision" in found:
        blocks.append(_show_answers(found))
    blocks.append(_draw_curve(found))
    return Section("probabilities", _TITLE, findings.describe_probabilities(found), blocks)


def _show_quality(found: dict[str, Any]) -> Table:
    rows = [
        (f"{title}, {split} rows", *(_format_measure(found[split][stage], name) for stage in ("before", "after")))
        for name, title in _MEASURES.items()
        for split in ("validation", "test")
    ]
    caption = (
        f"The probabilities as the model gives them and at temperature {found['temperature']:.3f}, which the validation"
        " rows chose; less is better, with 95 % intervals"
    )
    return Table(caption, ("", "As given", "Corrected"), rows)


def _format_measure(quality: dict[str, Any], name: str) -> dict[str, str]:
    low, high = quality[f"{name}_ci95"]
    return {"text": f"{quality[name]:.3f}", "note": f"{low:.3f} to {high:.3f}"}


def _show_reliability(evidence: Evidence, temperature: float) -> list[Block]:
    corrected = [
        {**row, "log_probs": {label: value / temperature for label, value in row["log_probs"].items()}}
        for _, _, row in evidence.examples
    ]
    found = measure_reliability(
        corrected,
        seed=evidence.settings["seed"],
        samples=evidence.settings["evaluate"]["bootstrap_samples"],
    )
    rows = [
        (
            f"{one['low']:g} to {one['high']:g}",
            format_number(one["n"]),
            format_percent(one["said"]),
            format_percent(one["right"]),
        )
        for one in found["bins"]
    ]
    table = Table("Numbers of this plot", ("Probability", "Rows", "Mean stated", "Right"), rows)
    caption = "How often it is right on test rows, by the corrected probability; on the dashed line both agree."
    bins = [(one["said"], one["right"], one["n"]) for one in found["bins"]]
    return [findings.describe_reliability(found), Figure(plots.draw_reliability(bins), caption, table)]


def _show_answers(found: dict[str, Any]) -> Table:
    rows = [
        (
            f"{split} rows",
            format_number(answered["rows"]),
            _format_share(answered, "precision"),
            _format_share(answered, "coverage"),
        )
        for split in ("validation", "test")
        for answered in [found[split]["answered"]]
    ]
    caption = "Rows that get a label, and how many of these labels are right; all others are unsure"
    return Table(caption, ("", "Answered", "Right", "Share answered"), rows)


def _format_share(answered: dict[str, Any], name: str) -> dict[str, str]:
    if answered[name] is None:
        return {"text": "none", "note": ""}
    low, high = answered[f"{name}_ci95"]
    return {"text": format_percent(answered[name]), "note": f"{format_percent(low)} to {format_percent(high)}"}


def _draw_curve(found: dict[str, Any]) -> Figure:
    points = [(one["coverage"], one["risk"]) for one in found["curve"]]
    rows = [
        (format_percent(one["coverage"]), format_percent(one["risk"]), f"{one['threshold']:.3f}")
        for one in found["curve"]
    ]
    table = Table("Numbers of this plot", ("Answered", "Wrong", "From this probability on"), rows, folded=True)
    caption = "How many of the answers are wrong when only the surest test rows are answered."
    return Figure(plots.draw_risk_coverage(points), caption, table)
