"""The stages of the data, each run in this process: audit, split, corpus."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib.core.files import read_json, read_jsonl, write_json, write_jsonl
from lib.data.rows import compute_row_id

DATA = {"target": "tone", "special_tokens": "reject", "near_duplicates": 0.8, "min_rows_per_class": 1}
CORPUS = {
    "text_template": "### Text: {phrase}\n### The tone is:\n{tone}",
    "max_length": 256,
    "truncation": "reject",
}
SHARES = {"validation": 0.1, "test": 0.15}
SPLITS = ("train", "validation", "test")
TEXT = {"text_template": "### Text: {phrase}\n### The tone is:\n{tone}"}
PHRASES = [
    "She hid behind the door.",
    "{phrase} {braces}",
    "tab\tand\nnew line",
    "emoji 🙂 ümläute",
    "two  spaces",
    "He laughed until he cried.",
]


def audit(
    tmp_path: Path,
    base: Path,
    rows: list,
    task: str = "classification",
    corpus: dict | None = None,
    split: dict | None = None,
    processes: int = 1,
    **data,
):
    """Audit rows (a text stands for an unreadable one); returns audit, kept and rejected rows."""
    import audit_data

    sources = (
        {"file": "a.jsonl", "line": line, "number": line, **({"error": row} if isinstance(row, str) else {"row": row})}
        for line, row in enumerate(rows, start=1)
    )
    write_jsonl(tmp_path / "rows.jsonl", sources)
    settings = {"task": task, "data": {**DATA, **data}, "corpus": {**CORPUS, **(corpus or {})}, "split": split or {}}
    places = {name: tmp_path / f"{name}.jsonl" for name in ("rows", "kept", "rejected")}
    out = {"audit": tmp_path / "audit.json", "processes": processes}
    audit_data.main(argparse.Namespace(settings=settings, tokenizer=base, **out, **places))
    result = read_json(tmp_path / "audit.json")
    kept, rejected = (list(read_jsonl(places[name])) for name in ("kept", "rejected"))
    assert result["kept"] == len(kept)
    assert sum(result["rejected"].values()) == len(rejected)
    assert len(kept) + len(rejected) == len(rows) == result["rows"]
    assert sorted(row["line"] for row in kept + rejected) == list(range(1, len(rows) + 1))
    return result, kept, rejected


def row(phrase: object, tone: object = "joy") -> dict:
    return {"phrase": phrase, "tone": tone}


def split(tmp_path: Path, rows: list[dict], *, seed=1, shares=SHARES, task="classification", verdict=None) -> dict:
    import split_data

    labels = sorted({row["target"] for row in rows}) if task == "classification" else None
    write_json(tmp_path / "audit.json", {"labels": labels, "verdict": verdict or {"ok": True, "reasons": []}})
    write_jsonl(tmp_path / "kept.jsonl", rows)
    places = {"audit": tmp_path / "audit.json", "kept": tmp_path / "kept.jsonl", "output": tmp_path / "split.json"}
    settings = {"seed": seed, "task": task, "split": {"leakage": "error", **shares}}
    split_data.main(argparse.Namespace(settings=settings, **places))
    return read_json(tmp_path / "split.json")


def kept_rows(phrases: list[str] = PHRASES) -> list[dict]:
    rows = []
    for index, phrase in enumerate(phrases):
        target = ("joy", "fear")[index % 2]
        id_ = compute_row_id({"phrase": phrase, "tone": target})
        place = {"file": "data/a.json", "line": index + 10, "number": index + 1}
        rows.append({"id": id_, **place, "values": {"phrase": phrase}, "target": target, "cluster": index})
    return rows


def render(
    folder: Path,
    base: Path,
    rows: list[dict],
    corpus: dict,
    task: str = "classification",
    split_rows: list[dict] | None = None,
    labels: Sequence[str] = ("fear", "joy"),
    optional: list[str] | None = None,
    answers: str | None = None,
    target: str = "tone",
    conversation: str | None = None,
    processes: int = 1,
    **limits: object,
) -> Path:
    """Render rows, those of `split_rows` dealt to the splits in turn; returns the folder of the corpus."""
    import render_corpus

    write_json(folder / "audit.json", {"labels": labels if task == "classification" else None})
    write_jsonl(folder / "kept.jsonl", rows)
    dealt = {row["id"]: SPLITS[index % 3] for index, row in enumerate(split_rows or rows)}
    write_json(folder / "split.json", {"rows": dealt})
    corpus = {**corpus, "max_length": 256, "truncation": "reject", **limits}
    data = {"target": target, "optional_columns": optional, "answers": answers}
    data |= {"conversation": conversation} if conversation else {}
    settings = {
        "task": task,
        "data": data,
        "corpus": corpus,
    }
    out = folder / "corpus"
    places = {split: out / f"{split}.jsonl" for split in SPLITS}
    render_corpus.main(
        argparse.Namespace(
            settings=settings,
            audit=folder / "audit.json",
            kept=folder / "kept.jsonl",
            split=folder / "split.json",
            tokenizer=base,
            template=out / "template.json",
            processes=processes,
            **places,
        )
    )
    return out
