"""Microsoft Olive beside slmflow, on the rows, the split and the base model of examples/tones.yaml.

    .venv/bin/snakemake --cores 2 --configfile examples/tones.yaml
    .venv/bin/python benchmarks/olive/run.py

Each recipe runs in Olive's own environment (work/olive-env, made from requirements.txt). The int4 model
it leaves is scored by slmflow's scorer on the same validation and test rows, each prompt and answer
written as Olive wrote it for the training. Prints the table of olive.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(HERE.parent)]

from bench import machine, markdown_table  # noqa: E402

from lib.core.files import read_json, read_jsonl  # noqa: E402
from lib.evaluation.comparison import compare_stages, measure_difference  # noqa: E402
from lib.provenance.manifests import write_manifest  # noqa: E402

HEAD = [
    *("", "accuracy, validation", "accuracy, test", "macro-F1, test", "slmflow minus it: accuracy on the test rows"),
    *("free answers right, test", "whole run, s", "CPU, s", "peak RSS, MB", "int4, MB", "lines of configuration"),
]
SPLITS = ("validation", "test")
Row = dict[str, Any]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", type=Path, default=ROOT / "results-tones", help="a finished run of tones.yaml")
    arguments.add_argument("--work", type=Path, default=ROOT / "work", help="where the environment and runs are kept")
    arguments.add_argument("--recipes", nargs="+", default=["seed", "tuned"], help="names of the files beside this one")
    arguments.add_argument("--max-steps", type=int, help="train this many steps only, to try the commands")
    args = arguments.parse_args()
    olive = environment(args.work / "olive-env")
    results = args.results.resolve()
    lines = [list_slmflow(results)]
    lines += [olive_line(name, olive, results, args.work / "olive" / name, args.max_steps) for name in args.recipes]
    print(machine("torch", "transformers", "peft", "onnxruntime-genai"))
    print(markdown_table(HEAD, lines))


def environment(folder: Path) -> Path:
    """Olive's program, installed at the first call."""
    program = folder / "bin" / "olive"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [folder / "bin" / "python", "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"]
        subprocess.run(install, check=True)
    return program.absolute()


def olive_line(name: str, olive: Path, results: Path, work: Path, max_steps: int | None) -> list[str]:
    """Run one recipe, score what it leaves, return its line of the table."""
    recipe = read_json(HERE / f"{name}.json")
    if max_steps:
        recipe["passes"]["lora"]["training_args"]["max_steps"] = max_steps
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "recipe.json").write_text(json.dumps(recipe))
    (work / "base").symlink_to(results / "base")
    write_train_rows(results, work / "train.json")
    wall, cpu, peak = measure_run([str(olive), "run", "--config", "recipe.json"], work)
    model = next((work / "output").rglob("genai_config.json")).parent
    write_manifest(model, inputs={}, settings={})
    write_score_rows(recipe, results, work)
    quality = {split: score(model, results, work, split) for split in SPLITS}
    size = sum(file.stat().st_size for file in model.iterdir()) / 1e6
    against = format_gain(work / "test.predictions.jsonl", results / "scores/model.test.predictions.jsonl")
    return line(f"Olive 0.13, `{name}.json`", quality, against, wall, cpu, peak, size, lines_of(HERE / f"{name}.json"))


def format_gain(theirs: Path, ours: Path) -> str:
    """Return the points of accuracy that ours has more on the same rows, with their 95 % interval and exact test."""
    pair = [list(read_jsonl(path)) for path in (theirs, ours)]
    found = measure_difference("classification", *pair, name="Olive", seed=0, samples=2000)
    p = compare_stages("classification", *pair, name="Olive")["against"]["mcnemar_p"]
    low, high = found["difference_ci95"]["accuracy"]
    return f"{100 * found['difference']['accuracy']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], p = {p:.2g}"


def list_slmflow(results: Path) -> list[str]:
    """Return what the finished run says of itself: all rules that make the model, from rows to package."""
    summary = read_json(results / "summary.json")
    run, variant = summary["selected"]["run"], summary["selected"]["variant"]
    wall = cpu = peak = 0.0
    # Training, merging, building: what Olive's run does; data, scoring and report are left out on both sides.
    for rule in (f"train_adapter/{run}", f"merge_adapter/{run}", f"build_onnx/{run}.{variant}"):
        names, values = ((results / "timings" / f"{rule}.tsv").read_text().splitlines()[n].split("\t") for n in (0, 1))
        facts = dict(zip(names, values, strict=True))
        wall, cpu = wall + float(facts["s"]), cpu + float(facts["cpu_time"])
        peak = max(peak, float(facts["max_rss"]) * 2**20 / 1e6)
    quality = {"validation": read_json(results / f"scores/{run}/onnx-{variant}.validation.json")["quality"],
               "test": read_json(results / "scores/model.test.json")["quality"]}  # fmt: skip
    lines = lines_of(ROOT / "examples/tones.yaml")
    return line(f"slmflow, `tones.yaml` ({variant})", quality, "", wall, cpu, peak, summary["model"]["size_mb"], lines)


def line(
    name: str, quality: dict[str, Any], against: str, wall: float, cpu: float, peak: float, size: float, lines: int
) -> list[str]:
    accuracy = {
        split: f"{q['accuracy']:.3f} [{q['accuracy_ci95'][0]:.3f}, {q['accuracy_ci95'][1]:.3f}]"
        for split, q in quality.items()
    }
    test = quality["test"]
    return [
        *(name, accuracy["validation"], accuracy["test"], f"{test['macro_f1']:.3f}", against),
        *(f"{test['greedy_accuracy']:.3f}", f"{wall:.0f}", f"{cpu:.0f}", f"{peak:.0f}", f"{size:.0f}", str(lines)),
    ]


def lines_of(file: Path) -> int:
    """Lines that say something: neither empty nor a comment."""
    lines = (text.strip() for text in file.read_text().splitlines())
    return sum(bool(text) and not text.startswith("#") for text in lines)


def measure_run(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Run a command; return wall seconds, CPU seconds and peak RSS in MB. What it says goes to FOLDER/log.txt."""
    start = time.monotonic()
    quiet = {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=quiet, stdout=log, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {command[0]}: exit code {process.returncode}; see {folder / 'log.txt'}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def kept_rows(results: Path, split: str) -> list[Row]:
    """The audited rows of a split, with their columns, in the order of the corpus."""
    kept = {row["id"]: row for row in read_jsonl(results / "data/kept.jsonl")}
    return [kept[row["id"]] for row in read_jsonl(results / f"corpus/{split}.jsonl")]


def write_train_rows(results: Path, file: Path) -> None:
    rows = [{**row["values"], "tone": row["target"]} for row in kept_rows(results, "train")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_score_rows(recipe: Row, results: Path, work: Path) -> None:
    """Rows and template for the scorer, in the text that the recipe trained on (`get_text` of Olive).

    Joined rows end in a space and the end token where Olive adds special tokens, as it does by default.
    """
    options = recipe["data_configs"][0]["pre_process_data_config"]
    own = read_json(results / "corpus/template.json")
    prompt, _, after = options["text_template"].partition("{tone}")
    if options.get("add_special_tokens", True):
        config = read_json(results / "base/tokenizer_config.json")
        prompt, after = f"{config['bos_token']} {prompt}", f"{after} {config['eos_token']}"
    before, _, between = prompt.partition("{phrase}")
    template = own | {
        "prompt": [{"text": before}, {"column": "phrase"}, {"text": between}],
        "completion": [{"column": "tone"}, {"text": after}],
    }
    (work / "template.json").write_text(json.dumps(template))
    for split in SPLITS:
        rows = [
            {"id": row["id"], "prompt": before + row["values"]["phrase"] + between,
             "completion": row["target"] + after, "label": row["target"]}
            for row in kept_rows(results, split)
        ]  # fmt: skip
        (work / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def score(model: Path, results: Path, work: Path, split: str) -> dict[str, Any]:
    """Quality of an ONNX model on the rows of a split, by slmflow's scorer; every row answers freely too."""
    evaluate = {"greedy_rows": 1000, "max_new_tokens": 16, "batch_size": 16, "bootstrap_samples": 2000}
    settings = json.dumps({"task": "classification", "seed": 0, "evaluate": evaluate, "versions": {}})
    output = work / f"{split}.json"
    subprocess.run(
        [sys.executable, ROOT / "scripts/score_onnx.py", "--settings", settings, "--model", model,
         "--tokenizer", results / "base", "--rows", work / f"{split}.jsonl", "--template", work / "template.json",
         "--stage", "olive", "--split", split, "--output", output,
         "--predictions", work / f"{split}.predictions.jsonl"],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return read_json(output)["quality"]


if __name__ == "__main__":
    main()
