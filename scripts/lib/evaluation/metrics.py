"""The quality of one stage on one split, as a score file states it.

How two stages differ is in `lib.evaluation.comparison`; what the metrics are, in `lib.evaluation.registry`.
"""

from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from lib.core.cli import fail
from lib.evaluation.answers import Prediction, check_unique
from lib.evaluation.bootstrap import (
    Statistic,
    bootstrap_replicates,
    compute_percentile_interval_95,
    compute_point_estimate,
    divide,
)
from lib.evaluation.registry import MANY_LABELS, METRICS, Answered, find_metrics, index_labels

Quality = dict[str, Any]

# What a model must be worth more than: the first of these that was scored.
_BASELINES = {"classification": ("tfidf_logreg", "nearest_centroid"), "generation": ("nearest_question",)}
_NOT_COMPARED: Quality = {"flips": None, "kl": None, "against": None}


def find_main_baseline(task: str, scored: Container[str]) -> str:
    """Return the name of the baseline that a model must be worth more than, one of those that were scored."""
    return next(name for name in _BASELINES[task] if name in scored)


def measure_quality(
    task: str, predictions: Sequence[Prediction], labels: list[str] | None, *, seed: int, samples: int
) -> dict[str, Any]:
    """Return quality of one stage on one split, in the form of a score file.

    Returns `quality` and `answered` (rows with a free answer); for classification also `labels`,
    `per_class` and `confusion` (row: true label, column: predicted label, in the order of `labels`; of more than
    `MANY_LABELS` labels instead the pairs that occur: `[number of the true label, of the predicted, rows]`).
    Raises `UserError` as `build_statistics` does.
    """
    values: Quality = {"n": len(predictions)}
    measured = build_statistics(task, predictions, labels)
    resampled = [name for name in measured if METRICS[name].has_interval]
    drawn = bootstrap_replicates([measured[name] for name in resampled], seed=seed, samples=samples)
    for name, statistic in measured.items():
        values[name] = compute_point_estimate(statistic)
        if name in resampled:
            values[f"{name}_ci95"] = compute_percentile_interval_95(drawn[resampled.index(name)])
    result: dict[str, Any] = {
        "quality": {**values, **_NOT_COMPARED},
        "answered": sum(row["answer"] is not None for row in predictions),
    }
    if task == "classification":
        assert labels is not None
        matrix = _confusion(predictions, labels)
        result |= {"labels": labels, "per_class": _per_class(matrix, labels), "confusion": _confusion_json(matrix)}
    return result


def build_statistics(task: str, predictions: Sequence[Prediction], labels: list[str] | None) -> dict[str, Statistic]:
    """Return the metrics of `task` over these rows, by name.

    Free answers count only on the rows that have one. Raises `UserError` when there are no rows, a
    row occurs twice, a label is unknown, or a log probability is not a finite number.
    """
    if not predictions:
        fail("no predictions to measure", "make the scores again")
    check_unique(predictions, "the predictions")
    answered = Answered(predictions, labels)
    return {name: METRICS[name].measure(answered) for name in find_metrics(task)}


def _confusion(predictions: Sequence[Prediction], labels: list[str]) -> Any:
    """Return the rows of each true and predicted label; sparse where the labels are many."""
    size = len(labels)
    if size > MANY_LABELS:
        from scipy.sparse import coo_array

        places = index_labels(predictions, labels)
        return coo_array((np.ones(len(places[0]), dtype=int), places), shape=(size, size)).tocsr()
    matrix = np.zeros((size, size), dtype=int)
    np.add.at(matrix, index_labels(predictions, labels), 1)
    return matrix


def _confusion_json(matrix: Any) -> list[list[int]]:
    if isinstance(matrix, np.ndarray):
        return matrix.tolist()
    pairs = matrix.tocoo()
    return np.stack([*pairs.coords, pairs.data], axis=1).tolist()


def _per_class(matrix: Any, labels: list[str]) -> dict[str, dict[str, float | int]]:
    """Return precision, recall and F1 of each label; 0 where nothing was predicted or nothing is there."""
    hits, support, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    precision = np.nan_to_num(divide(hits, predicted))
    recall = np.nan_to_num(divide(hits, support))
    f1 = np.nan_to_num(divide(2 * hits, support + predicted))
    return {
        label: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "support": int(support[index]),
        }
        for index, label in enumerate(labels)
    }
