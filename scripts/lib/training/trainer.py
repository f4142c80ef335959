"""The training loop: transformers' Trainer with our batches, order of rows, validation and choice of the checkpoint."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from lib.core import distributed
from lib.core.checksums import find_fault
from lib.core.cli import fail
from lib.hardware.memory import keep_freed_memory
from lib.hardware.onednn import limit_kernel_cache, use_onednn
from lib.training import batching
from lib.training.callbacks import EarlyStopping, Progress, TrainingStats, TrimMemory
from lib.training.fused_lora import fuse_lora
from lib.training.methods import METHODS
from lib.training.packing import PackingCollator, can_pack, disable_packing

Measure = Callable[[Any], dict[str, float]]
"""The task's own metric of a model, by its name; higher is better. Beside it `loss` where its scores tell it."""


def build_adapter_trainer(
    model: Any,
    encoded: dict[str, list[batching.Example]],
    settings: dict[str, Any],
    *,
    seed: int,
    work: Path,
    pad_id: int,
    measure: Measure | None = None,
    classes: Sequence[str] | None = None,
    more: Sequence[TrainerCallback] = (),
) -> "AdapterTrainer":
    """Build the trainer of a peft model. encoded: `train` and `validation`; settings: the section `finetune`.

    measure: what chooses the checkpoint; None: the validation loss. classes: of each training row, for
    `class_balance`. more: callbacks after those of every training.
    """
    rows = encoded["train"]
    if settings["class_balance"] == "weight":
        assert classes is not None
        rows = batching.weight_examples(rows, classes)
    lengths = [len(example["input_ids"]) for example in rows]
    limit_kernel_cache()
    packed = can_pack(model.base_model.model, rows, pad_id)
    use_onednn(model)
    fuse_lora(model)
    keep_freed_memory()
    spent = TrainingStats()
    return AdapterTrainer(
        order=batching.EpochOrder(
            len(rows),
            seed=settings.get("data_seed", seed),
            batch=settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"],
            lengths=lengths if settings["group_by_length"] else None,
            classes=classes if settings["class_balance"] == "oversample" else None,
        ),
        spent=spent,
        measure=measure,
        lr_ratio=METHODS[settings["method"]].pick_options(settings).get("loraplus_lr_ratio"),
        model=model,
        args=build_training_arguments(settings, seed, work, next(model.parameters()).dtype),
        train_dataset=rows,
        eval_dataset=encoded["validation"],
        data_collator=PackingCollator() if packed else batching.Collator(pad_id),
        compute_loss_func=batching.compute_completion_loss,
        callbacks=[Progress(work, spent), TrimMemory(), EarlyStopping(settings.get("early_stopping_patience")), *more],
    )


def build_training_arguments(settings: dict[str, Any], seed: int, work: Path, dtype: torch.dtype) -> TrainingArguments:
    batch, accumulation = batching.split_batch(
        settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"], distributed.get_world_size()
    )
    same_name = (
        "per_device_eval_batch_size",
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
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=settings["num_train_epochs"],
        max_steps=settings.get("max_steps", -1),
        # A whole number would be read as a number of steps.
        warmup_steps=settings["warmup_steps"],
        eval_strategy="steps",
        save_steps=settings["eval_steps"],
        save_total_limit=None,  # lib.training.callbacks drops old ones
        load_best_model_at_end=True,  # which one that is says AdapterTrainer
        seed=seed,
        bf16=dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # every LoRA layer is used in every step
        ddp_broadcast_buffers=False,  # they are never changed
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )
    # A process takes one GPU: torch's DataParallel, which the Trainer would start, averages losses wrongly.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class AdapterTrainer(Trainer):
    """Trainer with an order of rows that survives a resume, and its own validation and choice of the checkpoint.

    measure: the task's metric, by which the best checkpoint is chosen; None: by the validation loss.
    lr_ratio: learning rate of the B matrices by that of the A matrices (LoRA+); None: one for all.
    """

    def __init__(
        self,
        *,
        order: batching.EpochOrder,
        spent: TrainingStats,
        measure: Measure | None = None,
        lr_ratio: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.order, self.spent, self.measure, self.lr_ratio = order, spent, measure, lr_ratio

    def get_train_dataloader(self) -> "_Loader":
        """Return this process's batches; not through accelerate, which repeats rows at the end of an epoch."""
        rows: Any = self.train_dataset
        shares = batching.DistributedBatchSampler(
            self.order,
            self.args.per_device_train_batch_size,
            rank=distributed.get_rank(),
            size=distributed.get_world_size(),
            filler=len(rows),
        )
        filled: Any = [*rows, {**rows[0], "weight": 0.0}]
        return _Loader(filled, batch_sampler=shares, collate_fn=self.data_collator)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Build AdamW as configured; with `lr_ratio` in two groups, A and B matrices (LoRA+, Hayou et al. 2024)."""
        if self.lr_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        from peft.optimizers import create_loraplus_optimizer

        adapted: Any = self.model
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, adapted)
        self.optimizer = create_loraplus_optimizer(
            adapted,
            optimizer_class,
            loraplus_lr_ratio=self.lr_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **options,
        )
        # peft also makes groups for embeddings and biases, which adapters of ours do not have.
        self.optimizer.param_groups = [group for group in self.optimizer.param_groups if group["params"]]
        return self.optimizer

    def _run_epoch(self, *given: Any, **options: Any) -> None:
        # The Trainer asks only after a step, so that a run resumed at its end would take one more.
        if not self.control.should_training_stop:
            super()._run_epoch(*given, **options)

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        tokens = inputs.pop("real_tokens")
        if "weights" not in inputs or inputs["weights"].any():  # no filler
            self.spent.real_tokens += tokens
            self.spent.computed_tokens += inputs["input_ids"].numel()
            self.spent.targets += int((inputs["labels"] != batching.IGNORED).sum())
        return super().training_step(model, inputs, *rest)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        self.compute_loss_func = partial(batching.compute_completion_loss, weights=inputs.pop("weights", None))
        return super().compute_loss(model, inputs, *rest, **options)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """Return what the loss of an optimizer step is divided by, in all processes: the weights of its supervised
        tokens, or their number.
        """
        if not batch_samples:
            return None
        own = torch.stack([count_supervised(batch) for batch in batch_samples]).sum().to(device)
        # Weights are fractions, numbers of tokens are not, and a filler has weights.
        return self.accelerator.gather(own.double()).sum() if distributed.get_world_size() > 1 else own

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return validation loss and, where it decides, the task's metric; the training goes on as if nothing had been.

        Raises `UserError` when the loss is not a finite number.
        """
        model: Any = self.model
        with preserve_state(model):
            measured = self._measure() if self.measure is not None else {}
            loss = measured.pop("loss") if "loss" in measured else self._compute_validation_loss()
        if not math.isfinite(loss):
            fail("the loss is not a finite number", "lower finetune.learning_rate")
        metrics = {"eval_loss": loss, **{f"eval_{name}": value for name, value in measured.items()}}
        self.log(dict(metrics))  # which adds the epoch to what it is given
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measure(self) -> dict[str, float]:
        """Return what `measure` finds; `generate` goes past the forward that accelerate has wrapped in its autocast."""
        model: Any = self.model
        assert self.measure is not None
        with disable_packing(model.base_model.model), self.accelerator.autocast():
            return self.measure(model)

    def _compute_validation_loss(self) -> float:
        """Return loss per supervised token over all validation rows (the Trainer's own averages batches)."""
        loss_sum, tokens = 0.0, 0
        rows: Any = self.eval_dataset
        size, collator, model = self.args.per_device_eval_batch_size, self.data_collator, self.model
        assert model is not None
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        with torch.inference_mode():
            for part in distributed.shard(parts):
                inputs = self._prepare_inputs(collator(part))
                labels = inputs.pop("labels")
                inputs.pop("real_tokens")
                with self.compute_loss_context_manager():
                    loss = batching.compute_completion_loss(model(**inputs), labels, num_items_in_batch=1)
                loss_sum += loss.item()
                tokens += int((labels != batching.IGNORED).sum())
        of_all = distributed.all_reduce_sum([loss_sum, tokens])
        return of_all[0] / of_all[1]

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Return whether this checkpoint is the best: the higher metric, then the lower loss, then the earlier step.

        `state.best_metric` holds these in this order, [metric, -loss] or [-loss]; it is saved with the state as JSON.
        """
        rank = [value for name, value in metrics.items() if name != "eval_loss"] + [-metrics["eval_loss"]]
        state: Any = self.state  # for transformers best_metric is one number, which it only keeps
        if state.best_metric is not None and rank <= state.best_metric:
            return False
        state.best_metric, state.best_global_step = rank, state.global_step
        return True

    def _load_best_model(self) -> None:
        """Load the best checkpoint, and nothing but the bytes that were saved.

        The Trainer keeps the last weights, with a warning, where it does not find the best ones. Raises `UserError`.
        """
        folder = Path(str(self.state.best_model_checkpoint))
        if fault := distributed.broadcast(find_fault(folder) if distributed.get_rank() == 0 else None):
            fail(f"the best checkpoint cannot be used: {fault}", "start again: it goes back to one before", at=folder)
        super()._load_best_model()


class _Loader(DataLoader[batching.Example]):
    """A loader that the Trainer tells which epoch it is."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def count_supervised(batch: dict[str, Any]) -> torch.Tensor:
    """Return how much of a batch counts: its weights, or the number of its supervised tokens."""
    return batch["weights"].sum() if "weights" in batch else (batch["labels"] != batching.IGNORED).sum()


@contextmanager
def preserve_state(model: Any) -> Iterator[None]:
    """Evaluate for a while; afterwards mode and torch's random numbers are as before.

    So neither how often nor by what is validated changes what is learned.
    """
    training = model.training
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            model.train(training)
