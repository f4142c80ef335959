"""Choose the variant that ships, on validation rows, under the constraints of the configuration.

A variant is out when it breaks a constraint, or when another one is shown to be better: the 95 %
bootstrap interval of their paired difference lies above 0. The rows cannot tell the rest apart; of these the
smallest wins, then the fastest. That is a rule, not a finding, so the selection says which variants
it could not tell apart and how many rows could. Every rejection has its reason.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.cli import fail, parser, progress, run, settings_argument
from lib.comparison import align, rows_to_tell
from lib.files import read_json, read_jsonl, sha256_file, write_json
from lib.metrics import Prediction, interval, statistics
from lib.report.words import said

_DEFAULT_METRIC = {"classification": "macro_f1", "generation": "chrf"}
_CONSTRAINTS = (  # setting, key in the speed file, unit, whether the setting is an upper limit
    ("max_size_mb", "size_mb", "MB", True),
    ("max_first_token_ms", "first_token_ms", "ms to the first token", True),
    ("min_tokens_per_second", "tokens_per_second", "tokens per second", False),
    ("max_peak_rss_mb", "peak_rss_mb", "MB of memory", True),
)


@dataclass(frozen=True)
class Candidate:
    """A variant of a run. value: the metric on validation rows, None where it is undefined."""

    run: str
    variant: str
    labels: list[str] | None
    value: float | None
    predictions: list[Prediction]
    speed: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.run}/{self.variant}"


def main(args: argparse.Namespace) -> None:
    settings = args.settings
    settings["selection"]["metric"] = settings["selection"]["metric"] or _DEFAULT_METRIC[settings["task"]]
    candidates = [_read_candidate(words, settings) for words in args.candidate]
    reasons = {candidate.name: _broken_constraints(candidate, settings["selection"]) for candidate in candidates}
    feasible = [candidate for candidate in candidates if not reasons[candidate.name]]
    chosen, why, compared = None, "no variant keeps every constraint", []
    if feasible:
        chosen, why, lost = _choose(feasible, settings)
        reasons |= lost
        compared = [_compared(chosen, other, settings) for other in _by_quality(feasible) if other is not chosen]
    rejected = [
        {"run": candidate.run, "variant": candidate.variant, "reason": reasons[candidate.name]}
        for candidate in candidates
        if candidate is not chosen
    ]
    write_json(
        args.output,
        {
            "run": chosen and chosen.run,
            "variant": chosen and chosen.variant,
            "reason": why,
            "rejected": rejected,
            "metric": settings["selection"]["metric"],
            "compared": compared,
        },
    )
    progress(f"select_model: {chosen.name if chosen else 'none'}: {why}")


def _read_candidate(words: Sequence[str], settings: dict[str, Any]) -> Candidate:
    """Raises `UserError` when the score is of other bytes than the manifest's, or has not the metric."""
    run_name, variant, *paths = words
    score_file, predictions_file, speed_file, manifest_file = map(Path, paths)
    score = read_json(score_file)
    if score["inputs"]["model"] != sha256_file(manifest_file):
        fail(f"scored was another model than {manifest_file}", "delete the score and run again", at=score_file)
    metric = settings["selection"]["metric"]
    if metric not in score["quality"]:
        known = ", ".join(key for key, value in score["quality"].items() if isinstance(value, float))
        fail(f"no metric {metric!r} in it", f"set selection.metric to one of {known}", at=score_file)
    return Candidate(
        run=run_name,
        variant=variant,
        labels=score.get("labels"),
        value=score["quality"][metric],
        predictions=list(read_jsonl(predictions_file)),
        speed=read_json(speed_file),
    )


def _broken_constraints(candidate: Candidate, selection: dict[str, Any]) -> str:
    """Why the variant cannot be chosen, or nothing."""
    metric = said(selection["metric"])
    if candidate.value is None:
        return f"it has no {metric}: no row has a free answer (evaluate.greedy_rows is 0)"
    broken = []
    if selection["min_quality"] is not None and candidate.value < selection["min_quality"]:
        broken.append(f"{metric} {candidate.value:.3f} is below selection.min_quality {selection['min_quality']:g}")
    for setting, key, unit, upper in _CONSTRAINTS:
        limit, value = selection[setting], candidate.speed[key]
        if limit is not None and (value > limit if upper else value < limit):
            broken.append(f"{value:.1f} {unit} is {'above' if upper else 'below'} selection.{setting} {limit:g}")
    return "; ".join(broken)


def _choose(feasible: list[Candidate], settings: dict[str, Any]) -> tuple[Candidate, str, dict[str, str]]:
    """The chosen candidate, why, and by name why each other one was not."""
    metric = said(settings["selection"]["metric"])
    order = _by_quality(feasible)
    lost, equal = {}, []
    for place, one in enumerate(order):
        better, found = _shown_better(order[:place], one, settings)
        if better:
            lost[one.name] = f"{metric} {one.value:.3f} is below {better.name}'s {better.value:.3f}{_range(found)}"
        else:
            equal.append(one)
    chosen = min(equal, key=_thrift)
    for one in equal:
        if one is not chosen:
            found = _difference(chosen, one, settings)
            lost[one.name] = (
                f"{metric} {one.value:.3f} cannot be told from {chosen.name}'s {chosen.value:.3f}{_range(found)},"
                f" and {_thriftier(chosen, one)}"
            )
    return chosen, _why(chosen, order, equal, metric), lost


def _by_quality(candidates: list[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda one: (-(one.value or 0.0), *_thrift(one)))


def _shown_better(
    others: Sequence[Candidate], one: Candidate, settings: dict[str, Any]
) -> tuple[Candidate | None, tuple[float, float] | None]:
    """The first of `others` that is shown to be better than `one`, with the interval of their difference."""
    for other in others:
        found = _difference(other, one, settings)
        if found[0] > 0:
            return other, found
    return None, None


def _why(chosen: Candidate, order: list[Candidate], equal: list[Candidate], metric: str) -> str:
    text = f"{metric} {chosen.value:.3f} on {len(chosen.predictions)} validation rows"
    if len(order) == 1:
        return f"{text}; it is the only variant that keeps every constraint"
    if chosen is order[0]:
        text += ", the best"
    if len(equal) > 1:
        others = ", ".join(f"{one.name} ({one.value:.3f})" for one in equal if one is not chosen)
        size = f"{chosen.speed['size_mb']:.1f} MB"
        text += f"; these rows cannot tell it from {others}, and it is the smallest of these, {size}"
    return text


def _compared(chosen: Candidate, other: Candidate, settings: dict[str, Any]) -> dict[str, Any]:
    """Chosen minus other by the metric, whether the rows tell them apart, and about how many rows would."""
    low, high = _difference(chosen, other, settings)
    difference = (chosen.value or 0.0) - (other.value or 0.0)
    return {
        "run": other.run,
        "variant": other.variant,
        "difference": difference,
        "difference_ci95": [low, high],
        "told_apart": not low <= 0 <= high,
        "rows_needed": rows_to_tell(difference, (low, high), _measured_rows(chosen, settings)),
    }


def _measured_rows(candidate: Candidate, settings: dict[str, Any]) -> int:
    """Rows that the metric rests on: what is said of free answers rests on the rows that have one."""
    if settings["selection"]["metric"] in ("accuracy", "macro_f1", "perplexity"):
        return len(candidate.predictions)
    return sum(row["answer"] is not None for row in candidate.predictions)


def _difference(best: Candidate, other: Candidate, settings: dict[str, Any]) -> tuple[float, float]:
    """95 % interval of best minus other, on the same resampled rows."""
    task, metric = settings["task"], settings["selection"]["metric"]
    aligned = align(other.predictions, best.predictions, other.name)
    high, low = (statistics(task, rows, best.labels)[metric] for rows in (best.predictions, aligned))
    found = interval(high, seed=settings["seed"], samples=settings["evaluate"]["bootstrap_samples"], minus=low)
    assert found is not None
    return found[0], found[1]


def _thrift(candidate: Candidate) -> tuple[float, float, str]:
    return candidate.speed["size_mb"], -candidate.speed["tokens_per_second"], candidate.name


def _thriftier(chosen: Candidate, other: Candidate) -> str:
    mine, its = chosen.speed["size_mb"], other.speed["size_mb"]
    if mine < its:
        return f"{chosen.name} is smaller ({mine:.1f} against {its:.1f} MB)"
    rates = chosen.speed["tokens_per_second"], other.speed["tokens_per_second"]
    return f"{chosen.name} is as small and not slower ({rates[0]:.1f} against {rates[1]:.1f} tokens per second)"


def _range(found: tuple[float, float] | None) -> str:
    return f" (95 % interval of the difference {found[0]:+.3f} to {found[1]:+.3f})" if found else ""


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--settings", type=settings_argument, required=True, help="task, seed, selection, evaluate")
    arguments.add_argument(
        "--candidate",
        nargs=6,
        action="append",
        default=[],
        metavar=("RUN", "VARIANT", "SCORE", "PREDICTIONS", "SPEED", "MANIFEST"),
        help="a variant that may be chosen",
    )
    arguments.add_argument("--output", type=Path, required=True, help="selection.json")
    run(arguments, main)
