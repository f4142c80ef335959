"""Trainings of a tiny model, each in a process of its own as a rule starts it."""

import json
import subprocess
import sys
from pathlib import Path

from lib.core.files import hash_file, read_json, write_json, write_jsonl
from lib.data.templates import compile_template, render_completion, render_prompt
from lib.data.tokenizer import load_tokenizer
from support.paths import SCRIPTS

LABELS = ["joy", "joyful", "sadness"]
TEXTS = [
    "The dog came home",
    "Nobody called",
    "What a {lovely} day",
    "It rained on the way there and back",
    "He laughed",
]
FINETUNE = {
    "method": "lora",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": "all-linear",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "eval_steps": 4,
    "logging_steps": 2,
    "group_by_length": True,
    "gradient_checkpointing": False,
    "dtype": "float32",
    "loss": "completion",
    "corpus_strategy": "rows",
    "source_max_len": 64,
    "metric_for_best_model": "task",
    "class_balance": "none",
    "loraplus_lr_ratio": 16.0,
}
EVALUATE = {"greedy_rows": 6, "batch_size": 8, "max_new_tokens": 8}


def make_corpus(base: Path, folder: Path, rows: int = 40) -> Path:
    """Train and validation rows with their template, as render_corpus leaves them."""
    template = compile_template(
        {"user": "Tone? {text}"}, load_tokenizer(base), task="classification", target="tone", labels=LABELS
    )
    for split, count in (("train", rows), ("validation", 12)):
        write_jsonl(
            folder / f"{split}.jsonl",
            [
                {
                    "id": f"{split}{number}",
                    "prompt": render_prompt(template, {"text": f"{TEXTS[number % 5]} {'so ' * (number % 7)}{number}"}),
                    "completion": render_completion(template, LABELS[number % 3]),
                    "label": LABELS[number % 3],
                }
                for number in range(count)
            ],
        )
    write_json(folder / "template.json", template)
    return folder


def train_command(base: Path, corpus: Path, out: Path, work: Path, **changes: object) -> list[str]:
    settings = {
        **{"seed": 0, "task": read_json(corpus / "template.json")["task"], "versions": {}},
        **{"finetune": {**FINETUNE, **changes}, "evaluate": EVALUATE},
    }
    return [
        sys.executable,
        str(SCRIPTS / "train_adapter.py"),
        *("--settings", json.dumps(settings), "--train", str(corpus / "train.jsonl")),
        *("--validation", str(corpus / "validation.jsonl"), "--template", str(corpus / "template.json")),
        *("--base", str(base), "--work", str(work)),
        *("--adapter", str(out / "adapter"), "--training", str(out / "training.json"), "--threads", "2"),
    ]


def train(base: Path, corpus: Path, out: Path, work: Path, **changes: object) -> subprocess.CompletedProcess:
    return subprocess.run(train_command(base, corpus, out, work, **changes), capture_output=True, text=True)


def adapter_hash(out: Path) -> str:
    return hash_file(out / "adapter" / "adapter_model.safetensors")
