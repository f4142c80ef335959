"""Peak memory of training, merge, build and scoring, on random Llama models of several sizes.

    .venv/bin/python benchmarks/memory.py --tokenizer results/base --work work/memory

prints the tables of memory.md. Each script runs in a process of its own, as its rule runs it. The
smallest model stands for what the interpreter and the libraries take. Models are deleted afterwards.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from lib.config.schema import Finetune  # noqa: E402
from lib.config.variants import Variant  # noqa: E402

# Vocabulary 49,152 and tied embeddings, as SmolLM2 has them; the third is its size, the fourth that of
# SmolLM2-360M. hidden, intermediate, layers, heads, key-value heads.
SIZES = {
    "libraries": (64, 128, 2, 1, 1),
    "47M": (384, 1024, 16, 6, 6),
    "135M": (576, 1536, 30, 9, 3),
    "362M": (960, 2560, 32, 15, 5),
}
SHARD = "300MB"
VARIANTS: dict[str, dict[str, Any]] = {
    "int4": {"precision": "int4"},
    "int4-mixed": {
        "precision": "int4",
        "algo_config": "k_quant",
        "matmul_mixed_precision": "last_matmul:int8,mixed_layers:int8",
    },
    "fp32": {"precision": "fp32"},
}
FINETUNE = Finetune(r=16, lora_alpha=32, per_device_train_batch_size=16, eval_steps=1, max_steps=2)
EVALUATE = {"batch_size": 16, "greedy_rows": 4, "max_new_tokens": 8, "bootstrap_samples": 2000}
LABELS = ["sadness", "joy", "fear", "surprise"]


class Peak(NamedTuple):
    """MB. rss: highest resident set; anonymous: the part that is no file's pages, sampled every 10 ms."""

    rss: float
    anonymous: float
    seconds: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tokenizer", type=Path, required=True, help="folder of a base model, for its tokenizer")
    arguments.add_argument("--work", type=Path, required=True, help="folder for the models, deleted at the end")
    arguments.add_argument("--dtype", default="float32", help="dtype that the models are stored in")
    arguments.add_argument("--only", nargs="+", default=["train", "merge", "build", "score"], help="what to measure")
    arguments.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    args = arguments.parse_args()
    print(
        "| model | parameters | fp32, MB | largest shard, MB | largest matrix, fp32, MB | step | peak RSS, MB |"
        " without file pages, MB | s |"
    )
    print("| --- " * 9 + "|")
    for name in args.sizes:
        folder = args.work.resolve() / name
        subprocess.run(
            [sys.executable, "-c", "import sys, memory; memory.make(*sys.argv[1:])", str(folder),
             str(args.tokenizer.resolve()), name, args.dtype],
            check=True, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        facts = json.loads((folder / "facts.json").read_text())
        for step, command in steps(folder, args.only):
            peak = measure_peak(command)
            print(
                f"| {name} | {facts['parameters'] / 1e6:.1f} M | {facts['parameters'] * 4 / 1e6:.0f}"
                f" | {facts['shard'] / 1e6:.0f} | {facts['matrix'] * 4 / 1e6:.0f} | {step} | {peak.rss:.0f}"
                f" | {peak.anonymous:.0f} | {peak.seconds:.0f} |",
                flush=True,
            )
        shutil.rmtree(folder)


def steps(folder: Path, wanted: list[str]) -> list[tuple[str, list[str]]]:
    """Name and command of each step on the model in `folder`, in an order in which they can run."""
    settings = json.dumps({"into": "original", "versions": {}})
    score = {"task": "classification", "seed": 0, "evaluate": EVALUATE, "versions": {}}
    train = score | {"finetune": FINETUNE.model_dump(mode="json", exclude_none=True)}
    rows = ["--rows", f"{folder}/rows.jsonl"]
    result = [
        ("train", ["train_adapter", "--settings", json.dumps(train), "--train", f"{folder}/rows.jsonl",
                   "--validation", f"{folder}/rows.jsonl", "--template", f"{folder}/template.json",
                   "--base", f"{folder}/base", "--work", f"{folder}/progress",
                   "--adapter", f"{folder}/trained", "--training", f"{folder}/training.json"]),
        ("score", ["score_checkpoint", "--settings", json.dumps(score), "--model", f"{folder}/base", *rows,
                   "--template", f"{folder}/template.json", "--stage", "base", "--split", "validation",
                   "--output", f"{folder}/score.json", "--predictions", f"{folder}/predictions.jsonl"]),
        ("merge", ["merge_adapter", "--settings", settings, "--base", f"{folder}/base", "--adapter",
                   f"{folder}/adapter", *rows, "--merged", f"{folder}/merged"]),
    ]  # fmt: skip
    for name, variant in VARIANTS.items():
        options = json.dumps(
            {"variant": Variant.model_validate(variant).model_dump(mode="json", exclude_none=True), "versions": {}}
        )
        build = ["build_onnx", "--settings", options, "--merged", f"{folder}/base", *rows]
        result.append((f"build {name}", [*build, "--output", f"{folder}/{name}"]))
    return [(name, command) for name, command in result if name.split()[0] in wanted]


def measure_peak(command: list[str]) -> Peak:
    """Run a script to its end. Raises `SystemExit` with what it said when it fails."""
    script, *rest = command
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, f"{SCRIPTS}/{script}.py", *rest], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    anonymous = [0.0]
    watcher = threading.Thread(target=watch, args=(process.pid, anonymous), daemon=True)
    watcher.start()
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {script}: {said.decode()[-2000:]}")
    return Peak(usage.ru_maxrss * 1024 / 1e6, anonymous[0], time.monotonic() - start)


def watch(pid: int, highest: list[float]) -> None:
    """Keep the highest RssAnon of a process in MB, until it ends."""
    try:
        while True:
            status = Path(f"/proc/{pid}/status").read_text()
            highest[0] = max(highest[0], int(status.split("RssAnon:")[1].split()[0]) * 1024 / 1e6)
            time.sleep(0.01)
    except (OSError, IndexError):
        return


def make(folder: str, tokenizer: str, size: str, dtype: str) -> None:
    """Write a random model in shards, an adapter for it and rows of 96 tokens, as their rules would."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from lib.provenance.manifests import build_manifest_path, write_manifest

    target, source = Path(folder), Path(tokenizer)
    shutil.rmtree(target, ignore_errors=True)
    (target / "base").mkdir(parents=True)
    own = json.loads((source / "config.json").read_text())
    ends = {key: own[key] for key in ("bos_token_id", "eos_token_id")}
    hidden, intermediate, layers, heads, groups = SIZES[size]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=own["vocab_size"], hidden_size=hidden, intermediate_size=intermediate,
                    num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups,
                    max_position_embeddings=2048, tie_word_embeddings=True, **ends)
    ).to(getattr(torch, dtype))  # fmt: skip
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(target / "base", max_shard_size=SHARD)
    facts = {
        "parameters": model.num_parameters(),
        "shard": max(file.stat().st_size for file in (target / "base").glob("*.safetensors")),
        "matrix": max(part.numel() for part in model.parameters()),
    }
    (target / "facts.json").write_text(json.dumps(facts))
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copyfile(file, target / "base" / file.name)
    adapted = get_peft_model(model.float(), LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
    for name, part in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(part, std=0.02)
    adapted.save_pretrained(target / "adapter")
    write_manifest(target / "base", inputs={}, settings={})
    write_manifest(target / "adapter", inputs={"base": build_manifest_path(target / "base")}, settings={})
    rows = [
        {"id": str(n), "prompt": "word " * 90 + f"{n}\nTone:\n", "completion": f"{LABELS[n % 4]}<|im_end|>",
         "label": LABELS[n % 4]}
        for n in range(64)
    ]  # fmt: skip
    (target / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = {
        "task": "classification", "target": "tone", "columns": ["text"], "labels": LABELS, "max_length": 128,
        "prompt": [{"column": "text"}, {"text": "\nTone:\n"}],
        "completion": [{"column": "tone"}, {"text": "<|im_end|>"}], "truncation": "reject",
    }  # fmt: skip
    (target / "template.json").write_text(json.dumps(template))


if __name__ == "__main__":
    main()
