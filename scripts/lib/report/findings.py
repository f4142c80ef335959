"""Sentences that follow from the numbers, whatever these turn out to be.

A difference counts as shown when `lib.evaluation.comparison.is_significant` says so. Everything else is called
what it is: not shown.
"""

from collections.abc import Sequence
from typing import Any

from lib.evaluation.comparison import ALPHA, compute_minimum_detectable_effect, is_better, is_significant
from lib.evaluation.metrics import find_main_baseline
from lib.evaluation.registry import MAIN_METRIC
from lib.report.formatting import (
    convert_to_points,
    format_check_name,
    format_estimate,
    format_interval,
    format_megabytes,
    format_metric,
    format_p_value,
    format_percent,
    format_signed,
    format_term,
    join_words,
    name_points,
)

NAMED = 4  # of many in one sentence
Against = dict[str, Any]
Quality = dict[str, Any]


def state_verdict(task: str, summary: dict[str, Any]) -> tuple[str, bool]:
    """Return whether to ship the model and why, in one sentence, and whether that is a yes.

    `summarize` puts it into summary.json, from where terminal, report and model card take it.
    """
    name, gate, compared = MAIN_METRIC[task], summary["gate"], summary["model"]["compared"]
    model = f"variant {summary['selected']['variant']} of run {summary['selected']['run']}"
    missed = [
        format_check_name(check["name"]) for check in gate["checks"] if not check["passed"] and "rival" not in check
    ]
    unbeaten = [format_term(rival) for rival, against in compared.items() if not is_better(against, name)]
    rows = f"the same {summary['model']['test']['n']:,} test rows"
    doubt = f"on {rows} it is not shown to be better than {join_words(unbeaten)}"
    if missed:
        return (
            f"Do not ship {model}: it fails the gate on {join_words(missed)}{f', and {doubt}' if unbeaten else ''}.",
            False,
        )
    if unbeaten:
        passed = "it passed the gate, but " if gate["checks"] and gate["passed"] else ""
        return f"Do not ship {model} yet: {passed}{doubt}.", False
    rival = find_main_baseline(task, compared)
    gain = _range(name, compared[rival]["difference_ci95"][name])
    worth = f"on {rows} it is better than every baseline, than {format_term(rival)} by {gain}"
    if gate["checks"]:
        return f"Ship {model}: it passed the gate, and {worth}.", True
    value = f"{format_term(name)} {format_metric(name, summary['model']['test'][name])}"
    return f"Ship {model} if {value} is enough for you, since no gate was set: {worth}.", True


def describe_choice(summary: dict[str, Any]) -> str:
    selected = summary["selected"]
    return f"Variant {selected['variant']} of run {selected['run']}: {selected['reason']}."


def describe_significance(name: str, one: dict[str, Any]) -> str:
    """Say whether the chosen variant differs significantly from `one`, and how many rows would show it."""
    other, low_high = f"{one['run']}/{one['variant']}", one["difference_ci95"]
    if one["is_significant"]:
        better = "better" if one["difference"] > 0 else "worse"
        return f"It is significantly {better} than {other}, by {_range(name, low_high, one['difference'])}."
    ends = " to ".join(format_signed(convert_to_points(name, end)) for end in low_high)
    start = f"Its difference from {other} is not significant: {ends} {name_points(name)}"
    return f"{start}. {describe_rows_needed(one['rows_needed'])}"


def describe_rows_needed(rows: int | None) -> str:
    if rows is None:
        return "There is no difference on these rows, so nothing says how many could show one."
    return f"If the difference is as large as it looks here, about {format_estimate(rows)} rows would settle it."


def describe_worth(task: str, summary: dict[str, Any], measured: str) -> str:
    """Return whether the model beats what costs nothing. measured: on which rows."""
    name, rival = MAIN_METRIC[task], find_main_baseline(task, summary["baselines"])
    model, other = summary["model"]["test"], summary["baselines"][rival]["test"]
    against = summary["model"]["compared"][rival]
    values = (
        f"{format_term(name)} {format_metric(name, model[name])} against {format_metric(name, other[name])} on"
        f" {measured}"
    )
    return f"{_judge(against, name, format_term(rival))}: {values}."


def describe_rivals(task: str, summary: dict[str, Any]) -> list[str]:
    """Return which baselines the model beats, and which it does not."""
    name, compared = MAIN_METRIC[task], summary["model"]["compared"]
    values = {rival: splits["test"][name] for rival, splits in summary["baselines"].items()}
    values["base"] = summary["base"]["test"][name]
    groups = {
        "It is better, by more than chance explains, than": [
            rival for rival in compared if is_better(compared[rival], name)
        ],
        "It is not shown to be better than": [
            rival for rival in compared if not is_significant(compared[rival], name) and values[rival] is not None
        ],
        "It is worse than": [
            rival
            for rival in compared
            if is_significant(compared[rival], name) and not is_better(compared[rival], name)
        ],
    }
    return [
        f"{start} {join_words([f'{format_term(rival)} ({format_metric(name, values[rival])})' for rival in rivals])}."
        for start, rivals in groups.items()
        if rivals
    ]


def describe_uncertainty(task: str, quality: Quality, rows: int) -> str:
    """Return how far the luck of the rows moves the main metric. rows: those that it rests on."""
    name = MAIN_METRIC[task]
    found = quality[f"{name}_ci95"]
    if not found:
        return f"There is no {format_term(name)}, so nothing can be said: no row has a free answer."
    half = convert_to_points(name, (found[1] - found[0]) / 2)
    return (
        f"To about ±{half:.1f} points: on {rows:,} test rows the 95 % interval of {format_term(name)}"
        f" is {format_interval(name, quality)}."
    )


def describe_power(task: str, against: Against, rows: int, rival: str) -> str:
    """Return what these rows can show against a rival, and how many rows its difference needs."""
    name, wins, losses = MAIN_METRIC[task], against["wins"], against["losses"]
    found = f"Against {rival} {_won(task, against)} ({format_p_value(against['mcnemar_p'])})"
    if is_significant(against, name):
        return f"{found}; about {format_estimate(against['rows_needed'])} rows would have been enough to show that."
    least = ""
    if task == "classification" and wins + losses:
        effect = 100 * compute_minimum_detectable_effect(wins, losses, rows)
        least = f" {rows:,} rows show a difference of {effect:.1f} points 4 times in 5."
    return f"{found}.{least} {describe_rows_needed(against['rows_needed'])}"


def free_answers(task: str, quality: Quality, answered: int) -> str:
    if not answered:
        return "No row was answered freely (evaluate.greedy_rows is 0)."
    ends = f"{format_percent(quality['stop_rate'])} end by themselves"
    if task == "generation":
        return f"Texts were generated for the first {answered:,} rows; {ends}."
    return (
        f"Asked freely on the first {answered:,} rows, {format_percent(quality['invalid_rate'])} of the answers are no"
        f" label, {ends} and {format_percent(quality['greedy_accuracy'])} are right."
    )


def describe_stage_cost(task: str, stage: str, quality: Quality) -> str:
    """Return what a stage cost, or gained, against the one that it was made from."""
    against = quality["against"]
    changed = f"{quality['flips']:,} answers differ"
    if task == "classification":
        changed = f"{quality['flips']:,} of {quality['n']:,} labels change"
    if quality["kl"] is not None:
        changed += f", the probabilities by {quality['kl']:.4f} nats"
    return f"{stage} against {against['name']}: {_cost(task, against)}; {changed}."


def describe_quantization(task: str, summary: dict[str, Any]) -> str:
    """Return what the chosen variant costs against the model that it was built from, and what it saves."""
    selected = summary["selected"]
    stages = summary["runs"][selected["run"]]["stages"]
    stage = stages[f"onnx-{selected['variant']}"]
    against = stage["validation"]["against"]
    merged = against["name"] == "merged"
    before, name = (stages["merged"], "merged model") if merged else (summary["base"], "untouched base model")
    sizes = [format_megabytes(one["size_mb"]) for one in (stage, before)]
    return f"Against the {name}, {selected['variant']} {_cost(task, against)}; it has {sizes[0]} instead of {sizes[1]}."


def merge_choice(run_name: str, merge: dict[str, Any]) -> str:
    """Return what it was worth to try both merges of an adapter that was trained on a 4-bit base."""
    kept, name = merge["chosen"], merge["metric"]
    other = next(kind for kind in merge["values"] if kind != kept)
    values = [format_metric(name, merge["values"][kind]) for kind in (kept, other)]
    text = (
        f"Of the two merges of run {run_name} the one into the {kept} weights was kept: {format_term(name)} {values[0]}"
        f" against {values[1]} into the {other} ones. "
    )
    if merge["is_significant"]:
        gain = _range(name, merge["difference_ci95"], merge["difference"])
        return f"{text}The choice is shown to be worth {gain}."
    ends = " to ".join(format_signed(convert_to_points(name, end)) for end in merge["difference_ci95"])
    return f"{text}The choice is not shown to be worth anything: the difference is {ends} {name_points(name)}."


def describe_ranking(name: str, ranking: Sequence[dict[str, Any]]) -> str:
    """Return which setting is first by its mean, whether that is more than noise, and which noise was measured.

    ranking: best first, at least one.
    """
    best, *others = ranking
    first = f"{_member(best)} is first by mean {format_term(name)}, {format_metric(name, best['mean'])}"
    same, worse = ([_member(one) for one in others if one["is_significant"] is told] for told in (False, True))
    sentences = []
    if same:
        few = [*same[:NAMED], f"{len(same) - NAMED:,} more"] if len(same) > NAMED + 1 else same
        noise = "this difference may be" if len(same) == 1 else "these differences may be"
        sentences.append(f"{first}, but not significantly better than {join_words(few)}: {noise} noise.")
        if worse:
            sentences.append(
                f"{len(worse):,} of {len(ranking):,} {'is' if len(worse) == 1 else 'are'} shown to be worse."
            )
    elif worse:
        sentences.append(f"{first}; {'each' if len(worse) > 1 else 'the'} other one is shown to be worse.")
    else:
        sentences.append(f"{_member(best)} has mean {format_term(name)} {format_metric(name, best['mean'])}.")
    return " ".join([*sentences, *_luck(ranking), *_comparisons(len(others))])


def _luck(ranking: Sequence[dict[str, Any]]) -> list[str]:
    """Return which luck the intervals of a ranking cover."""
    counts = sorted({len(one["seeds"]) for one in ranking if len(one["seeds"]) > 1})
    once = [one for one in ranking if len(one["seeds"]) == 1]
    if not counts:
        return [
            "There is one seed only, so the luck of the training is not measured: another seed may turn this round."
        ]
    spread = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = f"Where there are several seeds ({spread}), the intervals cover the luck of rows and training"
    text += ", if roughly with so few." if counts[0] < 5 else "."
    if not once:
        return [text]
    groups = list(dict.fromkeys(one["group"] for one in once))
    named_ = join_words(groups) if len(groups) <= NAMED else f"{len(groups):,} settings"
    return [text, f"Of {named_} there is one seed only: there the luck of the training is not measured."]


def _comparisons(count: int) -> list[str]:
    if count <= NAMED:
        return []
    return [
        f"Each of the {count:,} intervals stands for itself: of those of equal ones 1 in 20 leaves out 0 by luck, and"
        " the first is first partly by luck."
    ]


def describe_further_runs(name: str, runs: int, size: int, further: int, worth: dict[str, Any] | None) -> str:
    """Return what further runs of a sampled grid would be worth, as `lib.evaluation.further_runs` has it.

    runs: in the sample. size: runs of the whole grid. worth: None where no run of the grid is left or none has a score.
    """
    drawn = f"The {runs:,} runs are a random sample of the {size:,} of the grid"
    if runs == size:
        return f"{drawn}, and so all of them: no run is left to try."
    if worth is None:
        return f"{drawn}. No run has a variant that keeps every constraint, so nothing can be said of further runs."
    more = f"{further:,} further run{'s' if further > 1 else ''}"
    text = (
        f"{drawn}. With a chance of at most {format_percent(worth['chance'])}, {more} would hold one with a better"
        f" {format_term(name)} than the best so far."
    )
    if worth["gain"] is None:
        return f"{text} How much better cannot be said: that takes more than {further:,} scored runs."
    gain, low, high = (convert_to_points(name, value) for value in (worth["gain"], *worth["gain_ci95"]))
    return (
        f"{text} On average {'they raise' if further > 1 else 'it raises'} the best by at most {gain:.1f}"
        f" {name_points(name)} (95 % interval {low:.1f} to {high:.1f}). That is what the last {further:,} of the sample"
        " added on average, and the expected best grows ever more slowly. Part of any gain is the luck of the"
        " validation rows, by which the best is chosen."
    )


def _member(one: dict[str, Any]) -> str:
    return f"{one['group']}/{one['variant']}"


def list_label_pairs(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[tuple[int, str, str]]:
    """Return rows, true and predicted label of the pairs that occur. confusion: true label down, predicted across."""
    return [
        (count, labels[true], labels[said_])
        for true, row in enumerate(confusion)
        for said_, count in enumerate(row)
        if count
    ]


def describe_errors(pairs: Sequence[tuple[int, str, str]]) -> str:
    """Return how many rows are wrong, and the mistake made most. pairs: rows, true and predicted label of each."""
    n = sum(count for count, _, _ in pairs)
    mistakes = [pair for pair in pairs if pair[1] != pair[2]]
    wrong = sum(count for count, _, _ in mistakes)
    if not mistakes:
        return f"Nothing: all {n:,} test rows get their own label."
    count, true, predicted = max(mistakes)
    start = f"{wrong:,} of {n:,} test rows ({format_percent(wrong / n)}) get a wrong label"
    return f"{start}, most often {true} called {predicted} ({count:,} rows)."


def describe_reliability(found: dict[str, Any]) -> str:
    """Return whether the probabilities that the model states can be taken as they are."""
    low, high = found["gap_ci95"]
    means = f"it states {format_percent(found['said'])} on average and is right on {format_percent(found['right'])}"
    if low > 0:
        return f"It is too sure of itself: {means}."
    if high < 0:
        return f"It is surer than it says: {means}."
    return f"On average its probabilities are about right: {means}."


def describe_probabilities(found: dict[str, Any]) -> str:
    """Return what the correction changes on test rows, and what the threshold is worth there."""
    before, after = (_state_error(found["test"][when]) for when in ("before", "after"))
    said = (
        f"At temperature {found['temperature']:.2f} they are off by {after} on average on test rows,"
        f" without it by {before}."
    )
    if "decision" not in found:
        return said
    answered = found["test"]["answered"]
    if found["threshold"] is None:
        wanted = format_percent(found["decision"]["precision"])
        return f"{said} No threshold reaches a precision of {wanted} on validation rows, so nothing is answered."
    low, high = answered["coverage_ci95"]
    share = f"{format_percent(answered['coverage'])} of the test rows [{format_percent(low)}, {format_percent(high)}]"
    start = f"{said} From a probability of {found['threshold']:.3f} on it answers {share}"
    if answered["precision"] is None:
        return f"{start}."
    low, high = answered["precision_ci95"]
    right = f"{format_percent(answered['precision'])} are right [{format_percent(low)}, {format_percent(high)}]"
    return f"{start}, of which {right}."


def _state_error(measured: dict[str, Any]) -> str:
    low, high = measured["ece_ci95"]
    return f"{format_percent(measured['ece'])} [{format_percent(low)}, {format_percent(high)}]"


def describe_audit(audit: dict[str, Any]) -> str:
    """Return what the audit found, worst first; or that it found nothing."""
    found = []
    if aside := audit["rows"] - audit["kept"]:
        reasons = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in audit["rejected"].items()]
        found.append(f"{aside:,} of {audit['rows']:,} rows were set aside ({join_words(reasons)})")
    if audit["rows_in_mixed_clusters"]:
        found.append(f"{audit['rows_in_mixed_clusters']:,} rows are nearly alike but labeled differently")
    if audit["keyword_shortcuts"]:
        quoted = [f"“{one['word']}”" for one in audit["keyword_shortcuts"]]
        words = (
            f"the word {quoted[0]} nearly gives" if len(quoted) == 1 else f"the words {join_words(quoted)} nearly give"
        )
        found.append(f"{words} a label away")
    if audit["tokens"]["truncated"]:
        found.append(f"{audit['tokens']['truncated']:,} rows are longer than the model reads and were cut")
    if not found:
        return f"Nothing that the audit looks for: all {audit['rows']:,} rows were kept."
    text = "; ".join(found)
    return f"{text[0].upper()}{text[1:]}."


def describe_leakage(leakage: dict[str, Any]) -> str:
    """Say how many rows are like one of an earlier split. leakage: leakage.json."""
    counts, alike = leakage["rows"], f"at least {100 * leakage['threshold']:g} % similar"
    told = "this was computed again from the written files."
    leaking = {split: len(ids) for split, ids in leakage.get("leaking", {}).items() if ids}
    if not leaking:
        total = sum(counts.values())
        return f"None of the {total:,} rows, nor one that is {alike} to it, stands in two splits; {told}"
    parts = join_words([f"{count:,} of {counts[split]:,} {split} rows" for split, count in leaking.items()])
    return (
        f"{parts} are the same as a row of an earlier split, {alike} to it or of its group; {told} The given split was"
        " kept as it is: a score that such rows raise says less about new rows."
    )


def _range(name: str, ci95: Sequence[float], difference: float = 1.0) -> str:
    """Return `3.2 to 11.0 points of accuracy`, without the sign."""
    low, high = sorted(convert_to_points(name, end) * (1 if difference > 0 else -1) for end in ci95)
    return f"{low:.1f} to {high:.1f} {name_points(name)}"


def _cost(task: str, against: Against) -> str:
    """Return `costs between 2.1 and 8.8 points of accuracy (p = 0.002)`, a gain, or no difference."""
    name = MAIN_METRIC[task]
    found, p = against["difference_ci95"][name], format_p_value(against["mcnemar_p"])
    if not against["wins"] + against["losses"] or found is None:
        return "turns no row right or wrong" if task == "classification" else "brings no answer nearer or further"
    low, high = (convert_to_points(name, end) for end in found)
    if against["mcnemar_p"] >= ALPHA and not low <= 0 <= high:
        cost = f"costs between {format_signed(-high)} and {format_signed(-low)} {name_points(name)}"
        return f"{cost}, which the paired test does not confirm ({p})"
    if not is_significant(against, name):
        return (
            f"costs between {format_signed(-high)} and {format_signed(-low)} {name_points(name)}, so no difference is"
            f" shown ({p})"
        )
    if against["difference"][name] > 0:
        return f"gains between {low:.1f} and {high:.1f} {name_points(name)} ({p})"
    return f"costs between {-high:.1f} and {-low:.1f} {name_points(name)} ({p})"


def _won(task: str, against: Against) -> str:
    if task == "classification":
        return f"it alone is right on {against['wins']:,} rows and alone wrong on {against['losses']:,}"
    return f"its answer is nearer to the reference on {against['wins']:,} rows and further on {against['losses']:,}"


def _judge(against: Against, name: str, rival: str) -> str:
    found = against["difference_ci95"][name]
    if found is None:
        return f"It cannot be compared with {rival}, since no row has a free answer"
    if not is_significant(against, name):
        ends = " to ".join(format_signed(convert_to_points(name, end)) for end in found)
        return f"It is not shown to be better than {rival}; the difference is {ends} {name_points(name)}"
    if is_better(against, name):
        return f"Yes, it is better than {rival} by {_range(name, found)}"
    return f"No, it is worse than {rival} by {_range(name, found, -1)}"
