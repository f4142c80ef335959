"""The training loop: transformers' Trainer with our batches, order of rows, validation loss and checkpoints."""

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from lib import batches
from lib.cli import progress
from lib.files import read_json, write_json
from lib.lora import fuse_lora
from lib.memory import keep_freed_memory
from lib.packing import PackingCollator, can_pack

_COMPLETE = "complete.json"  # written last into a checkpoint: one without it was cut short


def adapter_trainer(
    model: Any,
    encoded: dict[str, list[batches.Example]],
    settings: dict[str, Any],
    *,
    seed: int,
    work: Path,
    pad_id: int,
) -> "AdapterTrainer":
    """Trainer of a peft model. encoded: `train` and `validation`; settings: the section `finetune`."""
    lengths = [len(example["input_ids"]) for example in encoded["train"]]
    packed = can_pack(model.base_model.model, encoded["train"], pad_id)
    fuse_lora(model)
    keep_freed_memory()
    spent = Spent()
    return AdapterTrainer(
        order=batches.EpochOrder(
            len(lengths),
            seed=seed if settings["data_seed"] is None else settings["data_seed"],
            batch=settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"],
            lengths=lengths if settings["group_by_length"] else None,
        ),
        spent=spent,
        model=model,
        args=training_arguments(settings, seed, work, next(model.parameters()).dtype),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=PackingCollator() if packed else batches.Collator(pad_id),
        compute_loss_func=batches.completion_loss,
        callbacks=[Progress(work, spent)],
    )


def training_arguments(settings: dict[str, Any], seed: int, work: Path, dtype: torch.dtype) -> TrainingArguments:
    same_name = (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "learning_rate",
        "lr_scheduler_type",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "max_grad_norm",
        "eval_steps",
        "logging_steps",
    )
    arguments = TrainingArguments(
        output_dir=str(work),
        **{name: settings[name] for name in same_name},
        num_train_epochs=settings["epochs"],
        max_steps=settings["max_steps"] or -1,
        # A whole number would be read as a number of steps.
        warmup_steps=min(settings["warmup_share"], 0.999),
        eval_strategy="steps",
        save_steps=settings["eval_steps"],
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        seed=seed,
        bf16=dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )
    # Of several GPUs the first: torch's DataParallel, which the Trainer would start, averages losses wrongly.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class AdapterTrainer(Trainer):
    """Trainer with an order of rows that survives a resume and a validation loss per token."""

    def __init__(self, *, order: batches.EpochOrder, spent: "Spent", **options: Any) -> None:
        super().__init__(**options)
        self.order, self.spent = order, spent

    def _get_train_sampler(self, train_dataset: Any = None) -> batches.EpochOrder:
        return self.order

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        self.spent.real_tokens += inputs.pop("real_tokens")
        self.spent.computed_tokens += inputs["input_ids"].numel()
        self.spent.targets += int((inputs["labels"] != batches.IGNORED).sum())
        return super().training_step(model, inputs, *rest)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss per supervised token over all validation rows (the Trainer's own averages batches)."""
        total, tokens = 0.0, 0
        assert self.model is not None
        self.model.eval()
        with torch.inference_mode():
            for batch in self.get_eval_dataloader():
                inputs = self._prepare_inputs(batch)
                labels = inputs.pop("labels")
                inputs.pop("real_tokens")
                with self.compute_loss_context_manager():
                    loss = batches.completion_loss(self.model(**inputs), labels, num_items_in_batch=1)
                total += loss.item()
                tokens += int((labels != batches.IGNORED).sum())
        metrics = {"eval_loss": total / tokens}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@dataclass
class Spent:
    """What the training steps took; kept over a resume.

    real_tokens: of all rows; computed_tokens: that went through the linear layers (padding counts, what
    rows share does not); targets: supervised.
    """

    seconds: float = 0.0
    real_tokens: int = 0
    computed_tokens: int = 0
    targets: int = 0


class Progress(TrainerCallback):
    """Time spent in training steps, lines for the person who waits, whole checkpoints."""

    def __init__(self, work: Path, spent: Spent) -> None:
        self.work, self.spent, self.started = work, spent, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = self.work / f"checkpoint-{state.global_step}" / _COMPLETE
        if checkpoint.is_file():
            vars(self.spent).update(read_json(checkpoint))
            progress(f"train_adapter: resumed at step {state.global_step} of {state.max_steps}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.spent.seconds += time.perf_counter() - self.started

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs = given["logs"]
        if "loss" in logs or "eval_loss" in logs:
            name = "loss" if "loss" in logs else "eval_loss"
            left = self.spent.seconds / max(state.global_step, 1) * (state.max_steps - state.global_step)
            label = "training loss" if name == "loss" else "validation loss"
            progress(
                f"train_adapter: step {state.global_step} of {state.max_steps}, {label} {float(logs[name]):.4f},"
                f" about {left / 60:.0f} min left"
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        write_json(self.work / f"checkpoint-{state.global_step}" / _COMPLETE, asdict(self.spent))


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint; those cut short by a kill are removed."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        if (folder / _COMPLETE).is_file():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None
