"""Probabilities to act on: a temperature fitted on validation rows, and a threshold below which the answer is "unsure".

One temperature for all labels (Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML) divides the log
probabilities. It changes no predicted label, only how sure the model says it is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lib.evaluation.answers import Prediction
from lib.evaluation.bootstrap import (
    Statistic,
    bootstrap_replicates,
    build_ratio,
    compute_percentile_interval_95,
    compute_point_estimate,
)

_BINS = 15  # equal widths, as in Guo et al.
_LIMITS = (-4.0, 4.0)  # of the temperature's natural logarithm
_CURVE_POINTS = 50


class Scored(NamedTuple):
    """Rows by the labels of the first: (n, k) log probabilities, uncorrected, and the number of the true label."""

    log_probs: np.ndarray
    truth: np.ndarray


def read_scores(predictions: Sequence[Prediction]) -> Scored:
    """Return the log probabilities of classified rows, each with the same labels."""
    labels = list(predictions[0]["log_probs"])
    log_probs = np.array([[row["log_probs"][label] for label in labels] for row in predictions])
    return Scored(log_probs, np.array([labels.index(row["label"]) for row in predictions]))


def fit_temperature(scored: Scored) -> float:
    """Return the temperature with the smallest negative log likelihood of the true labels."""
    from scipy.optimize import minimize_scalar

    def cost(log_temperature: float) -> float:
        return float(_nll(compute_shares(scored.log_probs, math.exp(log_temperature)), scored.truth).mean())

    found = minimize_scalar(cost, bounds=_LIMITS, method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def compute_shares(log_probs: np.ndarray, temperature: float) -> np.ndarray:
    """Return (n, k) probabilities of the labels when only these could be said, at a temperature."""
    scaled = log_probs / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def measure_probabilities(scored: Scored, temperature: float, *, seed: int, samples: int) -> dict[str, Any]:
    """Return NLL, Brier score and expected calibration error of the probabilities, each with its 95 % interval.

    The Brier score sums over labels (0 to 2). The error compares, in 15 equal ranges of the probability of the
    predicted label, the mean of that probability with the share of rows that are right.
    """
    shares = compute_shares(scored.log_probs, temperature)
    ones = np.ones(len(shares))
    told = np.zeros_like(shares)
    told[np.arange(len(shares)), scored.truth] = 1
    measured = {
        "nll": build_ratio(_nll(shares, scored.truth), ones),
        "brier": build_ratio(((shares - told) ** 2).sum(axis=1), ones),
        "ece": _build_ece(*find_sureness(scored, temperature)),
    }
    return _measure_with_intervals(measured, seed=seed, samples=samples)


def find_sureness(scored: Scored, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of each row's predicted label, and 1.0 where that label is right."""
    shares = compute_shares(scored.log_probs, temperature)
    return shares.max(axis=1), (shares.argmax(axis=1) == scored.truth).astype(float)


def choose_threshold(sureness: np.ndarray, right: np.ndarray, decision: Mapping[str, float]) -> float | None:
    """Return the lowest probability at which a label is answered; None where none reaches the precision.

    decision: `precision`, the share of answers that must be right, as many rows as possible being answered; or
    `coverage`, the share of rows that must be answered.
    """
    order = np.argsort(-sureness, kind="stable")
    levels, counts = _list_levels(sureness[order])
    if "coverage" in decision:
        return float(levels[np.argmax(counts >= decision["coverage"] * len(sureness) - 1e-9)])
    precise = np.cumsum(right[order])[counts - 1] / counts >= decision["precision"]
    return float(levels[precise][-1]) if precise.any() else None


def measure_answers(
    sureness: np.ndarray, right: np.ndarray, threshold: float | None, *, seed: int, samples: int
) -> dict[str, Any]:
    """Return precision and coverage of the answers at or above a threshold, with their 95 % intervals.

    Without a threshold nothing is answered, and the precision is None.
    """
    answered = np.zeros(len(sureness)) if threshold is None else (sureness >= threshold).astype(float)
    measured = {
        "precision": build_ratio(right * answered, answered),
        "coverage": build_ratio(answered, np.ones(len(sureness))),
    }
    return {"rows": int(answered.sum())} | _measure_with_intervals(measured, seed=seed, samples=samples)


def list_curve(sureness: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Return how often the surest rows are wrong, by how many of them are answered: the risk-coverage curve.

    Each point has coverage, risk and the probability from which on so many rows are answered; at most 50 points.
    """
    order = np.argsort(-sureness, kind="stable")
    levels, counts = _list_levels(sureness[order])
    risks = 1 - np.cumsum(right[order])[counts - 1] / counts
    shown = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), _CURVE_POINTS)).round().astype(int))
    return [
        {"coverage": float(counts[one] / len(sureness)), "risk": float(risks[one]), "threshold": float(levels[one])}
        for one in shown
    ]


def _list_levels(descending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different values, and how many rows have each of them or more: rows that tie are answered together."""
    last = np.append(np.flatnonzero(np.diff(descending)), len(descending) - 1)
    return descending[last], last + 1


def _measure_with_intervals(measured: Mapping[str, Statistic], *, seed: int, samples: int) -> dict[str, Any]:
    drawn = bootstrap_replicates(list(measured.values()), seed=seed, samples=samples)
    values = {name: compute_point_estimate(statistic) for name, statistic in measured.items()}
    ends = {f"{name}_ci95": compute_percentile_interval_95(row) for name, row in zip(measured, drawn, strict=True)}
    return values | ends


def _nll(shares: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.asarray(-np.log(np.maximum(shares[np.arange(len(shares)), truth], np.finfo(float).tiny)))


def _build_ece(sureness: np.ndarray, right: np.ndarray) -> Statistic:
    """Return the expected calibration error as sums over rows: of each range the gap, and the number of rows."""
    places = np.minimum((sureness * _BINS).astype(int), _BINS - 1)
    gaps = np.zeros((len(sureness), _BINS))
    gaps[np.arange(len(sureness)), places] = sureness - right
    rows = np.column_stack([gaps, np.ones(len(sureness))])
    return Statistic(rows, lambda sums: np.asarray(np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1]))
