"""Sentences that follow from the numbers, and numbers as people read them."""

from collections.abc import Sequence
from typing import Any

from lib.metrics import BASELINE, MAIN_METRIC, difference_interval

ALPHA = 0.05  # a difference with a p at or above this counts as not shown
NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "greedy_accuracy": "Free answers right",
    "invalid_rate": "Free answers invalid",
    "stop_rate": "Stops by itself",
    "chrf": "chrF",
    "token_f1": "Token F1",
    "exact_match": "Exact match",
    "perplexity": "Perplexity",
    "majority": "Majority label",
    "keyword": "Label word in text",
    "tfidf_logreg": "TF-IDF + logistic regression",
    "nearest_question": "Nearest question's answer",
}

Quality = dict[str, Any]


def named(key: str) -> str:
    return NAMES.get(key, key)


def said(key: str) -> str:
    """The name within a sentence: `accuracy`, but `TF-IDF`."""
    name = named(key)
    return name if name[1].isupper() else name[0].lower() + name[1:]


def check_name(name: str) -> str:
    """`accuracy_above_tfidf_logreg` for people."""
    key, _, rival = name.partition("_above_")
    return f"{said(key)} above {said(rival)}" if rival else said(key)


def percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def number(value: float | int | None, digits: int = 3) -> str:
    """Fixed digits, thousands separated; a dash for what does not apply."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def metric(name: str, value: float | None) -> str:
    """chrF goes to 100, perplexity to infinity, everything else to 1."""
    return number(None if value is None else float(value), 1 if name == "chrf" else 2 if name == "perplexity" else 3)


def interval(name: str, quality: Quality) -> str:
    """`0.801 to 0.860`; nothing where there is no interval."""
    found = quality.get(f"{name}_ci95")
    return f"{metric(name, found[0])} to {metric(name, found[1])}" if found else ""


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def measured_rows(task: str, n: int, answered: int, split: str) -> str:
    """On which rows the main metric rests: generation is measured on those that were answered freely."""
    return f"{n:,} {split} rows" if task == "classification" else f"the first {answered:,} of {n:,} {split} rows"


def worth_it(task: str, summary: dict[str, Any], answered: int) -> list[str]:
    """Whether the model beats what costs nothing, on the test rows."""
    quality, name, key = summary["model"]["test"], MAIN_METRIC[task], BASELINE[task]
    rival = summary["baselines"][key]["test"]
    against = quality["against"]
    sentences = [
        f"On {measured_rows(task, quality['n'], answered, 'test')} the model has {said(name)}"
        f" {metric(name, quality[name])}, {said(key)} {metric(name, rival[name])}.",
        f"There {_won(task, against)} ({p_value(against['mcnemar_p'])}), so {_judged(against, said(key))}.",
    ]
    others = {other: splits["test"][name] or 0.0 for other, splits in summary["baselines"].items() if other != key}
    better = [other for other, value in others.items() if value > (quality[name] or 0.0)]
    if better:
        listed = ", ".join(f"{said(other)} ({metric(name, others[other])})" for other in better)
        sentences.append(f"Even simpler baselines score higher: {listed}.")
    base = summary["base"]["test"]
    sentences.append(f"The untouched base model has {metric(name, base[name])} on the same rows.")
    return sentences


def how_sure(task: str, quality: Quality, answered: int) -> list[str]:
    """What the number of rows allows to say."""
    name = MAIN_METRIC[task]
    rows = quality["n"] if task == "classification" else answered
    sentences = []
    found = quality[f"{name}_ci95"]
    if found:
        half = (found[1] - found[0]) / 2 * (1 if name == "chrf" else 100)
        sentences.append(
            f"With {rows:,} test rows chance alone moves {said(name)} by about ±{half:.1f} points: the 95 % interval"
            f" is {interval(name, quality)}."
        )
    sentences.append("The test rows chose nothing: checkpoint and variant were chosen on validation rows.")
    if answered and task == "classification":
        sentences.append(
            f"Asked freely on the first {answered:,} rows, {percent(quality['invalid_rate'])} of the answers are no"
            f" label, {percent(quality['stop_rate'])} end by themselves and {percent(quality['greedy_accuracy'])} are"
            " right."
        )
    elif answered:
        sentences.append(
            f"Texts were generated for the first {answered:,} rows; {percent(quality['stop_rate'])} end by themselves."
        )
    return sentences


def stage_cost(task: str, stage: str, quality: Quality, *, seed: int, samples: int) -> str:
    """What a stage cost, or gained, against the one that it was made from."""
    against, n = quality["against"], quality["n"]
    wins, losses, p = against["wins"], against["losses"], p_value(against["mcnemar_p"])
    start = f"{stage} against {against['name']}: "
    if task != "classification":
        changed = f"{quality['flips']:,} answers differ"
        if not wins + losses:
            return f"{start}{changed}, and none comes nearer to its reference or goes further from it."
        return f"{start}{changed}; {_won(task, against)} ({p})."
    changed = f"{quality['flips']:,} of {n:,} labels change"
    if quality["kl"] is not None:
        changed += f", the probabilities by {quality['kl']:.4f} nats"
    if not wins + losses:
        return f"{start}{changed}, and no row turns right or wrong."
    low, high = (100 * value for value in difference_interval(wins, losses, n, seed=seed, samples=samples))
    if against["mcnemar_p"] >= ALPHA:
        range_ = f"costs between {_signed(-high)} and {_signed(-low)} points of accuracy, so no difference is shown"
    elif wins > losses:
        range_ = f"gains between {low:.1f} and {high:.1f} points of accuracy"
    else:
        range_ = f"costs between {-high:.1f} and {-low:.1f} points of accuracy"
    return f"{start}{range_} ({p}); {changed}."


def shown_better(against: dict[str, Any]) -> bool:
    return against["mcnemar_p"] < ALPHA and against["wins"] > against["losses"]


def leakage(counts: dict[str, int], threshold: float) -> str:
    total = sum(counts.values())
    return (
        f"None of the {total:,} rows, nor one that is at least {100 * threshold:g} % similar to it, stands in two"
        " splits; this was computed anew from the written files."
    )


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _signed(points: float) -> str:
    """`+1.4`, `-0.2`; never `-0.0`."""
    return f"{round(points, 1) + 0.0:+.1f}"


def _won(task: str, against: dict[str, Any]) -> str:
    if task == "classification":
        return f"it alone is right on {against['wins']:,} rows and alone wrong on {against['losses']:,}"
    return f"its answer is nearer to the reference on {against['wins']:,} rows and further on {against['losses']:,}"


def _judged(against: dict[str, Any], rival: str) -> str:
    if shown_better(against):
        return f"it is better than {rival} on these rows by more than chance explains"
    if against["mcnemar_p"] < ALPHA:
        return f"it is worse than {rival} on these rows, by more than chance explains"
    return f"it is not shown to be better than {rival} on these rows"
