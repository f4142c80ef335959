"""The written corpus: what the model reads, checked token by token; and that planted leaks are caught."""

import argparse
import json
import os
import shutil
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.core.files import read_json, read_jsonl
from lib.data import value_limits
from lib.data.templates import render_completion, render_prompt
from lib.data.tokenizer import load_tokenizer
from support.data_stages import PHRASES, SPLITS, TEXT, kept_rows, render

CHAT = {"template": "chat", "text_template": None, "system": "Name the tone.", "user": "Text: {phrase}"}


def corpus_rows(corpus: Path) -> list[dict]:
    return [row for split in SPLITS for row in read_jsonl(corpus / f"{split}.jsonl")]


@pytest.mark.parametrize("corpus", [TEXT, CHAT], ids=["text", "chat"])
def test_every_row_once_as_the_template_renders_it(tmp_path, tiny_model, corpus):
    rows = kept_rows()
    out = render(tmp_path, tiny_model, rows, corpus)
    template = read_json(out / "template.json")
    assert template["labels"] == ["fear", "joy"]
    assert (template["max_length"], template["truncation"], template["columns"]) == (256, "reject", ["phrase"])
    assert "optional_columns" not in template  # null is left out: older templates stay as they are
    for index, split in enumerate(SPLITS):
        assert list(read_jsonl(out / f"{split}.jsonl")) == [
            {
                "id": row["id"],
                "prompt": render_prompt(template, row["values"]),
                "completion": render_completion(template, row["target"]),
                "label": row["target"],
            }
            for row in rows[index::3]
        ]


def test_several_processes_write_the_same_bytes_and_name_the_same_row(tmp_path, tiny_phi3, monkeypatch):
    monkeypatch.setattr(value_limits, "_BATCH", 1)
    outs = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        outs.append(render(folder, tiny_phi3, kept_rows(), CHAT, processes=processes))
        with pytest.raises(UserError, match=r"audit the data again") as refused:
            render(folder, tiny_phi3, kept_rows(), CHAT, processes=processes, max_length=30)
        outs[-1] = {file.name: file.read_bytes() for file in outs[-1].iterdir()} | {"refused": str(refused.value)}
    assert outs[0] == outs[1]


@pytest.mark.parametrize("corpus", [TEXT, CHAT], ids=["text", "chat"])
def test_an_empty_value_leaves_the_text_around_it(tmp_path, tiny_phi3, corpus):
    corpus = {key: text and text.replace("{phrase}", "{phrase} [{input}]") for key, text in corpus.items()}
    rows = [{**row, "values": {**row["values"], "input": ""}} for row in kept_rows()]
    out = render(tmp_path, tiny_phi3, rows, corpus, optional=["input"])
    template = read_json(out / "template.json")
    assert template["optional_columns"] == ["input"]
    assert f"{rows[0]['values']['phrase']} []" in corpus_rows(out)[0]["prompt"]
    assert corpus_rows(out)[0]["prompt"] == render_prompt(template, rows[0]["values"])


def test_each_right_answer_is_a_training_row_and_scored_rows_know_them_all(tmp_path, tiny_phi3):
    rows = [{**row, "other_answers": ["glad", "much too long an answer " * 60]} for row in kept_rows()]
    (tmp_path / "first").mkdir()
    out = render(tmp_path, tiny_phi3, rows, TEXT, "generation", answers="each")
    template = read_json(out / "template.json")
    train, test = list(read_jsonl(out / "train.jsonl")), list(read_jsonl(out / "test.jsonl"))
    assert [one["completion"] for one in train[:2]] == [
        render_completion(template, text) for text in (rows[0]["target"], "glad")
    ]
    assert len(train) == 2 * len(rows[::3])
    assert len({one["id"] for one in train}) == len(train)
    assert [one["other_answers"] for one in test] == [row["other_answers"] for row in rows[2::3]]
    first = list(read_jsonl(render(tmp_path / "first", tiny_phi3, rows, TEXT, "generation") / "train.jsonl"))
    assert first == train[::2], "without `each` the first answer alone"


def test_chat_corpus_equals_transformers(tmp_path, tiny_model):
    from transformers import AutoTokenizer

    rows = {row["id"]: row for row in kept_rows()}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for written in corpus_rows(render(tmp_path, tiny_model, list(rows.values()), CHAT)):
        row = rows[written["id"]]
        messages = [
            {"role": "system", "content": "Name the tone."},
            {"role": "user", "content": f"Text: {row['values']['phrase']}"},
        ]
        asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": row["target"]}], tokenize=False
        )
        assert written["prompt"] == asked
        assert whole.startswith(written["prompt"] + written["completion"])


def test_generation_rows_have_no_label(tmp_path, tiny_phi3):
    out = render(tmp_path, tiny_phi3, kept_rows(), TEXT, task="generation")
    assert {tuple(row) for row in corpus_rows(out)} == {("id", "prompt", "completion")}
    assert read_json(out / "template.json")["labels"] is None


@pytest.mark.parametrize("corpus", [TEXT, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncated_rows_fit_and_keep_answer_and_control_tokens(tmp_path, tiny_phi3, corpus, side):
    rows = kept_rows([f"{number} " + "The old dog never came home again. 🙂 " * 20 for number in range(6)])
    out = render(tmp_path, tiny_phi3, rows, corpus, max_length=60, truncation=side)
    tokenizer = load_tokenizer(tiny_phi3)
    template = read_json(out / "template.json")
    fixed = [tokenizer.encode(segment["text"]) for segment in template["prompt"] if "text" in segment]
    for row in corpus_rows(out):
        ids = tokenizer.encode(row["prompt"] + row["completion"])
        assert 50 < len(ids) <= 60
        assert ids[-1] in tokenizer.end_ids
        assert row["completion"] == render_completion(template, row["label"])
        control = [id_ for id_ in ids if id_ < 7]
        assert control == [id_ for part in fixed for id_ in part if id_ < 7] + [ids[-1]]
    assert template["truncation"] == side


def nothing_written(folder: Path) -> bool:
    return not (folder / "corpus").exists() or not os.listdir(folder / "corpus")


def test_row_over_the_limit_is_an_error(tmp_path, tiny_phi3):
    with pytest.raises(UserError, match=r"^data/a\.json, row 1 \(line 10\): .* tokens, corpus.max_length is 8"):
        render(tmp_path, tiny_phi3, kept_rows(), TEXT, max_length=8)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("joining", ["answer", "label"])
def test_seam_that_the_tokenizer_joins_names_the_row(tmp_path, tiny_phi3, joining):
    """The answer of any row; and any label behind a row that is scored, the first of which is the second row."""
    vocabulary = load_tokenizer(tiny_phi3).backend.get_vocab()
    word = max((word for word in vocabulary if word.isascii() and word.isalpha()), key=len)
    corpus = {**TEXT, "text_template": "{phrase}\n" + word[:1] + "{tone}"}
    rows, labels = kept_rows(), ["fear", "joy"]
    if joining == "answer":
        rows[3]["target"] = word[1:]
    else:
        labels.append(word[1:])
    number, line = (4, 13) if joining == "answer" else (2, 11)
    with pytest.raises(UserError, match=rf"^data/a\.json, row {number} \(line {line}\): the tokenizer joins"):
        render(tmp_path, tiny_phi3, rows, corpus, labels=labels)
    assert nothing_written(tmp_path)


def test_chat_template_that_changes_a_value_is_caught(tmp_path, tiny_llama):
    """Some templates cut what a model "thought": the text would differ from what transformers shows the model."""
    base = Path(shutil.copytree(tiny_llama, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    path = base / "chat_template.jinja"
    path.write_text(path.read_text().replace("message['content']", "message['content'].split('</think>')[-1]"))
    render(tmp_path, base, kept_rows(), CHAT)
    rows = kept_rows([*PHRASES, "a </think> b"])
    with pytest.raises(UserError, match=r"^data/a\.json, row 7 \(line 16\): the tokenizer's chat template changes"):
        render(tmp_path, base, rows, CHAT)


def test_failure_leaves_the_old_corpus_whole(tmp_path, tiny_phi3):
    out = render(tmp_path, tiny_phi3, kept_rows(), TEXT)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    rows = kept_rows()
    rows[5]["target"] = "joy" * 500  # the last row does not fit: four files were open by then
    with pytest.raises(UserError):
        render(tmp_path, tiny_phi3, rows, TEXT)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_split_of_another_run_is_refused(tmp_path, tiny_phi3):
    rows = kept_rows()
    with pytest.raises(UserError, match=r"split\.json: has no row"):
        render(tmp_path, tiny_phi3, rows, TEXT, split_rows=rows[:5])
    assert nothing_written(tmp_path)


def test_template_appears_last(tmp_path, tiny_phi3, monkeypatch):
    order = []
    replace = os.replace

    def replace_and_note(source, target):
        order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_and_note)
    render(tmp_path, tiny_phi3, kept_rows(), TEXT)
    assert set(order[-4:-1]) == {f"{split}.jsonl" for split in SPLITS}
    assert order[-1] == "template.json"


LONG = [
    "The train left the station at noon and nobody waved from the platform.",
    "A letter without a stamp lay on the kitchen table for three whole weeks.",
    "Behind the mountain the river turns north and the road ends in the reeds.",
    "My neighbor paints every fence in the street in a different shade of blue.",
    "Nine candles, one cake and not a single guest had come by eight o'clock.",
    "We counted the lighthouse flashes until the storm took the light away too.",
]


def check(corpus: Path, threshold: float = 0.8, leakage: str = "error", processes: int = 1) -> dict:
    import check_leakage

    places = {split: corpus / f"{split}.jsonl" for split in SPLITS}
    output = corpus / "leakage.json"
    check_leakage.main(
        argparse.Namespace(
            settings={"near_duplicates": threshold, "leakage": leakage},
            template=corpus / "template.json",
            output=output,
            processes=processes,
            **places,
        )
    )
    return read_json(output)


def plant(corpus: Path, split: str, row: dict) -> None:
    with open(corpus / f"{split}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


@pytest.mark.parametrize("corpus", [TEXT, CHAT], ids=["text", "chat"])
def test_clean_corpus_passes_though_the_template_is_the_same_everywhere(tmp_path, tiny_phi3, corpus):
    if corpus is CHAT:
        corpus = {**corpus, "system": " ".join(f"Rule {number} is {number**3}." for number in range(60))}
    out = render(tmp_path, tiny_phi3, kept_rows(LONG), corpus, max_length=2000)
    assert check(out)["rows"] == {"train": 2, "validation": 2, "test": 2}


@pytest.mark.parametrize("target", ["validation", "test"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda row: row, "the same row"),
        (lambda row: {**row, "id": "0" * 64}, "the same text"),
        (lambda row: {**row, "id": "0" * 64, "prompt": row["prompt"].replace(" left ", "\tLEFT  ")}, "the same text"),
        (lambda row: {**row, "id": "0" * 64, "prompt": row["prompt"].replace("train", "trains")}, "nearly the same"),
        (lambda row: {**row, "id": "0" * 64, "prompt": row["prompt"].replace(".", "!?")}, "nearly the same"),
    ],
)
def test_planted_duplicate_is_caught_with_both_places(tmp_path, tiny_phi3, target, change, what):
    out = render(tmp_path, tiny_phi3, kept_rows(LONG), TEXT)
    planted = change(next(read_jsonl(out / "train.jsonl")))
    plant(out, target, planted)
    with pytest.raises(UserError) as error:
        check(out)
    message = str(error.value)
    assert message.startswith(f"{out}/train.jsonl:1: {what}")
    assert f"{out}/{target}.jsonl:3; " in message
    assert not (out / "leakage.json").exists()


def test_rows_that_leak_across_a_given_split_are_counted_and_listed_with_both_places(tmp_path, tiny_phi3):
    out = render(tmp_path, tiny_phi3, kept_rows(LONG), TEXT)
    first, second = list(read_jsonl(out / "train.jsonl"))
    plant(out, "test", {**first, "id": "1" * 64})
    plant(out, "test", {**second, "id": "2" * 64, "prompt": second["prompt"].replace(".", "!?")})
    plant(
        out, "validation", {**first, "id": "3" * 64, "prompt": "### Text: apart\n### The tone is:\n", "groups": ["a=1"]}
    )
    plant(out, "test", {**first, "id": "4" * 64, "prompt": "### Text: other\n### The tone is:\n", "groups": ["a=1"]})
    with pytest.raises(UserError, match=r"train.jsonl:1: the same text is at .*test.jsonl:3"):
        check(out)
    found = check(out, leakage="report")
    assert found["leaking"] == {"validation": [], "test": ["1" * 64, "2" * 64, "4" * 64]}
    pairs = {(one["kind"], one["one"], one["other"]) for one in found["pairs"]}
    assert ("same_texts", "train.jsonl:1", "test.jsonl:3") in pairs
    assert ("near_duplicates", "train.jsonl:2", "test.jsonl:4") in pairs
    assert ("same_groups", "validation.jsonl:3", "test.jsonl:5") in pairs


def test_duplicates_within_one_split_are_no_leak(tmp_path, tiny_phi3):
    out = render(tmp_path, tiny_phi3, kept_rows(LONG), TEXT)
    row = next(read_jsonl(out / "train.jsonl"))
    plant(out, "train", {**row, "id": "0" * 64})
    assert check(out)["rows"]["train"] == 3


def test_audit_split_and_check_agree(tmp_path, tiny_phi3, run_script):
    """The whole stage on rows full of near-duplicates: the check finds nothing, and the bytes repeat."""
    rows = []
    for number in range(40):
        for copy in range(1 + number % 3):
            text = f"{LONG[number % 6]} It happened {number} times in room {number * 7}.{'!' * copy}"
            rows.append({"phrase": text, "tone": ("joy", "fear")[number % 2]})
    source = tmp_path / "a.json"
    source.write_text(json.dumps(rows))
    corpus = {**TEXT, "max_length": 256, "truncation": "reject"}
    data = {"target": "tone", "special_tokens": "reject", "near_duplicates": 0.8}
    texts = []
    for name in ("one", "two"):
        place = {file: tmp_path / name / file for file in ("rows", "audit", "rejected", "kept", "split", "leakage")}
        files = [word for split in SPLITS for word in (f"--{split}", tmp_path / name / split)]
        files += ["--template", tmp_path / name / "template"]
        fetched = {"source": {"files": ["a.json"]}, "unreadable": "error"}
        run_script("fetch_data", "--settings", fetched, "--files", source, "--output", place["rows"])
        run_script(
            "audit_data",
            *("--settings", {"task": "classification", "data": {**data, "min_rows_per_class": 5}, "corpus": corpus}),
            *("--rows", place["rows"], "--tokenizer", tiny_phi3, "--audit", place["audit"]),
            *("--rejected", place["rejected"], "--kept", place["kept"]),
        )
        shares = {"seed": 1, "task": "classification", "split": {"validation": 0.2, "test": 0.2, "leakage": "error"}}
        audited = ("--audit", place["audit"], "--kept", place["kept"])
        run_script("split_data", "--settings", shares, *audited, "--output", place["split"])
        run_script(
            "render_corpus",
            *("--settings", {"task": "classification", "data": {"target": "tone"}, "corpus": corpus}),
            *audited,
            *("--split", place["split"], "--tokenizer", tiny_phi3, *files),
        )
        run_script(
            "check_leakage",
            "--settings",
            {"near_duplicates": 0.8, "leakage": "error"},
            *files,
            "--output",
            place["leakage"],
        )
        texts.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert texts[0] == texts[1]
    assert json.loads(texts[0]["audit"])["near_duplicate_clusters"] >= 2
