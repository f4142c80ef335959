"""Sentences that follow from the numbers, and numbers as people read them."""

from collections.abc import Sequence
from typing import Any

from lib.metrics import BASELINE, MAIN_METRIC, difference_interval

ALPHA = 0.05  # a difference with a p at or above this counts as not shown
NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "greedy_accuracy": "Free-answer accuracy",
    "invalid_rate": "Invalid free answers",
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


def number(value: float | int | None, digits: int = 3) -> str:
    """Fixed digits, thousands separated; a dash for what does not apply."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def metric(name: str, value: float | None) -> str:
    """chrF goes to 100, perplexity to infinity, everything else to 1."""
    return number(value, 1 if name == "chrf" else 2 if name == "perplexity" else 3)


def with_interval(name: str, quality: Quality) -> str:
    """`0.832 (0.801 to 0.860)`; without an interval only the value."""
    found = quality.get(f"{name}_ci95")
    text = metric(name, quality[name])
    return f"{text} ({metric(name, found[0])} to {metric(name, found[1])})" if found else text


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def worth_it(task: str, summary: dict[str, Any]) -> list[str]:
    """Whether the model beats what costs nothing, on the test rows."""
    quality, name, key = summary["model"]["test"], MAIN_METRIC[task], BASELINE[task]
    rival = summary["baselines"][key]["test"]
    against = quality["against"]
    sentences = [
        f"The model has {named(name)} {metric(name, quality[name])} on {quality['n']:,} test rows,"
        f" {named(key)} {metric(name, rival[name])}.",
        f"{_won(task, against)} ({p_value(against['mcnemar_p'])}), so {_judged(against, named(key))}.",
    ]
    others = {other: splits["test"][name] or 0.0 for other, splits in summary["baselines"].items() if other != key}
    better = [other for other, value in others.items() if value > (quality[name] or 0.0)]
    if better:
        listed = ", ".join(f"{named(other)} ({metric(name, others[other])})" for other in better)
        sentences.append(f"Even simpler baselines score higher: {listed}.")
    base = summary["base"]["test"]
    sentences.append(f"The untouched base model has {metric(name, base[name])} on the same rows.")
    return sentences


def how_sure(task: str, quality: Quality, answered: int) -> list[str]:
    """What the number of rows allows to say."""
    name = MAIN_METRIC[task]
    rows = quality["n"] if task == "classification" else answered
    sentences = []
    if found := quality[f"{name}_ci95"]:
        half = (found[1] - found[0]) / 2 * (1 if name == "chrf" else 100)
        sentences.append(
            f"With {rows:,} test rows chance alone moves {named(name)} by about ±{half:.1f} points: the 95 % interval"
            f" is {metric(name, found[0])} to {metric(name, found[1])}."
        )
    sentences.append("The test rows chose nothing: checkpoint and variant were chosen on validation rows.")
    if answered and task == "classification":
        sentences.append(
            f"Asked freely on the first {answered:,} rows, {quality['invalid_rate']:.1%} of the answers are no label,"
            f" {quality['stop_rate']:.1%} end by themselves, and {quality['greedy_accuracy']:.1%} are right."
        )
    elif answered:
        sentences.append(
            f"Texts were generated for the first {answered:,} rows; {quality['stop_rate']:.1%} end by themselves."
        )
    return sentences


def stage_cost(task: str, stage: str, quality: Quality, *, seed: int, samples: int) -> str:
    """What a stage cost, or gained, against the one that it was made from."""
    against, n = quality["against"], quality["n"]
    wins, losses, p = against["wins"], against["losses"], p_value(against["mcnemar_p"])
    start = f"{stage} against {against['name']}: "
    if task != "classification":
        return f"{start}{quality['flips']:,} answers differ; {_won(task, against).lower()} ({p})."
    changed = f"{quality['flips']:,} of {n:,} labels change"
    if quality["kl"] is not None:
        changed += f", the probabilities by {quality['kl']:.4f} nats"
    if not wins + losses:
        return f"{start}{changed}, and no row turns right or wrong."
    low, high = (100 * value for value in difference_interval(wins, losses, n, seed=seed, samples=samples))
    if low > 0:
        return f"{start}gains between {low:.1f} and {high:.1f} points of accuracy ({p}); {changed}."
    if high < 0:
        return f"{start}costs between {-high:.1f} and {-low:.1f} points of accuracy ({p}); {changed}."
    return (
        f"{start}costs between {-high:+.1f} and {-low:+.1f} points of accuracy, so no difference is shown"
        f" ({p}); {changed}."
    )


def shown_better(against: dict[str, Any]) -> bool:
    return against["mcnemar_p"] < ALPHA and against["wins"] > against["losses"]


def leakage(counts: dict[str, int], threshold: float) -> str:
    total = sum(counts.values())
    return (
        f"None of the {total:,} rows, nor one that is at least {threshold:.0%} similar to it, stands in two splits;"
        " this was computed anew from the written files."
    )


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _won(task: str, against: dict[str, Any]) -> str:
    if task == "classification":
        return f"It alone is right on {against['wins']:,} rows and alone wrong on {against['losses']:,}"
    return f"Its answer is nearer to the reference on {against['wins']:,} rows and further on {against['losses']:,}"


def _judged(against: dict[str, Any], rival: str) -> str:
    if shown_better(against):
        return f"it is better than {rival} on these rows by more than chance explains"
    if against["mcnemar_p"] < ALPHA:
        return f"it is worse than {rival} on these rows, by more than chance explains"
    return f"it is not shown to be better than {rival} on these rows"
