"""What further runs of a sample are worth: compared with all choices, and with a grid whose every run is known."""

import itertools

import numpy as np
import pytest

from lib.evaluation.further_runs import compute_expected_best, estimate_further_runs


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_the_expected_best_is_the_mean_over_all_choices(count):
    values = np.array([0.3, 0.9, 0.5, 0.5, 0.1, 0.7])
    expected = np.mean([max(chosen) for chosen in itertools.combinations(values, count)])
    assert compute_expected_best(values, count) == pytest.approx(expected)
    assert compute_expected_best(np.stack([values, values[::-1] + 1]), count) == pytest.approx([expected, expected + 1])


@pytest.mark.parametrize("shape", ["normal", "uniform", "exponential"])
def test_the_bound_and_its_interval_hold_where_the_whole_grid_is_known(shape):
    """A sample of 20 of 60 runs, many times: the true gain of 10 more is known."""
    generator = np.random.default_rng(5)
    grid = getattr(generator, shape)(size=60)
    gains, worth, better = [], [], 0
    for seed in range(200):
        order = generator.permutation(grid)
        worth.append(estimate_further_runs(order[:20], 20, 10, seed=seed, samples=200))
        gains.append(max(0.0, order[20:30].max() - order[:20].max()))
        better += gains[-1] > 0
    mean = np.mean(gains)
    assert mean < np.mean([one["gain"] for one in worth]) < 4 * mean
    assert np.mean([one["gain_ci95"][1] > mean for one in worth]) > 0.85
    assert worth[0]["chance"] == pytest.approx(1 / 3)
    assert better / 200 == pytest.approx(1 / 3, abs=0.1)


def test_equal_runs_gain_nothing_and_too_few_say_nothing():
    equal = estimate_further_runs([0.5] * 12, 12, 10, seed=0, samples=50)
    assert equal["gain"] == pytest.approx(0, abs=1e-12)
    assert equal["gain_ci95"] == pytest.approx([0, 0], abs=1e-12)
    few = estimate_further_runs([0.1] * 10, 15, 10, seed=0, samples=50)
    assert few == {"chance": 0.4, "gain": None, "gain_ci95": None}
