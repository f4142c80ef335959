"""Four ways to fine-tune by nine ways to quantize on the tones: runs examples/methods.yaml, writes its numbers."""

import json
import subprocess
import sys
from typing import Any

from bench import SCRIPTS, machine, markdown_table, write_table

ROOT = SCRIPTS.parent
CONFIG = "examples/methods.yaml"


def main() -> None:
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile", CONFIG]
    if code := subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(code)
    summary = json.loads((ROOT / "results-methods" / "summary.json").read_text(encoding="utf-8"))
    write_table(ROOT / "benchmarks" / "methods.md", text(summary))


def text(summary: dict[str, Any]) -> str:
    data, chosen = summary["data"], summary["selected"]
    test, rival = summary["model"]["test"], summary["baselines"]["tfidf_logreg"]
    merge = summary["runs"]["qlora"]["merge"]
    low, high = merge["difference_ci95"]
    told = "shown" if merge["is_significant"] else "not shown: these rows cannot tell the two merges apart"
    apart = [one for one in summary["ranking"] if one["is_significant"]]
    return "\n".join(
        [
            "# Fine-tuning methods by quantization routes, on the tones",
            "",
            f"`python benchmarks/methods.py` ({CONFIG}: {data['train']} training, {data['validation']} validation,"
            f" {data['test']} test rows, one seed)",
            "",
            machine("torch", "peft", "bitsandbytes", "onnxruntime-genai", "auto-round"),
            "",
            "## Training, and what the merge kept (validation rows)",
            "",
            markdown_table(
                ("method", "seconds", "tokens/s", "peak RSS MB", "adapter: accuracy, 95 %", "macro-F1", "merged"),
                [list_training(name, run) for name, run in summary["runs"].items()],
            ),
            "",
            f"QLoRA's merge: into the {merge['chosen']} weights, macro-F1 {merge['values']['dequantized']:.3f}"
            f" (dequantized) and {merge['values']['original']:.3f} (original); the difference,"
            f" {merge['difference']:+.3f} [{low:+.3f}, {high:+.3f}], is {told}.",
            "",
            "## Accuracy on validation rows, and KL to the merged model in nats",
            "",
            by_route(summary),
            "",
            "## What it comes to",
            "",
            f"Chosen: {chosen['run']}/{chosen['variant']}, {chosen['reason']}.",
            "",
            f"On {test['n']} test rows it has accuracy {test['accuracy']:.3f} [{test['accuracy_ci95'][0]:.3f},"
            f" {test['accuracy_ci95'][1]:.3f}]; TF-IDF has {rival['test']['accuracy']:.3f}.",
            "",
            f"Of the {len(summary['ranking'])} combinations {len(apart)} are shown to be below the best one by these"
            " rows; the others cannot be told from it, and one seed says nothing about another.",
            "",
        ]
    )


def list_training(name: str, run: dict[str, Any]) -> list[str]:
    training, adapter, merged = (
        run["training"],
        *(run["stages"][stage]["validation"] for stage in ("adapter", "merged")),
    )
    return [
        name,
        f"{training['seconds']:.0f}",
        f"{training['tokens_per_second']:.0f}",
        f"{training['peak_rss_mb']:.0f}",
        interval(adapter),
        f"{adapter['macro_f1']:.3f}",
        f"{merged['accuracy']:.3f}",
    ]


def by_route(summary: dict[str, Any]) -> str:
    runs = summary["runs"]
    first = next(iter(runs.values()))["stages"]
    rows = []
    for stage in (stage for stage in first if stage.startswith("onnx-")):
        cells = [run["stages"][stage]["validation"] for run in runs.values()]
        rows.append(
            [
                stage.removeprefix("onnx-"),
                f"{first[stage]['size_mb']:.0f}",
                f"{first[stage]['tokens_per_second']:.0f}",
                *(f"{interval(cell)}, {cell['kl']:.3f}" for cell in cells),
            ]
        )
    return markdown_table(("route", "MB", "tokens/s", *runs), rows)


def interval(quality: dict[str, Any]) -> str:
    low, high = quality["accuracy_ci95"]
    return f"{quality['accuracy']:.3f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
