"""The audit of labels: which spellings are one, and words that give a label away."""

import random

import pytest
import yaml

from lib.data.labels import normalize_caseless, normalize_label, quote
from lib.data.rows import (
    convert_to_text,
)
from support.data_stages import audit, row

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
