"""The answers of a model: which label one is, how near it comes to the reference, how probable each label is."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lib.core.cli import fail

Prediction = dict[str, Any]


def parse_answer(answer: str, labels: Sequence[str]) -> str | None:
    """Return the label that a free answer is, or None. `joyful`, `Joy.` and `joy or fear` are no labels."""
    text = normalize_unicode(answer.strip())
    return next((label for label in labels if normalize_unicode(label) == text), None)


def compute_token_f1(answer: str, reference: str) -> float:
    """Return overlap of the words of two texts, as SQuAD measures it (lower case, without punctuation and articles)."""
    given, wanted = _squad_words(answer), _squad_words(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def list_references(prediction: Prediction) -> list[str]:
    """Return every reference of a prediction, in Unicode NFC: the completion, then other answers that are right."""
    return [normalize_unicode(text) for text in (prediction["reference"], *prediction.get("other_references", ()))]


def compute_best(score: Callable[[str, str], float], prediction: Prediction) -> float:
    """Return the score of a free answer against the reference that it comes nearest to; no answer is an empty one."""
    answer = normalize_unicode(prediction["answer"] or "")
    return max(score(answer, reference) for reference in list_references(prediction))


def compute_label_shares(log_probs: dict[str, float]) -> dict[str, float]:
    """Return probability of each label when only the labels could be said."""
    shares = np.exp(log_normalize([list(log_probs.values())]))[0]
    return dict(zip(log_probs, shares.tolist(), strict=True))


def log_normalize(log_probs: list[list[float]]) -> np.ndarray:
    """Return (n, k) log probabilities of the labels among each other: each row's exp sums to 1."""
    values = np.array(log_probs)
    values = values - values.max(axis=1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))


def check_unique(predictions: Sequence[Prediction], what: str) -> dict[str, Prediction]:
    """Return the predictions by their id. Raises `UserError`, naming `what`, when a row occurs twice."""
    by_id = {row["id"]: row for row in predictions}
    if len(by_id) != len(predictions):
        twice = next(id_ for id_, count in Counter(row["id"] for row in predictions).items() if count > 1)
        fail(f"row {twice} occurs more than once in {what}", "make the scores again")
    return by_id


def normalize_whitespace(text: str) -> str:
    """Return a text without white space at the ends, and with one space between words."""
    return " ".join(text.split())


def normalize_unicode(text: str) -> str:
    """Return the text in Unicode NFC: some tokenizers write so whatever they read, and it is the same text."""
    return unicodedata.normalize("NFC", text)


def _squad_words(text: str) -> list[str]:
    """Return words as SQuAD's official script normalizes them, with the punctuation and symbols of any script."""
    kept = "".join(sign for sign in text.lower() if unicodedata.category(sign)[0] not in "PS")
    return [word for word in kept.split() if word not in ("a", "an", "the")]
