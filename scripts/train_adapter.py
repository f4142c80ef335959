"""Train a LoRA adapter on the training rows; the checkpoint that is best on the validation rows is kept.

Progress lives in `WORK/KEY/`, where KEY follows from everything that determines the result
(settings, rows, base model, this code): a killed run resumes at its last checkpoint, a changed one
starts afresh, and an adapter that was already trained is published again in seconds. Before a time limit,
or on SIGTERM, it stops by itself with progress saved (exit code 75). With `--mirror` the progress is kept in a storage
as well, for jobs whose disk goes with them.
"""

import argparse
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lib.core import distributed
from lib.core.checksums import find_fault, remove, write_checksums
from lib.core.cli import Stopped, build_parser, parse_settings, report_loaded, report_progress, run
from lib.core.files import (
    dump_canonical_json,
    hash_file,
    hash_text,
    publish_directory,
    publish_file,
    read_json,
    write_json,
)
from lib.core.progress_lock import hold_progress
from lib.data.corpus import load_template, read_corpus
from lib.data.tokenizer import Tokenizer, load_tokenizer, read_max_tokens
from lib.evaluation.registry import SELECTED_BY
from lib.evaluation.torch_scorer import measure_task_quality
from lib.hardware.device import choose_training_dtype, measure_matmul_peak, use_threads
from lib.hardware.memory import measure_peak_rss_mb
from lib.models.loading import load_model
from lib.provenance.code_closure import find_code_closure, hash_code
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest
from lib.training import batching
from lib.training.adapter import build_lora_model, save_adapter
from lib.training.callbacks import (
    CheckpointMirror,
    TimeLimit,
    find_last_checkpoint,
    has_stopped_early,
    list_validations,
)
from lib.training.methods import choose_quantization
from lib.training.progress_feed import tell_trackers
from lib.training.trainer import AdapterTrainer, build_adapter_trainer

EVAL_ROWS = 1000  # that a validation scores where finetune.eval_rows is not set


def main(args: argparse.Namespace) -> None:
    distributed.init()
    use_threads(max(1, args.threads // distributed.get_local_world_size()))
    read_manifest(args.base)
    key = compute_progress_key(args)
    work = args.work / key
    deadline = find_deadline(args.limit)
    with hold_mirrored_progress(args.mirror, work, deadline) as saved:
        if not distributed.broadcast(has_result(work) if distributed.get_rank() == 0 else None):
            train(args, work, TimeLimit(deadline), saved)
        else:
            report_progress(f"train_adapter: this adapter is already trained ({work})")
        if distributed.get_rank() == 0:
            saved()
            publish(args, work / "result")
        distributed.wait_for_all()


@contextmanager
def hold_mirrored_progress(mirror: str | None, work: Path, deadline: float | None) -> Iterator[Callable[[], None]]:
    """Hold the progress, here and in the storage, for all processes; yields what copies it there."""
    with ExitStack() as stack:
        saved: Callable[[], None] = _copy_nothing
        if distributed.get_rank() == 0:
            stack.enter_context(hold_progress(work, deadline))
            if mirror:
                from lib.azure.checkpoint_mirror import mirror_checkpoints

                saved = stack.enter_context(mirror_checkpoints(f"{mirror}/{work.name}", work, deadline)).save
        yield saved


def has_result(work: Path) -> bool:
    """Return whether the adapter is trained already; a result whose bytes have changed is removed, and said."""
    result = work / "result"
    if not result.exists():
        return False
    if fault := find_fault(result):
        report_progress(f"train_adapter: {result} is not used: {fault}; training again")
        remove(result)
    return fault is None


def _copy_nothing() -> None:
    """Copy no progress: it is kept nowhere else."""


def find_deadline(minutes: float | None) -> float | None:
    """Return when a scheduler kills this job: `minutes` after the start, or what Slurm says; None: never.

    By the monotonic clock, which goes on evenly when somebody sets the time of day.
    """
    left = [60 * minutes] if minutes else []
    if "SLURM_JOB_END_TIME" in os.environ:  # Unix time
        left.append(float(os.environ["SLURM_JOB_END_TIME"]) - time.time())
    return time.monotonic() + min(left) if left else None


def compute_progress_key(args: argparse.Namespace) -> str:
    """Hash of all that determines the adapter's bytes; the number of threads and paths do not count."""
    script = Path(__file__).resolve()
    parts = {
        "settings": args.settings,
        "train": hash_file(args.train),
        "validation": hash_file(args.validation),
        "template": hash_file(args.template),
        "base": hash_file(build_manifest_path(args.base)),
        "code": hash_code((script, *find_code_closure(script))),
    }
    return hash_text(dump_canonical_json(parts))[:16]


def train(args: argparse.Namespace, work: Path, limit: TimeLimit, saved: Callable[[], None]) -> None:
    """Train from the last whole checkpoint in `work`, or from the start, and leave `work/result`.

    saved: called after each checkpoint. Raises `Stopped`, with progress saved, when the time is up.
    """
    from transformers import set_seed  # brings bitsandbytes, whose warnings belong into the log

    settings, seed = args.settings["finetune"], args.settings["seed"]
    evaluate = args.settings["evaluate"] | {"batch_size": settings["per_device_eval_batch_size"]}
    template = load_template(args.template)
    tokenizer = load_tokenizer(args.base)
    longest = read_max_tokens(args.base)  # of the built model: better said now than after the training
    rows = {
        "train": read_corpus(args.train),
        "validation": sample_validation(read_corpus(args.validation), settings, seed),
    }
    encoded = {name: encode_split(part, tokenizer, settings, longest) for name, part in rows.items()}
    dtype = choose_training_dtype(settings["dtype"])
    set_seed(seed)
    model = build_lora_model(load_model(args.base, dtype, choose_quantization(settings)), settings)
    classes = [row["label"] for row in rows["train"]] if settings["class_balance"] != "none" else None
    by_task = partial(
        measure_task_quality,
        tokenizer=tokenizer,
        template=template,
        rows=rows["validation"],
        evaluate=evaluate,
        with_loss=settings["loss"] == "completion",  # the label and nothing else: no second pass over the rows
    )
    trainer = build_adapter_trainer(
        model,
        encoded,
        settings,
        seed=seed,
        work=work,
        pad_id=min(tokenizer.end_ids),
        measure=by_task if settings["metric_for_best_model"] == "task" else None,
        classes=classes,
        more=[limit, CheckpointMirror(saved)],
    )
    if distributed.get_rank():  # no two processes drop the same values; the seed itself is the first one's
        torch.manual_seed(seed + 1_000_003 * distributed.get_rank())
    report_progress(
        f"train_adapter: {len(encoded['train'])} sequences, {count_trainable(model):,} trainable parameters, {dtype}"
    )
    report_loaded()
    with tell_trackers(args.trackers, *(describe_run(args, work) if args.trackers else [])) as feed:
        trainer.add_callback(feed)
        trainer.train(
            resume_from_checkpoint=distributed.broadcast(
                find_last_checkpoint(work) if distributed.get_rank() == 0 else None
            )
        )
        if limit.stopped:
            raise Stopped(f"the time is up at step {trainer.state.global_step} of {trainer.state.max_steps}, and saved")
        feed.finish()

    facts = describe_training(trainer, model, dtype, settings, classes)
    if distributed.get_rank():
        return
    with publish_directory(work / "result") as result:
        save_adapter(model, result / "adapter")
        write_json(result / "training.json", facts)
        write_json(result / "log.json", trainer.state.log_history)
        write_checksums(result)
    for folder in work.glob("checkpoint-*"):
        shutil.rmtree(folder)


def sample_validation(rows: list[dict[str, Any]], settings: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return the rows that each validation scores, in their order; the same for every run of a seed."""
    most = settings.get("eval_rows", EVAL_ROWS)
    if len(rows) <= most:
        return rows
    return [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), most))]


def encode_split(
    rows: list[dict[str, Any]], tokenizer: Tokenizer, settings: dict[str, Any], longest: int
) -> list[batching.Example]:
    """Return the sequences of a split: one for each row, or blocks of joined rows. longest: tokens of the model."""
    sequences = batching.encode_rows(tokenizer, rows, loss=settings["loss"], max_length=longest)
    return (
        batching.join_rows(sequences, settings["source_max_len"])
        if settings["corpus_strategy"] == "join"
        else sequences
    )


def describe_run(args: argparse.Namespace, work: Path) -> list[str]:
    """Return how trackers know this training: by its progress key, so each start of it is the same run."""
    settings = dump_canonical_json(args.settings)
    return ["--identity", work.name, "--name", args.run_name, "--settings", settings, "--folder", str(args.tracking)]


def count_trainable(model: Any) -> int:
    return sum(part.numel() for part in model.parameters() if part.requires_grad)


def describe_training(
    trainer: AdapterTrainer, model: Any, dtype: torch.dtype, settings: dict[str, Any], classes: list[str] | None
) -> dict[str, Any]:
    """Return what the report says about the training: curve, choice of the checkpoint, tokens, speed, memory.

    classes: of each training row, or None where they are not balanced.

    The share of the machine's matmul peak counts 4N operations a token: 2N forward and 2N for the
    gradients of the activations, none for frozen weights. N is the weights in the linear layers; the
    vocabulary head counts only where the loss needs it, LoRA's own operations not at all.
    """
    validation: Any = trainer.eval_dataset
    state, spent = trainer.state, trainer.spent.in_all()
    head = model.get_output_embeddings().weight.numel()
    body = sum(
        part.in_features * part.out_features  # weights in 4 bits are stored two a byte
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
    )
    operations = 4 * (spent.computed_tokens * body + spent.targets * head)
    (peak,) = distributed.all_reduce_sum([measure_matmul_peak(dtype)])
    best = next(entry for entry in list_validations(state) if entry["step"] == state.best_global_step)
    metrics = [*SELECTED_BY.values(), "loss"]
    best_by = next(name for name in metrics if f"eval_{name}" in best)
    return {
        "steps": state.global_step,
        "validation_rows": len(validation),
        "best_step": best["step"],
        "best_validation_loss": best["eval_loss"],
        "best_by": best_by,
        "best_value": best[f"eval_{best_by}"],
        "stopped_early": has_stopped_early(state, settings.get("early_stopping_patience")),
        "epochs": state.epoch,
        "sequences": trainer.order.rows,
        "class_balance": balance_facts(settings["class_balance"], classes) if classes else None,
        "real_tokens": spent.real_tokens,
        "computed_tokens": spent.computed_tokens,
        "supervised_tokens": spent.targets,
        "trainable_parameters": count_trainable(model),
        "dtype": str(dtype).removeprefix("torch."),
        "processes": distributed.get_world_size(),
        "threads": torch.get_num_threads(),
        "seconds": round(spent.seconds, 2),
        "tokens_per_second": round(spent.real_tokens / spent.seconds, 2),
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "matmul_peak_share": round(operations / spent.seconds / peak, 4),
        "peak_rss_mb": round(max(distributed.all_gather(measure_peak_rss_mb())), 1),
        "curve": [
            {"step": entry["step"], name: entry[name]}
            for entry in state.log_history
            for name in ("loss", *(f"eval_{name}" for name in reversed(metrics)))
            if name in entry
        ],
    }


def balance_facts(balance: str, classes: list[str]) -> dict[str, Any]:
    """Return training rows of each class, and what makes up for their numbers. balance: weight or oversample."""
    rows = dict(sorted(Counter(classes).items()))
    if balance == "weight":
        return {"method": balance, "rows": rows, "weights": batching.compute_class_weights(classes)}
    return {"method": balance, "rows": rows, "draws_per_epoch": dict.fromkeys(rows, max(rows.values()))}


def publish(args: argparse.Namespace, result: Path) -> None:
    with publish_directory(args.adapter) as folder:
        shutil.copytree(result / "adapter", folder, dirs_exist_ok=True)
    with publish_file(args.training) as partial:
        shutil.copyfile(result / "training.json", partial)
    write_manifest(
        args.adapter,
        inputs={
            "train": args.train,
            "validation": args.validation,
            "template": args.template,
            "base": build_manifest_path(args.base),
        },
        settings=args.settings,
        extra={
            "dtype": read_json(args.training)["dtype"],
            "quantization": choose_quantization(args.settings["finetune"]),
        },
    )


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="seed, finetune, evaluate, ...")
    arguments.add_argument("--train", type=Path, required=True, help="corpus/train.jsonl")
    arguments.add_argument("--validation", type=Path, required=True, help="corpus/validation.jsonl")
    arguments.add_argument("--template", type=Path, required=True, help="corpus/template.json")
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    arguments.add_argument("--work", type=Path, default=Path("work/train"), help="where progress is kept")
    arguments.add_argument("--mirror", metavar="az://CONTAINER/PATH", help="where it is kept as well, in Azure storage")
    arguments.add_argument(
        "--trackers", nargs="+", default=[], help="who is told the numbers meanwhile: tensorboard, mlflow"
    )
    arguments.add_argument("--run-name", default="train_adapter", help="what they call it")
    arguments.add_argument(
        "--tracking", type=Path, default=Path("work/tracking"), help="folder of trackers that write to this machine"
    )
    arguments.add_argument(
        "--adapter", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    arguments.add_argument("--training", type=Path, required=True, help="facts about the training, to write")
    arguments.add_argument("--threads", type=int, default=2, help="of all processes of a machine together")
    arguments.add_argument(
        "--processes", type=int, default=1, help="number of processes that train together, one for each GPU"
    )
    arguments.add_argument(
        "--limit", type=float, help="minutes until the scheduler ends this job; training stops before"
    )
    distributed.launch(arguments)
    run(arguments, main)
