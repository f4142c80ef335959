"""The permuted-label control, on real Snakemake runs: it passes where nothing leaks, and planted leaks fail it."""

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lib.core.files import read_json, read_jsonl
from support.learnable_task import LABELS, WORDS, with_louder_logits
from support.tiny_models import TEXTS
from support.workspaces import Workspace, copy_project, parameters_of, tiny_config, write_rows

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


def told_rows(count: int) -> list[dict[str, str]]:
    """Rows of random words, one of which tells the label."""
    generator = random.Random(0)
    words = " ".join(TEXTS).lower().split()
    rows = []
    for number in range(count):
        label = LABELS[number % 3]
        rows.append({"phrase": " ".join([*generator.sample(words, 6), WORDS[label]]), "tone": label})
    return rows


def control(workspace: Workspace) -> subprocess.CompletedProcess:
    """Run it on one core: threads that wait for each other cost tiny models most of their time."""
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    command = [*one_core, sys.executable, "scripts/permuted_label_control.py"]
    return subprocess.run(command, cwd=workspace.root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def passed(tiny_phi3, tmp_path_factory) -> Workspace:
    """A workspace in which the control has passed; no model was ever run on its whole data."""
    root = tmp_path_factory.mktemp("control")
    copy_project(root)
    base = with_louder_logits(tiny_phi3, root / "louder")
    write_rows(root / "rows.json", told_rows(240))
    config = tiny_config(base)
    config["base_model"] = {"path": "louder", "parameters": parameters_of(base)}
    config["finetune"] |= {"r": 8, "lora_alpha": 16, "num_train_epochs": 6, "learning_rate": 5e-3}
    (root / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    workspace = Workspace(root)
    done = control(workspace)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("control passed on 108 validation rows: shuffled labels accuracy 0.")
    return workspace


@pytest.fixture
def workspace(passed, tmp_path) -> Workspace:
    return Workspace(Path(shutil.copytree(passed.root, tmp_path / "copy", symlinks=True)))


def test_the_labels_are_shuffled_and_nothing_else_is(passed):
    rows = {
        name: list(read_jsonl(passed.root / f"work/control/results/{name}/rows.jsonl")) for name in ("own", "permuted")
    }
    assert [row["phrase"] for row in rows["own"]] == [row["phrase"] for row in rows["permuted"]]
    given, own = ([row["tone"] for row in rows[name]] for name in ("permuted", "own"))
    assert sorted(given) == sorted(own)
    assert sum(one == other for one, other in zip(given, own, strict=True)) < 0.5 * len(own)
    told = {row["phrase"]: row["tone"] for row in told_rows(240)}
    assert all(told[row["phrase"]] == row["tone"] for row in rows["own"])


def test_the_run_itself_is_not_touched(passed):
    assert sorted(path.name for path in (passed.root / "results").iterdir() if path.is_dir()) == [
        *("base", "data", "logs", "timings", "tokenizer")
    ]
    scores = passed.root / "results-control/permuted/scores"
    assert not list(scores.rglob("*test*")), "no test row is scored"
    quality = read_json(scores / "lora/adapter.validation.json")["quality"]
    assert (
        quality["accuracy_ci95"][0]
        < 1 / 3
        < 0.6
        < read_json(passed.root / "results-control/own/scores/lora/adapter.validation.json")["quality"]["accuracy"]
    )


def test_labels_that_stay_in_place_fail_it(workspace):
    """Negative control: were the labels not shuffled, it would have to say so."""
    workspace.edit(
        "scripts/permuted_label_control.py", "replace_labels(rows, shuffle_labels(rows, config.seed))", "rows"
    )
    done = control(workspace)
    assert done.returncode == 1
    assert re.search(
        r"^error: config.yaml: with shuffled labels it reaches accuracy (0.9|1.0)", done.stderr, re.MULTILINE
    )


def test_an_answer_in_the_prompt_fails_it(workspace):
    """A leak planted in the workflow itself: each prompt ends with its own answer."""
    workspace.edit(
        "scripts/render_corpus.py",
        "rows = read_jsonl(kept)",
        "rows = (row | {'values': {'phrase': f\"{row['values']['phrase']} {row['target']}\"}} for row in read_jsonl(kept))",
    )
    done = control(workspace)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert "error: config.yaml: with shuffled labels it reaches accuracy " in done.stderr
    assert "something besides the text tells it the label" in done.stderr


def test_a_training_that_teaches_nothing_is_no_proof(workspace):
    workspace.configure(lambda config: config["finetune"].update(learning_rate=1e-9))
    done = control(workspace)
    assert done.returncode == 1
    assert "error: config.yaml: the control shows nothing: with their own labels 240 rows teach no more" in done.stderr


def test_free_answers_have_no_labels_to_shuffle(passed):
    command = [sys.executable, "scripts/permuted_label_control.py", "--configfile", "examples/faq.yaml"]
    done = subprocess.run(command, cwd=passed.root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: examples/faq.yaml: a control shuffles labels, and task generation has none;")
