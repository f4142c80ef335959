"""An example for each shape of rows, run the whole way on a tiny model: from its file to an answer of the package."""

import shutil
from pathlib import Path

import pytest
import yaml

from lib.core.files import read_json, read_jsonl
from support.paths import ROOT
from support.workspaces import Workspace, copy_project, parameters_of, predict, write_rows

pytestmark = [pytest.mark.workflow, pytest.mark.end_to_end, pytest.mark.slow]

# As Qwen2.5 writes calls, and without its system turn.
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def run_example(name: str, base: Path, root: Path) -> Workspace:
    """Run an example with its rows, template and split as they are, on a tiny model and for few steps."""
    copy_project(root)
    config = yaml.safe_load((ROOT / f"examples/{name}.yaml").read_text())
    config["results"] = "results"
    config["base_model"] = {"path": str(base), "parameters": parameters_of(base)}
    config["corpus"]["max_length"] = 400  # the tiny tokenizer makes more tokens of a word
    config["finetune"] |= {"num_train_epochs": 1, "r": 4}
    config["evaluate"] = {"max_new_tokens": 8, "bootstrap_samples": 200}
    config["benchmark"] = {"prompts": 2, "new_tokens": 4}
    (root / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    workspace = Workspace(root)
    workspace.run()
    return workspace


def corpus(workspace: Workspace, split: str) -> list[dict]:
    return list(read_jsonl(workspace.results / f"corpus/{split}.jsonl"))


def test_conversations(tiny_phi3, tmp_path):
    workspace = run_example("conversations", tiny_phi3, tmp_path)
    rows = list(read_jsonl(ROOT / "data/conversations.jsonl"))
    spans = sum(
        len(row.get("spans", ())) for split in ("train", "validation", "test") for row in corpus(workspace, split)
    )
    assert spans == sum(len(row["messages"]) // 2 - 1 for row in rows), "every earlier turn of the assistant is trained"
    write_rows(tmp_path / "asked.json", [{"messages": rows[0]["messages"][:-1]}])
    for more in (["--file", "asked.json"], ["My chain slips."]):
        assert "answer" in predict(tmp_path, *more)


def test_instructions_with_and_without_input(tiny_llama, tmp_path):
    workspace = run_example("instructions", tiny_llama, tmp_path)
    rows = [row for split in ("train", "validation", "test") for row in corpus(workspace, split)]
    assert {"### Input:" in row["prompt"] for row in rows} == {True, False}
    assert not any("### Input:\n\n" in row["prompt"] for row in rows)
    write_rows(tmp_path / "asked.json", [{"instruction": "Name a color.", "input": ""}])
    assert "answer" in predict(tmp_path, "--file", "asked.json")


def test_several_answers_a_given_split_and_groups(tiny_llama, tmp_path):
    workspace = run_example("questions", tiny_llama, tmp_path)
    rows = list(read_jsonl(ROOT / "data/questions.jsonl"))
    answers = {
        part: sum(len(row["answers"]) for row in rows if row["part"] == part) for part in ("train", "dev", "eval")
    }
    assert len(corpus(workspace, "train")) == answers["train"], "each right answer is trained"
    scored = {split: corpus(workspace, split) for split in ("validation", "test")}
    assert [len(found) + sum(len(row.get("other_answers", ())) for row in found) for found in scored.values()] == [
        answers["dev"],
        answers["eval"],
    ]
    assert "leaking" not in read_json(workspace.results / "corpus/leakage.json")


def test_calls_of_tools(tiny_llama, tmp_path):
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / "chat_template.jinja").write_text(WITH_TOOLS)
    workspace = run_example("tool-calls", base, tmp_path)
    completions = [row["completion"] for split in ("train", "validation", "test") for row in corpus(workspace, split)]
    assert any('"arguments": {"room": "kitchen", "on": true}' in one for one in completions)
    summary = read_json(workspace.results / "summary.json")
    assert summary["model"]["test"]["tool_call_match"] == 0, "an untrained model calls nothing"
    assert summary["baselines"]["nearest_question"]["test"]["tool_name_match"] > 0
    assert "Tool calls right" in (workspace.results / "report.html").read_text()
