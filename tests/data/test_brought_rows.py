"""Rows as people brought them and as they once failed (tests/cases.md): each file is read, audited and judged."""

import argparse
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import audit_data
import fetch_data
import pyarrow
import pyarrow.parquet
import pytest
import split_data
import yaml

from lib.config.loader import load_config
from lib.core.cli import UserError
from lib.core.files import read_json, read_jsonl
from lib.workflow.rule_settings import drop_nulls
from support.tiny_models import TEXTS

COUNT = 40
WORDS = " ".join(TEXTS).split()
PHRASES = [f"{' '.join(WORDS[place : place + 6])} £{place} – café" for place in range(COUNT)]
LABELS = ["calm", "angry"] * (COUNT // 2)
FLAT = [{"text": text, "label": label} for text, label in zip(PHRASES, LABELS, strict=True)]
TEMPLATE = "Text: {text}\nLabel:\n{label}"


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv_text(head: str, sign: str, end: str = "") -> str:
    return f"{head}{end}\n" + "".join(f'"{row["text"]}"{sign}{row["label"]}{end}\n' for row in FLAT)


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def class_labels() -> bytes:
    """As `datasets` writes a ClassLabel: numbers, and the names in the schema."""
    table = pyarrow.table({"text": PHRASES, "label": [int(label == "angry") for label in LABELS]})
    feature = {
        "label": {"names": ["calm", "angry"], "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(named, buffer)
    return buffer.getvalue()


class Brought(NamedTuple):
    """Files by name, and what the configuration says beside `data.files`."""

    files: dict[str, bytes]
    data: dict[str, Any] = {"target": "label"}  # noqa: RUF012 (read by all, written by none)
    template: str | None = TEMPLATE
    task: str = "classification"


READ = {
    "answers_list": (
        Brought(
            {"rows.jsonl": json_lines([{"q": text, "answers": {"text": [text[:9], "b"]}} for text in PHRASES])},
            {"target": "answers.text"}, "Q: {q}\n{answers.text}", "generation",
        ),
        lambda kept: all(row["other_answers"] == ["b"] for row in kept),
    ),
    "column_names_brackets": (
        Brought(
            {"rows.jsonl": json_lines([{"body[en]": row["text"], "meta__label": row["label"]} for row in FLAT])},
            {"target": "meta__label"}, 'Text: {"body[en]"}\n{meta__label}',
        ),
        lambda kept: kept[0]["values"] == {"body[en]": PHRASES[0]},
    ),
    "csv_semicolon": (
        Brought({"rows.csv": csv_text("text;label", ";").encode()}),
        lambda kept: kept[0]["values"]["text"] == PHRASES[0],
    ),
    "csv_trailing_empty_columns": (
        Brought({"rows.csv": csv_text("text,label", ",", end=",,,").encode()}),
        lambda kept: kept[0]["values"] == {"text": PHRASES[0]},
    ),
    "tsv": (
        Brought({"rows.tsv": csv_text("text\tlabel", "\t").encode()}),
        lambda kept: kept[0]["values"]["text"] == PHRASES[0],
    ),
    "chat_messages": (
        Brought(
            {
                "rows.jsonl": json_lines(
                    [
                        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
                        for row in FLAT
                    ]
                )
            },
            {"conversation": "messages"}, None,
        ),
        lambda kept: kept[0]["target"] == "calm",
    ),
    "optional_input_empty": (
        Brought(
            {
                "rows.json": json.dumps(
                    [{"i": f"{text} now", "input": text * (place % 2), "out": "yes"} for place, text in enumerate(PHRASES)]
                ).encode()
            },
            {"target": "out", "optional_columns": ["input"]}, "{i}\n{?input}In: {input}\n{/input}{out}", "generation",
        ),
        lambda kept: {row["values"]["input"] == "" for row in kept} == {True, False},
    ),
    "parquet_binary_column": (
        Brought({"rows.parquet": parquet(text=PHRASES, label=LABELS, image=[b"\x89PNG"] * COUNT)}),
        lambda kept: kept[0]["target"] == "calm",
    ),
    "parquet_classlabel": (
        Brought({"rows.parquet": class_labels()}),
        lambda kept: {row["target"] for row in kept} == {"calm", "angry"},
    ),
    "path_unicode_nospace": (
        Brought({"données–été.csv": csv_text("text,label", ",").encode()}),
        lambda kept: kept[0]["file"].endswith("données–été.csv"),
    ),
}  # fmt: skip

SET_ASIDE = {
    "json_nested_null": (
        Brought(
            {
                "rows.jsonl": json_lines(
                    [
                        {"c": None if place % 4 == 0 else {"t": row["text"]}, "label": row["label"]}
                        for place, row in enumerate(FLAT)
                    ]
                )
            },
            template="{c.t}\n{label}",
        ),
        {"missing_column": COUNT // 4},
    ),
    "path_twice": (Brought({"a.jsonl": json_lines(FLAT), "b.jsonl": json_lines(FLAT)}), {"exact_duplicate": COUNT}),
    "null_char_whole_run": (
        Brought(
            {"rows.jsonl": json_lines([row | {"text": row["text"] + "\0"} if row is FLAT[3] else row for row in FLAT])}
        ),
        {"null_character": 1},
    ),
}

STOPS = {
    "classification_of_free_answers": (
        Brought({"rows.jsonl": json_lines([{"text": text, "label": f"{text} yes"} for text in PHRASES])}),
        "task: generation",
    ),
    "csv_cp1252": (Brought({"rows.csv": csv_text("text,label", ",").encode("cp1252")}), "iconv -f"),
    "json_data_key_pretty": (
        Brought({"rows.json": json.dumps({"version": "1", "data": FLAT}, indent=2).encode()}),
        "under its key 'data'",
    ),
    "json_pretty_objects": (
        Brought({"rows.jsonl": "\n".join(json.dumps(row, indent=2) for row in FLAT).encode()}),
        "on one line",
    ),
    "jsonl_is_array": (Brought({"rows.jsonl": json.dumps(FLAT, indent=1).encode()}), ".json"),
    "labels_int_and_float": (
        Brought(
            {
                f"{name}.jsonl": json_lines([{"text": f"{text} {name}", "label": kind(place % 2)} for place, text in enumerate(PHRASES)])
                for name, kind in (("a", int), ("b", float))
            }
        ),
        "keeps them apart",
    ),
    "lfs_pointer_rows": (
        Brought({"rows.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"}),
        "git lfs pull",
    ),
    "optional_input_not_said": (
        Brought(
            {"rows.jsonl": json_lines([{"i": text, "input": "", "out": "yes"} for text in PHRASES])},
            {"target": "out"}, "{i}\n{input}\n{out}", "generation",
        ),
        "data.optional_columns",
    ),
    "chat_messages_as_columns": (
        Brought({"rows.jsonl": json_lines([{"messages": [{"role": "user", "content": text}]} for text in PHRASES])}),
        "data: {conversation: messages}",
    ),
    "yaml_yes_no": (Brought({"rows.jsonl": json_lines(FLAT)}, {"target": "label", "labels": [True, False]}), "quote"),
}  # fmt: skip


def bring(folder: Path, base: Path, brought: Brought) -> tuple[list[dict], dict]:
    """Read and audit the files as the workflow does; returns kept rows and audit. Raises `UserError` where it stops."""
    for name, content in brought.files.items():
        (folder / name).write_bytes(content)
    corpus = {"text_template": brought.template} if brought.template else {}
    values = {
        "results": "results",
        "task": brought.task,
        "data": {"files": list(brought.files), "min_rows_per_class": 5, **brought.data},
        "base_model": {"path": "base", "parameters": 1},
        "corpus": {"max_length": 200, **corpus},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    config = drop_nulls(load_config(values, [folder / "mine.yaml"]).model_dump(mode="json"))
    source = {"files": list(brought.files)}
    settings = {"source": source, "unreadable": "error"}
    files = [folder / name for name in brought.files]
    fetch_data.main(argparse.Namespace(settings=settings, files=files, output=folder / "rows.out"))
    places = {"rows": folder / "rows.out"} | {name: folder / f"{name}.out" for name in ("audit", "rejected", "kept")}
    settings = {"task": brought.task, "data": config["data"], "corpus": config["corpus"], "split": {}}
    audit_data.main(argparse.Namespace(settings=settings, tokenizer=base, processes=1, **places))
    shares = {"validation": 0.2, "test": 0.2, "leakage": "error"}
    settings = {"seed": 0, "task": brought.task, "split": shares}
    split_data.main(
        argparse.Namespace(settings=settings, audit=places["audit"], kept=places["kept"], output=folder / "split.out")
    )
    return list(read_jsonl(places["kept"])), read_json(places["audit"])


@pytest.mark.parametrize("case", READ)
def test_is_read(tiny_llama, tmp_path, case):
    brought, holds = READ[case]
    kept, audit = bring(tmp_path, tiny_llama, brought)
    assert (len(kept), audit["rejected"]) == (COUNT, {})
    assert holds(kept)


@pytest.mark.parametrize("case", SET_ASIDE)
def test_is_read_but_for_rows_with_their_reason(tiny_llama, tmp_path, case):
    brought, rejected = SET_ASIDE[case]
    assert bring(tmp_path, tiny_llama, brought)[1]["rejected"] == rejected


@pytest.mark.parametrize("case", STOPS)
def test_stops_with_one_short_line_that_says_what_to_do(tiny_llama, tmp_path, case):
    brought, said = STOPS[case]
    with pytest.raises(UserError) as caught:
        bring(tmp_path, tiny_llama, brought)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert len(message) < 500


def test_labels_that_differ_by_case_are_told(tiny_llama, tmp_path, capfd):
    rows = [row | {"label": row["label"].title() if place % 4 > 1 else row["label"]} for place, row in enumerate(FLAT)]
    bring(tmp_path, tiny_llama, Brought({"rows.jsonl": json_lines(rows)}))
    assert "labels that differ by case or width alone" in capfd.readouterr().err
