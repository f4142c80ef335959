"""Numbers and names as people read them."""

from collections.abc import Sequence
from typing import Any

from lib.evaluation.registry import METRICS

_BASELINES = {
    "majority": "Majority label",
    "keyword": "Label word in text",
    "tfidf_logreg": "TF-IDF + logistic regression",
    "nearest_centroid": "TF-IDF + nearest centroid",
    "nearest_question": "Nearest question's answer",
    "base": "Untouched base model",
}

Quality = dict[str, Any]


def format_heading(key: str) -> str:
    """Return the name of a metric or a baseline as a heading has it."""
    return METRICS[key].title if key in METRICS else _BASELINES.get(key, key)


def format_term(key: str) -> str:
    """Return the name within a sentence: `accuracy`, but `TF-IDF`."""
    name = format_heading(key)
    return name if name[1].isupper() else name[0].lower() + name[1:]


def format_check_name(name: str) -> str:
    """Return `accuracy_above_tfidf_logreg` for people."""
    key, _, rival = name.partition("_above_")
    return f"{format_term(key)} above {format_term(rival)}" if rival else format_term(key)


def format_percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def format_number(value: float | int | None, digits: int = 3) -> str:
    """Format a number with fixed digits, thousands separated; a dash for what does not apply."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def format_estimate(rows: int) -> str:
    """Return a number of rows that is an estimate: two digits are enough."""
    digits = len(str(rows))
    return f"{round(rows, 2 - digits) if digits > 2 else rows:,}"


def format_metric(name: str, value: float | None) -> str:
    """Return a metric with as many digits as its registry entry says."""
    return format_number(None if value is None else float(value), METRICS[name].decimals)


def format_interval(name: str, quality: Quality) -> str:
    """Return `0.801 to 0.860`; nothing where there is no interval."""
    found = quality.get(f"{name}_ci95")
    return f"{format_metric(name, found[0])} to {format_metric(name, found[1])}" if found else ""


def convert_to_points(name: str, difference: float) -> float:
    """Return a difference of a metric in points: hundredths where its scale ends at 1."""
    return METRICS[name].points * difference


def name_points(name: str) -> str:
    """Return `points of accuracy`."""
    return f"points of {format_term(name)}"


def format_signed(value: float) -> str:
    """Return `+1.4`, `-0.2`; never `-0.0`."""
    return f"{round(value, 1) + 0.0:+.1f}"


def format_gap(name: str, difference: float | None, ci95: Sequence[float] | None) -> dict[str, str]:
    """Return a cell: the difference in points with its interval below it."""
    if difference is None or ci95 is None:
        return {"text": "–", "note": ""}
    low, high = (format_signed(convert_to_points(name, end)) for end in ci95)
    return {"text": format_signed(convert_to_points(name, difference)), "note": f"{low} to {high}"}


def format_megabytes(value: float) -> str:
    """Return `117 MB`; small models show a digit more."""
    return f"{format_number(float(value), 0 if value >= 10 else 1)}\u00a0MB"


def format_p_value(p: float) -> str:
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def format_duration(seconds: float) -> str:
    """Return `41 s`, `12.3 minutes`, `2.1 hours`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def join_words(words: Sequence[str]) -> str:
    """Join words as `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def format_value(value: Any) -> str:
    """Return any value of a settings or facts table."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{key}: {format_value(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return format_number(value) if isinstance(value, int) else str(value)
