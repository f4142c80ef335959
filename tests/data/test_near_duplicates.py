"""Near-duplicates: exact against brute force, and cheap where many texts share most of their words."""

import random

import numpy as np
import pytest

from lib.data import near_duplicates, prefix_filter, text_index
from lib.data.signatures import choose_bands
from support.data_stages import audit, row
from support.near_texts import (
    SENTENCES,
    clusters,
    clusters_by_brute_force,
    fill_index,
    find_similar,
    jaccard,
    some_words,
)


def near(text: str) -> str:
    return text.upper().replace(" ", "  ") + "!!"


def test_near_duplicates_do_not_depend_on_the_order_of_rows(tmp_path, tiny_phi3):
    rows = [row(text) for text in SENTENCES] + [row(near(text), "fear") for text in SENTENCES[:2]]
    result, kept, _ = audit(tmp_path, tiny_phi3, rows)
    assert result["near_duplicate_clusters"] == 2
    assert result["near_duplicate_rows"] == result["rows_in_mixed_clusters"] == 4
    assert result["largest_cluster"] == 2
    first = {item["id"]: item["cluster"] for item in kept}
    assert len(set(first.values())) == 3
    _, kept, _ = audit(tmp_path, tiny_phi3, rows[::-1])
    assert {item["id"]: item["cluster"] for item in kept} == first


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_clusters_equal_those_of_all_pairs_compared(tmp_path, threshold):
    """Against brute force, over texts whose similarities fall on both sides of the threshold.

    Of all lengths, so that bit maps of all widths are compared, also with each other.
    """
    rng = random.Random(7)
    words = some_words(rng)
    texts = [" ".join(rng.choices(words, k=length)) for length in (*range(1, 60), 90, 91, 180, 350, 700, 1500)]
    for text in texts[:]:
        for _ in range(2):
            place = rng.randrange(len(text))
            gone = rng.randint(0, max(1, len(text) // 6))
            texts.append(text[:place] + rng.choice(["x", " ", "some words", ""]) + text[place + gone :])
    rng.shuffle(texts)
    expected = clusters_by_brute_force(texts, threshold)
    for seed in (1, 2):
        assert clusters(texts, threshold, tmp_path, seed=seed) == expected


def test_crowd_of_texts_around_the_threshold_is_told_apart_exactly(tmp_path):
    """Letters of one form: every two are proposed, some pairs are similar, chains run through the crowd."""
    rng = random.Random(3)
    words = some_words(rng)
    form = " ".join(rng.choices(words, k=40))
    texts = [f"{form} {' '.join(rng.choices(words, k=7))}" for _ in range(150)]
    found = clusters(texts, 0.8, tmp_path)
    assert found == clusters_by_brute_force(texts, 0.8)
    assert 10 < len(set(found)) < 150


def count_comparisons(monkeypatch) -> list[int]:
    """Return a list that gets how many pairs were compared by their shingles, for each index that is closed."""
    found: list[int] = []
    close = text_index.TextIndex.__exit__

    def counted(index, *error):
        found.append(index.exact)
        return close(index, *error)

    monkeypatch.setattr(text_index.TextIndex, "__exit__", counted)
    return found


def test_crowd_of_long_texts_just_below_the_threshold_costs_few_comparisons(tmp_path, monkeypatch):
    """Each text pair agrees in some band; nearly all are excluded without a look at the texts."""
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefghijklmnop", k=8)) for _ in range(5000)]
    form = " ".join(rng.choices(words, k=160))
    texts = [f"{form} {' '.join(rng.choices(words, k=30))}" for _ in range(200)]
    assert 0.68 < jaccard(texts[0], texts[1]) < 0.76
    monkeypatch.setattr(near_duplicates, "_FEW_EACH", 64)
    compared, proposed = count_comparisons(monkeypatch), []
    may_be_similar = text_index.TextIndex.may_be_similar

    def counted_proposals(index, left, right):
        proposed.append(len(left))
        return may_be_similar(index, left, right)

    monkeypatch.setattr(text_index.TextIndex, "may_be_similar", counted_proposals)
    assert len(set(clusters(texts, 0.8, tmp_path))) == 200
    assert sum(proposed) < 200 * 199 / 2  # fewer than there are, though each agrees in some band
    assert sum(compared) < 200


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("at_once", [1 << 22, 100])
def test_rare_shingles_miss_no_similar_pair(tmp_path, monkeypatch, threshold, at_once):
    """The prefix filter alone proposes: texts of all lengths and letters of one form, against brute force."""
    rng = random.Random(9)
    words = some_words(rng)
    form = rng.choices(words, k=40)
    texts = [" ".join(rng.choices(words, k=length)) for length in range(1, 15)]
    texts += [" ".join(form[: rng.randint(30, 40)] + rng.choices(words, k=rng.randint(1, 9))) for _ in range(35)]
    texts += [text[: rng.randint(len(text) // 2, len(text))] for text in texts]
    rng.shuffle(texts)
    monkeypatch.setattr(near_duplicates, "_FEW_EACH", -1)
    monkeypatch.setattr(prefix_filter, "_AT_ONCE", at_once)
    monkeypatch.setattr(near_duplicates, "pair_neighbors", lambda keys: [])
    monkeypatch.setattr(near_duplicates, "count_across_groups", lambda keys, roots: 1 << 60)
    assert clusters(texts, threshold, tmp_path) == clusters_by_brute_force(texts, threshold)


def test_a_crowd_just_below_the_threshold_grows_with_its_texts_and_not_with_their_pairs(tmp_path, monkeypatch):
    done = {}
    monkeypatch.setattr(text_index.TextIndex, "__exit__", lambda index, *_: done.update({index.count: index.work}))
    rng = random.Random(13)
    form = " ".join("".join(rng.choices("abcdefghij", k=6)) for _ in range(24))
    for count in (400, 1600):
        texts = [f"{form} {' '.join(''.join(rng.choices('klmnopqrst', k=6)) for _ in range(5))}" for _ in range(count)]
        assert find_similar(texts, 0.8, tmp_path) == ([], 0)
    assert done[1600] < 6 * done[400]


def test_pairs_that_are_too_many_to_compare_are_told(tmp_path, monkeypatch, capsys):
    rng = random.Random(3)
    words = some_words(rng)
    form = " ".join(rng.choices(words, k=40))
    texts = [f"{form} {' '.join(rng.choices(words, k=7))}" for _ in range(150)]
    monkeypatch.setattr(near_duplicates, "_most_work", lambda count: -1)
    found = find_similar(texts, 0.8, tmp_path)
    assert near_duplicates.describe_uncompared(found) == {"near_duplicates_not_compared": found.uncompared}
    near_duplicates.tell_uncompared("audit_data", found)
    assert f"{found.uncompared:,} pairs of texts were not compared" in capsys.readouterr().err
    assert 0 < found.uncompared < 150 * 149


def test_bit_maps_never_exclude_a_similar_pair_and_exclude_most_others(tmp_path):
    rng = random.Random(11)
    words = some_words(rng)
    for length in (3, 30, 60, 250, 600):
        base = rng.choices(words, k=length)
        texts = [" ".join(base)]
        for _ in range(80):
            texts.append(" ".join(word if rng.random() > rng.random() / 3 else rng.choice(words) for word in base))
        with text_index.TextIndex(0.8, tmp_path) as index:
            fill_index(index, texts)
            left, right = np.array([(0, other) for other in range(1, 81)]).T
            possible = index.may_be_similar(left, right)
            exact = np.array([jaccard(texts[0], text) for text in texts[1:]])
            assert possible[exact >= 0.8].all()
            assert not possible[exact < 0.7].any()
            assert [index.similar(0, other) for other in range(1, 81)] == (exact >= 0.8).tolist()
            short = index.similar_short([(0, other) for other in range(1, 81)])
            assert short == ([None] * 80 if length > 60 else (exact >= 0.8).tolist())


def test_chain_is_followed(tmp_path):
    """The first joins the second, the third is like the first only: all three are one cluster."""
    middle = SENTENCES[0]
    texts = [middle, f"{middle} and off", f"then so {middle}"]
    assert jaccard(texts[1], texts[2]) < 0.8 <= min(jaccard(middle, texts[1]), jaccard(middle, texts[2]))
    assert clusters(texts, 0.8, tmp_path) == [0, 0, 0]


@pytest.mark.parametrize("similarity", [0.5, 0.8])
def test_bands_agree_as_often_as_their_theory_says(tmp_path, similarity):
    """The chance to miss a pair follows from this. Sets of 300 shingles with a given part in common."""
    rng = random.Random(2)
    shared = round(300 * 2 * similarity / (1 + similarity))
    texts: list[str] = []
    for _ in range(500):
        letters = [chr(0x4E00 + rng.randrange(20000)) for _ in range(604 - shared)]
        texts += ["".join(letters[:304]), "".join([*letters[: shared + 4], *letters[304:]])]
    with text_index.TextIndex(0.8, tmp_path) as index:
        fill_index(index, texts)
    agree = index.keys()[::2] == index.keys()[1::2]
    bands, rows = choose_bands(0.8)
    assert agree.mean() == pytest.approx(similarity**rows, abs=0.01)
    assert (~agree.any(axis=1)).mean() == pytest.approx((1 - similarity**rows) ** bands, abs=0.04)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_miss_a_pair_at_the_threshold_once_in_a_million(threshold):
    bands, rows = choose_bands(threshold)
    assert bands * rows <= 175
    assert (1 - threshold**rows) ** bands <= 1e-6


def test_texts_of_punctuation_only_and_short_ones_are_told_apart(tmp_path):
    texts = [":)", ":(", "no", "on", "No!", "\u0915\u093f", "\u0915\u0940", ""]  # two differ in a vowel sign
    assert clusters(texts, 0.8, tmp_path) == [0, 1, 2, 3, 2, 4, 5, 6]


@pytest.mark.parametrize("texts", [[], ["alone"], ["", ""]])
def test_few_texts_are_no_special_case(tmp_path, texts):
    assert clusters(texts, 0.8, tmp_path) == [0] * len(texts)


def test_no_copy_of_the_texts_stays_behind(tmp_path):
    clusters(SENTENCES, 0.8, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_thousands_of_copies_of_one_form_are_compared_a_few_times_each(tmp_path, monkeypatch):
    compared = count_comparisons(monkeypatch)
    form = "Dear customer, we are sorry to tell you that your parcel is late and will be there on day number "
    pairs = find_similar([form + str(number) for number in range(3000)], 0.8, tmp_path).pairs
    assert len(pairs) == 2999
    assert 3000 < sum(compared) < 5 * 3000
