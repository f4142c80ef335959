"""The measurements of benchmarks/gpu.py: speed and memory of training, and of attention over packed rows.

gpu.py puts `scripts` and `tests` on the path before it imports this module.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_attention import VARLEN
from gpu_checks import FACT, NOT_RUN, Result, Workshop, check_merge, fill_lora_b, make_rows
from gpu_models import LLAMA, PHI3, Plan, build_config, build_model, free_memory, is_written, synchronize
from training import FINETUNE, plain_arguments
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback

from lib.models.loading import Quantization, load_model
from lib.training import batching
from lib.training.adapter import build_lora_model, save_adapter
from lib.training.packing import PackingCollator
from lib.training.trainer import build_adapter_trainer

QUANTIZATION: Quantization = {"quant_type": "nf4", "double_quant": True}
OUT_OF_MEMORY = "out of GPU memory"
_PAD = 2
_ROWS = 64  # batches of an epoch take them in another order each time


class Speed(NamedTuple):
    """Real tokens per second, their share of the matmul peak, and GB of the card's memory (None on a CPU)."""

    tokens_per_second: float
    share: float
    peak_gb: float | None


class SpeedLine(NamedTuple):
    """slmflow and the Trainer on the same rows; text instead of a speed: why there is none."""

    model: str
    rank: int
    length: int
    ours: Speed | str
    trainer: Speed | str
    varlen: Speed | str


class CountingTrainer(Trainer):
    """The Trainer as it comes, counting real and supervised tokens."""

    real_tokens = targets = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        self.real_tokens += int(inputs["attention_mask"].sum())
        self.targets += int((inputs["labels"] != batching.IGNORED).sum())
        return super().training_step(model, inputs, *rest)


class StepTimer(TrainerCallback):
    """Measure time and tokens of the steps after a warm-up, and end the training when `seconds` are over.

    count: returns real and supervised tokens so far. Time is wall time, collation included.
    """

    def __init__(self, count: Callable[[], tuple[int, int]], warm_up: int, seconds: float) -> None:
        self.count, self.warm_up, self.limit = count, warm_up, seconds
        self.start, self.before, self.seconds, self.tokens, self.targets = 0.0, (0, 0), 0.0, 0, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step < self.warm_up:
            return
        synchronize()
        now, (real, targets) = time.perf_counter(), self.count()
        if state.global_step == self.warm_up:
            self.start, self.before = now, (real, targets)
            return
        self.seconds, self.tokens, self.targets = now - self.start, real - self.before[0], targets - self.before[1]
        control.should_training_stop = self.seconds > self.limit and state.global_step >= self.warm_up + 3


def build_our_trainer(model: Any, rows: list[batching.Example], batch: int, folder: Path) -> Trainer:
    """Return slmflow's trainer without validation and training checkpoints."""
    settings = {**FINETUNE, "per_device_train_batch_size": batch, "num_train_epochs": 1000}
    encoded = {"train": rows, "validation": rows[:1]}
    trainer = build_adapter_trainer(model, encoded, settings, seed=0, work=folder, pad_id=_PAD)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    return trainer


def build_plain_trainer(
    model: Any, rows: list[batching.Example], batch: int, folder: Path, tokenizer: Any
) -> CountingTrainer:
    """Return transformers' Trainer: rows padded to the longest of their batch, all logits; the same order of rows."""
    arguments = plain_arguments(folder, model, batch, 1)
    arguments.num_train_epochs = 1000
    arguments._n_gpu = min(arguments.n_gpu, 1)
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=batching.IGNORED)
    trainer = CountingTrainer(model=model, args=arguments, train_dataset=list(rows), data_collator=collator)
    order = batching.EpochOrder(len(rows), seed=0, batch=batch)
    trainer._get_train_sampler = lambda *_: order  # type: ignore[method-assign]
    return trainer


def count_operations(model: Any, tokens: int, targets: int) -> float:
    """Return 4N operations a real token, N the weights of the linear layers; the head's on supervised tokens only."""
    body = sum(
        part.in_features * part.out_features
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
    )
    return 4 * (tokens * body + targets * model.get_output_embeddings().weight.numel())


def measure_training(
    plan: Plan, build: Callable[[], Any], rank: int, rows: list[batching.Example], batch: int, shop: Workshop, way: str
) -> Speed | str:
    """Return the speed of one way to train: `slmflow`, `varlen` (slmflow with that attention) or `Trainer`."""
    if plan.is_over():
        return f"{NOT_RUN}: time"
    try:
        return _measure_training(plan, build, rank, rows, batch, shop, way)
    except torch.cuda.OutOfMemoryError:
        return OUT_OF_MEMORY
    finally:
        free_memory()


def _measure_training(
    plan: Plan, build: Callable[[], Any], rank: int, rows: list[batching.Example], batch: int, shop: Workshop, way: str
) -> Speed | str:
    torch.manual_seed(0)
    model = build_lora_model(build(), {**FINETUNE, "r": rank, "lora_alpha": 2 * rank}).train()
    if plan.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    folder = shop.folder / "speed"
    if way == "Trainer":
        tokenizer = AutoTokenizer.from_pretrained(shop.models["tiny Llama"])
        trainer: Any = build_plain_trainer(model, rows, batch, folder, tokenizer)
        counter = trainer
    else:
        trainer = build_our_trainer(model, rows, batch, folder)
        if not isinstance(trainer.data_collator, PackingCollator):
            return "can_pack refuses the rows"
        counter = trainer.spent
        if way == "varlen":
            model.base_model.model.set_attn_implementation(VARLEN)
    timer = StepTimer(lambda: (counter.real_tokens, counter.targets), plan.warm_up, plan.seconds)
    trainer.add_callback(timer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    share = count_operations(model, timer.tokens, timer.targets) / timer.seconds / plan.peak
    memory = torch.cuda.max_memory_allocated() / 1e9 if plan.device == "cuda" else None
    return Speed(timer.tokens / timer.seconds, share, memory)


def measure_speeds(plan: Plan, shop: Workshop) -> Iterator[SpeedLine]:
    """Measure LoRA in bfloat16: each shape, rank and length; what matters most comes first."""
    for rank, name, length in product((16, 64), (LLAMA, PHI3), plan.lengths):
        rows = make_rows(_ROWS, length, build_config(name, plan.device).vocab_size)
        batch = plan.batch_tokens[name] // length
        measure = partial(measure_training, plan, partial(build_model, name, plan.device), rank, rows, batch, shop)
        varlen: Speed | str = ""
        ours, plain = measure("slmflow"), measure("Trainer")
        if (rank, name) == (16, LLAMA):
            varlen = measure("varlen") if plan.device == "cuda" else f"{NOT_RUN}: no CUDA"
        yield SpeedLine(plan.title(name), rank, length, ours, plain, varlen)


def measure_qlora(plan: Plan, base: Path, shop: Workshop) -> Iterator[SpeedLine | Result]:
    """Measure QLoRA on the Llama's shape, where bitsandbytes is installed."""
    if find_spec("bitsandbytes") is None:
        yield Result("QLoRA", NOT_RUN, "bitsandbytes is not installed")
        return
    if not is_written(base):
        yield Result("QLoRA", NOT_RUN, "its base model was not written")
        return
    for length in plan.lengths[:2]:
        rows = make_rows(_ROWS, length, build_config(LLAMA, plan.device).vocab_size)
        batch = plan.batch_tokens[LLAMA] // length
        build = partial(load_model, base, torch.bfloat16, QUANTIZATION)
        ours, plain = (measure_training(plan, build, 16, rows, batch, shop, way) for way in ("slmflow", "Trainer"))
        yield SpeedLine(f"{plan.title(LLAMA)}, QLoRA", 16, length, ours, plain, "")


def check_merge_of_shape(plan: Plan, base: Path, rows: Path, folder: Path) -> Iterator[Result]:
    """Merge an adapter into the Llama's shape, in bfloat16 as such models are published."""
    name = plan.title(LLAMA)
    if not is_written(base):
        yield Result(f"{name}: merge", NOT_RUN, "its base model was not written")
        return
    model = build_lora_model(load_model(base, torch.bfloat16), FINETUNE)
    fill_lora_b(model)
    save_adapter(model, folder / "adapter")
    del model
    free_memory()
    yield check_merge(name, base, folder / "adapter", folder / "merged", rows)


def judge_goal(lines: list[SpeedLine], device: str, share: float = 0.45, times: float = 2.0) -> Iterator[Result]:
    """Say in how many measurements of LoRA the goals are met; they are no comparison and fail nothing."""
    if device == "cpu":
        yield Result("goal", NOT_RUN, "it is set for an H100 or H200")
        return
    lines = [line for line in lines if "QLoRA" not in line.model]
    shares = [line.ours.share for line in lines if isinstance(line.ours, Speed)]
    met = sum(found >= share for found in shares)
    yield Result(f"goal: {share:.0%} of the matmul peak", FACT, f"met in {met} of {len(lines)}")
    ratios = [compute_ratio(line.ours, line.trainer) for line in lines]
    met = sum(ratio is not None and ratio >= times for ratio in ratios)
    yield Result(f"goal: {times:g} times the Trainer", FACT, f"met in {met} of {len(lines)}")


def compute_ratio(ours: Speed | str, other: Speed | str) -> float | None:
    """Return by how much slmflow is faster; None where one of them was not measured."""
    if isinstance(ours, str) or isinstance(other, str):
        return None
    return ours.tokens_per_second / other.tokens_per_second
