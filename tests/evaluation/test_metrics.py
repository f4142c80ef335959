"""Metrics against values worked out by hand, and against scikit-learn where it has the same one."""

import math
import random

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from lib.core.cli import UserError
from lib.evaluation import bootstrap, metrics
from lib.evaluation.answers import compute_token_f1, parse_answer
from lib.evaluation.bootstrap import bootstrap_interval
from lib.evaluation.comparison import compare_stages, compute_mcnemar_p
from lib.evaluation.metrics import build_statistics, measure_quality
from lib.evaluation.tool_calls import parse_tool_calls

LABELS = ["a", "b", "c"]
# (true, predicted): a is right 3 of 4 times, b 2 of 4, c 1 of 2.
PLANTED = ["aa", "aa", "aa", "ab", "bb", "bb", "ba", "bc", "cc", "ca"]


def row(number: int, truth: str, predicted: str, answer: str | None = None, **more) -> dict:
    log_probs = {label: math.log(0.8 if label == predicted else 0.1) for label in LABELS}
    stopped = None if answer is None else True
    return {
        "id": f"row{number}",
        "label": truth,
        "predicted": predicted,
        "log_probs": log_probs,
        "answer": answer,
        "stopped": stopped,
        **more,
    }


def planted() -> list[dict]:
    return [row(number, pair[0], pair[1]) for number, pair in enumerate(PLANTED)]


def measured(rows: list[dict], **more) -> dict:
    return measure_quality("classification", rows, LABELS, **{"seed": 0, "samples": 500, **more})


def generated(number: int, answer: str | None, reference: str, log_prob: float = -1.0, tokens: int = 1) -> dict:
    return {
        "id": f"row{number}",
        "reference": reference,
        "answer": answer,
        "stopped": None if answer is None else answer != "",
        "log_prob": log_prob,
        "tokens": tokens,
    }


def test_planted_confusion_gives_the_scores_worked_out_by_hand():
    result = measured(planted())
    assert result["confusion"] == [[3, 1, 0], [1, 2, 1], [1, 0, 1]]
    assert result["quality"]["n"] == 10
    assert result["quality"]["accuracy"] == pytest.approx(0.6)
    # F1: a 2*3/(4+5), b 2*2/(4+3), c 2*1/(2+2)
    assert result["quality"]["macro_f1"] == pytest.approx((6 / 9 + 4 / 7 + 2 / 4) / 3)
    assert result["per_class"]["b"] == pytest.approx({"precision": 2 / 3, "recall": 0.5, "f1": 4 / 7, "support": 4})
    assert result["quality"]["flips"] is result["quality"]["kl"] is result["quality"]["against"] is None


def test_scores_equal_those_of_scikit_learn_also_where_a_class_is_missing():
    generator = np.random.default_rng(1)
    for labels in ("abc", "ab"):  # in the second round no row is, or is called, c
        rows = [row(n, *generator.choice(list(labels), 2)) for n in range(40)]
        truth, predicted = [r["label"] for r in rows], [r["predicted"] for r in rows]
        result = measured(rows)
        assert result["quality"]["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
        expected = precision_recall_fscore_support(truth, predicted, labels=LABELS, zero_division=0)
        keys = ("precision", "recall", "f1", "support")
        got = [[result["per_class"][label][key] for label in LABELS] for key in keys]
        assert np.allclose(got, expected)


def test_bootstrap_repeats_with_its_seed_and_has_the_width_that_theory_gives():
    rows = [row(n, "a", "a" if n % 5 else "b") for n in range(500)]  # accuracy 0.8
    low, high = measured(rows, samples=4000)["quality"]["accuracy_ci95"]
    again = [measured(planted(), seed=seed)["quality"]["macro_f1_ci95"] for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 500)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.006)


def test_bootstrap_in_pieces_draws_every_row_equally_often(monkeypatch):
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 70)  # 7 resamples of 10 rows at a time
    pieces = list(bootstrap._row_weights(10, 0, 1000))
    assert {len(piece) for piece in pieces} == {7, 1000 % 7}
    weights = np.concatenate(pieces)
    assert weights.shape == (1000, 10)
    assert (weights.sum(axis=1) == 10).all()
    assert np.allclose(weights.mean(axis=0), 1, atol=0.15)


def test_difference_of_two_stages_is_measured_on_the_same_rows():
    before = planted()
    after = [row(n, pair[0], pair[0] if n == 9 else pair[1]) for n, pair in enumerate(PLANTED)]  # one row mended
    old, new = (build_statistics("classification", rows, LABELS)["accuracy"] for rows in (before, after))
    low, high = bootstrap_interval(new, seed=0, samples=2000, minus=old)
    assert low == 0  # no draw can make the mended stage worse; independent draws would
    assert 0.2 < high < 0.5
    assert bootstrap_interval(old, seed=0, samples=200, minus=old) == [0, 0]


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (5, 0, 2 / 2**5), (1, 7, 2 * (1 + 8) / 2**8)],
)
def test_mcnemar_by_hand(wins, losses, p):
    assert compute_mcnemar_p(wins, losses) == pytest.approx(p)


def test_comparison_counts_flips_wins_and_losses_and_ignores_the_order_of_rows():
    before = planted()
    after = planted()
    after[3] = row(3, "a", "a")  # won
    after[0] = row(0, "a", "c")  # lost
    after[9] = row(9, "c", "b")  # another wrong label: a flip, neither won nor lost
    result = compare_stages("classification", before, after[::-1], name="merged")
    assert result["flips"] == 3
    assert result["against"] == {"name": "merged", "wins": 1, "losses": 1, "mcnemar_p": 1.0}
    # (.8, .1, .1) against the same with two places swapped, on 3 of 10 rows
    assert result["kl"] == pytest.approx(0.3 * (0.8 - 0.1) * math.log(8))


def test_kl_normalizes_over_the_labels_and_is_directed():
    before, after = row(0, "a", "a"), row(0, "a", "a")
    before["log_probs"] = {"a": -5 + math.log(0.9), "b": -5 + math.log(0.1)}
    after["log_probs"] = {"b": math.log(0.5) - 700, "a": math.log(0.5) - 700}  # exp alone would underflow
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert compare_stages("classification", [before], [after], name="x")["kl"] == pytest.approx(expected)
    assert compare_stages("classification", [after], [before], name="x")["kl"] != pytest.approx(expected)
    assert compare_stages("classification", [before], [{**after, "log_probs": None}], name="x")["kl"] is None


@pytest.mark.parametrize("answer", ["joyful", "joy or fear", "Joy", "Joy.", "", "joy joy"])
def test_an_answer_that_is_no_label_is_invalid(answer):
    assert parse_answer(answer, ["joy", "fear"]) is None


def test_free_answers_count_on_the_rows_that_have_one():
    rows = planted()
    for number, answer in enumerate([" a\n", "b", "perhaps a", "a"]):  # right, wrong, invalid, right
        rows[number] |= {"answer": answer, "stopped": number != 2}
    result = measured(rows)
    assert result["answered"] == 4
    values = result["quality"]
    assert (values["greedy_accuracy"], values["invalid_rate"], values["stop_rate"]) == (0.5, 0.25, 0.75)
    assert values["accuracy"] == 0.6
    nothing = measured(planted())["quality"]
    assert nothing["greedy_accuracy"] is nothing["invalid_rate"] is nothing["stop_rate"] is None


def test_labels_that_are_prefixes_of_each_other_stay_apart():
    assert parse_answer("joy", ["joyful", "joy"]) == "joy"
    assert parse_answer("joyful", ["joyful", "joy"]) == "joyful"


def test_rows_twice_or_of_another_corpus_are_refused():
    with pytest.raises(UserError, match="row0 occurs more than once"):
        measured([*planted(), row(0, "a", "a")])
    other = [*planted()[:-1], row(99, "a", "a")]
    with pytest.raises(UserError, match="2 rows are not in both"):
        compare_stages("classification", planted(), other, name="base")


@pytest.mark.parametrize("change", [{"label": "d"}, {"predicted": None}, {"log_probs": {"a": math.nan}}])
def test_what_cannot_be_measured_is_an_error_and_not_a_score(change):
    with pytest.raises(UserError, match="row0"):
        measured([row(0, "a", "a") | change])
    with pytest.raises(UserError, match="no predictions"):
        measured([])


def test_generation_by_hand():
    rows = [
        generated(0, "the  cat sat", "the cat sat", log_prob=-2.0, tokens=4),  # equal but for white space
        generated(1, "a dog", "the dog ran!", log_prob=-4.0, tokens=2),
        generated(2, None, "not asked", log_prob=-6.0, tokens=6),
    ]
    result = measure_quality("generation", rows, None, seed=0, samples=200)
    values = result["quality"]
    assert result["answered"] == 2
    assert values["exact_match"] == 0.5
    assert values["token_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["perplexity"] == pytest.approx(math.exp(12 / 12))
    assert values["stop_rate"] == 1
    assert values["chrf_ci95"][0] <= values["chrf"] <= values["chrf_ci95"][1]


def test_chrf_is_that_of_sacrebleu_over_the_answered_rows():
    from sacrebleu.metrics.chrf import CHRF

    rows = [generated(0, "a small house", "a small mouse"), generated(1, "yes", "no"), generated(2, None, "never")]
    expected = CHRF().corpus_score(["a small house", "yes"], [["a small mouse", "no"]]).score
    assert measure_quality("generation", rows, None, seed=0, samples=50)["quality"]["chrf"] == pytest.approx(expected)
    unanswered = [generated(0, None, "never")]
    assert measure_quality("generation", unanswered, None, seed=0, samples=50)["quality"]["chrf"] is None


def test_of_several_right_answers_the_nearest_one_counts():
    rows = [
        generated(0, "the city of light", "Paris") | {"other_references": ["City of Light", "Lutetia"]},
        generated(1, "Rome", "Rome"),
        generated(2, "Bonn", "Berlin") | {"other_references": ["Hauptstadt"]},
    ]
    quality = measure_quality("generation", rows, None, seed=0, samples=50)["quality"]
    assert quality["exact_match"] == pytest.approx(1 / 3)
    assert quality["token_f1"] == pytest.approx(2 / 3)
    from sacrebleu.metrics.chrf import CHRF

    answers = [row["answer"] for row in rows]
    references = [["Paris", "Rome", "Berlin"], ["City of Light", None, "Hauptstadt"], ["Lutetia", None, None]]
    assert quality["chrf"] == pytest.approx(CHRF().corpus_score(answers, references).score)
    one = measure_quality("generation", [generated(0, "the city of light", "Paris")], None, seed=0, samples=50)[
        "quality"
    ]
    assert one["token_f1"] == 0


CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sea", "n": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("answer", "names", "calls"),
    [
        (CALL, 1, 1),
        ('{"arguments": {"n": 1.0, "at": "sea"}, "name": "look"}', 1, 1),
        ('I look. [{"name": "look", "parameters": {"at": "sea", "n": 1}}]', 1, 1),
        ('{"type": "function", "function": {"name": "look", "arguments": "{\\"at\\": \\"sea\\", \\"n\\": 1}"}}', 1, 1),
        (CALL.replace("sea", "see"), 1, 0),
        (CALL.replace(": 1", ": true"), 1, 0),
        (CALL.replace("look", "listen"), 0, 0),
        (CALL + CALL, 0, 0),
        ("It rains.", 0, 0),
        (CALL.replace('{"at"', '{{"at"'), 0, 0),
    ],
)
def test_calls_of_tools_count_by_name_and_by_arguments(answer, names, calls):
    rows = [generated(0, answer, CALL), generated(1, "no call", "no call"), generated(2, None, CALL)]
    quality = measure_quality("generation", rows, None, seed=0, samples=50)["quality"]
    assert (quality["tool_name_match"], quality["tool_call_match"]) == (names, calls)
    assert parse_tool_calls("{" * 5000) == []


def test_calls_that_nobody_asked_for_count_and_rows_without_any_do_not():
    rows = [generated(0, CALL, "no call"), generated(1, CALL, CALL), generated(2, "a {b}", "{}")]
    quality = measure_quality("generation", rows, None, seed=0, samples=50)["quality"]
    assert quality["tool_call_match"] == 0.5
    assert measure_quality("generation", rows[2:], None, seed=0, samples=50)["quality"]["tool_call_match"] is None


def test_calls_made_at_once_have_no_order():
    two = [CALL, CALL.replace("sea", "shore")]
    rows = [generated(0, "".join(two), "".join(reversed(two)))]
    assert measure_quality("generation", rows, None, seed=0, samples=50)["quality"]["tool_call_match"] == 1


def test_baselines_without_probabilities_have_no_perplexity():
    rows = [{**generated(0, "yes", "yes"), "log_prob": None, "tokens": None, "stopped": None}]
    values = measure_quality("generation", rows, None, seed=0, samples=10)["quality"]
    assert values["perplexity"] is values["stop_rate"] is None


def test_comparison_of_generated_texts_counts_rows_that_came_nearer():
    before = [generated(0, "no", "yes"), generated(1, "blue car", "blue car"), generated(2, "x", "y")]
    after = [generated(0, "yes", "yes"), generated(1, "blue  car", "blue car"), generated(2, None, "y")]
    result = compare_stages("generation", before, after, name="merged")
    against = {"name": "merged", "wins": 1, "losses": 0, "mcnemar_p": 1.0}
    assert result == {"flips": 1, "kl": None, "against": against}


def test_token_f1_ignores_case_punctuation_and_articles():
    assert compute_token_f1("The Cat!", "a cat") == 1
    assert compute_token_f1("", "cat") == 0
    assert compute_token_f1("नमस्ते।", "नमस्ते") == 1  # vowel signs are part of a word


def test_many_labels_are_measured_as_few_are_without_a_table_of_all_pairs(monkeypatch):
    """Sparse and dense give the same numbers; 50,000 labels would take 20 GB for each table."""
    rng = random.Random(4)
    labels = [f"label {number}" for number in range(300)]
    rows = [
        {"id": str(n), "label": rng.choice(labels), "predicted": rng.choice(labels[:150]), "answer": None,
         "stopped": None, "log_probs": None}
        for n in range(500)
    ]  # fmt: skip
    sparse = metrics.measure_quality("classification", rows, labels, seed=1, samples=40)
    monkeypatch.setattr(metrics, "MANY_LABELS", 1000)
    dense = metrics.measure_quality("classification", rows, labels, seed=1, samples=40)
    table = dense.pop("confusion")
    assert sorted(sparse.pop("confusion")) == [
        [true, said, count] for true, row in enumerate(table) for said, count in enumerate(row) if count
    ]
    assert sparse == dense
    many = [f"label {number}" for number in range(50_000)]
    assert metrics.measure_quality("classification", rows, many, seed=1, samples=40)["quality"]["n"] == 500
