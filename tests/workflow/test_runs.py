"""Many runs, and runs of what you have: real Snakemake runs of sweeps, 4-bit bases, given models, dropped weights.

Two workspaces are run from raw rows to the report: a sweep that keeps the selected run only, and one that quantizes
only; what starts from an adapter or a merged model takes those of the first.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from lib.core.files import hash_file, read_json, read_jsonl
from support.workspaces import HOSTILE, Workspace, make_workspace, tiny_config

pytestmark = pytest.mark.workflow

TRAINING = {"train_adapter", "merge_adapter"}


@pytest.fixture(scope="session")
def swept(tiny_llama, tmp_path_factory) -> Path:
    """Two methods, of which the selected run's weights stay."""
    workspace = make_workspace(
        tmp_path_factory.mktemp("swept"),
        tiny_llama,
        sweep={"finetune": {"method": ["lora", "qlora"]}},
        keep="selected",
        finetune=tiny_config(tiny_llama)["finetune"] | {"dtype": "float32"},
    )
    workspace.run()
    return workspace.root


@pytest.fixture
def workspace(swept, tmp_path) -> Workspace:
    root = tmp_path / "copy"
    shutil.copytree(swept, root, symlinks=True)
    return Workspace(root)


RUNS = ["lora", "qlora"]


def test_a_sweep_makes_common_steps_once_and_every_run_once(workspace):
    made = {path.parent.name for path in (workspace.results / "timings").rglob("*.tsv")}
    assert made >= {"fetch_model", "render_corpus", "train_adapter", "choose_merge"}
    assert len(list((workspace.results / "timings/fetch_model").glob("*"))) == 1
    assert sorted(path.stem for path in (workspace.results / "timings/train_adapter").glob("*")) == RUNS
    summary = read_json(workspace.results / "summary.json")
    assert sorted(summary["runs"]) == RUNS
    assert "Nothing to be done" in workspace.run().stderr


def test_a_run_is_finished_before_the_next_one_is_trained(workspace):
    """So weights are dropped early, and a mistake in a late step shows after one training."""
    logs = workspace.results / "logs"
    trained = {name: started(logs / f"train_adapter/{name}.txt") for name in RUNS}
    first, *later = sorted(RUNS, key=trained.__getitem__)
    for name, following in zip([first, *later], later, strict=False):
        steps = [*logs.glob(f"*/{name}.*.txt"), *logs.glob(f"*/{name}/*.txt"), *logs.glob(f"choose_merge/{name}.txt")]
        assert len(steps) >= 6
        assert max(map(started, steps)) < trained[following]


def started(log: Path) -> float:
    """When the job of a log began, in Unix time."""
    return float(re.findall(r"^time: started (\S+)", log.read_text(), re.MULTILINE)[-1])


def test_methods_train_other_adapters_on_the_same_rows(workspace):
    hashes = {
        read_json(path)["files"]["adapter_model.safetensors"]
        for path in workspace.results.glob("runs/*/adapter.manifest.json")
    }
    inputs = {json.dumps(read_json(path)["inputs"]) for path in workspace.results.glob("runs/*/adapter.manifest.json")}
    assert (len(hashes), len(inputs)) == (2, 1)


def test_both_merges_of_a_4_bit_base_are_scored_and_the_better_one_is_built(workspace):
    choice = read_json(workspace.results / "runs/qlora/merge.json")
    for kind in ("original", "dequantized"):
        score = read_json(workspace.results / f"scores/qlora/merged-{kind}.validation.json")
        assert score["quality"]["macro_f1"] == choice["values"][kind]
    chosen = read_json(workspace.results / f"runs/qlora/merged-{choice['chosen']}.manifest.json")
    merged = read_json(workspace.results / "runs/qlora/merged.manifest.json")
    assert merged["files"] == chosen["files"]
    assert choice["values"][choice["chosen"]] == max(choice["values"].values())
    summary = read_json(workspace.results / "summary.json")
    assert summary["runs"]["qlora"]["merge"]["chosen"] in ("original", "dequantized")
    assert summary["runs"]["lora"]["merge"] is None


def test_an_adapter_of_a_4_bit_base_is_scored_as_it_was_trained(workspace):
    """Equal to the merge into the dequantized base, in every row's probabilities."""
    scores = workspace.results / "scores/qlora"
    adapter, merged = (
        list(read_jsonl(scores / f"{stage}.validation.predictions.jsonl"))
        for stage in ("adapter", "merged-dequantized")
    )
    for one, other in zip(adapter, merged, strict=True):
        assert one["log_probs"] == pytest.approx(other["log_probs"], abs=1e-3)


def test_every_candidate_has_a_reason_and_a_rank(workspace):
    summary = read_json(workspace.results / "summary.json")
    names = [(one["run"], one["variant"]) for one in summary["selected"]["candidates"]]
    assert sorted(names) == [(run, "int4") for run in RUNS]
    assert all(one["reason"] for one in summary["selected"]["candidates"])
    assert len(summary["ranking"]) == 2, "two methods"
    assert all(len(one["values"]) == 1 for one in summary["ranking"])


def test_only_the_selected_runs_weights_stay_and_nothing_is_made_again(workspace):
    chosen = read_json(workspace.results / "selection.json")["run"]
    weights = {path.parent for path in workspace.results.rglob("*.safetensors")}
    kept = {workspace.results / name for name in ("selected/adapter", "selected/merged", "base", "checks/trial")}
    assert weights == kept
    assert not list((workspace.results / "runs").rglob("model.onnx"))
    assert (workspace.results / "model/model.onnx").is_file()
    adapter = read_json(workspace.results / f"runs/{chosen}/adapter.manifest.json")["files"]
    assert (
        hash_file(workspace.results / "selected/adapter/adapter_model.safetensors")
        == adapter["adapter_model.safetensors"]
    )
    assert workspace.planned() == set()
    workspace.configure(lambda config: config.update(gate={"minimum": {"accuracy": 0.01}}))
    assert workspace.planned() == {
        "check_gate",
        "summarize",
        "package_model",
        "write_plots",
        "write_report",
        "enforce_gate",
        "all",
    }


def test_a_further_value_trains_the_new_runs_alone(workspace):
    methods = ["lora", "qlora", "dora"]
    workspace.configure(
        lambda config: config["sweep"].update(finetune={"method": methods}) or config.update(keep="all")
    )
    done = workspace.snakemake("-n", *(f"results/runs/{name}/adapter.manifest.json" for name in methods))
    assert done.stderr.count("rule train_adapter:") + done.stdout.count("rule train_adapter:") == 1


# What you have


@pytest.fixture(scope="session")
def quantized_only(tiny_llama, tmp_path_factory) -> Path:
    """Two builds of the base model, one of calibrated weights, which do not stay."""
    variants = {"int4": {}, "int4-calibrated": {"algo_config": "gptq", "calibration": {"rows": 8}}}
    sections = {"finetune": {"method": "none"}, "variants": variants, "keep": "selected"}
    workspace = make_workspace(tmp_path_factory.mktemp("base"), tiny_llama, **sections)
    workspace.run()
    return workspace.root


def test_quantize_only_has_no_rule_of_fine_tuning(quantized_only):
    results = quantized_only / "results"
    assert not (results / "timings/train_adapter").exists()
    assert not (results / "timings/merge_adapter").exists()
    summary = read_json(results / "summary.json")
    assert list(summary["runs"]) == ["base"]
    run = summary["runs"]["base"]
    assert run["training"] is None
    assert list(run["stages"]) == ["onnx-int4", "onnx-int4-calibrated"]
    assert run["stages"]["onnx-int4"]["validation"]["against"]["name"] == "base"
    onnx = read_json(results / "runs/base/onnx/int4.manifest.json")
    assert onnx["inputs"]["merged"] == hash_file(results / "base.manifest.json")


def test_calibration_saw_training_rows_alone(quantized_only):
    results = quantized_only / "results"
    train = {row["id"] for row in read_jsonl(results / "corpus/train.jsonl")}
    (path,) = results.glob("runs/*/calibrated/*.manifest.json")
    used = set(read_json(path)["calibration_rows"])
    assert len(used) == 8
    assert used <= train
    left = {path.parent for path in results.rglob("*.safetensors")}
    assert left == {results / "base", results / "checks/trial"}, "calibrated weights are gone"


@pytest.mark.slow
def test_an_adapter_of_yours_is_merged_as_if_trained_here(tiny_llama, swept, tmp_path):
    workspace = make_workspace(tmp_path / "workspace", tiny_llama, finetune={"adapter": f"-{HOSTILE}"})
    shutil.copytree(swept / "results/selected/adapter", workspace.root / f"-{HOSTILE}")
    planned = workspace.planned()
    assert {"fetch_adapter", "merge_adapter", "build_onnx"} <= planned
    assert not planned & {"train_adapter", "fetch_merged", "choose_merge"}
    workspace.run("results/runs/given-adapter/merged.manifest.json")
    files = [
        read_json(path)["files"]["adapter_model.safetensors"]
        for path in (
            workspace.results / "runs/given-adapter/adapter.manifest.json",
            swept / f"results/runs/{read_json(swept / 'results/selection.json')['run']}/adapter.manifest.json",
        )
    ]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_merged_model_of_yours_is_only_built_and_measured(tiny_llama, swept, tmp_path):
    workspace = make_workspace(tmp_path / "workspace", tiny_llama, finetune={"merged": f"-{HOSTILE}"})
    shutil.copytree(swept / "results/selected/merged", workspace.root / f"-{HOSTILE}")
    planned = workspace.planned()
    assert {"fetch_merged", "build_onnx"} <= planned
    assert not planned & (TRAINING | {"fetch_adapter", "choose_merge"})
    workspace.run()
    run = read_json(workspace.results / "summary.json")["runs"]["given-merged"]
    assert (list(run["stages"]), run["training"]) == (["merged", "onnx-int4"], None)


def test_what_is_not_there_is_one_line(tiny_llama, tmp_path):
    workspace = make_workspace(tmp_path / "workspace", tiny_llama, finetune={"adapter": "nowhere"})
    done = workspace.snakemake("-n")
    assert done.returncode == 1
    assert "error: finetune.adapter: nowhere does not exist" in done.stderr
    assert "Traceback" not in done.stderr
