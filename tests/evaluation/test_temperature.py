"""Temperature and threshold: what is known beforehand is found, and nothing else changes."""

import numpy as np
import pytest

from lib.evaluation.temperature import (
    choose_threshold,
    compute_shares,
    find_sureness,
    fit_temperature,
    list_curve,
    measure_answers,
    measure_probabilities,
    read_scores,
)

DRAW = {"seed": 0, "samples": 200}
LABELS = ["a", "b", "c"]


def scored(count: int, temperature: float, seed: int = 0, shuffled: bool = False):
    """Rows whose labels are drawn from known probabilities, which the model states at another temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, len(LABELS)))
    true = compute_shares(logits, 1.0)
    truth = [int(generator.choice(len(LABELS), p=shares)) for shares in true]
    if shuffled:
        generator.shuffle(truth)
    return read_scores(
        [
            {"label": LABELS[label], "log_probs": dict(zip(LABELS, row.tolist(), strict=True))}
            for label, row in zip(truth, logits * temperature, strict=True)
        ]
    )


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature):
    found = fit_temperature(scored(20_000, temperature))
    assert found == pytest.approx(temperature, rel=0.03)


def test_shuffled_labels_give_flat_probabilities():
    rows = scored(3000, 2.0, shuffled=True)
    shares = compute_shares(rows.log_probs, fit_temperature(rows))
    assert abs(shares - shares.mean(axis=0)).max() < 0.1
    assert compute_shares(rows.log_probs, 1.0).max() > 0.99


def test_on_other_rows_the_correction_is_no_worse_and_labels_stay():
    chosen, other = scored(1000, 2.5), scored(1000, 2.5, seed=1)
    temperature = fit_temperature(chosen)
    before, after = (measure_probabilities(other, value, **DRAW) for value in (1.0, temperature))
    assert after["nll"] < before["nll_ci95"][0]
    assert after["brier"] < before["brier"]
    assert after["ece"] < before["ece_ci95"][0]
    assert (find_sureness(other, 1.0)[1] == find_sureness(other, temperature)[1]).all()


def test_measures_by_hand():
    rows = read_scores(
        [
            {"label": "a", "log_probs": {"a": np.log(0.8), "b": np.log(0.2)}},
            {"label": "b", "log_probs": {"a": np.log(0.6), "b": np.log(0.4)}},
        ]
    )
    found = measure_probabilities(rows, 1.0, **DRAW)
    assert found["nll"] == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)
    assert found["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert found["ece"] == pytest.approx((abs(0.8 - 1) + abs(0.6 - 0)) / 2)


SURENESS = np.array([0.99, 0.9, 0.9, 0.8, 0.7, 0.6])
RIGHT = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("decision", "threshold"),
    [
        ({"precision": 1.0}, 0.99),
        ({"precision": 0.8}, 0.7),  # 4 of 5, the most rows of which so many are right
        ({"precision": 0.7}, 0.7),
        ({"precision": 0.6}, 0.6),
        ({"coverage": 0.0}, 0.99),
        ({"coverage": 0.2}, 0.9),  # rows that tie are answered together
        ({"coverage": 0.5}, 0.9),
        ({"coverage": 0.51}, 0.8),
        ({"coverage": 1.0}, 0.6),
    ],
)
def test_the_threshold_is_the_lowest_that_keeps_the_promise(decision, threshold):
    assert choose_threshold(SURENESS, RIGHT, decision) == threshold
    answered = measure_answers(SURENESS, RIGHT, threshold, **DRAW)
    assert answered["coverage"] >= decision.get("coverage", 0)
    assert answered["precision"] >= decision.get("precision", 0)


def test_where_no_threshold_reaches_the_precision_nothing_is_answered():
    assert choose_threshold(SURENESS, 1 - RIGHT, {"precision": 0.9}) is None
    found = measure_answers(SURENESS, RIGHT, None, **DRAW)
    assert (found["rows"], found["precision"], found["precision_ci95"], found["coverage"]) == (0, None, None, 0.0)


def test_the_curve_goes_from_the_surest_row_to_all_of_them():
    curve = list_curve(SURENESS, RIGHT)
    assert [point["threshold"] for point in curve] == [0.99, 0.9, 0.8, 0.7, 0.6]
    assert [point["risk"] for point in curve] == pytest.approx([0, 1 / 3, 1 / 4, 1 / 5, 1 / 3])
    assert curve[-1]["coverage"] == 1
    assert len(list_curve(np.linspace(0, 1, 999), np.ones(999))) == 50
