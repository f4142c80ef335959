"""Train a LoRA adapter on the training rows; the checkpoint with the lowest validation loss is kept.

Progress lives in `WORK/KEY/`, where KEY follows from everything that determines the result
(settings, rows, base model, this code): a killed run resumes at its last checkpoint, a changed one
starts afresh, and an adapter that was already trained is published again in seconds.
"""

import argparse
import fcntl
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from lib import batches
from lib.checkpoints import load_model
from lib.cli import fail, loaded, parser, progress, run, settings_argument
from lib.closure import code_closure
from lib.corpus import read_rows
from lib.files import canonical_json, published_directory, read_json, sha256_file, sha256_text, write_json
from lib.machine import matmul_peak, training_dtype, use_threads
from lib.manifests import manifest_path, read_manifest, write_manifest
from lib.memory import peak_rss_mb
from lib.tokens import load_tokenizer
from lib.training import AdapterTrainer, adapter_trainer, last_checkpoint


def main(args: argparse.Namespace) -> None:
    use_threads(args.threads)
    read_manifest(args.base)
    key = progress_key(args)
    work = args.work / key
    with only_one(work):
        if not (work / "result" / "training.json").is_file():
            train(args, work)
        else:
            progress(f"train_adapter: this adapter is already trained ({work})")
        publish(args, work / "result")


def progress_key(args: argparse.Namespace) -> str:
    """Hash of all that determines the adapter's bytes; the number of threads and paths do not count."""
    script = Path(__file__).resolve()
    parts = {
        "settings": args.settings,
        "train": sha256_file(args.train),
        "validation": sha256_file(args.validation),
        "base": sha256_file(manifest_path(args.base)),
        "code": [sha256_file(path) for path in (script, *code_closure(script))],
    }
    return sha256_text(canonical_json(parts))[:16]


@contextmanager
def only_one(work: Path) -> Iterator[None]:
    """Hold the lock of a progress folder; wait for another training of the same adapter to end."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"train_adapter: another process trains this adapter; waiting for it ({work})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def train(args: argparse.Namespace, work: Path) -> None:
    """Train from the last whole checkpoint in `work`, or from the start, and leave `work/result`."""
    settings, seed = args.settings["finetune"], args.settings["seed"]
    tokenizer = load_tokenizer(args.base)
    config = read_json(args.base / "config.json")
    # The built model cannot read on behind a sliding window: better said now than after the training.
    limit = min(config.get(name) or 1 << 30 for name in ("max_position_embeddings", "sliding_window"))
    rows = {name: read_rows(path) for name, path in (("train", args.train), ("validation", args.validation))}
    encoded = {
        name: batches.encode_rows(tokenizer, part, loss=settings["loss"], max_length=limit)
        for name, part in rows.items()
    }
    if settings["corpus_strategy"] == "join":
        encoded = {name: batches.join_rows(part, settings["source_max_len"]) for name, part in encoded.items()}

    dtype = training_dtype(settings["dtype"])
    set_seed(seed)
    model = lora_model(load_model(args.base, dtype), settings)
    trainer = adapter_trainer(model, encoded, settings, seed=seed, work=work, pad_id=min(tokenizer.end_ids))
    progress(
        f"train_adapter: {len(encoded['train'])} sequences, {count_trainable(model):,} trainable parameters, {dtype}"
    )
    loaded()
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    if not losses or not all(math.isfinite(loss) for loss in losses):
        fail("the loss is not a finite number", "lower finetune.learning_rate")

    with published_directory(work / "result") as result:
        save_adapter(model, result / "adapter")
        write_json(result / "training.json", training_facts(trainer, model, dtype))
    for folder in work.glob("checkpoint-*"):
        shutil.rmtree(folder)


def lora_model(model: Any, settings: dict[str, Any]) -> Any:
    """The base model with fresh, seeded LoRA layers. Raises `UserError` when a target names no layer."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=settings["target_modules"],
    )
    if isinstance(settings["target_modules"], list):
        linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        unknown = sorted(set(settings["target_modules"]) - (linear - {"lm_head"}))
        if unknown:
            names = ", ".join(sorted(linear - {"lm_head"}))
            fail(f"finetune.target_modules: the base model has no layer {unknown[0]}", f"it has {names}")
    adapted = get_peft_model(model, config)
    if settings["gradient_checkpointing"]:
        adapted.enable_input_require_grads()
    return adapted


def save_adapter(model: Any, folder: Path) -> None:
    """Save as peft does, with `target_modules` sorted: peft writes a set in the order of its hashes."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    path = folder / "adapter_config.json"
    config = read_json(path)
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = None  # a path of this machine
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def count_trainable(model: Any) -> int:
    return sum(part.numel() for part in model.parameters() if part.requires_grad)


def training_facts(trainer: AdapterTrainer, model: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What the report says about the training: curve, tokens, speed, memory.

    The share of the machine's matmul peak counts 4N operations a token: 2N forward and 2N for the
    gradients of the activations, none for frozen weights. N is the weights in the linear layers; the
    vocabulary head counts only where the loss needs it, LoRA's own operations not at all.
    """
    state, spent = trainer.state, trainer.spent
    head = model.get_output_embeddings().weight.numel()
    body = sum(
        part.weight.numel()
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
    )
    operations = 4 * (spent.computed_tokens * body + spent.targets * head)
    peak = matmul_peak(dtype)
    best = min((entry for entry in state.log_history if "eval_loss" in entry), key=lambda entry: entry["eval_loss"])
    return {
        "steps": state.global_step,
        "best_step": best["step"],
        "best_validation_loss": best["eval_loss"],
        "epochs": state.epoch,
        "sequences": len(trainer.order),
        "real_tokens": spent.real_tokens,
        "computed_tokens": spent.computed_tokens,
        "supervised_tokens": spent.targets,
        "trainable_parameters": count_trainable(model),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seconds": round(spent.seconds, 2),
        "tokens_per_second": round(spent.real_tokens / spent.seconds, 2),
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "matmul_peak_share": round(operations / spent.seconds / peak, 4),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "curve": [
            {"step": entry["step"], name: entry[name]}
            for entry in state.log_history
            for name in ("loss", "eval_loss")
            if name in entry
        ],
    }


def publish(args: argparse.Namespace, result: Path) -> None:
    with published_directory(args.adapter) as folder:
        shutil.copytree(result / "adapter", folder, dirs_exist_ok=True)
    shutil.copyfile(result / "training.json", args.training)
    write_manifest(
        args.adapter,
        inputs={"train": args.train, "validation": args.validation, "base": manifest_path(args.base)},
        settings=args.settings,
        extra={"dtype": read_json(args.training)["dtype"]},
    )


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--settings", type=settings_argument, required=True, help="seed, finetune, versions")
    arguments.add_argument("--train", type=Path, required=True, help="corpus/train.jsonl")
    arguments.add_argument("--validation", type=Path, required=True, help="corpus/validation.jsonl")
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    arguments.add_argument("--work", type=Path, default=Path("work/train"), help="where progress is kept")
    arguments.add_argument(
        "--adapter", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    arguments.add_argument("--training", type=Path, required=True, help="facts about the training, to write")
    arguments.add_argument("--threads", type=int, default=2)
    run(arguments, main)
