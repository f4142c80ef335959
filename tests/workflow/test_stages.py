"""Which files a stage of a run is made of, and what a whole sweep has."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.io import is_flagged

from lib.config.sweep import Run
from lib.workflow.stages import Stages, expand_runs, list_manifests, share_calibrations


def run(method: str, **brought: str) -> Run:
    finetune = {"method": method, "adapter": None, "merged": None, "quant_type": "nf4", "double_quant": True}
    return Run(method, 7, finetune | brought)


def variant(provider: str = "cpu", algo: str | None = None, **settings) -> dict:
    default = {"block_size": 32, "is_symmetric": True, "calibration": {"rows": 8} if algo else None}
    return {"execution_provider": provider, "algo_config": algo, **default, **settings}


VARIANTS = {
    "int4": variant(),
    "cuda": variant("cuda"),
    "rounded": variant(algo="auto_round"),
    "same": variant("cuda", algo="auto_round"),
    "finer": variant(algo="auto_round", block_size=16),
}
RUNS = {
    "lora": run("lora"),
    "qlora": run("qlora"),
    "brought": run("lora", adapter="there"),
    "merged": run("lora", merged="there"),
    "base": run("none"),
}
STAGES = Stages("results", RUNS, VARIANTS, ["int4", "rounded"])


class Wildcards(SimpleNamespace):
    def get(self, name):
        return vars(self).get(name)


def test_each_run_has_the_stages_that_its_method_makes():
    assert STAGES.trained == ["lora", "qlora"]
    assert STAGES.merges == ["lora/merged", "qlora/merged-original", "qlora/merged-dequantized", "brought/merged"]
    assert STAGES.two_merges == ["qlora"]
    assert [name for name in STAGES.checkpoints if name.startswith(("qlora", "merged", "base"))] == [
        "qlora/adapter",
        "qlora/merged-original",
        "qlora/merged-dequantized",
        "qlora/merged",
        "merged/merged",
    ]
    assert STAGES.unscored == ["cuda", "same", "finer"]


@pytest.mark.parametrize(
    ("stage", "folders"),
    [
        ("base", {"model": "results/base"}),
        ("lora/adapter", {"model": "results/base", "adapter": "results/runs/lora/adapter"}),
        ("qlora/merged-original", {"model": "results/runs/qlora/merged-original"}),
    ],
)
def test_a_checkpoint_comes_with_its_manifest_and_an_adapter_with_its_base(stage, folders):
    found = STAGES.find_checkpoint(Wildcards(stage=stage))
    manifests = {f"{name}_manifest": f"{folder}.manifest.json" for name, folder in folders.items()}
    assert found == folders | manifests
    assert {name for name, path in found.items() if is_flagged(path, "ancient")} == set(folders)


def test_a_build_is_made_from_the_merged_model_and_shared_calibrated_weights():
    found = STAGES.find_build_source(Wildcards(run="lora", variant="same"))
    assert found["calibrated"] == "results/runs/lora/calibrated/rounded"
    assert found["calibrated_manifest"] == "results/runs/lora/calibrated/rounded.manifest.json"
    assert found["merged"] == "results/runs/lora/merged"
    assert set(STAGES.find_build_source(Wildcards(run="base", variant="int4"))) == {"merged", "merged_manifest"}
    assert STAGES.find_merged("base") == "results/base"


def test_weights_are_calibrated_once_for_equal_settings():
    assert share_calibrations(VARIANTS) == {"rounded": "rounded", "same": "rounded", "finer": "finer"}
    assert STAGES.calibrations == ["finer", "rounded"]


def test_an_onnx_stage_is_a_build_or_the_selected_model():
    assert STAGES.find_onnx_model(Wildcards(stage="model"))["model"] == "results/assembled"
    found = STAGES.find_onnx_model(Wildcards(stage="lora/onnx-int4"))
    assert found == {
        "model": "results/runs/lora/onnx/int4",
        "model_manifest": "results/runs/lora/onnx/int4.manifest.json",
    }


def test_a_gpu_is_asked_for_where_a_scored_variant_needs_one():
    on_gpu = Stages("results", RUNS, VARIANTS, ["int4", "cuda"])
    wanted = [Wildcards(stage="lora/onnx-cuda"), Wildcards(run="lora", variant="cuda"), Wildcards(stage="model")]
    assert [on_gpu.count_onnx_gpus(wildcards) for wildcards in wanted] == [1, 1, 1]
    assert [STAGES.count_onnx_gpus(wildcards) for wildcards in wanted] == [0, 0, 0]
    assert on_gpu.count_onnx_gpus(Wildcards(stage="lora/onnx-int4")) == 0


def test_an_adapter_of_a_4_bit_base_is_scored_with_the_library_for_it():
    assert STAGES.name_scoring_packages(Wildcards(stage="qlora/adapter")).endswith(" bitsandbytes")
    for stage in ("qlora/merged", "lora/adapter", "base"):
        assert "bitsandbytes" not in STAGES.name_scoring_packages(Wildcards(stage=stage))


def test_the_candidates_are_the_scored_variants_of_all_runs():
    found = list(map(str, STAGES.list_candidates()))
    assert len(found) == len(set(found)) == len(RUNS) * 2 * 4
    assert "results/scores/lora/onnx-int4.validation.predictions.jsonl" in found
    assert "results/runs/base/onnx/rounded.manifest.json" in found
    assert not [path for path in found if "cuda" in path]


def test_a_finished_run_presents_all_builds_also_those_that_are_not_scored():
    found = list(map(str, STAGES.list_final_outputs()))
    assert found[:2] == ["results/report.html", "results/summary.json"]
    assert "results/runs/lora/onnx/cuda.manifest.json" in found


def test_lists_of_a_whole_sweep():
    assert list_manifests(STAGES.list_checkpoints("adapter"))[1] == Path("results/runs/qlora/adapter.manifest.json")
    assert len(STAGES.list_checkpoints()) == len(STAGES.checkpoints)
    assert len(STAGES.list_checkpoint_scores()) == 2 * len(STAGES.checkpoints)
    assert STAGES.list_merge_choices() == [Path("results/runs/qlora/merge.json")]
    assert STAGES.list_trainings() == [Path(f"results/runs/{name}/training.json") for name in ("lora", "qlora")]
    assert len(STAGES.list_calibrations()) == len(RUNS) * 2


def test_files_of_all_runs_are_listed_when_a_job_is_planned():
    asked = []
    files = expand_runs(lambda: asked.append(1) or [Path("a"), "b"])
    assert asked == []
    assert files(None) == ["a", "b"]
