"""Differences between stages, the number of rows that shows them, and calibration, on planted rows."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from lib.evaluation.bootstrap import (
    bootstrap_interval,
    bootstrap_replicates,
    build_ratio,
    compute_percentile_interval_95,
    compute_point_estimate,
)
from lib.evaluation.comparison import (
    RankedModel,
    compute_minimum_detectable_effect,
    compute_sample_size_from_interval,
    estimate_rows_needed,
    find_dominators,
    measure_difference,
    rank_candidates,
)
from lib.evaluation.metrics import build_statistics, measure_quality
from lib.evaluation.reliability import measure_reliability


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
    found = measure_difference("classification", before, after[::-1], name="x", seed=0, samples=4000)
    scores = [
        measure_quality("classification", part, ["no", "yes"], seed=0, samples=10)["quality"]
        for part in (before, after)
    ]
    for name in ("accuracy", "macro_f1"):
        assert found["difference"][name] == pytest.approx(scores[1][name] - scores[0][name])
    assert found["rows_needed"] == estimate_rows_needed(20, 10, 400)
    # A win adds 1, a loss takes 1: the standard error follows from their shares.
    error = math.sqrt((30 / 400 - (10 / 400) ** 2) / 400)
    expected = (0.025 - 1.96 * error, 0.025 + 1.96 * error)
    assert found["difference_ci95"]["accuracy"] == pytest.approx(expected, abs=0.003)


def test_a_difference_of_answers_counts_the_rows_that_both_answered():
    before, after = generated(["blue car", "x", "x"]), generated(["blue car", "blue car", None])
    found = measure_difference("generation", before, after, name="x", seed=0, samples=100)
    assert found["difference"]["exact_match"] == pytest.approx(0.5)  # 2 of 2 against 1 of 2
    assert found["difference"]["perplexity"] == 0  # every row has one
    ends = found["difference_ci95"]["chrf"]
    assert found["rows_needed"] == compute_sample_size_from_interval(found["difference"]["chrf"], ends, 2)
    nothing = measure_difference("generation", before, generated([None, None, None]), name="x", seed=0, samples=100)
    assert nothing["difference"]["chrf"] is nothing["difference_ci95"]["chrf"] is nothing["rows_needed"] is None


@pytest.mark.parametrize(("wins", "losses", "n"), [(37, 14, 420), (104, 59, 630), (12, 8, 200)])
def test_as_many_rows_as_said_show_the_difference_4_times_in_5(wins, losses, n):
    """Power of McNemar's test without its discreteness (mid-p), computed over the number of discordant rows."""
    needed = estimate_rows_needed(wins, losses, n)
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
    assert estimate_rows_needed(1, 0, 2) == estimate_rows_needed(0, 1, 2) == 14


def test_equal_stages_need_no_number_of_rows():
    assert estimate_rows_needed(9, 9, 100) is None
    assert estimate_rows_needed(0, 0, 100) is None
    assert compute_sample_size_from_interval(0.0, (-0.1, 0.1), 100) is None


def test_rows_from_an_interval_agree_with_rows_from_counts():
    before, after = rows(set(range(60))), rows(set(range(30, 60)) | set(range(100, 115)))  # wins 30, losses 15
    old, new = (build_statistics("classification", part, ["no", "yes"])["accuracy"] for part in (before, after))
    found = bootstrap_interval(new, seed=0, samples=8000, minus=old)
    assert compute_sample_size_from_interval(15 / 400, found, 400) == pytest.approx(
        estimate_rows_needed(30, 15, 400), rel=0.1
    )


def test_the_least_difference_shown_is_the_one_that_needs_these_rows():
    """With as many discordant rows, a difference of that size needs about the rows that there are."""
    least = compute_minimum_detectable_effect(30, 30, 1000)
    moved = round(least * 1000 / 2)
    assert estimate_rows_needed(30 + moved, 30 - moved, 1000) == pytest.approx(1000, rel=0.06)


def members(chances: dict[str, list[float]], n: int = 400, seed: int = 3, samples: int = 2000) -> list[RankedModel]:
    """Made-up models: for each group the chance of a right answer of each of its seeds; some rows are hard for all."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(size=n)
    right = {
        (group, number): (hard + generator.normal(size=n) < math.sqrt(2) * _quantile(chance)).astype(float)
        for group, seeds in chances.items()
        for number, chance in enumerate(seeds)
    }
    measured = [build_ratio(values, np.ones(n)) for values in right.values()]
    drawn = bootstrap_replicates(measured, seed=0, samples=samples)
    return [
        RankedModel(group, "int4", number, compute_point_estimate(one), values)
        for (group, number), one, values in zip(right, measured, drawn, strict=True)
    ]


def _quantile(chance: float) -> float:
    return float(norm.ppf(chance))


def test_groups_of_the_same_quality_are_not_told_apart():
    chances = {group: [0.80, 0.80, 0.80] for group in "abcd"}
    assert [one["is_significant"] for one in rank_candidates(members(chances), seed=0)] == [None, False, False, False]


def test_a_group_that_is_truly_better_is_first_and_shown_to_be():
    found = rank_candidates(members({"low": [0.70, 0.71, 0.69], "high": [0.85, 0.84, 0.86]}), seed=0)
    assert [one["group"] for one in found] == ["high", "low"]
    assert found[1]["is_significant"] is True
    assert found[1]["difference_ci95"][0] < -0.15 < found[1]["difference_ci95"][1] < 0


def test_with_one_seed_the_interval_is_that_of_the_rows():
    one, other = found = members({"a": [0.85], "b": [0.75]})
    last = rank_candidates(found, seed=0)[-1]
    assert last["difference_ci95"] == compute_percentile_interval_95(other.bootstrap - one.bootstrap)
    assert last["sd"] is None


def test_seeds_that_scatter_widen_the_interval():
    steady, scattered = ([0.70, 0.70, 0.70, 0.70], [0.60, 0.80, 0.60, 0.80])
    widths = {}
    for name, seeds in {"steady": steady, "scattered": scattered}.items():
        last = rank_candidates(members({"best": [0.9, 0.9, 0.9, 0.9], name: seeds}), seed=0)[-1]
        widths[name] = last["difference_ci95"][1] - last["difference_ci95"][0]
        assert last["sd"] == pytest.approx(np.std(last["values"], ddof=1))
    assert widths["scattered"] > 1.8 * widths["steady"]


def test_one_seed_misleads_and_several_do_so_rarely():
    """Two settings of equal quality on 420 rows, whose seeds scatter by 5 points: docs and docstring say how often
    they are told apart, here in fewer trials than there."""
    generator = np.random.default_rng(11)

    def told_apart(seeds: int, trials: int = 150) -> float:
        count = 0
        for trial in range(trials):
            chances = {group: norm.cdf(generator.normal(0.857, 0.18, seeds)).tolist() for group in "ab"}
            count += rank_candidates(members(chances, 420, seed=trial, samples=400), seed=trial)[-1]["is_significant"]
        return count / trials

    chances = norm.cdf(generator.normal(0.857, 0.18, 4000))
    assert chances.std() == pytest.approx(0.05, abs=0.003)
    assert 0.5 < told_apart(1) < 0.7
    assert told_apart(3) < 0.13


def test_the_luck_of_seeds_alone_has_the_spread_of_a_mean():
    """Without luck of rows the interval is that of a mean of k values: 1.96 s / sqrt(k) to each side, about."""
    values = np.random.default_rng(5).normal(0.6, 0.05, 30)
    seeds = [RankedModel("a", "int4", number, value, np.full(4000, value)) for number, value in enumerate(values)]
    found = rank_candidates([*seeds, RankedModel("best", "int4", 0, 0.9, np.full(4000, 0.9))], seed=0)[-1]
    half = 1.96 * values.std(ddof=1) / math.sqrt(30)
    assert found["difference_ci95"] == pytest.approx(
        [found["difference"] - half, found["difference"] + half], abs=0.001
    )


def test_variants_of_one_training_share_its_luck():
    """A variant that is lower by the same on every seed is told apart, however much the seeds scatter."""
    values = [0.5, 0.7, 0.9]
    both = [
        RankedModel("a", variant, seed, value - cost, np.full(1000, value - cost))
        for variant, cost in {"fp32": 0.0, "int4": 0.01}.items()
        for seed, value in enumerate(values)
    ]
    found = rank_candidates(both, seed=0)[-1]
    assert found["difference_ci95"] == pytest.approx([-0.01, -0.01])
    assert found["is_significant"] is True


def test_the_ranking_does_not_depend_on_the_order_of_its_members():
    found = members({"a": [0.8, 0.7], "b": [0.75, 0.8], "c": [0.6]})
    assert rank_candidates(found, seed=0) == rank_candidates(found[::-1], seed=0)


def test_replicates_are_those_of_the_intervals():
    before, after = rows(set(range(30))), rows(set(range(20, 45)))
    old, new = (build_statistics("classification", part, ["no", "yes"])["macro_f1"] for part in (before, after))
    drawn = bootstrap_replicates([old, new], seed=4, samples=300)
    assert drawn.shape == (2, 300)
    assert compute_percentile_interval_95(drawn[0]) == bootstrap_interval(old, seed=4, samples=300)
    assert compute_percentile_interval_95(drawn[1] - drawn[0]) == bootstrap_interval(
        new, seed=4, samples=300, minus=old
    )
    assert compute_percentile_interval_95(np.full(5, np.nan)) is None


def test_the_front_holds_what_nothing_dominates():
    points = np.array([[3, 1], [1, 3], [2, 2], [2, 1], [1, 1], [3, 1]])  # the first and the last are equal
    assert find_dominators(points) == [None, None, None, 0, 0, None]
    assert find_dominators(np.array([[1.0, 1.0]])) == [None]
    # The one that is named is itself on the front.
    assert find_dominators(np.array([[1.0], [2.0], [3.0]])) == [2, 2, None]


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
    found = measure_reliability(planted, seed=0, samples=100)
    assert [(one["low"], one["high"], one["n"], one["right"]) for one in found["bins"]] == [
        (0.5, 0.6, 2, 0.5),
        (0.95, 1.0, 2, 1.0),  # certainty is in the last range
    ]
    assert found["bins"][1]["said"] == pytest.approx(0.985)
    assert (found["said"], found["right"], found["gap"]) == pytest.approx((0.7675, 0.75, 0.0175))
    assert found["gap_ci95"][0] < 0.0175 < found["gap_ci95"][1]
