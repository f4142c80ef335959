"""Whether a probability means what it says: of the rows called with 90 %, 90 % should be right."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lib.evaluation.answers import Prediction, compute_label_shares
from lib.evaluation.bootstrap import bootstrap_interval, build_ratio

_SURENESS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)  # edges of the ranges of a probability


def measure_reliability(predictions: Sequence[Prediction], *, seed: int, samples: int) -> dict[str, Any]:
    """Return whether the probability of the predicted label is the share of rows on which that label is right.

    bins: for each range of the probability that holds rows: low, high, n, the mean probability said, and
    the share right. said, right: the same over all rows. gap: said minus right; gap_ci95: its bootstrap interval.
    """
    said = np.array([compute_label_shares(row["log_probs"])[row["predicted"]] for row in predictions])
    right = np.array([row["predicted"] == row["label"] for row in predictions], dtype=float)
    bins = []
    for low, high in itertools.pairwise(_SURENESS):
        inside = (said >= low) & (said < high if high < 1 else said <= 1)
        if count := int(inside.sum()):
            means = {"said": float(said[inside].mean()), "right": float(right[inside].mean())}
            bins.append({"low": low, "high": high, "n": count, **means})
    return {
        "bins": bins,
        "said": float(said.mean()),
        "right": float(right.mean()),
        "gap": float((said - right).mean()),
        "gap_ci95": bootstrap_interval(build_ratio(said - right, np.ones_like(said)), seed=seed, samples=samples),
    }
