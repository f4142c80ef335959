"""How good predictions are, and how sure that is. How two stages differ is in `lib.evaluation.comparison`.

Every metric is a function of sums over rows (counts of hits, of n-grams, of tokens), so one
bootstrap serves all of them: draw rows with replacement, add up their sums, apply the function.
Two stages that are compared draw the same rows.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.core.cli import fail

Prediction = dict[str, Any]
Quality = dict[str, Any]

MAIN_METRIC = {"classification": "accuracy", "generation": "chrf"}  # compared with baselines and between stages
SELECTED_BY = {
    "classification": "macro_f1",
    "generation": "chrf",
}  # chooses checkpoints, and variants unless selection.metric says otherwise
# What a model must be worth more than: the first of these that was scored.
_BASELINES = {"classification": ("tfidf_logreg", "nearest_centroid"), "generation": ("nearest_question",)}
_WITH_INTERVAL = frozenset({"accuracy", "macro_f1", "chrf"})
_NOT_COMPARED: Quality = {"flips": None, "kl": None, "against": None}
_DRAWS_AT_ONCE = 2**22  # row weights held at a time while resampling: 32 MB
MOST_LABELS_SHOWN = 200  # of a confusion table; of more labels the mistakes are counted, and no table is made


def main_baseline(task: str, scored: Container[str]) -> str:
    """Return the name of the baseline that a model must be worth more than, one of those that were scored."""
    return next(name for name in _BASELINES[task] if name in scored)


@dataclass(frozen=True)
class Statistic:
    """A metric as sums over rows.

    rows: (n, d) what each row adds; sparse where d grows with the labels and they are many. value: (..., d) sums to
    (...) metric; NaN where it is undefined.
    """

    rows: Any
    value: Callable[[np.ndarray], np.ndarray]


def quality(
    task: str, predictions: Sequence[Prediction], labels: list[str] | None, *, seed: int, samples: int
) -> dict[str, Any]:
    """Quality of one stage on one split, in the form of a score file.

    Returns `quality` and `answered` (rows with a free answer); for classification also `labels`,
    `per_class` and `confusion` (row: true label, column: predicted label, in the order of `labels`; of more than
    `MOST_LABELS_SHOWN` labels instead the pairs that occur: `[number of the true label, of the predicted, rows]`).
    Raises `UserError` as `statistics` does.
    """
    values: Quality = {"n": len(predictions)}
    measured = statistics(task, predictions, labels)
    resampled = [name for name in measured if name in _WITH_INTERVAL]
    drawn = replicates([measured[name] for name in resampled], seed=seed, samples=samples)
    for name, statistic in measured.items():
        values[name] = point(statistic)
        if name in resampled:
            values[f"{name}_ci95"] = middle_95(drawn[resampled.index(name)])
    result: dict[str, Any] = {
        "quality": {**values, **_NOT_COMPARED},
        "answered": sum(row["answer"] is not None for row in predictions),
    }
    if task == "classification":
        assert labels is not None
        matrix = _confusion(predictions, labels)
        result |= {"labels": labels, "per_class": _per_class(matrix, labels), "confusion": _confusion_json(matrix)}
    return result


def statistics(task: str, predictions: Sequence[Prediction], labels: list[str] | None) -> dict[str, Statistic]:
    """The metrics of `task` over these rows, by name.

    Free answers count only on the rows that have one. Raises `UserError` when there are no rows, a
    row occurs twice, a label is unknown, or a log probability is not a finite number.
    """
    if not predictions:
        fail("no predictions to measure", "make the scores again")
    check_unique(predictions, "the predictions")
    if task == "classification":
        assert labels is not None
        return _classification(predictions, labels)
    return _generation(predictions)


def point(statistic: Statistic) -> float | None:
    """The metric on all rows, or None where it is undefined (no row has a free answer)."""
    value = float(statistic.value(statistic.rows.sum(axis=0)))
    return None if math.isnan(value) else value


def interval(statistic: Statistic, *, seed: int, samples: int, minus: Statistic | None = None) -> list[float] | None:
    """95 % percentile bootstrap interval of a metric, or of `statistic` minus `minus` on the same rows."""
    drawn = replicates([statistic] if minus is None else [statistic, minus], seed=seed, samples=samples)
    return middle_95(drawn[0] if minus is None else drawn[0] - drawn[1])


def replicates(measured: Sequence[Statistic], *, seed: int, samples: int) -> np.ndarray:
    """(metrics, samples) values of metrics on resampled rows: those of one column have the same rows.

    The metrics are of as many rows in the same order. NaN where a metric is undefined. A row of the result minus
    another one is what the bootstrap says of their difference, so no pair has to be drawn again.
    """
    n, widest = measured[0].rows.shape[0], max(one.rows.shape[1] for one in measured)
    weights = _row_weights(n, seed, samples, widest)
    return np.concatenate([np.stack([one.value(some @ one.rows) for one in measured]) for some in weights], axis=1)


def middle_95(values: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval of (samples,) replicates, or None when each of them is undefined."""
    known = values[~np.isnan(values)]
    return [float(value) for value in np.percentile(known, [2.5, 97.5])] if len(known) else None


def parse_answer(answer: str, labels: Sequence[str]) -> str | None:
    """The label that a free answer is, or None. `joyful`, `Joy.` and `joy or fear` are no labels."""
    text = _composed(answer.strip())
    return next((label for label in labels if _composed(label) == text), None)


def token_f1(answer: str, reference: str) -> float:
    """Overlap of the words of two texts, as SQuAD measures it (lower case, without punctuation and articles)."""
    given, wanted = _squad_words(answer), _squad_words(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def label_shares(log_probs: dict[str, float]) -> dict[str, float]:
    """Probability of each label when only the labels could be said."""
    shares = np.exp(normalised([list(log_probs.values())]))[0]
    return dict(zip(log_probs, shares.tolist(), strict=True))


def _classification(predictions: Sequence[Prediction], labels: list[str]) -> dict[str, Statistic]:
    truth, predicted = _label_numbers(predictions, labels)
    hits = (truth == predicted).astype(float)
    counts = _class_sums(truth, predicted, len(labels))
    answered = np.array([row["answer"] is not None for row in predictions], dtype=float)
    answers = [None if row["answer"] is None else parse_answer(row["answer"], labels) for row in predictions]
    invalid = answered * np.array([answer is None for answer in answers])
    right = np.array([answer == row["label"] for answer, row in zip(answers, predictions, strict=True)], dtype=float)
    return {
        "accuracy": ratio(hits, np.ones_like(hits)),
        "macro_f1": Statistic(counts, _macro_f1),
        "greedy_accuracy": ratio(right, answered),
        "invalid_rate": ratio(invalid, answered),
        "stop_rate": _stop_rate(predictions),
    }


def _class_sums(truth: np.ndarray, predicted: np.ndarray, size: int) -> Any:
    """Return what each row adds to the hits of the classes, then to their predicted plus true rows: (n, 2 size)."""
    if size > MOST_LABELS_SHOWN:
        from scipy.sparse import csr_array

        row = np.arange(len(truth))
        right = row[truth == predicted]
        places = (np.concatenate([right, row, row]), np.concatenate([truth[right], size + truth, size + predicted]))
        return csr_array((np.ones(len(places[0])), places), shape=(len(truth), 2 * size))
    one_of_each = np.eye(size)
    hits = (truth == predicted).astype(float)
    return np.hstack([one_of_each[truth] * hits[:, None], one_of_each[truth] + one_of_each[predicted]])


def _generation(predictions: Sequence[Prediction]) -> dict[str, Statistic]:
    answered = np.array([row["answer"] is not None for row in predictions], dtype=float)
    pairs = [(_composed(row["answer"] or ""), _composed(row["reference"])) for row in predictions]
    exact = np.array([folded(answer) == folded(reference) for answer, reference in pairs])
    overlap = np.array([token_f1(answer, reference) for answer, reference in pairs])
    return {
        "exact_match": ratio(exact * answered, answered),
        "token_f1": ratio(overlap * answered, answered),
        "chrf": _chrf(pairs, answered),
        "perplexity": _perplexity(predictions),
        "stop_rate": _stop_rate(predictions),
    }


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Statistic:
    """The sum of (n,) numerators by the sum of (n,) denominators; undefined where that is 0."""
    return Statistic(np.column_stack([numerator, denominator]), lambda sums: _divide(sums[..., 0], sums[..., 1]))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(denominator > 0, numerator / denominator, np.nan))


def _stop_rate(predictions: Sequence[Prediction]) -> Statistic:
    known = np.array([row["stopped"] is not None for row in predictions], dtype=float)
    return ratio(np.array([bool(row["stopped"]) for row in predictions], dtype=float), known)


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """sums: (..., 2k): hits, then predicted plus true rows of each class.

    The mean is over classes that occur among true or predicted labels, as scikit-learn's is.
    """
    hits, both = np.split(sums, 2, axis=-1)
    return np.asarray(np.nanmean(_divide(2 * hits, both), axis=-1))


def _chrf(pairs: Sequence[tuple[str, str]], answered: np.ndarray) -> Statistic:
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    # The n-gram counts of each sentence, of which `corpus_score` shows only the total.
    counts = metric._extract_corpus_statistics([answer for answer, _ in pairs], [[wanted for _, wanted in pairs]])
    rows = np.column_stack([np.array(counts, dtype=float) * answered[:, None], answered])

    def value(sums: np.ndarray) -> np.ndarray:
        flat = sums.reshape(-1, sums.shape[-1])
        scores = [metric._compute_f_score(row[:-1].tolist()) if row[-1] else np.nan for row in flat]
        return np.array(scores).reshape(sums.shape[:-1])

    return Statistic(rows, value)


def _perplexity(predictions: Sequence[Prediction]) -> Statistic:
    """exp of the mean negative log probability of a token, over rows that have one (baselines do not)."""
    known = [(row["id"], row["log_prob"] or 0.0, row["tokens"] or 0) for row in predictions]
    for id_, log_prob, _ in known:
        if not math.isfinite(log_prob):
            fail(f"the log probability of row {id_} is {log_prob}", "the model computes no numbers: build it anew")
    rows = np.array([[-log_prob, tokens] for _, log_prob, tokens in known], dtype=float)
    return Statistic(rows, lambda sums: np.exp(_divide(sums[..., 0], sums[..., 1])))


def _label_numbers(predictions: Sequence[Prediction], labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    number = {label: index for index, label in enumerate(labels)}
    for row in predictions:
        for key in ("label", "predicted"):
            if row[key] not in number:
                fail(f"row {row['id']}: {key} {row[key]!r} is none of the labels {labels}", "make the scores again")
        if any(not math.isfinite(value) for value in (row["log_probs"] or {}).values()):
            fail(f"row {row['id']}: a log probability is not finite", "the model computes no numbers: build it anew")
    truth = np.array([number[row["label"]] for row in predictions])
    return truth, np.array([number[row["predicted"]] for row in predictions])


def _confusion(predictions: Sequence[Prediction], labels: list[str]) -> Any:
    """Return the rows of each true and predicted label; sparse where the labels are many."""
    size = len(labels)
    if size > MOST_LABELS_SHOWN:
        from scipy.sparse import coo_array

        places = _label_numbers(predictions, labels)
        return coo_array((np.ones(len(places[0]), dtype=int), places), shape=(size, size)).tocsr()
    matrix = np.zeros((size, size), dtype=int)
    np.add.at(matrix, _label_numbers(predictions, labels), 1)
    return matrix


def _confusion_json(matrix: Any) -> list[list[int]]:
    if isinstance(matrix, np.ndarray):
        return matrix.tolist()
    pairs = matrix.tocoo()
    return np.stack([*pairs.coords, pairs.data], axis=1).tolist()


def _per_class(matrix: Any, labels: list[str]) -> dict[str, dict[str, float | int]]:
    """Return precision, recall and F1 of each label; 0 where nothing was predicted or nothing is there."""
    hits, support, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    precision = np.nan_to_num(_divide(hits, predicted))
    recall = np.nan_to_num(_divide(hits, support))
    f1 = np.nan_to_num(_divide(2 * hits, support + predicted))
    return {
        label: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "support": int(support[index]),
        }
        for index, label in enumerate(labels)
    }


def normalised(log_probs: list[list[float]]) -> np.ndarray:
    """(n, k) log probabilities of the labels among each other: each row's exp sums to 1."""
    values = np.array(log_probs)
    values = values - values.max(axis=1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))


def check_unique(predictions: Sequence[Prediction], what: str) -> dict[str, Prediction]:
    """The predictions by their id. Raises `UserError`, naming `what`, when a row occurs twice."""
    by_id = {row["id"]: row for row in predictions}
    if len(by_id) != len(predictions):
        twice = next(id_ for id_, count in Counter(row["id"] for row in predictions).items() if count > 1)
        fail(f"row {twice} occurs more than once in {what}", "make the scores again")
    return by_id


def _row_weights(n: int, seed: int, samples: int, widest: int = 1) -> Iterator[np.ndarray]:
    """Yield (some, n) arrays, `samples` rows in all: how often each row is drawn in a resample of n.

    widest: the most sums that are made of a row of them.
    """
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // max(n, widest))
    for start in range(0, samples, step):
        count = min(step, samples - start)
        drawn = generator.integers(0, n, size=(count, n)) + np.arange(count)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(float)


def folded(text: str) -> str:
    """Without white space at the ends, and with one space between words."""
    return " ".join(text.split())


def _composed(text: str) -> str:
    """Return the text in Unicode NFC: some tokenizers write so whatever they read, and it is the same text."""
    return unicodedata.normalize("NFC", text)


def _squad_words(text: str) -> list[str]:
    """Words as SQuAD's official script normalises them, with the punctuation and symbols of any script."""
    kept = "".join(sign for sign in text.lower() if unicodedata.category(sign)[0] not in "PS")
    return [word for word in kept.split() if word not in ("a", "an", "the")]
