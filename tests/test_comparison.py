"""Differences between stages, the number of rows that shows them, and calibration, on planted rows."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from lib.calibration import calibration
from lib.comparison import difference, least_shown, rows_needed, rows_to_tell
from lib.metrics import interval, quality, statistics


def rows(wrong: set[int], n: int = 400) -> list[dict]:
    return [
        {
            "id": f"row{number}",
            "label": "yes",
            "predicted": "no" if number in wrong else "yes",
            "log_probs": {"yes": math.log(0.6), "no": math.log(0.4)},
            "answer": None,
            "stopped": None,
        }
        for number in range(n)
    ]


def generated(answers: list[str | None]) -> list[dict]:
    return [
        {"id": f"row{n}", "reference": "blue car", "answer": answer, "stopped": True, "log_prob": -2.0, "tokens": 2}
        for n, answer in enumerate(answers)
    ]


def test_the_difference_is_that_of_the_scores_and_its_interval_is_paired():
    before, after = rows(set(range(30))), rows(set(range(20, 40)))  # wins 20, losses 10 of 400
    found = difference("classification", before, after[::-1], name="x", seed=0, samples=4000)
    scores = [quality("classification", part, ["no", "yes"], seed=0, samples=10)["quality"] for part in (before, after)]
    for name in ("accuracy", "macro_f1"):
        assert found["difference"][name] == pytest.approx(scores[1][name] - scores[0][name])
    assert found["rows_needed"] == rows_needed(20, 10, 400)
    # A win adds 1, a loss takes 1: the standard error follows from their shares.
    error = math.sqrt((30 / 400 - (10 / 400) ** 2) / 400)
    expected = (0.025 - 1.96 * error, 0.025 + 1.96 * error)
    assert found["difference_ci95"]["accuracy"] == pytest.approx(expected, abs=0.003)


def test_a_difference_of_answers_counts_the_rows_that_both_answered():
    before, after = generated(["blue car", "x", "x"]), generated(["blue car", "blue car", None])
    found = difference("generation", before, after, name="x", seed=0, samples=100)
    assert found["difference"]["exact_match"] == pytest.approx(0.5)  # 2 of 2 against 1 of 2
    assert found["difference"]["perplexity"] == 0  # every row has one
    ends = found["difference_ci95"]["chrf"]
    assert found["rows_needed"] == rows_to_tell(found["difference"]["chrf"], ends, 2)
    nothing = difference("generation", before, generated([None, None, None]), name="x", seed=0, samples=100)
    assert nothing["difference"]["chrf"] is nothing["difference_ci95"]["chrf"] is nothing["rows_needed"] is None


@pytest.mark.parametrize(("wins", "losses", "n"), [(37, 14, 420), (104, 59, 630), (12, 8, 200)])
def test_as_many_rows_as_said_show_the_difference_4_times_in_5(wins, losses, n):
    """Power of McNemar's test without its discreteness (mid-p), computed over the number of discordant rows."""
    needed = rows_needed(wins, losses, n)
    counts = np.arange(needed + 1)
    chances = binom.pmf(counts, needed, (wins + losses) / n)
    power = sum(
        chance * _power(int(count), wins / (wins + losses))
        for count, chance in zip(counts, chances, strict=True)
        if chance > 1e-9
    )
    assert power == pytest.approx(0.8, abs=0.03)


def _power(discordant: int, share: float) -> float:
    """Chance that mid-p is below 0.05 for so many discordant rows, of which `share` are wins on average."""
    if not discordant:
        return 0.0
    wins = np.arange(discordant + 1)
    low = np.minimum(wins, discordant - wins)
    p = 2 * (binom.cdf(low, discordant, 0.5) - 0.5 * binom.pmf(low, discordant, 0.5))
    return float(binom.pmf(wins, discordant, share)[p < 0.05].sum())


def test_rows_needed_by_hand():
    # One of two rows differs: (1.96 sqrt(.5) + .84 sqrt(.5 - .25))^2 / .25 = 13.06
    assert rows_needed(1, 0, 2) == rows_needed(0, 1, 2) == 14


def test_equal_stages_need_no_number_of_rows():
    assert rows_needed(9, 9, 100) is None
    assert rows_needed(0, 0, 100) is None
    assert rows_to_tell(0.0, (-0.1, 0.1), 100) is None


def test_rows_from_an_interval_agree_with_rows_from_counts():
    before, after = rows(set(range(60))), rows(set(range(30, 60)) | set(range(100, 115)))  # wins 30, losses 15
    old, new = (statistics("classification", part, ["no", "yes"])["accuracy"] for part in (before, after))
    found = interval(new, seed=0, samples=8000, minus=old)
    assert rows_to_tell(15 / 400, found, 400) == pytest.approx(rows_needed(30, 15, 400), rel=0.1)


def test_the_least_difference_shown_is_the_one_that_needs_these_rows():
    """With as many discordant rows, a difference of that size needs about the rows that there are."""
    least = least_shown(30, 30, 1000)
    moved = round(least * 1000 / 2)
    assert rows_needed(30 + moved, 30 - moved, 1000) == pytest.approx(1000, rel=0.06)


def test_calibration_by_hand():
    said = [0.55, 0.55, 0.97, 1.0]
    right = [True, False, True, True]
    planted = [
        {
            "label": "a" if ok else "b",
            "predicted": "a",
            "log_probs": {"a": math.log(p), "b": math.log(max(1 - p, 1e-300))},
        }
        for p, ok in zip(said, right, strict=True)
    ]
    found = calibration(planted, seed=0, samples=100)
    assert [(one["low"], one["high"], one["n"], one["right"]) for one in found["bins"]] == [
        (0.5, 0.6, 2, 0.5),
        (0.95, 1.0, 2, 1.0),  # certainty is in the last range
    ]
    assert found["bins"][1]["said"] == pytest.approx(0.985)
    assert (found["said"], found["right"], found["gap"]) == pytest.approx((0.7675, 0.75, 0.0175))
    assert found["gap_ci95"][0] < 0.0175 < found["gap_ci95"][1]
