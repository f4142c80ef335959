"""The rerun contract, on real Snakemake runs: what changed is made again, and nothing else.

One tiny workspace is run from raw rows to the report; each test restores it and changes one thing.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid

import pytest
import yaml

from lib.core.files import hash_file, read_json, read_jsonl
from lib.data.tokenizer import load_tokenizer
from lib.data.trained_chat_template import find_question
from support.event_files import read_scalars
from support.workspaces import HOSTILE, Workspace, copy_project, parameters_of, predict, tiny_config, write_rows

pytestmark = pytest.mark.workflow

AFTER_TRAINING = {
    "merge_adapter",
    "build_onnx",
    "score_checkpoint",
    "score_onnx",
    "benchmark_onnx",
    "select_model",
    "fit_temperature",
    "assemble_model",
    "package_model",
    "keep_selected",
    "check_gate",
    "summarize",
    "write_plots",
    "write_report",
    "enforce_gate",
    "all",
}


# The finished run


def test_no_name_of_a_file_or_folder_was_run_as_a_command(finished):
    assert HOSTILE in finished.name
    assert HOSTILE in Workspace(finished).rows.name
    assert not list(finished.parent.rglob("OWNED"))


def test_a_finished_run_has_everything_and_nothing_is_left_to_do(workspace):
    for name in ("report.html", "summary.json", "gate.passed", "model/genai_config.json", "model.manifest.json"):
        assert (workspace.results / name).is_file(), name
    check, adapter = (
        workspace.results / name for name in ("corpus/onnx_tokenizer.json", "runs/lora/adapter.manifest.json")
    )
    assert check.stat().st_mtime < adapter.stat().st_mtime
    assert workspace.planned() == set()
    assert not list(workspace.results.rglob("*.partial.*"))
    assert "Nothing to be done" in workspace.run().stderr


def test_other_programs_ask_the_trained_prompt_of_every_row(workspace):
    """ONNX Runtime GenAI through the package's chat template, and transformers on the merged model that stays."""
    from transformers import AutoTokenizer

    assert read_json(workspace.results / "corpus/onnx_tokenizer.json")["asked_otherwise"] == 0
    template = read_json(workspace.results / "model/template.json")
    merged = workspace.results / "selected/merged"
    assert hash_file(merged / "chat_template.jinja") == hash_file(workspace.results / "model/chat_template.jinja")
    theirs, ours = AutoTokenizer.from_pretrained(merged), load_tokenizer(workspace.results / "model")
    for split in ("train", "validation", "test"):
        for row in read_jsonl(workspace.results / f"corpus/{split}.jsonl"):
            messages = [{"role": "user", "content": find_question(template, row["prompt"])}]
            found = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            assert found == ours.encode(row["prompt"])


def test_every_row_is_accounted_for(workspace):
    audit = read_json(workspace.results / "data/audit.json")
    kept = list(read_jsonl(workspace.results / "data/kept.jsonl"))
    rejected = list(read_jsonl(workspace.results / "data/rejected.jsonl"))
    assert audit["rows"] == len(kept) + len(rejected) == 120
    parts = [list(read_jsonl(workspace.results / f"corpus/{name}.jsonl")) for name in ("train", "validation", "test")]
    assert sorted(row["id"] for part in parts for row in part) == sorted(row["id"] for row in kept)


def test_every_stage_scored_each_row_once(workspace):
    expected = [row["id"] for row in read_jsonl(workspace.results / "corpus/validation.jsonl")]
    files = list((workspace.results / "scores").rglob("*.validation.predictions.jsonl"))
    assert len(files) == 4, "base, adapter, merged, int4"
    for file in files:
        assert [row["id"] for row in read_jsonl(file)] == expected, file


def test_hashes_lead_from_the_model_back_to_the_rows(workspace):
    results = workspace.results
    onnx = read_json(results / "runs/lora/onnx/int4.manifest.json")
    merged = read_json(results / "runs/lora/merged.manifest.json")
    adapter = read_json(results / "runs/lora/adapter.manifest.json")
    assert onnx["inputs"]["merged"] == hash_file(results / "runs/lora/merged.manifest.json")
    assert merged["inputs"]["adapter"] == hash_file(results / "runs/lora/adapter.manifest.json")
    assert adapter["inputs"]["train"] == hash_file(results / "corpus/train.jsonl")
    assert adapter["inputs"]["base"] == hash_file(results / "base.manifest.json")
    for name, digest in onnx["files"].items():
        assert hash_file(results / "runs/lora/onnx/int4" / name) == digest


def test_no_manifest_holds_a_path_of_this_machine(workspace):
    for manifest in workspace.results.rglob("*.manifest.json"):
        assert str(workspace.root) not in manifest.read_text()


def test_a_variant_for_another_provider_is_built_and_marked_unverified(workspace):
    assert read_json(workspace.results / "runs/lora/onnx/int4-cuda.manifest.json")["verified"] is False
    assert read_json(workspace.results / "selection.json")["variant"] == "int4"


@pytest.mark.end_to_end
def test_generation_goes_the_whole_way_with_the_recipes_template(tiny_phi3, tmp_path):
    """Questions and best answers on a Phi-3 with its own control tokens, from rows to an answer."""
    copy_project(tmp_path)
    config = tiny_config(tiny_phi3)
    config.update(
        task="generation",
        data={"files": ["data/faq.json"], "target": "Best Answer"},
        corpus={
            "text_template": "<|user|>\n{Question}<|end|>\n<|assistant|>\n{Best Answer}\n<|end|>",
            "max_length": 500,
        },
        variants={"int4": {}},
    )
    config["base_model"]["parameters"] = parameters_of(tiny_phi3)
    config["evaluate"].update(max_new_tokens=8)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    workspace = Workspace(tmp_path)
    workspace.run()
    quality = read_json(workspace.results / "summary.json")["model"]["test"]
    assert quality["perplexity"] > 1
    assert 0 <= quality["chrf"] <= 100
    row = next(read_jsonl(workspace.results / "corpus/train.jsonl"))
    assert row["completion"].endswith("\n<|end|>")
    kept = {row["id"]: row["target"] for row in read_jsonl(workspace.results / "data/kept.jsonl")}
    scored = list((workspace.results / "scores").rglob("*.predictions.jsonl"))
    assert len(scored) == 7  # baselines; base, model on test rows; base, adapter, merged, int4 on validation rows
    for file in scored:
        assert all(row["reference"] == kept[row["id"]] for row in read_jsonl(file)), file
    assert "answer" in predict(tmp_path, "What is the gate?")


# What makes what again


def test_a_changed_row_reruns_from_the_rows_on(workspace):
    workspace.edit(workspace.rows.name, '"phrase": "', '"phrase": "Suddenly: ')
    planned = workspace.planned()
    assert {"fetch_data", "audit_data", "train_adapter"} <= planned
    assert "fetch_model" not in planned


def test_an_edited_script_reruns_its_rule(workspace):
    """The check of the tokenizer comes before the training and retrains nothing."""
    workspace.edit("scripts/merge_adapter.py", "_CHECKED_ROWS = 8", "_CHECKED_ROWS = 9")
    workspace.edit("scripts/check_tokenizer.py", "_EXAMPLES = 5", "_EXAMPLES = 6")
    planned = workspace.planned()
    assert {"merge_adapter", "check_tokenizer"} <= planned
    assert "train_adapter" not in planned


def test_a_comment_in_a_shared_module_reruns_its_users_only(workspace):
    workspace.edit("scripts/lib/training/batching.py", "import torch\n", "import torch  # a comment\n")
    planned = workspace.planned()
    assert "train_adapter" in planned
    assert not planned & {"fetch_model", "audit_data", "render_corpus", "score_baselines"}


def test_a_rerun_without_need_trains_nothing(workspace):
    """A comment changes code, not bytes: Snakemake asks for the training again, which is already done."""
    adapter = workspace.results / "runs/lora/adapter/adapter_model.safetensors"
    before = hash_file(adapter)
    workspace.edit("scripts/lib/data/near_duplicates.py", '"""', '"""Edited. ')
    done = workspace.run("results/runs/lora/adapter.manifest.json")
    assert "rule audit_data:" in done.stderr
    assert "this adapter is already trained" in done.stderr
    assert hash_file(adapter) == before


def test_a_changed_parameter_reruns_training_and_what_follows(workspace):
    workspace.configure(lambda config: config["finetune"].update(learning_rate=0.02))
    assert workspace.planned() == {"train_adapter", *AFTER_TRAINING}


def test_two_swapped_values_are_noticed(workspace):
    workspace.configure(lambda config: config["finetune"].update(r=8, lora_alpha=4))
    assert "train_adapter" in workspace.planned()


def test_another_section_retrains_nothing(workspace):
    workspace.configure(lambda config: config["evaluate"].update(greedy_rows=6))
    planned = workspace.planned()
    assert "score_onnx" in planned
    assert not planned & {"train_adapter", "merge_adapter", "build_onnx", "benchmark_onnx"}


def test_the_gate_alone_reruns_only_the_verdict(workspace):
    workspace.configure(lambda config: config.update(gate={"minimum": {"accuracy": 0.01}}))
    assert workspace.planned() == {
        *("check_gate", "summarize", "package_model", "write_plots", "write_report", "enforce_gate", "all")
    }


def test_who_turns_tracking_on_is_told_everything_and_nothing_else_runs(workspace):
    """The folder of the run has the worst of names, and a training that nobody tracked is told from its progress."""
    before = {path: hash_file(path) for path in workspace.results.rglob("*") if path.is_file()}
    workspace.configure(lambda config: config.update(tracking=["tensorboard", "mlflow"]))
    assert workspace.planned() == {"track_results", "all"}
    done = workspace.run()
    assert "train_adapter" not in done.stderr
    changed = {
        path.relative_to(workspace.results).parts[0] for path, digest in before.items() if hash_file(path) != digest
    }
    assert changed <= {"lineage.json"}
    told = read_json(workspace.results / "tracked.json")
    assert {name: one["fault"] for name, one in told.items()} == {"tensorboard": None, "mlflow": None}
    assert set(told["mlflow"]["runs"]) == {"results/model", "results/lora"}
    curves = read_scalars(workspace.root / "work/tracking/tensorboard/results/lora")
    assert [step for step, _ in curves["train/learning_rate"]] == [10]
    steps = [step for step, _ in curves["eval/loss"]]
    assert len(steps) > 1
    assert steps == sorted(set(steps))
    assert "test/accuracy_ci95_low" in read_scalars(workspace.root / "work/tracking/tensorboard/results/model")
    assert workspace.planned() == set()
    workspace.configure(lambda config: config.update(tracking=["mlflow"]))
    assert workspace.planned() == {"track_results", "all"}
    workspace.configure(lambda config: config.pop("tracking"))
    assert workspace.planned() == set()


def test_threads_and_resources_rerun_nothing(workspace):
    assert workspace.planned("--cores", "1") == set()
    assert workspace.planned("--set-resources", "train_adapter:mem_mb=9999") == set()
    assert workspace.planned("--set-threads", "train_adapter=1") == set()


@pytest.mark.parametrize("profile", ["gpu", "slurm"])
def test_another_place_to_run_reruns_nothing(workspace, profile):
    assert workspace.planned("--profile", f"profiles/{profile}") == set()


def test_a_variant_that_only_a_gpu_runs_asks_for_one_where_it_is_run(workspace):
    workspace.configure(lambda config: config["variants"]["int4-cuda"].update(score=True))
    plan = workspace.snakemake("-n").stdout
    jobs = re.split(r"^(?=(?:local)?rule \w+:)", plan, flags=re.MULTILINE)
    on_gpu = {re.search(r"wildcards: (.*)", job)[1] for job in jobs if re.search(r"resources: .*\bgpu=1", job)}
    assert on_gpu == {
        "stage=lora/onnx-int4-cuda, split=validation",
        "run=lora, variant=int4-cuda",
        "stage=model, split=test",
    }


def test_another_variant_is_checked_and_built_and_retrains_nothing(workspace):
    """Snakemake's own plan would end behind the check, whose consumers take it as `ancient`."""
    workspace.configure(lambda config: config["variants"].update(fitted={"algo_config": "k_quant"}))
    planned = workspace.planned()
    assert planned >= {"check_build", "build_onnx", "score_onnx", "benchmark_onnx", "select_model", "enforce_gate"}
    kept = {"check_training", "check_corpus", "check_tokenizer", "fetch_model", "train_adapter", "merge_adapter"}
    assert not planned & {*kept, "score_checkpoint", "score_baselines"}


@pytest.mark.slow
def test_a_job_sees_the_gpus_that_it_was_given_and_else_none(workspace):
    """What a GPU rule and another one find in CUDA_VISIBLE_DEVICES, with a card that is only a name."""
    for name in ("train_adapter", "merge_adapter"):
        show = f"import os; print('{name} sees', repr(os.environ.get('CUDA_VISIBLE_DEVICES')), file=sys.stderr)\n"
        workspace.edit(f"scripts/{name}.py", "\nimport torch\n", f"\nimport sys; {show}import torch\n")
    manifest = "results/runs/lora/merged.manifest.json"
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/gpu", "--cores", "2", manifest]
    card = f"GPU-{uuid.uuid4()}"
    done = subprocess.run(
        command, cwd=workspace.root, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": card}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"train_adapter sees '{card}'" in done.stderr
    assert "cannot use it: this runs on the CPU" in done.stderr
    assert "merge_adapter sees ''" in done.stderr


@pytest.mark.parametrize(
    ("library", "first"),
    [
        ("datasets", {"fetch_data"}),
        ("gguf", {"fetch_tokenizer"}),
        ("jinja2", {"render_corpus"}),
        ("scipy", {"score_baselines", "select_model"}),
        ("scikit-learn", {"score_baselines"}),
        ("peft", {"check_training", "train_adapter", "score_checkpoint"}),
        ("onnxruntime-genai", {"check_build", "check_tokenizer", "build_onnx"}),
        ("ruff", set()),
    ],
)
def test_an_upgraded_library_reruns_exactly_what_depends_on_it(workspace, library, first):
    """The first rules that depend on it have other settings; all else that is planned follows from them."""
    lock = (workspace.root / "requirements.lock").read_text()
    locked = re.search(rf"^{library}==.*$", lock, flags=re.MULTILINE | re.IGNORECASE)
    workspace.edit("requirements.lock", f"\n{locked[0]}\n", f"\n{library}==99.0\n")
    done = workspace.snakemake("-n")
    words = re.split(r"^(?:local)?rule (\w+):$", done.stdout + done.stderr, flags=re.MULTILINE)[1:]
    jobs = list(zip(words[::2], words[1::2], strict=True))
    assert {name for name, text in jobs if re.search("reason: .*Params have changed", text)} == first
    assert all(re.search("reason: (Params have changed|Input files updated)", text) for _, text in jobs)


# Configurations


def test_config_on_the_command_line_changes_single_keys(workspace):
    assert "train_adapter" in workspace.planned("--config", "finetune={num_train_epochs: 2}")
    assert workspace.planned("--config", "finetune={num_train_epochs: 1}") == set()


def test_a_new_optional_key_of_any_section_reruns_nothing(workspace):
    for name in ("schema", "sources", "training", "variants"):
        path = workspace.root / f"scripts/lib/config/{name}.py"
        sections = r"^(class \w+\(Section\):\n(?:    \"\"\"(?:.|\n)*?\"\"\"\n)?)"
        text, count = re.subn(sections, r"\1    new_key: int | None = None\n", path.read_text(), flags=re.MULTILINE)
        assert count, name
        path.write_text(text)
    assert workspace.planned("--config", "corpus={new_key: 1}"), "the key is there"
    assert workspace.planned() == set()


def test_a_configfile_stands_alone_whatever_its_name(workspace):
    values = yaml.safe_load((workspace.root / "config.yaml").read_text())
    values["results"] = "other"
    del values["benchmark"]
    name = f"{HOSTILE}{{v2}}.yaml"
    (workspace.root / name).write_text(yaml.safe_dump(values))
    planned = workspace.planned("--configfile", name)
    assert {"fetch_model", "train_adapter", "enforce_gate"} <= planned
    assert not (workspace.root / "other").exists()


def test_another_working_directory_finds_scripts_and_data(workspace, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    there = ["--snakefile", f"../{workspace.root.name}/Snakefile", "--directory", str(elsewhere)]
    planned = workspace.planned(*there, cwd=elsewhere)
    assert {"fetch_data", "train_adapter"} <= planned
    done = workspace.snakemake(*there, "results/data/rows.jsonl", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "results/data/rows.jsonl").read_bytes() == (workspace.results / "data/rows.jsonl").read_bytes()


def test_moving_the_folder_reruns_nothing(workspace, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(workspace.root, moved)
    assert Workspace(moved).planned() == set()


@pytest.mark.parametrize(
    "example", ["config.yaml", "examples/tones.yaml", "examples/faq.yaml", "examples/phi3-mini.yaml"]
)
def test_each_shipped_configuration_plans_the_whole_way(example, tmp_path):
    copy_project(tmp_path)
    planned = Workspace(tmp_path).planned("--configfile", example)
    assert {"fetch_model", "audit_data", "train_adapter", "merge_adapter", "build_onnx", "enforce_gate"} <= planned


# Failures


def bad_config(workspace: Workspace, old: str, new: str) -> str:
    workspace.edit("config.yaml", old, new)
    done = workspace.snakemake()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("learning_rate: 0.01", "learnin_rate: 0.01", r"config.yaml:\d+: finetune.learnin_rate .* did you mean learn"),
        ("learning_rate: 0.01", "learning_rate: fast", r"config.yaml:\d+: finetune.learning_rate: .* \(found 'fast'\)"),
        (
            "num_train_epochs: 1",
            "num_train_epochs: 1\n  num_train_epochs: 2",
            r"config.yaml:\d+: num_train_epochs occurs twice",
        ),
        ("num_train_epochs: 1", "num_train_epochs: [1", r"config.yaml:\d+: not YAML"),
        ("rows.json", "missing.json", r"data.files: .*missing.json does not exist"),
        ("{phrase}", "{phrase[0]}", r"config.yaml:\d+: corpus: .*not a column"),
    ],
)
def test_a_wrong_configuration_is_one_line(workspace, old, new, expected):
    stderr = bad_config(workspace, old, new)
    assert re.search(rf"^error: {expected}", stderr, flags=re.MULTILINE), stderr


def failed_run(workspace: Workspace) -> str:
    done = workspace.snakemake()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    errors = re.findall(r"^error: .*$", done.stderr, flags=re.MULTILINE)
    assert len(errors) == 1, done.stderr[-3000:]
    return errors[0]


def test_an_unknown_column_stops_early_with_the_columns_there_are(workspace):
    workspace.edit("config.yaml", "{phrase}", "{sentence}")
    error = failed_run(workspace)
    assert "sentence" in error
    assert not (workspace.results / "data/kept.jsonl").exists(), "nothing of the failed rule is left"


def test_a_broken_json_line_is_named(workspace):
    lines = workspace.rows.read_text().splitlines()
    lines[7] = lines[7].replace('"tone"', "tone")
    workspace.rows.write_text("\n".join(lines))
    assert re.search(r"rows.json:8: ", failed_run(workspace))


def test_rows_of_one_class_make_no_model(workspace):
    rows = json.loads(workspace.rows.read_text())
    write_rows(workspace.rows, [{**row, "tone": "joy"} for row in rows])
    error = failed_run(workspace)
    assert "audit.json" in error
    assert (workspace.results / "data/audit.json").is_file(), "the evidence stays"


def test_a_base_model_without_tokenizer_is_refused(workspace, tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    workspace.configure(lambda config: config["base_model"].update(path=str(tmp_path / "bare")))
    assert "tokenizer" in failed_run(workspace)


def test_a_failed_gate_leaves_its_evidence_and_exits_1(workspace):
    workspace.configure(lambda config: config.update(gate={"minimum": {"accuracy": 1.0}}))
    error = failed_run(workspace)
    assert "accuracy" in error
    assert "report.html" in error
    assert (workspace.results / "report.html").is_file()
    assert read_json(workspace.results / "summary.json")["gate"]["passed"] is False
    assert not (workspace.results / "gate.passed").exists()
    assert workspace.planned() == {"enforce_gate", "all"}


@pytest.mark.slow
def test_killed_in_training_it_resumes_to_the_same_bytes(workspace):
    workspace.configure(lambda config: config["finetune"].update(num_train_epochs=12))
    twin = Workspace(workspace.root.parent / "twin")
    shutil.copytree(workspace.root, twin.root)
    shutil.rmtree(twin.root / "work")
    target = "results/runs/lora/adapter.manifest.json"
    twin.run(target)

    shutil.rmtree(workspace.root / "work")
    command = [sys.executable, "scripts/run.py", target]
    process = subprocess.Popen(
        command, cwd=workspace.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not list(workspace.root.glob("work/train/*/checkpoint-*/complete.json")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    again = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout[-3000:]
    assert "resumed at step" in again.stdout
    adapter = "results/runs/lora/adapter/adapter_model.safetensors"
    assert hash_file(workspace.root / adapter) == hash_file(twin.root / adapter)
    assert hash_file(workspace.root / target) == hash_file(twin.root / target)


def test_a_second_run_beside_the_first_is_refused(workspace):
    import fcntl

    with open(workspace.root / ".snakemake/slmflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, "scripts/run.py"], cwd=workspace.root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "another run" in done.stderr
