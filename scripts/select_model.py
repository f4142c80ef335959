"""Choose the variant that ships, on validation rows, under the constraints of the configuration.

Among the variants that keep every constraint, the best one by the metric sets the mark. Variants
whose difference to it is within noise (the 95 % bootstrap interval of the paired difference
contains 0) count as equal; of these the smallest wins, then the fastest. Every rejection has its reason.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.cli import fail, parser, progress, run, settings_argument
from lib.files import read_json, read_jsonl, sha256_file, write_json
from lib.metrics import Prediction, align, interval, statistics

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
    chosen, why = None, "no variant keeps every constraint"
    if feasible:
        chosen, why, lost = _choose(feasible, settings)
        reasons |= lost
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
    metric = selection["metric"]
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
    metric = settings["selection"]["metric"]
    order = sorted(feasible, key=lambda one: (-(one.value or 0.0), *_thrift(one)))
    best = order[0]
    ranges = {one.name: _difference(best, one, settings) for one in order[1:]}
    equal = [best, *(one for one in order[1:] if ranges[one.name][0] <= 0 <= ranges[one.name][1])]
    chosen = min(equal, key=_thrift)
    lost = {}
    for one in order:
        if one is chosen:
            continue
        given = f"{metric} {one.value:.3f}"
        if one is best:
            lost[one.name] = (
                f"{given} is the best, but {chosen.name}'s {chosen.value:.3f} is within noise of it"
                f"{_range(ranges.get(chosen.name))}, and {_thriftier(chosen, one)}"
            )
        elif one in equal:
            lost[one.name] = (
                f"{given} is within noise of the best, {best.value:.3f}{_range(ranges[one.name])},"
                f" and {_thriftier(chosen, one)}"
            )
        else:
            lost[one.name] = f"{given} is below {best.name}'s {best.value:.3f}{_range(ranges[one.name])}"
    return chosen, _why(chosen, best, equal, ranges, metric), lost


def _why(
    chosen: Candidate, best: Candidate, equal: list[Candidate], ranges: dict[str, tuple[float, float]], metric: str
) -> str:
    text = f"{metric} {chosen.value:.3f} on {len(chosen.predictions)} validation rows"
    if chosen is not best:
        text += f", within noise of the best, {best.name}'s {best.value:.3f}{_range(ranges[chosen.name])},"
    elif ranges:
        text += ", the best"
    else:
        return f"{text}; it is the only variant that keeps every constraint"
    if len(equal) > 1:
        text += f" and the smallest of {len(equal)} that count as equal, {chosen.speed['size_mb']:.1f} MB"
    return text


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
