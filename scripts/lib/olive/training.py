"""Olive's training passes as the section finetune, with Olive's defaults where slmflow's are others."""

from typing import Any

from lib.config.training import Finetune, Seed
from lib.config.variants import Section
from lib.olive.document import Block, Entry
from lib.olive.draft import Draft, list_defaults
from lib.olive.keys import KEYS, METHODS

# Of HFTrainingArguments and the passes in Olive 0.6, and in 0.13, where the rest are those of transformers.
_BOTH = {"r": 64, "lora_alpha": 16, "learning_rate": 2e-4, "gradient_checkpointing": True}
DEFAULTS: dict[bool, dict[str, Any]] = {
    True: {
        **_BOTH,
        **{"lora_dropout": 0.0, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1},
        **{"gradient_accumulation_steps": 16, "logging_steps": 10, "group_by_length": True},
    },
    False: {
        **_BOTH,
        **{"lora_dropout": 0.05, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8},
        **{"gradient_accumulation_steps": 1, "logging_steps": 500, "group_by_length": False},
    },
}
_SEED = 42
_OLD_STEPS = 10_000
_EPOCHS = 3  # of transformers, which Olive 0.13 leaves as it is
_NO_LIMIT = 1e9  # of the norm of gradients
_SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


def convert_training(draft: Draft, block: Block) -> None:
    """Set the sections finetune and seed from a training pass."""
    _convert_method(draft, block)
    _convert_layers(draft, block)
    _convert_dtype(draft, block)
    _convert_seed(draft, block)
    _copy_renamed(draft, block)
    _convert_norm(draft, block)
    steps = _convert_length(draft, block)
    _convert_schedule(draft, block)
    _convert_validation_steps(draft, block, steps)
    for name, value in list_defaults(DEFAULTS[draft.is_old]).items():
        if f"finetune.{name}" not in draft.values:
            draft.set(f"finetune.{name}", value, "Olive's default")


def _convert_method(draft: Draft, block: Block) -> None:
    draft.take_entry(block, "training", "type")
    method, comment = METHODS[block.type]
    draft.set("finetune.method", method, comment)
    if method != "qlora":
        return
    double = draft.take_entry(block, "training", "double_quant")
    if double is None or not draft.set_checked("finetune.double_quant", Finetune, double, double.value):
        draft.set("finetune.double_quant", False, "Olive's default")


def _convert_layers(draft: Draft, block: Block) -> None:
    entry = draft.take_entry(block, "training", "target_modules")
    if block.type in ("qlora", "loftq"):
        draft.set("finetune.target_modules", "all-linear", "as QLoRA in Olive")
        if entry is not None:
            draft.leave(entry, "Olive's QLoRA replaces it by all 4-bit layers, which are all-linear")
        return
    value = entry.value if entry is not None else None
    if isinstance(value, str) and value != "all-linear":
        value = [name.strip() for name in value.split(",") if name.strip().isidentifier()]
    if entry is None or value is None:
        draft.set(
            "finetune.target_modules", "all-linear", "Olive takes the layers that peft has for this kind of model"
        )
    else:
        draft.set_checked("finetune.target_modules", Finetune, entry, value)


def _convert_dtype(draft: Draft, block: Block) -> None:
    entry = draft.take_entry(block, "training", "compute_dtype", "torch_dtype")
    if entry is None:
        return
    if entry.value in ("float16", "fp16"):
        draft.set("finetune.dtype", "auto", "Olive's float16 is mixed precision; bfloat16 where the machine has it")
        return
    names = {"bf16": "bfloat16", "fp32": "float32"}
    draft.set_checked("finetune.dtype", Finetune, entry, names.get(str(entry.value), entry.value))


def _convert_seed(draft: Draft, block: Block) -> None:
    entry = draft.take_entry(block, "training_args", "seed")
    if entry is None or not draft.set_checked("seed", _Top, entry, entry.value, "of the split, too"):
        draft.set("seed", _SEED, "Olive's default; of the split, too")
    data = draft.take_entry(block, "training_args", "data_seed")
    is_set = data is not None and draft.set_checked("finetune.data_seed", Finetune, data, data.value)
    if not is_set and draft.is_old and draft.values["seed"] != _SEED:
        draft.set("finetune.data_seed", _SEED, "Olive's default")


class _Top(Section):
    """What stands at the top of a configuration and can be checked alone."""

    seed: Seed


def _copy_renamed(draft: Draft, block: Block) -> None:
    """Set what has another name at most: those keys of the table that become one key of finetune."""
    for kind in ("training", "training_args"):
        for entry in [one for one in block.entries if one.kind == kind and one.path not in draft.taken]:
            key = KEYS[kind].get(entry.key)
            path = key.to if key is not None else ""
            is_plain = path.startswith("finetune.") and key is not None and not key.says
            if not is_plain or path in draft.values or entry.value is None:
                continue
            if path == "finetune.quant_type" and draft.values["finetune.method"] != "qlora":
                draft.leave(entry, "only for qlora")
                continue
            draft.taken.add(entry.path)
            draft.set_checked(path, Finetune, entry, entry.value)


def _convert_norm(draft: Draft, block: Block) -> None:
    entry = draft.take_entry(block, "training_args", "max_grad_norm")
    if entry is None:
        return
    if isinstance(entry.value, (int, float)) and entry.value == 0:
        draft.set("finetune.max_grad_norm", _NO_LIMIT, "0 in Olive: no limit")
    else:
        draft.set_checked("finetune.max_grad_norm", Finetune, entry, entry.value)


def _convert_length(draft: Draft, block: Block) -> int | None:
    """Set steps or epochs. Return the steps where they decide."""
    steps = draft.take_entry(block, "training_args", "max_steps")
    epochs = draft.take_entry(block, "training_args", "num_train_epochs")
    beside = f"overrides num_train_epochs: {epochs.value}, in Olive too" if epochs is not None else ""
    if steps is None and draft.is_old:
        draft.set("finetune.max_steps", _OLD_STEPS, "Olive 0.6's default", beside)
        return _OLD_STEPS
    is_given = steps is not None and steps.value not in (-1, 0)
    if steps and is_given and draft.set_checked("finetune.max_steps", Finetune, steps, steps.value, beside):
        return int(steps.value)
    if epochs is None or not draft.set_checked("finetune.num_train_epochs", Finetune, epochs, epochs.value):
        draft.set("finetune.num_train_epochs", _EPOCHS, "Olive's default")
    return None


def _convert_schedule(draft: Draft, block: Block) -> None:
    entry = draft.take_entry(block, "training_args", "lr_scheduler_type")
    schedule = str(entry.value) if entry is not None else "constant"
    warmup = draft.take_entry(block, "training_args", "warmup_steps", "warmup_ratio")
    if entry is None:
        draft.set("finetune.lr_scheduler_type", schedule, "Olive's default")
    elif schedule in _SCHEDULES:
        draft.set("finetune.lr_scheduler_type", schedule)
    else:
        nearest = "cosine" if schedule.startswith("cosine") else "linear"
        draft.set("finetune.lr_scheduler_type", nearest)
        draft.leave(entry, f"not one of {', '.join(_SCHEDULES)}; {nearest} is the nearest")
        schedule = nearest
    if schedule == "constant":
        draft.set("finetune.warmup_steps", 0, "constant has no warm-up, in Olive neither")
    elif warmup is not None:
        draft.set_checked("finetune.warmup_steps", Finetune, warmup, warmup.value)


def _convert_validation_steps(draft: Draft, block: Block, steps: int | None) -> None:
    """Set how often training validates, and what the best training checkpoint is."""
    strategy = draft.take_entry(block, "training_args", "eval_strategy", "evaluation_strategy")
    entry = draft.take_entry(block, "training_args", "eval_steps")
    if strategy is not None and strategy.value != "steps":
        draft.leave(strategy, "slmflow always validates, each eval_steps")
    every = _find_validation_steps(draft, block, entry, steps)
    if every is not None and steps is not None and every > steps:
        draft.set("finetune.eval_steps", steps, f"{every} in Olive, which never come within {steps} steps")
    elif every is not None:
        draft.set("finetune.eval_steps", every)
    best = draft.take_entry(block, "training_args", "load_best_model_at_end")
    metric = draft.take_entry(block, "training_args", "metric_for_best_model")
    if (best is not None and best.value is True) or (metric is not None and metric.value in ("loss", "eval_loss")):
        draft.set("finetune.metric_for_best_model", "loss")
        best = None
    if best is not None and best.value is not True:
        draft.leave(best, "the best training checkpoint becomes the adapter, not the last one")
    if metric is not None and metric.value not in ("loss", "eval_loss"):
        draft.leave(metric, "task or loss: finetune.metric_for_best_model")


def _is_evaluated(draft: Draft, block: Block) -> bool:
    """Return whether Olive validates by steps: asked for it, or in 0.13 where it has rows for it."""
    strategy = block.find("training_args", "eval_strategy", "evaluation_strategy")
    if strategy is not None:
        return bool(strategy.value == "steps")
    return not draft.is_old and block.find("training", "eval_data_config") is not None


def _find_validation_steps(draft: Draft, block: Block, entry: Entry | None, steps: int | None) -> int | None:
    """Return the steps between validations, or None where Olive says nothing that can be used."""
    if entry is None:
        # Without them transformers validates as often as it logs.
        default = DEFAULTS[draft.is_old]["logging_steps"]
        return int(draft.values.get("finetune.logging_steps", default)) if _is_evaluated(draft, block) else None
    value = entry.value
    if isinstance(value, float) and 0 < value < 1:
        if steps is None:
            draft.leave(entry, "a share of steps whose number is not known: finetune.eval_steps counts steps")
            return None
        value = max(1, round(value * steps))
    return int(value) if draft.set_checked("finetune.eval_steps", Finetune, entry, value) else None
