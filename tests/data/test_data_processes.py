"""The data rules in several processes: the bytes of one process, the same errors, a line when one is killed."""

import os
import signal
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.core.files import read_jsonl
from lib.data import row_texts, value_limits
from support.data_stages import CORPUS, audit, render, row, split

TURNS = {"target": "answer", "conversation": "messages"}
SHARES = {"validation": 0.2, "test": 0.2}


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch):
    monkeypatch.setattr(value_limits, "_BATCH", 7)


def labeled_rows() -> list:
    """Rows of every fate: kept, alike, repeated, contradicted, unreadable, too long, in groups."""
    rows = [row(f"Sentence {number} of {number % 9} things", ("joy", "fear")[number % 2]) for number in range(60)]
    rows += [row("Sentence 3 of 3 things", "joy"), row("Sentence 5 of 5 things", "fear"), row("word " * 300), "broken"]
    return [one if isinstance(one, str) else {**one, "who": f"w{place % 20}"} for place, one in enumerate(rows)]


def conversations() -> list[dict]:
    """Conversations of one to three turns, some of which cannot be trained on."""
    rows = []
    for number in range(40):
        turns = [{"role": "system", "content": "Be brief."}] * (number % 3 == 0)
        for turn in range(1 + number % 3):
            turns += [{"role": "user", "content": f"Question {number % 30} part {turn}"}]
            turns += [{"role": "assistant", "content": f"Answer {number % 30}.{turn}"}]
        rows.append({"messages": turns[:-1] if number == 11 else turns})
    return rows


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_corpus(folder: Path, base: Path, processes: int, rows: list, task: str, **data: object) -> dict[str, bytes]:
    folder.mkdir()
    groups = {} if "conversation" in data else {"groups": ["who"]}
    corpus = {"template": "chat"} if "conversation" in data else {}
    options = {**data, "target": data.get("target", "tone")}
    audit(folder, base, rows, task=task, corpus=corpus, split=groups, processes=processes, **options)
    made = read_all(folder)
    kept = list(read_jsonl(folder / "kept.jsonl"))
    split(folder, kept, shares=SHARES, task=task)
    chosen = {"conversation": data.get("conversation"), "target": options["target"], "processes": processes}
    render(folder, base, kept, {**CORPUS, **corpus} | ({"text_template": None} if corpus else {}), task, **chosen)
    return made | read_all(folder)


@pytest.mark.parametrize("kind", ["labels", "conversations"])
def test_several_processes_write_the_bytes_of_one(tmp_path, tiny_llama, kind):
    if kind == "labels":
        rows, task, data = labeled_rows(), "classification", {}
    else:
        rows, task, data = conversations(), "generation", TURNS
    one, several = (make_corpus(tmp_path / str(n), tiny_llama, n, rows, task, **data) for n in (1, 3))
    assert len(several["kept.jsonl"].splitlines()) > 3 * 7, "enough for every process"
    assert one == several


def test_a_killed_process_of_the_audit_is_one_line_and_leaves_no_file(tmp_path, tiny_phi3, monkeypatch):
    monkeypatch.setattr(row_texts.TextReader, "read", lambda self, rows: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="^one of its processes was killed; memory was probably short"):
        audit(tmp_path, tiny_phi3, labeled_rows(), processes=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
