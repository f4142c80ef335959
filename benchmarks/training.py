"""Training: tokens per second of slmflow, of the Hugging Face Trainer as it comes, and of Olive's path, in turn.

    .venv/bin/snakemake --cores 2 --configfile benchmarks/chat.yaml -- results-chat/corpus/train.jsonl
    .venv/bin/python benchmarks/training.py --corpus results/corpus results-chat/corpus --dtypes float32 bfloat16

All three train the same base model on the same rows, in the same dtype, with the same threads, learning
rate and supervised tokens (Olive's: all tokens, as it does). A round gives each of them the same new
rows, slmflow and the Trainer in the same order; a token counts when it is a row's own, never padding.
Each way lives in a process of its own, which waits while the others train.
The validation loss after the last round is per supervised token, on the same rows. Writes the table to
benchmarks/training.md.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench import machine, markdown_table, write_table
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments, set_seed

from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.hardware.device import measure_matmul_peak, use_threads
from lib.models.loading import load_model
from lib.training import batching
from lib.training.adapter import build_lora_model
from lib.training.trainer import AdapterTrainer, build_adapter_trainer

spawned = multiprocessing.get_context("spawn")

BATCH = 16
LEARNING_RATE = 3e-4
FINETUNE: dict[str, Any] = {
    **{"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"},
    **{"dtype": "float32", "loss": "completion"},
    **{"corpus_strategy": "rows", "num_train_epochs": 1, "group_by_length": False, "class_balance": "none"},
    **{"per_device_train_batch_size": BATCH, "per_device_eval_batch_size": 32, "gradient_accumulation_steps": 1},
    **{"learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "warmup_steps": 0.0, "weight_decay": 0.0},
    **{"adam_beta1": 0.9, "adam_beta2": 0.999, "max_grad_norm": 1.0, "gradient_checkpointing": False},
    **{"eval_steps": 10**6, "logging_steps": 10**6, "method": "lora", "metric_for_best_model": "loss"},
}
# The recipe that slmflow replaces: rank 64 on the attention, rows joined to 1024 tokens, batch 1 x 4.
OLIVE = {"r": 64, "lora_alpha": 64, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
JOINED, ACCUMULATED = 1024, 4


class StepClock(TrainerCallback):
    """Seconds inside optimizer steps; making a Trainer and its first batch does not count."""

    seconds = started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter() - self.started


class Case(NamedTuple):
    """Hold what one set of rows in one dtype gave, by way: speeds of the rounds, loss; share of the tokens computed."""

    corpus: Path
    dtype: str
    speeds: dict[str, list[float]]
    losses: dict[str, float]
    computed: float
    peak: float
    tokens_in_row: float


def slmflow(model: Any, rows: list[batching.Example], tokenizer: Any, folder: Path) -> AdapterTrainer:
    pad_id = tokenizer.pad_token_id
    trainer = build_adapter_trainer(
        model, {"train": rows, "validation": rows[:1]}, FINETUNE, seed=0, work=folder, pad_id=pad_id
    )
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    return trainer


def default_trainer(model: Any, rows: list[batching.Example], tokenizer: Any, folder: Path) -> Trainer:
    """The Trainer as it comes: rows padded to the longest of their batch, all logits."""
    trainer = Trainer(
        model=model,
        args=plain_arguments(folder, model, BATCH, 1),
        train_dataset=list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=batching.IGNORED),
    )
    # The same batches as slmflow's, so that the losses can be compared.
    order = batching.EpochOrder(len(rows), seed=0, batch=BATCH)
    trainer._get_train_sampler = lambda *_: order  # type: ignore[method-assign]
    return trainer


def olive_path(model: Any, rows: list[batching.Example], tokenizer: Any, folder: Path) -> Trainer:
    """Rows joined and cut into blocks, every token supervised; the few tokens behind the last whole block are left."""
    blocks = [block for block in batching.join_rows(rows, JOINED) if len(block["input_ids"]) == JOINED]
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=batching.IGNORED)
    arguments = plain_arguments(folder, model, 1, ACCUMULATED)
    return Trainer(model=model, args=arguments, train_dataset=blocks, data_collator=collator)


WAYS: dict[str, Any] = {
    "slmflow": (slmflow, FINETUNE),
    "Trainer": (default_trainer, FINETUNE),
    "Olive's path": (olive_path, {**FINETUNE, **OLIVE}),
}


def plain_arguments(folder: Path, model: Any, batch: int, accumulated: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        num_train_epochs=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=model.dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=10**6,
    )


def live(name: str, base: Path, dtype: str, threads: int, calls: Connection) -> None:
    """Process of one way: trains on the rows it is sent and answers (seconds, computed tokens); else a loss."""
    use_threads(threads)
    make, settings = WAYS[name]
    tokenizer = AutoTokenizer.from_pretrained(base)
    set_seed(0)
    model = build_lora_model(load_model(base, getattr(torch, dtype)), settings)
    while True:
        task, rows = calls.recv()
        if task == "loss":
            calls.send(validation_loss(model, rows, tokenizer.pad_token_id))
            return
        clock = StepClock()
        with tempfile.TemporaryDirectory() as folder:
            trainer = make(model, rows, tokenizer, Path(folder))
            trainer.add_callback(clock)
            trainer.train()
        calls.send((clock.seconds, trainer.spent.computed_tokens if name == "slmflow" else 0))


def validation_loss(model: Any, rows: list[batching.Example], pad_id: int) -> float:
    """Per supervised token, over padded batches for every way alike."""
    model.eval()
    model.base_model.model.set_attn_implementation("sdpa")
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(rows), 32):
            batch = batching.Collator(pad_id)(rows[start : start + 32])
            labels, _ = batch.pop("labels"), batch.pop("real_tokens")
            total += batching.compute_completion_loss(model(**batch), labels, num_items_in_batch=1).item()
            tokens += int((labels != batching.IGNORED).sum())
    return total / tokens


def main(args: argparse.Namespace) -> None:
    use_threads(args.threads)
    cases = [measure(args, corpus, dtype) for corpus in args.corpus for dtype in args.dtypes]
    write_table(Path(__file__).with_suffix(".md"), report(args, cases))


def measure(args: argparse.Namespace, corpus: Path, dtype: str) -> Case:
    """All ways in turn on the rows of one corpus."""
    tokenizer = load_tokenizer(args.base)
    rows, validation = (
        batching.encode_rows(tokenizer, read_corpus(corpus / f"{split}.jsonl"), loss="completion", max_length=8192)
        for split in ("train", "validation")
    )
    # Olive's path takes whole blocks only: each round is as many rows as fill one of its steps.
    rounds = list(rounds_of(rows, JOINED * ACCUMULATED))[: args.rounds + 1]
    ways = {}
    for name in WAYS:
        calls, theirs = spawned.Pipe()
        spawned.Process(target=live, args=(name, args.base, dtype, args.threads, theirs), daemon=True).start()
        ways[name] = calls
    speeds: dict[str, list[float]] = {name: [] for name in WAYS}
    computed = 0  # tokens that went through slmflow's linear layers
    peaks = [measure_matmul_peak(getattr(torch, dtype))]
    for number, part in enumerate(rounds):
        size = sum(len(row["input_ids"]) for row in part)
        for name, calls in ways.items():
            calls.send(("train", part))
            seconds, through = calls.recv()
            speed = (JOINED * ACCUMULATED if name == "Olive's path" else size) / seconds
            print(f"{corpus}, {dtype}, round {number}: {name} {speed:.1f} tokens/s", flush=True)
            if number:  # the first round warms up
                speeds[name].append(speed)
                computed += through
        peaks.append(measure_matmul_peak(getattr(torch, dtype)))
    losses = {}
    for name, calls in ways.items():
        calls.send(("loss", validation[: args.validation_rows]))
        losses[name] = calls.recv()
    print(losses, flush=True)
    share = computed / sum(len(row["input_ids"]) for part in rounds[1:] for row in part)
    length = statistics.mean(len(row["input_ids"]) for row in rows)
    return Case(corpus, dtype, speeds, losses, share, max(peaks), length)


def rounds_of(rows: list[batching.Example], tokens: int) -> Any:
    """Consecutive rows with at least `tokens` tokens."""
    part: list[batching.Example] = []
    for row in rows:
        part.append(row)
        if sum(len(one["input_ids"]) for one in part) >= tokens:
            yield part
            part = []


def report(args: argparse.Namespace, cases: list[Case]) -> str:
    model = load_model(args.base, torch.float32)
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.weight.numel() for n, p in model.named_modules() if isinstance(p, torch.nn.Linear) and n != "lm_head")
    lines, shares = [], []
    for case in cases:
        rows = f"{case.corpus}, {case.tokens_in_row:.0f} tokens a row, {case.dtype}"
        ours = case.speeds["slmflow"]
        for name, values in case.speeds.items():
            ratios = [own / other for own, other in zip(ours, values, strict=True)]
            lines.append(
                [
                    *(rows, name, f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"),
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    f"{case.losses[name]:.4f}",
                ]
            )
        share = 4 * body * case.computed * statistics.median(ours) / case.peak
        shares.append([rows, f"{case.computed:.1%}", f"{case.peak / 1e9:.0f}", f"{share:.0%}"])
    return f"""# Training

    .venv/bin/snakemake --cores 2 --configfile benchmarks/chat.yaml -- results-chat/corpus/train.jsonl
    .venv/bin/python benchmarks/training.py {command_line(args)}

{machine("torch", "transformers", "peft", threads=args.threads)}

{args.rounds} rounds in turn after one to warm up; in each round each way, a process of its own, gets the same new
rows of about {JOINED * ACCUMULATED} tokens. `results` is the demo with its short text template, `results-chat` the same
rows in the model's chat template, where every prompt begins with the same instruction.
Batch {BATCH}, LoRA r 16 on all linear layers; Olive's path: r 64 on q, k, v, o; rows
joined to {JOINED} tokens, batch 1 x {ACCUMULATED}, every token supervised. Median (lowest to highest).

{markdown_table(["rows", "way", "real tokens/s", "slmflow is faster by", "validation loss"], lines)}

The losses are per supervised token, on {args.validation_rows} rows, after the same rows in training. slmflow and the
Trainer take the same steps with the same rows: in float32 they arrive at the same loss, in bfloat16 rounding sends
them apart, to either side. Olive's path takes an eighth of the steps and learns prompts too.

## Share of the machine's matmul peak

{markdown_table(["rows", "tokens computed", "peak, GFLOP/s", "share of the peak"], shares)}

4 operations a token and weight (2 forward, 2 for the gradients of the activations); N = {body:,} weights of the
linear layers without the vocabulary head ({head:,}), which runs on supervised tokens only and is not counted.
Peak: the best 1536-square matmul in that dtype between the rounds. What the rows of a batch share at their
beginning is computed once, and only tokens that went through the linear layers count for the share.
"""


def command_line(args: argparse.Namespace) -> str:
    return f"--base {args.base} --corpus {' '.join(map(str, args.corpus))} --dtypes {' '.join(args.dtypes)}"


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--base", type=Path, default=Path("results/base"), help="folder of the base model")
    arguments.add_argument("--corpus", type=Path, nargs="+", default=[Path("results/corpus")], help="corpus folders")
    arguments.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--validation-rows", type=int, default=210)
    arguments.add_argument("--threads", type=int, default=2)
    main(arguments.parse_args())
