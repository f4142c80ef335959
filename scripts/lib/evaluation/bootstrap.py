"""Metrics as sums over rows, and how sure they are: the bootstrap over rows (Efron 1979).

Every metric is a function of sums over rows (counts of hits, of n-grams, of tokens), so one bootstrap serves all of
them: draw rows with replacement, add up their sums, apply the function. Two stages that are compared draw the same
rows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_DRAWS_AT_ONCE = 2**22  # row weights held at a time while resampling: 32 MB


@dataclass(frozen=True)
class Statistic:
    """A metric as sums over rows.

    rows: (n, d) what each row adds; sparse where d grows with the labels and they are many. value: (..., d) sums to
    (...) metric; NaN where it is undefined.
    """

    rows: Any
    value: Callable[[np.ndarray], np.ndarray]


def build_ratio(numerator: np.ndarray, denominator: np.ndarray) -> Statistic:
    """Return the sum of (n,) numerators by the sum of (n,) denominators; undefined where that is 0."""
    return Statistic(np.column_stack([numerator, denominator]), lambda sums: divide(sums[..., 0], sums[..., 1]))


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotients, NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(denominator > 0, numerator / denominator, np.nan))


def compute_point_estimate(statistic: Statistic) -> float | None:
    """Return the metric on all rows, or None where it is undefined (no row has a free answer)."""
    value = float(statistic.value(statistic.rows.sum(axis=0)))
    return None if math.isnan(value) else value


def bootstrap_interval(
    statistic: Statistic, *, seed: int, samples: int, minus: Statistic | None = None
) -> list[float] | None:
    """Return 95 % percentile bootstrap interval of a metric, or of `statistic` minus `minus` on the same rows."""
    drawn = bootstrap_replicates([statistic] if minus is None else [statistic, minus], seed=seed, samples=samples)
    return compute_percentile_interval_95(drawn[0] if minus is None else drawn[0] - drawn[1])


def bootstrap_replicates(measured: Sequence[Statistic], *, seed: int, samples: int) -> np.ndarray:
    """Return (metrics, samples) values of metrics on resampled rows: those of one column have the same rows.

    The metrics are of as many rows in the same order. NaN where a metric is undefined. A row of the result minus
    another one is what the bootstrap says of their difference, so no pair has to be drawn again.
    """
    n, widest = measured[0].rows.shape[0], max(one.rows.shape[1] for one in measured)
    weights = _row_weights(n, seed, samples, widest)
    return np.concatenate([np.stack([one.value(some @ one.rows) for one in measured]) for some in weights], axis=1)


def compute_percentile_interval_95(values: np.ndarray) -> list[float] | None:
    """Return the 95 % percentile interval of (samples,) replicates, or None when each of them is undefined."""
    known = values[~np.isnan(values)]
    return [float(value) for value in np.percentile(known, [2.5, 97.5])] if len(known) else None


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
