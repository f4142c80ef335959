"""The files that the stages of all runs consist of, for rules whose inputs follow from wildcards or from a whole sweep.

A stage is `base`, a PyTorch stage of a run (`lora/merged`), an ONNX build (`lora/onnx-int4`) or the packaged `model`.
Scripts find the same files by the same `Layout`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from snakemake.io import ancient

from lib.config.sweep import Run
from lib.core.layout import Layout
from lib.hardware import resources
from lib.provenance.manifests import build_manifest_path
from lib.workflow.rule_settings import name_quantization_package

_GPU_PROVIDERS = ("cuda", "trt-rtx")  # variants for these run on a GPU only


class Stages:
    """Files and names of all stages in one results folder.

    variants: settings by name. scored: the variants that are scored on this machine, from which one is selected.
    """

    def __init__(
        self, results: str, runs: Mapping[str, Run], variants: Mapping[str, Mapping[str, Any]], scored: Sequence[str]
    ) -> None:
        self.results, self.layout = results, Layout(Path(results))
        self.runs, self.variants, self.scored = runs, variants, scored
        self.unscored = [name for name in variants if name not in scored]
        self.trained = [name for name, run in runs.items() if run.trained]
        self.merges = [f"{name}/{merge}" for name, run in runs.items() for merge in run.merges]
        self.two_merges = [name for name, run in runs.items() if len(run.merges) > 1]
        self.checkpoints = [f"{name}/{stage}" for name, run in runs.items() for stage in run.stages]
        self.calibrated = share_calibrations(variants)
        self.calibrations = sorted(set(self.calibrated.values()))

    # Inputs of one job, by its wildcards

    def find_checkpoint(self, wildcards: Any) -> dict[str, str]:
        """Return folders and manifests of a PyTorch stage; an adapter comes with its base model."""
        base = _with_manifest("model", f"{self.results}/base")
        run, _, stage = wildcards.stage.rpartition("/")
        folder = f"{self.results}/runs/{run}/{stage}"
        if not run:
            return base
        return base | _with_manifest("adapter", folder) if stage == "adapter" else _with_manifest("model", folder)

    def find_build_source(self, wildcards: Any) -> dict[str, str]:
        """Return what a variant is built from: the merged model, and the calibrated weights if it has any."""
        run, variant = wildcards.run, wildcards.variant
        found = _with_manifest("merged", self.find_merged(run))
        if variant in self.calibrated:
            folder = f"{self.results}/runs/{run}/calibrated/{self.calibrated[variant]}"
            found |= _with_manifest("calibrated", folder)
        return found

    def find_onnx_model(self, wildcards: Any) -> dict[str, str]:
        """Return folder and manifest of an ONNX build, or of the selected model as the test rows score it."""
        run, _, stage = wildcards.stage.rpartition("/")
        build = f"{self.results}/runs/{run}/onnx/{stage.removeprefix('onnx-')}"
        return _with_manifest("model", f"{self.results}/assembled" if stage == "model" else build)

    def name_scoring_packages(self, wildcards: Any) -> str:
        """Return the packages that the score of a PyTorch stage depends on; an adapter is scored on its own base."""
        run, _, stage = wildcards.stage.rpartition("/")
        quantization = name_quantization_package(self.runs[run].finetune) if stage == "adapter" else ""
        return f"torch transformers peft tokenizers sacrebleu{quantization}"

    def find_merged(self, run: str) -> str:
        """Return the folder of the model that a run's ONNX builds are made from."""
        return f"{self.results}/runs/{run}/merged" if "merged" in self.runs[run].stages else f"{self.results}/base"

    def count_onnx_gpus(self, wildcards: Any) -> int:
        """Return how many GPUs an ONNX stage needs; any scored variant may become the packaged model."""
        return int(any(name in self.scored and self._needs_gpu(name) for name in self._list_variants(wildcards)))

    def estimate_onnx_mb(self, wildcards: Any, parameters: int) -> float:
        """Return the size in MB of an ONNX stage, of a base model with so many parameters."""
        precisions = [self.variants[name]["precision"] for name in self._list_variants(wildcards)]
        return max(resources.estimate_onnx_mb(parameters, precision) for precision in precisions)

    def _list_variants(self, wildcards: Any) -> Sequence[str]:
        """Return the variant of an ONNX stage; of the packaged model all that it may be."""
        if wildcards.get("stage") == "model":
            return self.scored
        return [wildcards.get("variant") or wildcards.stage.rpartition("/")[2].removeprefix("onnx-")]

    def _needs_gpu(self, variant: str) -> bool:
        return self.variants[variant]["execution_provider"] in _GPU_PROVIDERS

    # Files of a whole sweep

    def list_checkpoints(self, *stages: str) -> list[Path]:
        """Return the folders of the stages before the ONNX builds, or of some of these."""
        return [
            self.layout.folder(name, stage)
            for name, run in self.runs.items()
            for stage in run.stages
            if not stages or stage in stages
        ]

    def list_builds(self, variants: Iterable[str]) -> list[Path]:
        variants = list(variants)
        return [self.layout.folder(name, f"onnx-{variant}") for name in self.runs for variant in variants]

    def list_calibrations(self) -> list[Path]:
        return [self.layout.calibrated(name, variant) for name in self.runs for variant in self.calibrations]

    def list_trainings(self) -> list[Path]:
        return [self.layout.training(name) for name in self.trained]

    def list_merge_choices(self) -> list[Path]:
        return [self.layout.merge(name) for name in self.two_merges]

    def list_checkpoint_scores(self) -> list[Path]:
        """Return scores and predictions of the stages before the ONNX builds."""
        return [file for name, run in self.runs.items() for file in self._list_scores(name, run.stages)]

    def list_candidates(self) -> list[Path]:
        """Return scores, predictions, speeds and manifests of the variants that may be selected."""
        stages = [f"onnx-{variant}" for variant in self.scored]
        scores = [file for name in self.runs for file in self._list_scores(name, stages)]
        speeds = [self.layout.speed(name, variant) for name in self.runs for variant in self.scored]
        return [*scores, *speeds, *list_manifests(self.list_builds(self.scored))]

    def list_final_outputs(self) -> list[str | Path]:
        """Return everything that a finished run presents."""
        names = ("report.html", "summary.json", "model.manifest.json", "selected.manifest.json", "metrics.json")
        return [*(f"{self.results}/{name}" for name in names), *list_manifests(self.list_builds(self.variants))]

    def _list_scores(self, run: str, stages: Iterable[str]) -> list[Path]:
        return [file(run, stage) for stage in stages for file in (self.layout.score, self.layout.predictions)]


def list_manifests(folders: Iterable[Path]) -> list[Path]:
    return [build_manifest_path(folder) for folder in folders]


def expand_runs(list_files: Callable[[], Iterable[str | Path]]) -> Callable[[Any], list[str]]:
    """Return an input function: the listed files of all runs, found when a job is planned.

    With the list itself in the rule, Snakemake takes a time that grows with the square of its length.
    """
    return lambda wildcards: [str(path) for path in list_files()]


def select_calibration(variant: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings that the calibrated weights of a variant depend on."""
    return {name: variant[name] for name in ("algo_config", "block_size", "is_symmetric", "calibration")}


def share_calibrations(variants: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return, for each calibrated variant, the first one with equal settings: its weights are made once for all."""
    shared: dict[str, str] = {}
    for name, variant in variants.items():
        if variant["calibration"]:
            wanted = select_calibration(variant)
            same = (other for other in shared if select_calibration(variants[other]) == wanted)
            shared[name] = next(same, name)
    return shared


def _with_manifest(name: str, folder: str) -> dict[str, str]:
    """Return a folder, whose time says nothing, and the manifest that its consumers depend on instead."""
    return {name: ancient(folder), f"{name}_manifest": f"{folder}.manifest.json"}


def list_trial_methods(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Return how `check_training` trains its small model: what of `finetune` decides whether a training works.

    Once for each of the combinations that the runs have; none where nothing is trained.
    """
    names = ("method", "target_modules", "quant_type", "double_quant", "gradient_checkpointing", "dtype")
    methods = [{name: run.finetune[name] for name in names} for run in runs.values() if run.trained]
    return [method for place, method in enumerate(methods) if method not in methods[:place]]
