"""The audit: every row is kept or set aside with its reason, and the verdict is about what is left."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml

from lib.core.cli import UserError
from lib.core.files import write_jsonl
from lib.data import near_duplicates, text_index
from lib.data.audit_verdict import judge_audit
from lib.data.labels import normalize_caseless, normalize_label, quote
from lib.data.near_duplicates import _comparable, find_similar_pairs, number_clusters
from lib.data.rows import (
    MISSING,
    NOT_TEXT,
    compute_row_id,
    convert_to_text,
    get_column,
    list_reachable_names,
    normalize,
)
from lib.data.text_index import choose_bands
from lib.data.tokenizer import Tokenizer
from support.data_stages import CORPUS, DATA, audit, row


def test_each_reason_with_its_place_and_row(tmp_path, tiny_phi3):
    rows = [
        row("A good day."),
        "not JSON: something",
        {"phrase": "no tone"},
        row(["a", "list"]),
        row({"a": "object"}),
        row("ends <|end|> here"),
        row("   "),
        row(None),
        row("fine", ""),
        row("fine", "anger"),
        row("Same text", "joy"),
        row("Same  text ", "fear"),
        row(" A good\tday."),
        row("word " * 300),
        row("Another one.", "fear"),
        row("cut\0here"),
        row({NOT_TEXT: "bytes"}),
    ]
    result, kept, rejected = audit(tmp_path, tiny_phi3, rows, labels=["joy", "fear"])
    assert [(item["line"], item["reason"]) for item in rejected] == [
        (2, "unreadable"),
        (3, "missing_column"),
        (4, "not_text"),
        (5, "not_text"),
        (6, "control_token"),
        (7, "empty_value"),
        (8, "empty_value"),
        (9, "empty_value"),
        (10, "unknown_label"),
        (11, "label_conflict"),
        (12, "label_conflict"),
        (13, "exact_duplicate"),
        (14, "too_long"),
        (16, "null_character"),
        (17, "not_text"),
    ]
    assert [item["row"] for item in rejected] == [None, *rows[2:14], *rows[15:]]
    details = {item["line"]: item["detail"] for item in rejected}
    assert details[2] == "not JSON: something"
    assert "'tone'" in details[3]
    assert "'<|end|>'" in details[6]
    assert "'anger'" in details[10]
    assert details[11] == "'joy' here, 'fear' at a.jsonl:12"
    assert details[13] == "same as a.jsonl:1"
    assert "256" in details[14]
    assert details[16] == "'phrase' contains the character NUL (U+0000)"
    assert [details[line] for line in (4, 5, 17)] == [
        "'phrase' is a list, whose first value is {phrase.0}",
        "'phrase' is a nested object",
        "'phrase' is bytes, not text",
    ]
    assert [item["line"] for item in kept] == [1, 15]
    assert (result["exact_duplicates"], result["label_conflicts"]) == (1, 2)
    assert result["classes"] == {"fear": 1, "joy": 1}
    assert result["tokens"]["over_max_length"] == 1


def test_values_keep_what_is_inside_and_numbers_become_text(tmp_path, tiny_phi3):
    rows = [row("  two  spaces\n", 1), row("e\u0301 \x01\x1b", True), row(1.5, 2), row(0, False)]
    _, kept, rejected = audit(tmp_path, tiny_phi3, rows)
    assert not rejected
    assert [(item["values"]["phrase"], item["target"]) for item in kept] == [
        ("two  spaces", "1"),
        ("e\u0301 \x01\x1b", "true"),  # other control characters are text
        ("1.5", "2"),
        ("0", "false"),
    ]


def test_control_tokens_are_stripped_until_none_is_left(tmp_path, tiny_phi3):
    rows = [row("a <|e<|end|>nd|> b", "joy<|end|>"), row("<|end|>", "fear"), row("x", "fear")]
    _, kept, rejected = audit(tmp_path, tiny_phi3, rows, special_tokens="strip")
    assert (kept[0]["values"]["phrase"], kept[0]["target"]) == ("a  b", "joy")
    assert [(item["line"], item["reason"]) for item in rejected] == [(2, "empty_value")]


def test_ids_fold_what_does_not_matter_and_tell_columns_apart():
    assert compute_row_id({"a": " x\u00a0 y\n", "b": "é"}) == compute_row_id({"b": "e\u0301", "a": "x y"})
    assert compute_row_id({"a": "x", "b": "y"}) != compute_row_id({"a": "y", "b": "x"})
    assert compute_row_id({"a": "X"}) != compute_row_id({"a": "x"})
    assert normalize("\u2003a\r\n b ") == "a b"


def test_columns_by_name_first_then_by_dots():
    nested = {"user.name": "flat", "user": {"name": "deep", "age": {"years": 3}, "x.y": [{"z": 4}, [5]]}, "text": "t"}
    assert get_column(nested, "user.name") == "flat"
    assert [get_column(nested, name) for name in ("user.age.years", "user.x.y.0.z", "user.x.y.1.0")] == [3, 4, 5]
    gone = ("user.gone", "text.x", "gone", "text.0", "user.0", "user.x.y.2", "user.x.y.-1", "user.x.y.z", "user.x.y.²")
    assert [get_column(nested, name) for name in gone] == [MISSING] * len(gone)
    names = ["user.name", "user.name", "user.age.years", "user.x.y.0.z", "user.x.y.1.0", "text"]
    assert list(list_reachable_names(nested)) == names
    assert [convert_to_text(value) for value in (None, " a ", 7, False, [], {})] == ["", "a", "7", "false", None, None]


def test_nested_columns_reach_the_corpus(tmp_path, tiny_phi3):
    turns = [[{"content": f"row {index}"}, {"content": tone}] for index, tone in enumerate(["joy", "fear"])]
    rows = [{"messages": [*two, {"content": "thanks"}]} for two in turns] + [{"messages": turns[0][:1]}]
    corpus = {"text_template": "{messages.0.content}\n{messages.1.content}"}
    _, kept, rejected = audit(tmp_path, tiny_phi3, rows, corpus=corpus, target="messages.1.content")
    assert [(item["values"], item["target"]) for item in kept] == [
        ({"messages.0.content": "row 0"}, "joy"),
        ({"messages.0.content": "row 1"}, "fear"),
    ]
    assert [item["reason"] for item in rejected] == ["missing_column"]


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        ([{"text": "a", "tone": "joy"}, "broken"], "the columns are text, tone: mend corpus or data.target"),
        ([{"tone": "joy", "turns": [{"text": "a"}]}], "the columns are tone, turns.0.text: mend"),
        ([{"version": "1", "data": [row("a"), row("b")]}], "the rows are a list under the key 'data' of a row: save"),
    ],
)
def test_column_that_no_row_has_is_an_error_that_names_those_there_are(tmp_path, tiny_phi3, rows, hint):
    with pytest.raises(UserError) as error:
        audit(tmp_path, tiny_phi3, rows)
    assert f"no row has the column 'phrase'; {hint}" in str(error.value)
    assert not (tmp_path / "audit.json").exists()


# Two spellings of one label, and the plainer of them, under which they are joined.
ONE_LABEL = {
    "integer and float": (0, 0.0, "0"),
    "number and text": (1.0, "1e0", "1.0"),
    "zeros in front": ("007", 7, "7"),
    "true and True": (True, "True", None),
    "composed and decomposed": ("caf\u00e9", "cafe\u0301", "caf\u00e9"),
    "zero width": ("calm", "ca\u200blm", "calm"),
    "soft hyphen": ("calm", "ca\u00adlm", "calm"),
    "byte order mark": ("calm", "\ufeffcalm", "calm"),
    "emoji with and without its selector": ("\u2764", "\u2764\ufe0f", "\u2764"),
    "no-break space": ("not calm", "not\u00a0calm", None),
    "white space within": ("not calm", "not  calm", "not calm"),
}


@pytest.mark.parametrize("case", ONE_LABEL)
def test_spellings_of_one_label_stop_the_run_until_the_configuration_says_what_they_are(tmp_path, tiny_phi3, case):
    first, second, plain = ONE_LABEL[case]
    texts = [convert_to_text(first), convert_to_text(second)]
    rows = [row(f"text number {n}", [first, second, "other"][n % 3]) for n in range(9)]
    result, _, _ = audit(tmp_path, tiny_phi3, rows, min_rows_per_class=5)
    (reason,) = result["verdict"]["reasons"]
    assert all(f"{quote(text)} (3 rows)" in reason for text in texts)
    assert " are one label: under data, labels: {" in reason
    found = result["label_spellings"]["one_label"]
    assert found["groups"] == [dict.fromkeys(sorted(texts), 3)]
    join, keep = (yaml.safe_load(found[line])["labels"] for line in ("join", "keep"))

    assert plain in (None, *join)
    for labels, count in ((join, 2), (keep, 3)):
        result, kept, _ = audit(tmp_path, tiny_phi3, rows, labels=labels)
        assert result["verdict"]["ok"]
        assert len(result["labels"]) == count
        assert {item["target"] for item in kept} == set(labels)
    # A list that names one of the two does not decide about the other.
    result, _, _ = audit(tmp_path, tiny_phi3, rows, labels=[texts[0], "other"])
    assert "are one label" in result["verdict"]["reasons"][0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0", "1"),
        ("1.1", "1.11"),
        ("true", "1"),
        ("caf\u00e9", "cafe"),
        ("a b", "ab"),
        ("9" * 40, "9" * 39 + "8"),
        ("0", ""),
    ],
)
def test_labels_that_mean_different_things_are_told_apart(one, other):
    assert normalize_label(one) != normalize_label(other)
    assert normalize_caseless(one) != normalize_caseless(other)


@pytest.mark.parametrize(("one", "other"), [("Calm", "calm"), ("STRASSE", "straße"), ("calm", "ｃalm")])
def test_labels_that_differ_by_case_alone_are_told_and_go_on(tmp_path, tiny_phi3, capsys, one, other):
    rows = [row(f"text number {n}", [one, other][n % 2]) for n in range(6)]
    result, _, _ = audit(tmp_path, tiny_phi3, rows)
    assert result["verdict"]["ok"]
    found = result["label_spellings"]["differing_in_case"]
    assert found["groups"] == [{one: 3, other: 3}]
    line = f'differ by case or width alone: "{one}" (3 rows) and "{other}" (3 rows): under data, {found["join"]} joins them'
    assert line in capsys.readouterr().err
    audit(tmp_path, tiny_phi3, rows, labels=yaml.safe_load(found["keep"])["labels"])
    assert "alone" not in capsys.readouterr().err


def test_no_label_that_was_found_is_listed(tmp_path, tiny_phi3):
    rows = [row(f"text number {n}", n % 2) for n in range(6)]
    result, _, _ = audit(tmp_path, tiny_phi3, rows, labels=["calm", "angry"])
    why = '6 unknown_label (found are "0" (3 rows) and "1" (3 rows))'
    assert result["verdict"]["reasons"] == [f"no usable row is left of 6: {why}"]
    assert result["unknown_labels"] == {"0": 3, "1": 3}


def test_optional_columns_may_be_empty_but_not_all_of_them(tmp_path, tiny_phi3):
    corpus = {"text_template": "Do: {phrase}\n{input}\nDone:\n{tone}"}
    inputs = [{"input": "x"}, {"input": " "}, {"input": None}, {}, {"input": ""}, {"input": "<|end|>"}, {"input": []}]
    rows = [{**row(f"text number {n}" * (n != 4)), **one} for n, one in enumerate(inputs)]
    result, kept, rejected = audit(
        tmp_path, tiny_phi3, rows, corpus=corpus, task="generation", optional_columns=["input", "phrase"]
    )
    assert [item["values"]["input"] for item in kept] == ["x", "", "", ""]
    assert [item["reason"] for item in rejected] == ["empty_value", "control_token", "not_text"]
    assert rejected[0]["detail"] == "every input is empty"
    result, kept, _ = audit(tmp_path, tiny_phi3, rows, corpus=corpus, task="generation")
    assert len(kept) == 1
    (reason,) = result["verdict"]["reasons"]
    assert "3 empty_value (a.jsonl:2: 'input' is empty; name it in data.optional_columns if it may be)" in reason


LOST = [row("a"), row("b", "fear"), row("a"), row("a"), row("", "fear"), row(""), "not JSON"]


@pytest.mark.parametrize(
    ("rows", "data", "lost"),
    [
        (LOST, {}, None),  # 3 of 7: what is there twice is not lost
        ([*LOST, row("")], {}, None),
        (
            [*LOST, row(""), row("")],
            {},
            "5 of 9 rows are set aside, more than half: 4 empty_value (a.jsonl:5: 'phrase'",
        ),
        ([*LOST, row(""), row("")], {"max_rejected": 0.56}, None),
        (LOST, {"max_rejected": 0.1}, "3 of 7 rows are set aside, more than data.max_rejected 0.1 allows: 2 empty"),
        (LOST, {"max_rejected": 0.0}, "data.max_rejected: 0.43 lets them go"),
    ],
)
def test_a_run_that_loses_most_of_its_rows_stops(tmp_path, tiny_phi3, rows, data, lost):
    result, _, _ = audit(tmp_path, tiny_phi3, rows, **data)
    assert result["verdict"]["ok"] == (lost is None)
    assert lost is None or lost in result["verdict"]["reasons"][0]


@pytest.mark.parametrize(
    ("classes", "reasons"),
    [
        (dict.fromkeys(map(str, range(400)), 1), ["400 classes of 1 row: did you mean task: generation?"]),
        ({"a": 1, "b": 2, "c": 5, "d": 1}, ["4 classes of 1 to 5 rows: did you mean task: generation?"]),
        (dict.fromkeys(map(str, range(3000)), 9) | {"z": 4}, [
            "3,001 of 3,001 classes have fewer usable rows than data.min_rows_per_class 20: 'z' has 4"
        ]),
        ({"a": 99, "b": 3, "c": 2}, [
            "class 'b' has 3 usable rows, data.min_rows_per_class is 20",
            "class 'c' has 2 usable rows, data.min_rows_per_class is 20",
        ]),
    ],
)  # fmt: skip
def test_many_small_classes_are_told_in_one_sentence(classes, reasons):
    kept = sum(classes.values())
    judged = {"rows": kept, "kept": kept, "exact_duplicates": 0, "rejected": {}, "tokens": {"truncated": 0}}
    judged |= {"classes": classes, "label_spellings": {"one_label": None}}
    assert judge_audit(judged, {}, {"min_rows_per_class": 20}, 256) == {"ok": False, "reasons": reasons}


@pytest.mark.parametrize(
    ("rows", "data", "corpus", "reason"),
    [
        ([row(f"text number {n}") for n in range(5)], {}, {}, "only one class"),
        (["broken", row("")], {}, {}, "no usable row is left of 2"),
        ([row("a"), row("b"), row("c", "fear")], {"min_rows_per_class": 2}, {}, "class 'fear' has 1 usable rows"),
        ([row("a"), row("b", "fear")], {"labels": ["joy", "fear", "sad"]}, {}, "class 'sad' has 0 usable rows"),
        ([row("long " * 99), row("wide " * 99, "fear")], {}, {"max_length": 50}, "no usable row"),
        ([row("long " * 99), row("wide " * 99, "fear")], {}, {"max_length": 50, "truncation": "left"}, "every row is"),
    ],
)
def test_verdict_says_why_a_model_would_be_worthless(tmp_path, tiny_phi3, rows, data, corpus, reason):
    result, _, _ = audit(tmp_path, tiny_phi3, rows, corpus=corpus, **data)
    assert result["verdict"]["ok"] is False
    assert any(text.startswith(reason) for text in result["verdict"]["reasons"])


def test_verdict_is_ok_where_nothing_is_wrong(tmp_path, tiny_phi3):
    result, _, _ = audit(tmp_path, tiny_phi3, [row("one text"), row("another", "fear")])
    assert result["verdict"] == {"ok": True, "reasons": []}


def test_generation_has_answers_and_no_labels(tmp_path, tiny_phi3):
    rows = [row("What is it?", "A workflow."), row("What is it?", "A tool."), row("Who?", "You.")]
    result, kept, _ = audit(tmp_path, tiny_phi3, rows, task="generation")
    assert result["verdict"]["ok"]
    assert [result[key] for key in ("labels", "classes", "keyword_shortcuts", "rows_in_mixed_clusters")] == [None] * 4
    assert kept[0]["cluster"] == kept[1]["cluster"] != kept[2]["cluster"]


def test_truncated_rows_are_kept_whole_and_counted(tmp_path, tiny_phi3):
    rows = [row("short"), row("long " * 300, "fear"), row("template and answer alone", "x" * 900)]
    result, kept, rejected = audit(tmp_path, tiny_phi3, rows, corpus={"truncation": "right"})
    assert kept[1]["values"]["phrase"] == ("long " * 300).strip()
    assert (result["tokens"]["truncated"], result["tokens"]["over_max_length"]) == (1, 2)
    assert [item["reason"] for item in rejected] == ["too_long"]


def test_rows_that_truncation_makes_alike_are_in_one_cluster(tmp_path, tiny_phi3):
    start = "The old dog never came home again and they still set out his bowl. " * 3
    rows = [row(start + "alpha beta gamma delta " * 30), row(start + "one two three four five " * 30)]
    clusters = {}
    for max_length in (40, 2000):
        corpus = {"max_length": max_length, "truncation": "right"}
        _, kept, _ = audit(tmp_path, tiny_phi3, rows, corpus=corpus)
        clusters[max_length] = len({item["cluster"] for item in kept})
    assert clusters == {40: 1, 2000: 2}


def test_token_lengths_are_those_of_transformers(tmp_path, tiny_phi3):
    from transformers import AutoTokenizer

    phrases = ["a", "two words 🙂", "The old dog never came home again."]
    result, _, _ = audit(tmp_path, tiny_phi3, [row(phrase) for phrase in phrases])
    tokenizer = AutoTokenizer.from_pretrained(tiny_phi3)
    texts = [f"### Text: {phrase}\n### The tone is:\njoy<|endoftext|>" for phrase in phrases]
    lengths = sorted(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert (result["tokens"]["p50"], result["tokens"]["max"]) == (lengths[1], lengths[2])


def test_label_word_and_shortcut_are_found(tmp_path, tiny_phi3):
    words = ["river", "stone", "cloud", "table", "music", "winter", "garden", "letter", "window", "bread"]
    rng = random.Random(1)
    rows = [row(f"{' '.join(rng.sample(words, 6))} number{n}", rng.choice(["joy", "fear"])) for n in range(60)]
    for item in rows[:24]:
        item["phrase"] += " zebra"
        item["tone"] = "joy"
    rows[0]["phrase"] += " JOY!"
    rows[1]["phrase"] += " joyful"
    result, kept, _ = audit(tmp_path, tiny_phi3, rows)
    assert result["label_word_in_text"]["share"] == round(1 / len(kept), 4)
    assert [item["word"] for item in result["keyword_shortcuts"]] == ["zebra"]
    assert result["keyword_shortcuts"][0]["label"] == "joy"


def near(text: str) -> str:
    return text.upper().replace(" ", "  ") + "!!"


SENTENCES = [
    "The old dog never came home again; they still set out his bowl.",
    "She hid behind the door when the footsteps came closer.",
    "What a lovely morning, the whole street smells of fresh bread",
]


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


def jaccard(one: str, other: str) -> float:
    a, b = (
        {text[start : start + 5] for start in range(max(1, len(text) - 4))} for text in map(_comparable, (one, other))
    )
    return len(a & b) / len(a | b)


def clusters(texts: list[str], threshold: float, folder: Path, *, seed: int = 1) -> list[int]:
    pairs = find_similar_pairs(iter(texts), threshold, seed=seed, folder=folder).pairs
    assert all(jaccard(texts[one], texts[other]) >= threshold for one, other in pairs)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    return number_clusters(len(texts), pairs)


def clusters_by_brute_force(texts: list[str], threshold: float) -> list[int]:
    every = [
        (one, other)
        for one in range(len(texts))
        for other in range(one)
        if jaccard(texts[one], texts[other]) >= threshold
    ]
    assert len(every) > 5
    return number_clusters(len(texts), every)


def some_words(rng: random.Random) -> list[str]:
    return ["".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(300)]


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
def test_rare_shingles_miss_no_similar_pair(tmp_path, monkeypatch, threshold):
    """The prefix filter alone proposes: texts of all lengths and letters of one form, against brute force."""
    rng = random.Random(9)
    words = some_words(rng)
    form = rng.choices(words, k=40)
    texts = [" ".join(rng.choices(words, k=length)) for length in range(1, 15)]
    texts += [" ".join(form[: rng.randint(30, 40)] + rng.choices(words, k=rng.randint(1, 9))) for _ in range(35)]
    texts += [text[: rng.randint(len(text) // 2, len(text))] for text in texts]
    rng.shuffle(texts)
    monkeypatch.setattr(near_duplicates, "_FEW_EACH", -1)
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
        assert find_similar_pairs(texts, 0.8, seed=1, folder=tmp_path) == ([], 0)
    assert done[1600] < 6 * done[400]


def test_pairs_that_are_too_many_to_compare_are_told(tmp_path, monkeypatch, capsys):
    rng = random.Random(3)
    words = some_words(rng)
    form = " ".join(rng.choices(words, k=40))
    texts = [f"{form} {' '.join(rng.choices(words, k=7))}" for _ in range(150)]
    monkeypatch.setattr(near_duplicates, "_most_work", lambda count: -1)
    found = find_similar_pairs(texts, 0.8, seed=1, folder=tmp_path)
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
        with text_index.TextIndex(0.8, 1, tmp_path) as index:
            for text in texts:
                index.add(text)
            index.finish()
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
    with text_index.TextIndex(0.8, 1, tmp_path) as index:
        for _ in range(500):
            letters = [chr(0x4E00 + rng.randrange(20000)) for _ in range(604 - shared)]
            index.add("".join(letters[:304]))
            index.add("".join([*letters[: shared + 4], *letters[304:]]))
        index.finish()
    agree = index.keys()[::2] == index.keys()[1::2]
    assert agree.mean() == pytest.approx(similarity**4, abs=0.01)
    assert (~agree.any(axis=1)).mean() == pytest.approx((1 - similarity**4) ** 32, abs=0.04)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_miss_a_pair_at_the_threshold_once_in_a_million(threshold):
    bands, rows = choose_bands(threshold)
    assert bands * rows <= 128
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
    pairs = find_similar_pairs((form + str(number) for number in range(3000)), 0.8, seed=1, folder=tmp_path).pairs
    assert len(pairs) == 2999
    assert 3000 < sum(compared) < 5 * 3000


def test_script_writes_its_three_files_or_none(tmp_path, tiny_phi3, run_script):
    write_jsonl(tmp_path / "rows.jsonl", [{"file": "a", "line": 1, "number": 1, "row": row("x")}])
    settings = json.dumps({"task": "classification", "data": DATA, "corpus": CORPUS})
    words = ["--settings", settings, "--rows", tmp_path / "rows.jsonl"]
    for name in ("audit", "rejected", "kept"):
        words += [f"--{name}", tmp_path / name]
    done = run_script("audit_data", *words, "--tokenizer", tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}: the base model has no tokenizer.json")
    run_script("audit_data", *words, "--tokenizer", tiny_phi3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit", "kept", "rejected", "rows.jsonl"]


@pytest.mark.parametrize("side", ["right", "left", "reject"])
@pytest.mark.parametrize("text", ["word " * 400_000, "x" * 2_000_000], ids=["words", "one word"])
def test_a_value_without_end_is_cut_or_set_aside_before_it_is_tokenized(tmp_path, tiny_phi3, monkeypatch, side, text):
    longest = []
    encode = Tokenizer.encode_batch
    monkeypatch.setattr(
        Tokenizer, "encode_batch", lambda self, texts: longest.append(max(map(len, texts))) or encode(self, texts)
    )
    corpus = CORPUS | {"truncation": side}
    rows = [row(f"first {text}last"), *(row(sentence) for sentence in SENTENCES)]
    _, kept, rejected = audit(tmp_path, tiny_phi3, rows, corpus=corpus)
    limit = 128 * CORPUS["max_length"]
    assert max(longest) < limit + 1000
    if side == "reject":
        assert [one["reason"] for one in rejected] == ["too_long"]
        assert f"has room for {limit:,} at most" in rejected[0]["detail"]
    else:
        values = next(iter(kept[0]["values"].values()))
        assert limit - 1 <= len(values) <= limit
        assert values.startswith("first") if side == "right" else values.endswith("last")


PARTS = {"column": "part", "values": {"test": "eval"}}


def test_a_row_keeps_the_split_that_it_was_given_and_duplicates_across_splits_stay(tmp_path, tiny_phi3):
    rows = [row("He ran.") | {"part": "train"}, row("He ran.") | {"part": "eval"}, row("He ran.") | {"part": "eval"}]
    rows += [
        row("She sat.") | {"part": None},
        row("We ate.") | {"part": "dev"},
        row("He ran.", "fear") | {"part": "eval"},
    ]
    result, kept, rejected = audit(tmp_path, tiny_phi3, rows, split=PARTS)
    assert [(one["number"], one.get("split")) for one in kept] == [(1, "train"), (4, None)]
    reasons = {one["number"]: (one["reason"], one["detail"]) for one in rejected}
    assert reasons[2][0] == reasons[3][0] == reasons[6][0] == "label_conflict", "within the split alone"
    assert reasons[5] == ("no_split", "'part' is 'dev', none of 'train', 'validation', 'eval'; see split.values")
    result, kept, _ = audit(tmp_path, tiny_phi3, rows[:3], split=PARTS)
    assert [one["split"] for one in kept] == ["train", "test"]
    assert kept[0]["id"] != kept[1]["id"]
    assert kept[0]["cluster"] == kept[1]["cluster"]
    assert result["exact_duplicates"] == 1


def test_rows_of_a_group_are_one_cluster_united_with_near_duplicates(tmp_path, tiny_phi3):
    texts = ["The train left the station at noon today.", "The train left the station at noon today!", "Nine candles."]
    rows = [row(text) | {"who": who, "place": place} for text, who, place in zip(texts, "abb", "xyz", strict=True)]
    rows += [row("Alone") | {"who": "c", "place": "w"}, row("Nobody") | {"who": " ", "place": "x"}]
    rows += [row("Elsewhere") | {"who": "d", "place": "w"}]
    _, kept, rejected = audit(tmp_path, tiny_phi3, rows, split={"groups": ["who", "place"]})
    clusters = {one["number"]: one["cluster"] for one in kept}
    assert clusters[1] == clusters[2] == clusters[3] != clusters[4] == clusters[6]
    assert kept[0]["groups"] == ["who=a", "place=x"]
    assert [one["detail"] for one in rejected] == ["'who', a column of split.groups, is empty"]


@pytest.mark.parametrize("split", [{"column": "kind"}, {"groups": ["kind"]}])
def test_a_column_of_the_split_that_no_row_has_stops(tmp_path, tiny_phi3, split):
    with pytest.raises(UserError, match="no row has the column 'kind'; the columns are .*: mend split"):
        audit(tmp_path, tiny_phi3, [row("He ran."), row("She sat.")], split=split)


def test_a_list_of_right_answers_trains_on_the_first_and_keeps_the_others(tmp_path, tiny_phi3):
    answers = [
        ["Paris", " Paris ", "the city of Paris"],
        ["Rome"],
        [],
        ["Oslo", ["x"]],
        ["Bern", "<|end|>"],
        ["", "Prague"],
    ]
    rows = [row(f"Capital {number}?", answer) for number, answer in enumerate(answers)]
    _, kept, rejected = audit(tmp_path, tiny_phi3, rows, task="generation")
    assert [(one["target"], one.get("other_answers")) for one in kept] == [
        ("Paris", ["the city of Paris"]), ("Rome", None), ("Prague", None)
    ]  # fmt: skip
    assert [one["reason"] for one in rejected] == ["empty_value", "not_text", "control_token"]
    _, kept, rejected = audit(tmp_path, tiny_phi3, rows[:2])
    assert [one["reason"] for one in rejected] == ["not_text", "not_text"], "a row has one label"


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_the_connected_groups_whatever_the_order_of_the_rows(tmp_path, tiny_phi3, seed):
    """And so no group straddles a split: clusters never do."""
    draw = random.Random(seed)
    rows = [
        row(f"{draw.getrandbits(64):x} {draw.getrandbits(64):x}")
        | {"who": f"w{draw.randrange(25)}", "where": f"p{draw.randrange(40)}"}
        for _ in range(60)
    ]
    _, kept, _ = audit(tmp_path, tiny_phi3, rows, split={"groups": ["who", "where"]})
    members: dict[str, set[int]] = {}
    for one in kept:
        for group in one["groups"]:
            members.setdefault(group, set()).add(one["cluster"])
    assert all(len(clusters) == 1 for clusters in members.values())
    joined = {frozenset(one["groups"]) for one in kept}
    components: list[set[str]] = []
    for groups in joined:
        touching = [part for part in components if part & groups]
        components = [part for part in components if part not in touching] + [set(groups).union(*touching)]
    assert len({one["cluster"] for one in kept}) == len(components), "and none is joined without need"
