"""The audit: every row is kept or set aside with its reason."""

import json

import pytest

from lib.core.cli import UserError
from lib.core.files import write_jsonl
from lib.data.rows import (
    MISSING,
    NOT_TEXT,
    compute_row_id,
    convert_to_text,
    get_column,
    list_reachable_names,
    normalize,
)
from lib.data.tokenizer import Tokenizer
from support.data_stages import CORPUS, DATA, audit, row
from support.near_texts import SENTENCES


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
        Tokenizer,
        "encode_batch",
        lambda self, texts: longest.append(max(map(len, texts), default=0)) or encode(self, texts),
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
