"""The audit's verdict: whether training is worth its time."""

import pytest

from lib.data.audit_verdict import judge_audit
from support.data_stages import audit, row

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
