"""One family of base models from raw rows to `predict.py`, by the commands that Snakemake plans.

Each script runs in a fork of this process, which has loaded the libraries: seconds for what takes minutes one by one.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faults import scripts_in_forks as forks
from models.families import Family, write_description, write_tiny_model

from support.paths import ROOT
from support.workspaces import copy_project, tiny_config, write_rows

_POSITIONS = 1024  # tiny tokenizers make many tokens of a template
_ROWS = 64
VARIANTS = {"fp32": {"precision": "fp32"}, "int4": {}}
MOST_DIFFERENCE = 1e-3  # of log probabilities, between the merged model in PyTorch and its float32 build
_JOB = re.compile(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)Shell command: (.*(?:\n.+)*)", re.MULTILINE)


class Job(NamedTuple):
    """A planned job: its rule, the files that it makes, and its command from the script on."""

    rule: str
    outputs: list[str]
    words: list[str]


class Outcome(NamedTuple):
    """What became of a family. reason: why it was refused. facts: figures of one that works."""

    outcome: str
    reason: str
    facts: dict[str, float]


def run_family(family: Family, folder: Path) -> Outcome:
    """Run a family as far as it goes. Raises `AssertionError` where a step fails that is no refusal, or lies."""
    forks.load_libraries()
    if reason := check_description(family, folder / "description"):
        return Outcome("refused", reason, {})
    workspace = make_workspace(family, folder / "workspace")
    jobs = plan_jobs(workspace)
    assert [job.rule for job in jobs][-1] == "enforce_gate", "the whole plan was read"
    for job in jobs[:-1]:  # random models pass no gate
        run_job(job, workspace)
    return Outcome("works", "", compare(workspace))


def check_description(family: Family, folder: Path) -> str:
    """Run the checks on the hub's own configuration, in its true size; returns the line of a refusal, or nothing."""
    write_description(family, folder / "source")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()

    def read_small_files() -> None:
        from check_training import count_parameters

        from lib.core.cli import UserError
        from lib.models.import_checkpoint import ModelSource, import_small_files, load_causal_config
        from lib.provenance.manifests import write_manifest

        source = ModelSource(folder / "source", family.model, [], None, {})
        try:
            import_small_files(source, tokenizer, load_causal_config(source))
        except UserError as error:
            sys.exit(f"error: {error}")
        write_manifest(tokenizer, inputs={}, settings={})
        (folder / "count.json").write_text(json.dumps(count_parameters(tokenizer)))

    ended = forks.run(read_small_files, folder, {"PYTHONPATH": ""})
    if ended.code:
        return read_refusal(ended.said)
    count = json.loads((folder / "count.json").read_text())
    method = {"method": "lora", "target_modules": "all-linear", "dtype": "float32", "gradient_checkpointing": False}
    for script, settings, words in (
        ("check_training", {"methods": [method]}, []),
        *(("check_build", {"variant": _resolve(VARIANTS[name]), "seed": 0}, ["--variant", name]) for name in VARIANTS),
    ):
        text = json.dumps({"model": family.model, "versions": {}, "parameters": count, **settings})
        output = [] if script == "check_training" else ["--output", str(folder / "verdict.json")]
        command = [str(ROOT / f"scripts/{script}.py"), "--settings", text, *words, *output]
        command += ["--tokenizer", str(tokenizer), "--trial", str(folder / "trial")]
        ended = forks.run(command, folder, {})
        if ended.code:
            return read_refusal(ended.said)
    return ""


def _resolve(variant: dict[str, Any]) -> dict[str, Any]:
    """Return a variant as the rule gets it."""
    from lib.config.variants import Variant

    return Variant.model_validate(variant).model_dump(mode="json", exclude_none=True)


def read_refusal(said: str) -> str:
    """Return the one line of an error. Raises `AssertionError` where a traceback came instead."""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    return lines[0].removeprefix("error: ")


def make_workspace(family: Family, root: Path) -> Path:
    """Write a workspace with a tiny model of the family, whose rows are a task of four labels."""
    root.mkdir()
    copy_project(root)
    base, count = root / "base", root / "count.json"

    def write_model() -> None:
        from transformers import AutoConfig

        from lib.models.import_checkpoint import ModelSource, load_causal_config, read_matched_headers
        from lib.models.small_config import shrink_config

        config = AutoConfig.from_pretrained(root / "description")
        small = shrink_config(config.text_config if family.prefix else config, positions=_POSITIONS)
        write_tiny_model(family, base, small)
        files = sorted(file.name for file in base.glob("*.safetensors"))
        source = ModelSource(base, "base", files, None, {})
        stored, names = read_matched_headers(source, load_causal_config(source))
        sizes = {names[name]: tensor.elements for name, tensor in stored.items()}
        count.write_text(json.dumps(sum(sizes.values())))

    write_description(family, root / "description")
    ended = forks.run(write_model, ROOT / "tests", {})
    assert not ended.code, ended.said[-3000:]
    write_rows(root / "rows.json", json.loads((ROOT / "data/tones.json").read_text())[:_ROWS])
    config = tiny_config(base) | {"variants": VARIANTS, "corpus": write_corpus(family)}
    config["base_model"] = {"path": "base", "parameters": json.loads(count.read_text())}
    (root / "config.yaml").write_text(json.dumps(config))
    return root


def write_corpus(family: Family) -> dict[str, Any]:
    """Return the section `corpus`: the family's chat template with a system text, or a text of one's own."""
    if family.template is None or not family.chats:
        return {"text_template": "Tone of {phrase}\nAnswer:\n{tone}", "max_length": 500}
    corpus: dict[str, Any] = {"template": "chat", "user": "Tone? {phrase}", "max_length": 500}
    if family.system:
        corpus["system"] = "Name the tone."
    if "strftime_now" in family.template:
        corpus["chat_date"] = "2026-01-31"
    if family.options:
        corpus["chat_options"] = family.options
    return corpus


def plan_jobs(workspace: Path) -> list[Job]:
    """Return all jobs in the order in which Snakemake would start them."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--printshellcmds"]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        Job(rule, re.findall(r"[^\s,]+", f"{_read_field(block, 'output')} {_read_field(block, 'log')}"), words)
        for rule, block, shell in _JOB.findall(done.stdout + done.stderr)
        if rule != "all"
        for words in [forks.arguments_of(shell)]
    ]


def _read_field(block: str, name: str) -> str:
    found = re.search(rf"^    {name}: (.*)$", block, flags=re.MULTILINE)
    return found[1] if found else ""


def run_job(job: Job, workspace: Path) -> None:
    for name in job.outputs:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
    ended = forks.run(job.words, workspace, {}, seconds=300)
    assert not ended.code, f"{job.rule} {shlex.join(job.words)[:300]}:\n{ended.said[-3000:]}"
    for name in job.outputs:
        if name.endswith(".done"):
            (workspace / name).touch()


def compare(workspace: Path) -> dict[str, float]:
    """Return figures of a finished run. Raises `AssertionError` where engines differ that compute the same."""
    results = workspace / "results"
    merged, built = (read_predictions(results / f"scores/lora/{stage}") for stage in ("merged", "onnx-fp32"))
    pairs = [(one["log_probs"], other["log_probs"]) for one, other in zip(merged, built, strict=True)]
    difference = max(abs(one[label] - other[label]) for one, other in pairs for label in one)
    assert difference <= MOST_DIFFERENCE, f"log probabilities differ by {difference}"
    both = zip(merged, built, strict=True)
    answers = [(one["answer"], other["answer"]) for one, other in both if one["answer"] is not None]
    assert answers, "free answers were asked for"
    assert all(one == other for one, other in answers), answers
    verdict = json.loads((results / "checks/build/int4.json").read_text())
    assert verdict["logits_of_built_weights"] is not None, "each quantized weight is known"
    for name in VARIANTS:
        compared = json.loads((results / f"runs/lora/onnx/{name}.manifest.json").read_text())["compared"]
        assert compared["logits"], name
        assert compared["weights"] >= min(12, compared["of_weights"]), name
    same = {(workspace / place / "tokenizer.json").read_bytes() for place in ("base", "results/base", "results/model")}
    assert len(same) == 1, "the tokenizer is the source's, byte for byte"
    asked = check_predict(workspace)
    return {"log_probs": float(np.float32(difference)), "logits": verdict["logits"], "rows_predicted": asked}


def read_predictions(stem: Path) -> list[dict[str, Any]]:
    lines = Path(f"{stem}.validation.predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def check_predict(workspace: Path) -> int:
    """Return how many rows `predict.py` answers as the score of the packaged model says."""
    results = workspace / "results"
    scored = (results / "scores/model.test.predictions.jsonl").read_text().splitlines()
    expected = {row["id"]: row["predicted"] for row in map(json.loads, scored)}
    kept = [json.loads(line) for line in (results / "data/kept.jsonl").read_text().splitlines()]
    rows = [row for row in kept if row["id"] in expected]
    (workspace / "ask.jsonl").write_text("".join(json.dumps(row["values"]) + "\n" for row in rows))
    words = [str(ROOT / "scripts/predict.py"), "--model", "results/model", "--file", "ask.jsonl", "--json"]
    ended = forks.run(words, workspace, {})
    assert not ended.code, ended.said[-3000:]
    told = [json.loads(line) for line in ended.said.splitlines() if line.startswith("{")]
    assert [one["label"] for one in told] == [expected[row["id"]] for row in rows]
    return len(rows)
