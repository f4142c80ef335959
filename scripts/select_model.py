"""Choose the variant that ships, on validation rows, under the constraints of the configuration.

A variant is out when it breaks a constraint, or when another one is shown to be better: the 95 %
bootstrap interval of their paired difference lies above 0. The rest do not differ significantly; of these the
smallest wins. Sizes within 5 % count as one, as those of one variant in all runs are: there the better metric wins,
then the faster. That is a rule, not a finding, so the selection says which variants
do not differ significantly and how many rows could show a difference. Every rejection has its reason.

Beside the choice stand two views of all variants of all runs: `candidates` with the Pareto front over quality, size,
tokens per second, time to the first token and memory, and `ranking` by the mean over seeds. The front compares point
values, noise and all: it shows what is on offer and decides nothing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import hash_file, read_json, read_jsonl, write_json
from lib.core.layout import Layout, add_results_argument
from lib.evaluation.answers import Prediction
from lib.evaluation.bootstrap import Statistic, bootstrap_replicates, compute_percentile_interval_95
from lib.evaluation.comparison import (
    RankedModel,
    align_rows,
    compute_sample_size_from_interval,
    find_dominators,
    rank_candidates,
)
from lib.evaluation.metrics import build_statistics
from lib.evaluation.registry import METRICS, SELECTED_BY
from lib.provenance.manifests import build_manifest_path

_CONSTRAINTS = (  # setting, key in the speed file, unit, whether the setting is an upper limit
    ("max_size_mb", "size_mb", "MB", True),
    ("max_first_token_ms", "first_token_ms", "ms to the first token", True),
    ("min_tokens_per_second", "tokens_per_second", "tokens per second", False),
    ("max_peak_rss_mb", "peak_rss_mb", "MB of memory", True),
)
_SPEED = {"size_mb": -1, "first_token_ms": -1, "tokens_per_second": 1, "peak_rss_mb": -1}  # 1: more is better
_ONE_SIZE = 1.05  # sizes up to this ratio count as the same
_NAMED = 5  # variants that a sentence names
_AT_ONCE = 64  # variants that one is compared with at a time


@dataclass(frozen=True)
class Candidate:
    """A variant of a run. value: the metric on validation rows, None where it is undefined.

    bootstrap: (samples,) the metric on resampled rows, the same rows for all candidates. rows: all validation
    rows; measured: those that the metric rests on.
    """

    run: str
    variant: str
    value: float | None
    bootstrap: np.ndarray
    rows: int
    measured: int
    speed: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.run}/{self.variant}"

    @property
    def ci95(self) -> list[float] | None:
        return compute_percentile_interval_95(self.bootstrap)


def main(args: argparse.Namespace) -> None:
    settings = args.settings
    settings["selection"]["metric"] = settings["selection"].get("metric") or SELECTED_BY[settings["task"]]
    metric, runs = settings["selection"]["metric"], {one["name"]: one for one in settings["runs"]}
    candidates = _read_candidates(args.results, settings)
    reasons = {candidate.name: _find_broken_constraint(candidate, settings["selection"]) for candidate in candidates}
    feasible = _by_quality([candidate for candidate in candidates if not reasons[candidate.name]])
    chosen, why, compared = None, "no variant keeps every constraint", []
    if feasible:
        chosen, why, lost = _choose(feasible, metric)
        reasons |= lost | {chosen.name: why}
        compared = [_compare_candidates(chosen, other) for other in feasible if other is not chosen]
    above = dict(zip([one.name for one in feasible], _find_dominating(feasible), strict=True))
    entries = [_entry(one, reasons[one.name], one is chosen, above) for one in candidates]
    entries += [
        _describe_unscored(name, variant, f"its provider {provider} is not run here")
        for name in runs
        for variant, provider in settings["unscored"].items()
    ]
    write_json(
        args.output,
        {
            "run": chosen and chosen.run,
            "variant": chosen and chosen.variant,
            "reason": why,
            "rejected": [
                {key: one[key] for key in ("run", "variant", "reason")} for one in entries if not one["chosen"]
            ],
            "metric": metric,
            "compared": compared,
            "candidates": entries,
            "ranking": _rank_runs(candidates, runs, settings["seed"]),
        },
    )
    report_progress(f"select_model: {chosen.name if chosen else 'none'}: {why}")


def _read_candidates(layout: Layout, settings: dict[str, Any]) -> list[Candidate]:
    """Return every scored variant of every run on the same rows.

    Resamples in which the metric of one is undefined are left out for all.

    Raises `UserError` when a score is of other bytes than the manifest's or has not the metric, or when candidates
    were scored on different rows.
    """
    metric = settings["selection"]["metric"]
    first: list[Prediction] = []
    measured: list[Statistic] = []
    facts: list[dict[str, Any]] = []
    for run_name, variant in ((one["name"], variant) for one in settings["runs"] for variant in settings["scored"]):
        stage = f"onnx-{variant}"
        score = _read_score(layout.score(run_name, stage), build_manifest_path(layout.folder(run_name, stage)), metric)
        rows = list(read_jsonl(layout.predictions(run_name, stage)))
        first = first or rows
        rows = align_rows(rows, first, f"{run_name}/{variant}")
        measured.append(build_statistics(settings["task"], rows, score.get("labels"))[metric])
        facts.append(
            {
                "run": run_name,
                "variant": variant,
                "value": score["quality"][metric],
                "rows": len(rows),
                "measured": METRICS[metric].count_rows(rows),
                "speed": read_json(layout.speed(run_name, variant)),
            }
        )
    if not facts:
        return []
    drawn = bootstrap_replicates(measured, seed=settings["seed"], samples=settings["evaluate"]["bootstrap_samples"])
    valued = [fact["value"] is not None for fact in facts]
    drawn = drawn[:, ~np.isnan(drawn[valued]).any(axis=0)]
    return [Candidate(**fact, bootstrap=values) for fact, values in zip(facts, drawn, strict=True)]


def _read_score(score_file: Path, manifest_file: Path, metric: str) -> dict[str, Any]:
    score: dict[str, Any] = read_json(score_file)
    if score["inputs"]["model"] != hash_file(manifest_file):
        fail(
            f"this score was computed from a different model than {manifest_file}",
            "delete the score and run again",
            at=score_file,
        )
    if metric not in score["quality"]:
        known = ", ".join(key for key, value in score["quality"].items() if isinstance(value, float))
        fail(f"no metric {metric!r} in it", f"set selection.metric to one of {known}", at=score_file)
    return score


def _find_broken_constraint(candidate: Candidate, selection: dict[str, Any]) -> str:
    """Return why the variant cannot be chosen, or nothing."""
    metric, least = METRICS[selection["metric"]].spoken, selection.get("min_quality")
    if candidate.value is None:
        return f"it has no {metric}: no row has a free answer (evaluate.greedy_rows is 0)"
    broken = []
    if least is not None and candidate.value < least:
        low, high = candidate.ci95 or (candidate.value, candidate.value)
        open_ = ", so these rows leave open whether it is" if high >= least else ""
        broken.append(
            f"{metric} {candidate.value:.3f} (95 % interval {low:.3f} to {high:.3f}) is below selection.min_quality"
            f" {least:g}{open_}"
        )
    for setting, key, unit, upper in _CONSTRAINTS:
        limit, value = selection.get(setting), candidate.speed[key]
        if limit is not None and (value > limit if upper else value < limit):
            broken.append(f"{value:.1f} {unit} is {'above' if upper else 'below'} selection.{setting} {limit:g}")
    return "; ".join(broken)


def _choose(order: list[Candidate], metric: str) -> tuple[Candidate, str, dict[str, str]]:
    """Return the chosen candidate, why, and by name why each other one was not. order: best first."""
    metric = METRICS[metric].spoken
    lost, equal = {}, []
    for place, one in enumerate(order):
        better = _find_better(order[:place], one)
        if better:
            found = _range(_difference(better, one))
            lost[one.name] = f"{metric} {one.value:.3f} is below {better.name}'s {better.value:.3f}{found}"
        else:
            equal.append(one)
    chosen = _smallest(equal)[0]
    for one in equal:
        if one is not chosen:
            lost[one.name] = (
                f"{metric} {one.value:.3f} does not differ significantly from {chosen.name}'s"
                f" {chosen.value:.3f}{_range(_difference(chosen, one))}, and {_thriftier(chosen, one)}"
            )
    return chosen, _why(chosen, order, equal, metric), lost


def _smallest(equal: list[Candidate]) -> list[Candidate]:
    """Return those whose size is that of the smallest, in their order."""
    limit = _ONE_SIZE * min(one.speed["size_mb"] for one in equal)
    return [one for one in equal if one.speed["size_mb"] <= limit]


def _by_quality(candidates: list[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda one: (-(one.value or 0.0), *_thrift(one)))


def _find_better(others: Sequence[Candidate], one: Candidate) -> Candidate | None:
    """Return the first of `others` that is shown to be better than `one`."""
    for start in range(0, len(others), _AT_ONCE):
        some = others[start : start + _AT_ONCE]
        low = np.percentile(np.stack([other.bootstrap for other in some]) - one.bootstrap, 2.5, axis=1)
        if (low > 0).any():
            return some[int(np.argmax(low > 0))]
    return None


def _why(chosen: Candidate, order: list[Candidate], equal: list[Candidate], metric: str) -> str:
    value = f"{chosen.value:.3f} on {chosen.rows} validation rows"
    if len(order) == 1:
        return f"{metric} {value}; it is the only variant that keeps every constraint"
    is_best = chosen is order[0]
    text = f"the best {metric} ({value})" if is_best else f"{metric} {value}"
    others = [f"{one.name} ({one.value:.3f})" for one in equal if one is not chosen]
    if not others:
        return text
    size = f"{chosen.speed['size_mb']:.1f} MB"
    if is_best:
        verb = "are" if others[1:] else "is"
        least = min(one.speed["size_mb"] for one in equal)
        smaller = "no smaller" if least >= chosen.speed["size_mb"] else "no more than 5 % smaller"
        return f"{text}; {_some(others)} {verb} not significantly worse, but {smaller} than its {size}"
    alone = len(_smallest(equal)) == 1
    of_these = "it is the smallest of these" if alone else f"it has the best {metric} of the smallest of these"
    return f"{text}; not significantly different from {_some(others)}, and {of_these}, {size}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_NAMED])} and {more} more"


def _compare_candidates(chosen: Candidate, other: Candidate) -> dict[str, Any]:
    """Return chosen minus other by the metric, whether the rows tell them apart, and about how many rows would."""
    low, high = _difference(chosen, other)
    difference = (chosen.value or 0.0) - (other.value or 0.0)
    return {
        "run": other.run,
        "variant": other.variant,
        "difference": difference,
        "difference_ci95": [low, high],
        "is_significant": not low <= 0 <= high,
        "rows_needed": compute_sample_size_from_interval(difference, (low, high), chosen.measured),
    }


def _difference(best: Candidate, other: Candidate) -> list[float]:
    """Return 95 % interval of best minus other, on the same resampled rows."""
    found = compute_percentile_interval_95(best.bootstrap - other.bootstrap)
    assert found is not None
    return found


def _find_dominating(feasible: Sequence[Candidate]) -> list[str | None]:
    """Return for each the best of those on the Pareto front that dominate it. feasible: best first."""
    values = [[one.value or 0.0, *(sign * one.speed[key] for key, sign in _SPEED.items())] for one in feasible]
    return [None if place is None else feasible[place].name for place in find_dominators(np.array(values))]


def _entry(one: Candidate, reason: str, chosen: bool, above: dict[str, str | None]) -> dict[str, Any]:
    """Return what `candidates` says of one. above: what dominates each that keeps the constraints."""
    return {
        "run": one.run,
        "variant": one.variant,
        "value": one.value,
        "value_ci95": one.ci95 if one.value is not None else None,
        **{key: one.speed[key] for key in _SPEED},
        "feasible": one.name in above,
        "pareto": one.name in above and above[one.name] is None,
        "dominated_by": above.get(one.name),
        "chosen": chosen,
        "reason": reason,
    }


def _describe_unscored(run_name: str, variant: str, reason: str) -> dict[str, Any]:
    return {
        "run": run_name,
        "variant": variant,
        **dict.fromkeys(("value", "value_ci95", *_SPEED)),
        "feasible": False,
        "pareto": False,
        "dominated_by": None,
        "chosen": False,
        "reason": reason,
    }


def _rank_runs(candidates: Sequence[Candidate], runs: dict[str, dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    members = [
        RankedModel(runs[one.run]["group"], one.variant, runs[one.run]["seed"], one.value, one.bootstrap)
        for one in candidates
        if one.value is not None
    ]
    return rank_candidates(members, seed=seed)


def _thrift(candidate: Candidate) -> tuple[float, float, str]:
    return candidate.speed["size_mb"], -candidate.speed["tokens_per_second"], candidate.name


def _thriftier(chosen: Candidate, other: Candidate) -> str:
    mine, its = chosen.speed["size_mb"], other.speed["size_mb"]
    sizes = f"({mine:.1f} against {its:.1f} MB)"
    if its > _ONE_SIZE * mine:
        return f"{chosen.name} is smaller {sizes}"
    if chosen.value != other.value:
        return f"{chosen.name}, as small {sizes}, has the better value"
    rates = chosen.speed["tokens_per_second"], other.speed["tokens_per_second"]
    return f"{chosen.name} is as small and not slower ({rates[0]:.1f} against {rates[1]:.1f} tokens per second)"


def _range(found: Sequence[float]) -> str:
    return f" (95 % interval of the difference {found[0]:+.3f} to {found[1]:+.3f})"


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument(
        "--settings",
        type=parse_settings,
        required=True,
        help="task, seed, selection, evaluate; runs: name, group and seed of each;"
        " scored: variants that may be chosen; unscored: the provider of each that was built and not scored here",
    )
    add_results_argument(arguments)
    arguments.add_argument("--output", type=Path, required=True, help="selection.json")
    run(arguments, main)
