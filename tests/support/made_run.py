"""The files of a finished run, made up: small, varied, and consistent with each other.

Predictions are drawn so that the untouched base is poor, the adapter good, int4 a little worse; the
scores are computed from them. So what selection, gate, summary and report say can be checked.

`RUNS` is one training. `SWEEP` is what a sweep leaves: two settings with three seeds each, a training on a 4-bit base
with its two merges, and three runs that were not trained here.
"""

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.core.files import hash_file, write_json, write_jsonl
from lib.evaluation.bootstrap import bootstrap_interval, compute_point_estimate
from lib.evaluation.metrics import build_statistics, measure_quality

LABELS = ["negative", "neutral", "positive"]
ALIKE = {"positive": 30, "Positive": 2}  # spellings of labels that differ by case alone
WORDS = {"negative": "rain late broken tired queue", "neutral": "train noon page list", "positive": "sun cake win song"}
NASTY = '<script>alert("x")</script> & {{ 7 * 7 }} http://url_removed'
SPEED = {"load_s": 0.41, "first_token_ms": 88.2, "prompts": 20, "threads": 2, "new_tokens": 64}
EVALUATE = {"greedy_rows": 40, "batch_size": 16, "max_new_tokens": 64, "bootstrap_samples": 500}
SELECTION = {
    "max_size_mb": 200,
    "min_tokens_per_second": 10,
}
VARIANTS = {"int4": (92.1, 61.0), "int4-mixed": (121.4, 48.5), "fp32": (540.2, 21.7)}  # MB, tokens per second
MERGES = ("original", "dequantized")


class Run(NamedTuple):
    """accuracy: of its first stage, or of its ONNX builds where it has no stage before them."""

    group: str
    seed: int
    stages: tuple[str, ...]
    accuracy: float
    trained: bool = True


RUNS = {"lora": Run("lora", 0, ("adapter", "merged"), 0.84)}
SWEEP = {
    **{f"lora-r-8-seed-{n}": Run("lora-r-8", n, ("adapter", "merged"), 0.78 + 0.02 * n) for n in (1, 2, 3)},
    **{f"lora-r-64-seed-{n}": Run("lora-r-64", n, ("adapter", "merged"), 0.80 + 0.02 * n) for n in (1, 2, 3)},
    "qlora": Run("qlora", 1, ("adapter", *(f"merged-{kind}" for kind in MERGES), "merged"), 0.83),
    "given-adapter": Run("given-adapter", 1, ("adapter", "merged"), 0.7, trained=False),
    "given-merged": Run("given-merged", 1, ("merged",), 0.75, trained=False),
    "base": Run("base", 1, (), 0.45, trained=False),
}
NO_SWEEP: dict[str, Any] = {"seed": [], "finetune": {}, "variants": {}}
SAMPLED = NO_SWEEP | {"seed": [1, 2, 3], "finetune": {"r": [8, 16, 32, 64]}, "sample": 10}  # 2 runs are left to try
CHAT = {"prompt": [{"text": "<|user|>Tone?\n"}, {"column": "text"}, {"text": "<|end|>"}]}


class MadeRun:
    """The folder of a made-up run; its methods run the scripts of the evaluation on it."""

    def __init__(
        self, folder: Path, run_script: Any, task: str = "classification", runs: dict[str, Run] = RUNS
    ) -> None:
        self.folder, self.run_script, self.task, self.runs = folder, run_script, task, runs
        self.generator = np.random.default_rng(7)
        self.rows = {"train": self._rows("train", 150), "validation": self._rows("validation", 150)}
        self.rows["test"] = self._rows("test", 220)
        self._write_data()
        for folder in ("base", *(f"runs/{name}/{stage}" for name, stage in self._stages())):
            self._manifest(folder)
        self._write_scores()
        for number, name in enumerate(self._trained()):
            self._write_training(name, number)
        self._write_timings()

    def finish(self) -> "MadeRun":
        """Run what makes the report; the gate passes for classification and fails for generation."""
        self.score_baselines()
        self.select()
        self.check_gate(minimum={"accuracy": 0.5} if self.task == "classification" else {"chrf": 99.5})
        self.summarize()
        self.write_report()
        return self

    def copied(self, folder: Path) -> "MadeRun":
        """The same run in another folder, to be changed."""
        shutil.copytree(self.folder, folder)
        other = copy.copy(self)
        other.folder = folder
        return other

    def path(self, name: str) -> Path:
        return self.folder / name

    def read(self, name: str) -> Any:
        return json.loads(self.path(name).read_text())

    def score_baselines(self) -> None:
        corpus = [word for split in self.rows for word in (f"--{split}", self.path(f"corpus/{split}.jsonl"))]
        self._run(
            "score_baselines",
            *corpus,
            "--template",
            "corpus/template.json",
            "--output",
            "scores/baselines.json",
            "--predictions",
            "scores/baselines.predictions.jsonl",
            seed=0,
            evaluate=EVALUATE,
        )

    def select(self, check: bool = True, **selection: Any) -> Any:
        return self._run(
            "select_model",
            *self.results(),
            "--output",
            "selection.json",
            check=check,
            seed=0,
            evaluate=EVALUATE,
            selection=SELECTION | selection,
            runs=[{"name": name, "group": run.group, "seed": run.seed} for name, run in self.runs.items()],
            scored=list(VARIANTS),
            unscored={"cuda-int4": "cuda"},
        )

    def fit_temperature(self, **decision: float) -> list[str]:
        """Fit it where rows are classified; returns how other scripts are told of it."""
        if self.task == "generation":
            return []
        more = {"decision": decision} if decision else {}
        words = [*self.results(), "--selection", "selection.json", "--output", "temperature.json"]
        self._run("fit_temperature", *words, seed=0, evaluate=EVALUATE, **more)
        return ["--temperature", "temperature.json"]

    def check_gate(self, check: bool = True, **gate: Any) -> Any:
        return self._run(
            "check_gate",
            "--score",
            "scores/model.test.json",
            "--predictions",
            "scores/model.test.predictions.jsonl",
            "--baseline-predictions",
            "scores/baselines.predictions.jsonl",
            "--base-predictions",
            "scores/base.test.predictions.jsonl",
            "--output",
            "gate.json",
            check=check,
            seed=0,
            evaluate=EVALUATE,
            gate={"minimum": {}, "beat_baseline": False} | gate,
        )

    def enforce_gate(self, check: bool = True) -> Any:
        return self.run_script(
            "enforce_gate",
            "--gate",
            "gate.json",
            "--report",
            "report.html",
            "--summary",
            "summary.json",
            "--output",
            "gate.passed",
            check=check,
            cwd=self.folder,
        )

    def summarize(self, check: bool = True, **decision: float) -> Any:
        return self._run(
            "summarize",
            *self.fit_temperature(**decision),
            "--audit",
            "data/audit.json",
            "--split",
            "data/split.json",
            "--leakage",
            "corpus/leakage.json",
            "--tokenizer",
            "corpus/onnx_tokenizer.json",
            *self._baselines(),
            "--base-validation",
            "scores/base.validation.json",
            "--base-validation-predictions",
            "scores/base.validation.predictions.jsonl",
            "--base-test",
            "scores/base.test.json",
            "--base-test-predictions",
            "scores/base.test.predictions.jsonl",
            "--base",
            "base",
            *self.results(),
            "--selection",
            "selection.json",
            "--gate",
            "gate.json",
            *self._model(),
            "--model-manifest",
            "assembled.manifest.json",
            "--output",
            "summary.json",
            check=check,
            seed=0,
            evaluate=EVALUATE,
            runs=[{"name": name, "stages": run.stages, "trained": run.trained} for name, run in self.runs.items()],
            built=[*VARIANTS, "cuda-int4"],
            scored=list(VARIANTS),
        )

    def write_report(self, check: bool = True) -> Any:
        return self.run_script(
            "write_report",
            "--settings",
            self.configuration(),
            "--summary",
            "summary.json",
            "--selection",
            "selection.json",
            "--audit",
            "data/audit.json",
            "--split",
            "data/split.json",
            "--leakage",
            "corpus/leakage.json",
            "--baselines",
            "scores/baselines.json",
            *self.results(),
            *self._model(),
            "--rows",
            "corpus/test.jsonl",
            "--template",
            "corpus/template.json",
            "--timings",
            "timings",
            "--logs",
            "logs",
            "--output",
            "report.html",
            check=check,
            cwd=self.folder,
        )

    def configuration(self) -> dict[str, Any]:
        package = {"name": "llm-made-up", "version": "0.1", "sha256": "ab" * 32, "file": "made/Made-135M-Instruct.gguf"}
        return {
            "results": "results", "seed": 0, "task": self.task, "sweep": SAMPLED if self.runs is SWEEP else NO_SWEEP,
            "data": {"files": ["data/tweets.json"], "target": "sentiment", "labels": LABELS},
            "base_model": {"package": package, "parameters": 134515008},
            "corpus": {"template": "chat", "user": "Tone?\n{text}", "max_length": 128},
            "variants": {name: {"precision": "int4", "execution_provider": "cpu"} for name in VARIANTS},
            "evaluate": EVALUATE, "selection": SELECTION, "gate": {"minimum": {"accuracy": 0.7}, "beat_baseline": "shown"},
        }  # fmt: skip

    def _run(self, name: str, *words: Any, check: bool = True, **settings: Any) -> Any:
        return self.run_script(
            name, "--settings", {"task": self.task, **settings}, *words, check=check, cwd=self.folder
        )

    def _baselines(self) -> list[str]:
        return ["--baselines", "scores/baselines.json", "--baseline-predictions", "scores/baselines.predictions.jsonl"]

    def _model(self) -> list[str]:
        score = "scores/model.test"
        return ["--model-score", f"{score}.json", "--model-predictions", f"{score}.predictions.jsonl"]

    def _stages(self) -> list[tuple[str, str]]:
        return [(name, stage) for name, run in self.runs.items() for stage in run.stages]

    def _trained(self) -> list[str]:
        return [name for name, run in self.runs.items() if run.trained]

    def results(self) -> list[str]:
        """The folder, for the scripts that find files of all runs in it."""
        return ["--results", "."]

    def _rows(self, split: str, count: int) -> list[dict[str, Any]]:
        rows = []
        for number in range(count):
            label = LABELS[int(self.generator.choice(3, p=[0.3, 0.2, 0.5]))]
            pool = WORDS[label if self.generator.random() < 0.75 else "neutral"].split()
            text = f"{split} {number}: {' '.join(self.generator.choice(pool, 4))}" + f" so {label}" * (number % 9 == 0)
            text = NASTY if split == "test" and number == 0 else text
            label = "negative" if split == "test" and number == 0 else label
            row = {"id": f"{split}{number}", "prompt": f"<|user|>Tone?\n{text}<|end|>"}
            answer = label if self.task == "classification" else f"It is a {label} one, number {number % 20}."
            rows.append({**row, "completion": f"{answer}<|end|>"} | ({"label": label} if answer == label else {}))
        return rows

    def _write_data(self) -> None:
        for split, rows in self.rows.items():
            write_jsonl(self.path(f"corpus/{split}.jsonl"), rows)
        classified = self.task == "classification"
        template = {
            "task": self.task,
            "target": "sentiment",
            "columns": ["text"],
            "prompt": CHAT["prompt"],
            "completion": [{"column": "sentiment"}, {"text": "<|end|>"}],
            "labels": LABELS if classified else None,
        }
        write_json(self.path("corpus/template.json"), template)
        counts = {split: len(rows) for split, rows in self.rows.items()}
        by_label = {
            label: {split: sum(row.get("label") == label for row in rows) for split, rows in self.rows.items()}
            for label in LABELS
        }
        write_json(self.path("data/split.json"), {"counts": counts, "by_label": by_label if classified else None})
        write_json(self.path("corpus/leakage.json"), {"rows": counts, "threshold": 0.8, "across_splits": {}})
        read = {"rows": sum(counts.values()), "differ": 3, "error": None, "examples": [], "asked_otherwise": 0}
        write_json(self.path("corpus/onnx_tokenizer.json"), read)
        words = {"share": 0.111, "by_label": dict.fromkeys(LABELS, 0.11)}
        shortcut = {"word": "cake", "label": "positive", "rows": 41, "rows_of_label": 40}
        write_json(self.path("data/audit.json"), {
            "task": self.task, "rows": 540, "kept": 520, "rejected": {"unreadable": 1, "exact_duplicate": 12, "label_conflict": 7},
            "exact_duplicates": 12, "label_conflicts": 7, "near_duplicate_clusters": 9, "near_duplicate_rows": 21,
            "largest_cluster": 4, "rows_in_mixed_clusters": 2 if classified else None, "labels": LABELS if classified else None,
            "classes": {label: sum(by_label[label].values()) for label in LABELS} if classified else None,
            "label_spellings": {"one_label": None, "differing_in_case": {"groups": [ALIKE]}} if classified else None, "unknown_labels": {},
            "label_word_in_text": words if classified else None, "keyword_shortcuts": [shortcut] if classified else None,
            "tokens": {"mean": 41.31, "p50": 40, "p90": 55, "p95": 60, "p99": 71, "max": 96, "max_length": 128,
                       "over_max_length": 0, "truncated": 0},
            "verdict": {"ok": True, "reasons": []}})  # fmt: skip

    def _write_scores(self) -> None:
        for split in ("validation", "test"):
            base = self._predictions(split, 0.45)
            self._write_score("base", split, base, "base")
        for name, run in self.runs.items():
            self._write_run(name, run)
        for folder in ("assembled", "model"):
            self._manifest(folder)
        self._write_score("model", "test", self._predictions("test", 0.82), "assembled")

    def _write_run(self, run: str, facts: Run) -> None:
        """Scores and speeds of a run's stages; each stage answers nearly as the first one does."""
        first = self._predictions("validation", facts.accuracy)
        stages = {stage: self._changed(first, 0.0) for stage in facts.stages}
        if "merged-original" in stages:
            stages["merged-original"] = self._changed(first, 0.02)
            self._write_merge(run, stages)
        stages["onnx-int4"] = self._changed(first, 0.06)
        stages["onnx-int4-mixed"] = self._changed(first, 0.02)
        stages["onnx-fp32"] = self._changed(first, 0.0)
        for number, (name, (size, rate)) in enumerate(VARIANTS.items()):
            self._manifest(f"runs/{run}/onnx/{name}", verified=True, size_bytes=int(size * 1e6))
            rate += 0.1 * list(self.runs).index(run) * (-1) ** number  # the machine is never quite the same
            speed = {**SPEED, "size_mb": size, "tokens_per_second": rate, "peak_rss_mb": 2.2 * size + 160}
            write_json(self.path(f"speed/{run}/{name}.json"), speed)
        self._manifest(f"runs/{run}/onnx/cuda-int4", verified=False, size_bytes=95_000_000)
        for stage, predictions in stages.items():
            of = f"runs/{run}/onnx/{stage.removeprefix('onnx-')}" if "onnx" in stage else f"runs/{run}/{stage}"
            self._write_score(f"{run}/{stage}", "validation", predictions, of)

    def _write_merge(self, run: str, stages: dict[str, list[dict[str, Any]]]) -> None:
        """What `choose_merge` says of the two merges."""
        found = {kind: build_statistics(self.task, stages[f"merged-{kind}"], LABELS)["macro_f1"] for kind in MERGES}
        values = {kind: compute_point_estimate(one) or 0.0 for kind, one in found.items()}
        chosen, other = sorted(MERGES, key=lambda kind: -values[kind])
        ends = bootstrap_interval(found[chosen], seed=0, samples=500, minus=found[other]) or [0.0, 0.0]
        write_json(self.path(f"runs/{run}/merge.json"), {
            "chosen": chosen, "metric": "macro_f1", "values": values, "difference": values[chosen] - values[other],
            "difference_ci95": ends, "is_significant": not ends[0] <= 0 <= ends[1]})  # fmt: skip

    def _write_score(self, stage: str, split: str, predictions: list[dict[str, Any]], of: str) -> None:
        labels = LABELS if self.task == "classification" else None
        measured = measure_quality(self.task, predictions, labels, seed=0, samples=EVALUATE["bootstrap_samples"])
        inputs = {"model": hash_file(self.path(f"{of}.manifest.json"))}
        name = self.path(f"scores/{stage}.{split}.json")
        write_json(name, {"stage": stage, "split": split, "task": self.task, **measured, "inputs": inputs})
        write_jsonl(name.with_suffix(".predictions.jsonl"), predictions)

    def _predictions(self, split: str, accuracy: float) -> list[dict[str, Any]]:
        rows = []
        for number, row in enumerate(self.rows[split]):
            right = self.generator.random() < accuracy and number > 0  # the first row is always wrong
            free = number < EVALUATE["greedy_rows"]
            if self.task == "generation":
                wanted = row["completion"].removesuffix("<|end|>")
                answer = wanted if right else " ".join(wanted.split()[: 1 + number % 5]) + " <b>?</b>"
                tokens = len(wanted.split())
                rows.append(
                    {
                        "id": row["id"],
                        "reference": wanted,
                        "answer": answer if free else None,
                        "stopped": right if free else None,
                        "log_prob": -tokens * (0.4 if right else 2),
                        "tokens": tokens,
                    }
                )
                continue
            others = [label for label in LABELS if label != row["label"]]
            said = row["label"] if right else others[int(self.generator.integers(2))]
            rows.append(
                {
                    "id": row["id"],
                    "label": row["label"],
                    **self._said(said, None if number else 0.97),
                    "answer": (said if number % 7 or accuracy > 0.8 else "no idea") if free else None,
                    "stopped": accuracy > 0.8 or number % 7 > 0 if free else None,
                }
            )
        return rows

    def _said(self, label: str, sure: float | None = None) -> dict[str, Any]:
        sure = sure or float(self.generator.uniform(0.5, 0.95))
        log_probs = {other: math.log(sure if other == label else (1 - sure) / 2) for other in LABELS}
        return {"predicted": label, "log_probs": log_probs}

    def _changed(self, before: list[dict[str, Any]], share: float) -> list[dict[str, Any]]:
        """The same predictions, another one on the last `share` of the rows."""
        count = round(share * len(before))
        kept = before[: len(before) - count]
        if self.task == "generation":
            return [*kept, *({**row, "log_prob": 1.1 * row["log_prob"]} for row in before[len(kept) :])]
        return [
            *kept,
            *({**row, **self._said(LABELS[(LABELS.index(row["predicted"]) + 1) % 3])} for row in before[len(kept) :]),
        ]

    def _manifest(self, name: str, **facts: Any) -> None:
        """A folder of 2 MB of zeros, and its manifest."""
        self.path(name).mkdir(parents=True)
        with open(self.path(f"{name}/weights.bin"), "wb") as file:
            file.truncate(2_000_000)
        value = {"files": {"weights.bin": "cd" * 32}, "inputs": {"merged": "ef" * 32}, "settings": {}}
        value |= {"size_bytes": 2_000_000, **facts}
        write_json(self.path(f"{name}.manifest.json"), value)

    def _write_training(self, run: str, number: int) -> None:
        """The first run is of a time when the loss chose the checkpoint; later ones go by macro-F1."""
        curve = [{"step": step, "loss": 0.3 + 1.6 * math.exp(-step / 40)} for step in range(10, 211, 10)]
        curve += [
            {"step": step, "eval_loss": 0.42 + 1.2 * math.exp(-step / 40) + step / 4000} for step in (50, 100, 150, 200)
        ]
        best = {}
        if number:
            scores = {50: 0.61, 100: 0.74, 150: 0.73, 200: 0.76}
            curve += [{"step": step, "eval_macro_f1": value} for step, value in scores.items()]
            best = {"best_step": 200, "best_by": "macro_f1", "best_value": 0.76, "best_validation_loss": 0.4781}
        write_json(self.path(f"runs/{run}/training.json"), {
            "steps": 210, "best_step": 150, "best_validation_loss": 0.4857, "epochs": 1.0, "sequences": 3360,
            "real_tokens": 139_204, "supervised_tokens": 6720, "trainable_parameters": 4_884_480, "dtype": "float32",
            "threads": 2, "seconds": 640.12, "tokens_per_second": 217.5, "matmul_peak_gflops": 201.3,
            "matmul_peak_share": 0.36, "peak_rss_mb": 2210.4, "curve": curve, **best})  # fmt: skip

    def _write_timings(self) -> None:
        """Four jobs one after the other, 2 s apart, and an hour before the last one."""
        head = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
        rest = "\t1\t1\t1\t1\t1\t1\t1\n"
        start = 1_795_000_000.0
        for rule, name, seconds, peak, pause in [
            ("train_adapter", "lora", 652.31, "2210.4", 0.0),
            ("score_onnx", "lora/onnx-int4.validation", 30.5, "400.00", 2.0),
            ("score_onnx", "model.test", 50.25, "410.50", 2.0),
            ("check_gate", "time", 0.25, "NA", 3600.0),
        ]:
            timing = self.path(f"timings/{rule}/{name}.tsv")
            timing.parent.mkdir(parents=True, exist_ok=True)
            timing.write_text(f"{head}{seconds}\t0:00:01\t{peak}{rest}")
            log = self.path(f"logs/{rule}/{'log' if name == 'time' else name}.txt")
            log.parent.mkdir(parents=True, exist_ok=True)
            start += pause
            log.write_text(f"noise\ntime: started {start:.2f} start_up {seconds / 10:.2f} work {seconds * 0.8:.2f}\n")
            start += seconds
