"""The plan before a run: what it says of rows, training and jobs, what stops it, and that it leaves no trace."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib.core.files import write_json
from lib.data.first_look import MOST_ROWS, mark_example, sample_rows
from lib.hardware import resources
from lib.hardware.speed import Speed
from lib.workflow.plan import PlannedJob
from lib.workflow.plan_estimates import (
    Settings,
    count_steps,
    estimate_jobs,
    find_problems,
    read_model_checks,
    read_model_sizes,
    sum_jobs,
)
from lib.workflow.plan_text import format_plan
from support.workspaces import Workspace, make_workspace

FINETUNE = {
    "corpus_strategy": "line-by-line",
    "source_max_len": 100,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 3,
    "max_steps": None,
    "dtype": "auto",
    "r": 16,
}
LOOK = {"splits": {"train": 100, "validation": 10, "test": 10}, "tokens": {"mean": 40.0}}
SLOW = Speed(resources.CPU_OPERATIONS / 0.65, resources.CPU_OPERATIONS / 0.65, "float32")


def plan_job(rule: str, **changes) -> PlannedJob:
    known = {"wildcards": {"run": "lora", "variant": "int4"}, "command": [], "outputs": [], "log": "", "timing": ""}
    known |= {"is_done": False, "reason": "", "seconds": 60.0, "reserved": None, "mem_mb": 2000.0, "gpus": 0}
    return PlannedJob(rule, **(known | {"environment": "train"} | changes))


def settings(results: Path = Path("results"), parameters: int = 134_500_000) -> Settings:
    return Settings(results, parameters, 2, {"lora": FINETUNE}, {"int4": {"precision": "int4"}})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (39, 100, 3.0, 12_000)),
        ({"max_steps": 10}, (10, 100, 0.77, 3077)),
        ({"corpus_strategy": "join"}, (15, 40, 3.0, 12_000)),
    ],
)
def test_steps_and_tokens_of_a_training(changes, expected):
    assert tuple(count_steps(FINETUNE | changes, LOOK).values()) == expected


def test_a_faster_machine_is_done_earlier_and_finished_jobs_say_it_better(tmp_path):
    timing = tmp_path / "lora.int4.tsv"
    timing.write_text("s\tmax_rss\n100.0\t900\n")
    job, done = plan_job("build_onnx"), plan_job("build_onnx", is_done=True, timing=str(timing))
    (slow,) = estimate_jobs([job], settings(), SLOW)
    (fast,) = estimate_jobs([job], settings(), SLOW._replace(float32=2 * SLOW.float32))
    assert slow["seconds"] == pytest.approx(67)
    assert fast["seconds"] == pytest.approx(33.5)
    assert slow["seconds_range"] == pytest.approx([67 / 1.5, 67 * 1.5])
    (seen,) = estimate_jobs([job, done], settings(), SLOW)
    assert seen["seconds"] == pytest.approx(100)
    assert seen["seconds_range"][1] < slow["seconds_range"][1] * 100 / 67
    total = sum_jobs([seen, slow])
    assert (total["seconds"], total["jobs"], total["not_estimated"]) == (pytest.approx(167), 2, 0)
    assert total["disk_mb"] == pytest.approx(2 * 0.7 * 134.5)


def test_bfloat16_units_shorten_the_training_alone():
    fast = SLOW._replace(auto=8 * SLOW.auto, auto_dtype="bfloat16")
    plain, quick = (estimate_jobs([plan_job("train_adapter")], settings(), speed)[0] for speed in (SLOW, fast))
    assert quick["seconds"] - 7 == pytest.approx((plain["seconds"] - 7) * 0.8 / (8 * 0.45))
    assert estimate_jobs([plan_job("build_onnx")], settings(), fast)[0]["seconds"] == pytest.approx(67)


def test_a_plan_counts_what_rows_and_machine_have_and_not_the_most_that_can_be(monkeypatch):
    finetune = FINETUNE | {"gradient_checkpointing": False, "corpus_strategy": "rows", "loss": "completion"}
    asked = resources.estimate_train_mb(10**9, finetune, 512, "classification")
    expected = resources.Expected({"rows.jsonl": 3.0}, longest=64, row_bytes=64 * resources.TOKEN_BYTES, auto_bytes=2)
    monkeypatch.setattr(resources, "EXPECTED", expected)
    assert resources.measure_size_mb("rows.jsonl") == 3.0
    activations = asked - 1250 - 1.1 * 4000 - 4 * resources.estimate_adapter_mb(10**9, 16)
    assert resources.estimate_train_mb(10**9, finetune, 512, "classification") == pytest.approx(
        asked - 2200 - activations * 7 / 8, rel=1e-3
    )


def test_shorter_rows_and_what_they_share_make_a_training_smaller_and_quicker_and_a_score_quicker(monkeypatch):
    finetune = FINETUNE | {"gradient_checkpointing": False, "corpus_strategy": "rows", "loss": "completion"}
    finetune |= {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "eval_rows": None,
        "eval_steps": 10,
    }

    def estimate(mean, shared):
        expected = resources.Expected(longest=64, row_bytes=mean * resources.TOKEN_BYTES, shared=shared)
        monkeypatch.setattr(resources, "EXPECTED", expected)
        evaluate = {"greedy_rows": 0, "max_new_tokens": 8, "batch_size": 4}
        return (
            resources.estimate_train_mb(10**9, finetune, 512, "classification"),
            resources.estimate_train_minutes(10**9, 1.0, 0.0, finetune, None, 0),
            resources.estimate_score_minutes(10**9, 1.0, evaluate, 0),
        )

    whole, short, shared = estimate(64, 0.0), estimate(32, 0.0), estimate(64, 0.5)
    per_token = 2 * 34 * 1.4 * math.sqrt(10**9) / 1e6
    assert whole[0] - short[0] == pytest.approx((16 * 32 - 4 * 32) * per_token, rel=1e-3)
    assert whole[0] - shared[0] == pytest.approx(15 * 32 * per_token, rel=1e-3)
    assert shared[1] / whole[1] == pytest.approx(1 - 0.5 * 15 / 16, rel=0.05)
    assert shared[2] / whole[2] == pytest.approx(0.5, rel=0.1)


def test_attempt_0_stands_for_the_seconds_themselves():
    assert resources.reserve_minutes(60.0, 0) == 60
    assert resources.reserve_minutes(60.0, 1) == 14
    assert resources.grow_with_attempts(100.0, 0) == 100


def test_the_time_of_a_gpu_is_not_made_up():
    (job,) = estimate_jobs([plan_job("train_adapter", gpus=1, reserved=240)], settings(), None)
    assert (job["seconds"], job["seconds_range"], job["reserved_minutes"]) == (None, None, 240)
    assert sum_jobs([job])["not_estimated"] == 1


def test_a_rule_that_does_not_fit_is_named_with_what_it_needs(tmp_path):
    jobs = [
        {"rule": "build_onnx", "mem_mb": 15_000.0, "disk_mb": 1.0},
        {"rule": "fetch_data", "mem_mb": None, "disk_mb": 0.0},
    ]
    assert find_problems(jobs, 16_000.0, tmp_path) == []
    (memory,) = find_problems(jobs, 12_000.0, tmp_path / "not/there")
    assert memory.startswith("build_onnx needs about 15.0 GB of memory, this machine has 12.0 GB free; take")
    (disk,) = find_problems([{**jobs[1], "disk_mb": 1e12}], 1.0, tmp_path)
    assert disk.startswith(f"{tmp_path}: the run writes about 1000000000.0 GB, ")


def test_the_checks_of_the_model_are_told_with_the_reason_of_the_last_refusal(tmp_path):
    log = tmp_path / "log.txt"
    jobs = [plan_job("check_training", is_done=True), plan_job("check_build", log=str(log))]
    assert read_model_checks(jobs, tmp_path) == {"outcome": "not checked yet"}
    log.write_text("start\nerror: owner/model: cannot be built; take another\n")
    assert read_model_checks(jobs, tmp_path) == {
        "outcome": "refused",
        "reason": "owner/model: cannot be built; take another",
    }
    assert read_model_checks([plan_job("check_model", is_done=True)], tmp_path) == {"outcome": "passed"}


@pytest.mark.parametrize(("config", "expected"), [({"dtype": "bfloat16"}, 2), ({"torch_dtype": "float32"}, 4), ({}, 4)])
def test_weights_count_as_they_are_stored(config, expected, tmp_path):
    write_json(tmp_path / "config.json", config)
    assert read_model_sizes(tmp_path) == {"weight_bytes": expected, "vocabulary": 150_000}


def test_of_many_rows_a_sample_is_drawn_by_the_seed(tmp_path):
    rows, sample = tmp_path / "rows.jsonl", tmp_path / "sample.jsonl"
    rows.write_text("1\n" * MOST_ROWS)
    assert sample_rows(rows, sample, 0) is None
    assert not sample.exists()
    rows.write_text("".join(f"{number}\n" for number in range(MOST_ROWS + 500)))
    assert sample_rows(rows, sample, 0) == MOST_ROWS + 500
    first = sample.read_text()
    chosen = list(map(int, first.split()))
    assert len(chosen) == MOST_ROWS
    assert chosen == sorted(set(chosen))
    sample_rows(rows, sample, 1)
    assert sample.read_text() != first


def test_what_is_learned_is_marked_in_every_turn():
    row = {"prompt": "a B c ", "completion": "D", "spans": [[2, 3]]}
    plan = {
        "rows": {
            "rows": 3,
            "examined": 2,
            "kept": 1,
            "set_aside": {"too_long": 1},
            "classes": None,
            "tokens": {"mean": 4.0, "p95": 5, "max": 6},
            "splits": {"train": 1},
            "example": mark_example(row),
        },
        "trainings": {},
        "model_checks": {"outcome": "passed"},
        "jobs": [],
        "done": 4,
        "speed": None,
    }
    said = format_plan(plan)
    assert "    a [[B]] c [[D]]" in said
    assert "3 read, a sample of 2 examined, 1 kept; set aside: 1 too long" in said
    assert "nothing to be done" in said


def check(workspace: Workspace, *words: str) -> SimpleNamespace:
    """Run the check; `plan`: what it prints, `files`: what is new in the folder."""
    before = set(workspace.root.rglob("*"))
    done = subprocess.run(
        [sys.executable, "scripts/check.py", "--json", *words], cwd=workspace.root, capture_output=True, text=True
    )
    new = {path.relative_to(workspace.root).parts[0] for path in set(workspace.root.rglob("*")) - before}
    plan = json.loads(done.stdout) if done.stdout else None
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return SimpleNamespace(code=done.returncode, plan=plan, errors=errors, said=done.stderr, files=new)


@pytest.mark.workflow
def test_the_plan_of_a_finished_run_has_what_a_change_makes_again(workspace):
    workspace.configure(lambda config: config["variants"].update(int8={"precision": "int8"}))
    found = check(workspace)
    assert found.code == 0, found.said
    plan = found.plan
    assert plan["rows"]["kept"] == plan["rows"]["rows"] == 120
    assert plan["trainings"]["lora"]["steps"] == 18, "as the finished training counted"
    jobs = {(job["rule"], job["wildcards"].get("variant")): job for job in plan["jobs"]}
    assert ("train_adapter", None) not in jobs
    assert ("build_onnx", "int4") not in jobs
    assert jobs["build_onnx", "int8"]["seconds"] > 0
    assert jobs["check_build", "int8"]["reason"]
    assert plan["done"] > 10
    assert plan["model_checks"] == {"outcome": "not checked yet"}, "not this variant"
    assert found.files <= {".snakemake", "work"}


@pytest.mark.workflow
def test_nothing_is_left_of_a_plan_before_the_first_run_and_bad_rows_stop_it(tiny_llama, tmp_path):
    workspace = make_workspace(tmp_path / "new", tiny_llama)
    found = check(workspace, "--profile", "profiles/slurm")
    assert found.code == 0, found.said
    training = next(job for job in found.plan["jobs"] if job["rule"] == "train_adapter")
    assert (training["seconds"], training["gpus"], training["reserved_minutes"]) == (None, 1, 240)
    assert found.plan["speed"] is None
    example = found.plan["rows"]["example"]
    ((start, end),) = example["learned"]
    assert example["text"][start:end].endswith("<|im_end|>")
    assert found.files <= {".snakemake", "work"}

    workspace.configure(lambda config: config["base_model"].update(parameters=70_000_000_000))
    found = check(workspace)
    assert found.code == 1
    assert found.errors == [f"error: {problem}" for problem in found.plan["problems"]]
    assert any(line.startswith("error: train_adapter needs about ") for line in found.errors)

    workspace.edit("config.yaml", "{phrase}", "{phrases}")
    found = check(workspace)
    assert (found.code, found.plan, len(found.errors)) == (1, None, 1), found.said
    assert found.errors[0].startswith(
        "error: results/data/rows.jsonl: no row has the column 'phrases'; the columns are"
    )
    assert found.files <= {".snakemake", "work"}
