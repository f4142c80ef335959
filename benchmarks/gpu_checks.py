"""The comparisons of benchmarks/gpu.py, on tiny random models: losses, gradients, resume, DDP, merge, scoring.

gpu.py puts `scripts` and `tests` on the path before it imports this module.
"""

import os
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file
from transformers.utils import logging

from lib.core.files import read_json
from lib.data.corpus import load_template, read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.evaluation.torch_scorer import add_answers, score_labels, score_references
from lib.models.loading import load_adapter, load_model
from lib.models.merging import TOLERANCE, measure_logit_difference, merge
from lib.provenance.manifests import write_manifest
from lib.training.adapter import build_lora_model, save_adapter
from lib.training.batching import IGNORED, Collator, Example, compute_completion_loss
from lib.training.fused_lora import fuse_lora
from lib.training.packing import PackingCollator, can_pack
from support.tiny_models import make_tiny_llama, make_tiny_phi3
from support.training import FINETUNE, adapter_hash, make_corpus, train_command

logging.set_verbosity_error()
logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries about each other

PASS, FAIL, NOT_RUN, FACT = "PASS", "FAIL", "not run", "measured"
# Largest difference allowed, relative to the expected value: of a loss, and of all gradients together (by their norm).
TOLERANCES = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (2e-2, 1e-1)}
LOG_PROBABILITY_TOLERANCE = 1e-3
_PAD = 2


class Result(NamedTuple):
    """One line of the table. outcome: PASS, FAIL, `not run` or `measured`; detail: the numbers, or the reason."""

    name: str
    outcome: str
    detail: str


class Workshop(NamedTuple):
    """The tiny models, by name, each with a corpus of its own, and the folder for what is made of them.

    deadline: time of the monotonic clock.
    """

    folder: Path
    models: dict[str, Path]
    corpora: dict[str, Path]
    deadline: float


def open_workshop(folder: Path, deadline: float) -> Workshop:
    """Make the tiny models, as `fetch_model` would leave them, and their corpora."""
    models = {
        "tiny Llama": make_tiny_llama(folder / "llama" / "base"),
        "tiny Phi-3": make_tiny_phi3(folder / "phi3" / "base"),
    }
    for base in models.values():
        write_manifest(base, inputs={}, settings={"source": {"path": "tiny"}}, extra={"source_format": "safetensors"})
    corpora = {name: make_corpus(base, base.parent / "corpus") for name, base in models.items()}
    return Workshop(folder, models, corpora, deadline)


def judge(name: str, difference: float, allowed: float, detail: str = "") -> Result:
    """Return PASS when a difference is allowed; one that is not a number is not."""
    said = f"differ by {difference:.1e}, allowed {allowed:.0e}"
    return Result(name, PASS if difference <= allowed else FAIL, f"{detail}; {said}" if detail else said)


def make_rows(count: int, length: int, vocabulary: int, shared: int = 1) -> list[Example]:
    """Return random rows of a quarter of `length` to `length` tokens; the last quarter of each is supervised.

    shared: number of tokens that all rows begin with; one stands for the begin-of-text token. The first row is the
    longest one.
    """
    generator = torch.Generator().manual_seed(7)
    sizes = torch.randint(length // 4, length + 1, (count,), generator=generator).tolist()
    rows: list[Example] = []
    for number, size in enumerate([length, *sizes[1:]]):
        ids = torch.randint(10, vocabulary, (size,), generator=generator).tolist()
        # Another first token for each row, so that no more than `shared` tokens agree.
        ids[: shared + 1] = [3] * shared + [10 + number % (vocabulary - 10)]
        prompt = size - max(1, size // 4)
        rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return rows


def build_model_with_adapter(base: Path, dtype: torch.dtype, device: str) -> Any:
    """Return a tiny model with an adapter that does something: fresh B matrices are zero, and A gets no gradient."""
    torch.manual_seed(1)
    # Drawn on the CPU, or each device would draw other values.
    model = build_lora_model(load_model(base, dtype).cpu(), {**FINETUNE, "lora_dropout": 0.0})
    fill_lora_b(model)
    return model.to(device)


def fill_lora_b(model: Any) -> None:
    """Draw the B matrices of an adapter at random."""
    for name, part in model.named_parameters():
        if "lora_B" in name:
            part.data = (0.1 * torch.randn(part.shape, device="cpu")).to(part)


def compute_gradients(model: Any, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """Return the loss of a batch and the gradients of all LoRA matrices, one behind the other."""
    inputs = send_to_device(batch, model.device)
    labels = inputs.pop("labels")
    inputs.pop("real_tokens")
    model.zero_grad()
    loss = compute_completion_loss(model(**inputs), labels)
    loss.backward()
    parts = [part.grad.flatten().float().cpu() for part in model.parameters() if part.requires_grad]
    return loss.item(), torch.cat(parts)


def check_losses_and_gradients(shop: Workshop, device: str) -> Iterator[Result]:
    """Compare padded rows on the CPU (peft's own layers), padded rows here, and packed rows with fused layers here."""
    for name, base in shop.models.items():
        for shared in (0, 5):
            rows = make_rows(6, 160, 1000, shared)
            for dtype in TOLERANCES:
                yield from _compare_batches(f"{name}, {shared} shared tokens", base, rows, dtype, device)


def _compare_batches(name: str, base: Path, rows: list[Example], dtype: torch.dtype, device: str) -> Iterator[Result]:
    padded, packed = Collator(_PAD)(rows), PackingCollator()(rows)
    on_cpu = compute_gradients(build_model_with_adapter(base, dtype, "cpu"), dict(padded))
    model = build_model_with_adapter(base, dtype, device)
    found = {"padded": compute_gradients(model, dict(padded))}
    name = f"{name}, {str(dtype).removeprefix('torch.')}"
    if not can_pack(model.base_model.model, rows, _PAD):
        yield Result(f"{name}: packing", FAIL, "can_pack refuses the rows: losses of packed and padded rows differ")
        return
    fuse_lora(model)
    found["packed"] = compute_gradients(model, dict(packed))
    of_loss, of_gradients = TOLERANCES[dtype]
    losses = ", ".join(f"{way} {loss:.6f}" for way, (loss, _) in found.items())
    worst = max(abs(loss - on_cpu[0]) / abs(on_cpu[0]) for loss, _ in found.values())
    yield judge(f"{name}: losses", worst, of_loss, f"CPU {on_cpu[0]:.6f}, {losses}")
    worst = max(float((grads - on_cpu[1]).norm() / on_cpu[1].norm()) for _, grads in found.values())
    yield judge(f"{name}: gradients", worst, of_gradients, f"norm {float(on_cpu[1].norm()):.3g}")


def train(shop: Workshop, out: Path, *more: str, environment: dict[str, str] | None = None, **changes: Any) -> int:
    """Run `scripts/train_adapter.py` on the tiny Llama and return its exit code, 0 or 75 (stopped, progress saved).

    Raises `RuntimeError` with its last line when it failed.
    """
    base, corpus = shop.models["tiny Llama"], shop.corpora["tiny Llama"]
    command = train_command(base, corpus, out, out / "work", **changes)
    done = subprocess.run(
        [*command, *more],
        capture_output=True,
        text=True,
        env=os.environ | (environment or {}),
        timeout=max(1.0, shop.deadline - time.monotonic()),
    )
    if done.returncode not in (0, 75):
        raise RuntimeError((done.stderr.strip().splitlines() or ["train_adapter failed without a word"])[-1])
    return done.returncode


def check_resume(shop: Workshop) -> Iterator[Result]:
    """Train straight through, and again with a stop at a training checkpoint; the adapter's bytes must be the same."""
    changes: dict[str, Any] = {"dtype": "bfloat16", "num_train_epochs": 1, "metric_for_best_model": "loss"}
    straight, stopped = shop.folder / "straight", shop.folder / "stopped"
    train(shop, straight, **changes)
    code = train(shop, stopped, "--limit", "0.01", **changes)  # too short for anything: one step each time
    if code != 75:
        yield Result("resume", FAIL, f"a training with a limit ended with exit code {code}, not 75")
        return
    train(shop, stopped, **changes)
    if adapter_hash(straight) == adapter_hash(stopped):
        yield Result("resume", PASS, "bfloat16, stopped at step 1 and resumed: the adapter has the same bytes")
        return
    again = shop.folder / "again"
    train(shop, again, **changes)
    same = adapter_hash(straight) == adapter_hash(again)
    cause = "has the same bytes: resume is at fault" if same else "differs, too: its kernels are not deterministic"
    yield Result("resume", FAIL, f"the adapter has other bytes; a second training straight through {cause}")


def check_ddp(shop: Workshop) -> Iterator[Result]:
    """Compare training in one process and in several, one for each card; with fewer than two cards, on the CPU."""
    cards = torch.cuda.device_count()
    processes = max(cards, 2)
    where = f"{cards} cards (NCCL)" if cards > 1 else "2 CPU processes (gloo), since there are not two cards"
    hidden = {} if cards > 1 else {"CUDA_VISIBLE_DEVICES": ""}
    changes: dict[str, Any] = {"lora_dropout": 0.0, "num_train_epochs": 1, "metric_for_best_model": "loss"}
    changes |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": processes}
    places = {number: shop.folder / f"processes-{number}" for number in (1, processes)}
    for number, out in places.items():
        train(shop, out, "--processes", str(number), environment=hidden, **changes)
    one, several = (read_json(out / "training.json") for out in places.values())
    pairs = [
        (first[name], second[name])
        for first, second in zip(one["curve"], several["curve"], strict=True)
        for name in first.keys() & {"loss", "eval_loss"}
    ]
    worst = max(abs(second - first) / abs(first) for first, second in pairs)
    yield judge(f"DDP losses, {where}", worst, 1e-4, f"{len(pairs)} losses")
    one, several = (load_file(out / "adapter" / "adapter_model.safetensors") for out in places.values())
    worst = max(float((several[name] - part).abs().max() / part.abs().max()) for name, part in one.items())
    yield judge(f"DDP adapters, {where}", worst, 1e-2, f"{len(one)} matrices")


def check_merge(name: str, base: Path, adapter: Path, merged: Path, rows: Path) -> Result:
    """Merge an adapter and compare the logits of the merged model with those of base and adapter."""
    merged.mkdir(parents=True)
    started = time.perf_counter()
    changed, dtype = merge(base, adapter, merged)
    seconds = time.perf_counter() - started
    prompts = load_tokenizer(merged).encode_batch([row["prompt"] for row in read_corpus(rows)[:8]])
    difference = measure_logit_difference(base, adapter, merged, prompts)
    stored = str(dtype).removeprefix("torch.")
    return judge(f"{name}: merge", difference, TOLERANCE[dtype], f"{changed} {stored} weights, {seconds:.1f} s")


def check_stages(shop: Workshop, device: str) -> Iterator[Result]:
    """Merge an adapter, and score base, adapter and merged model here and on the CPU."""
    for name, base in shop.models.items():
        adapter, merged, corpus = base.parent / "adapter", base.parent / "merged", shop.corpora[name]
        save_adapter(build_model_with_adapter(base, torch.float32, "cpu"), adapter)
        yield check_merge(name, base, adapter, merged, corpus / "train.jsonl")
        stages = {
            "base": load_model(base),
            "adapter": load_adapter(load_model(base), adapter),
            "merged": load_model(merged),
        }
        scores = {}
        for stage, model in stages.items():
            here, seconds = score_stage(model.to(device), base, corpus)
            scores[stage], _ = score_stage(model.to("cpu"), base, corpus)
            worst = float((here - scores[stage]).abs().max())
            said = f"{len(here)} log probabilities, {seconds:.2f} s with greedy answers, beside the CPU's"
            yield judge(f"{name}: scores of {stage}", worst, LOG_PROBABILITY_TOLERANCE, said)
        worst = float((scores["merged"] - scores["adapter"]).abs().max())
        yield judge(f"{name}: scores of merged and adapter", worst, LOG_PROBABILITY_TOLERANCE)


def score_stage(model: Any, base: Path, corpus: Path) -> tuple[torch.Tensor, float]:
    """Return the log probabilities of labels and references of the validation rows, and the seconds that took."""
    tokenizer, template = load_tokenizer(base), load_template(corpus / "template.json")
    rows = read_corpus(corpus / "validation.jsonl")
    started = time.perf_counter()
    labeled = score_labels(model, tokenizer, template, rows, 8)
    add_answers(
        model, tokenizer, template, rows, labeled, {"greedy_rows": 4, "batch_size": 4, "max_new_tokens": 8}
    )  # some of the answers of a random model are nearly tied, so they are not compared
    references = score_references(model, tokenizer, template, rows, 8)
    seconds = time.perf_counter() - started
    values = [value for row in labeled for value in row["log_probs"].values()]
    return torch.tensor([*values, *(row["log_prob"] for row in references)]), seconds
