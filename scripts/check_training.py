"""Train a small random model of the base model's kind for two steps, merge it and score it, before anything is fetched.

It has the base model's kinds of layers, flags and factors, and goes through the code that the base model will go
through. What fails here would fail after hours, or give other numbers without a word. Leaves the merged trial model for
`check_build`.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import publish_directory
from lib.evaluation.registry import SELECTED_BY
from lib.evaluation.torch_scorer import read_shared_prefix, score_choices
from lib.hardware.device import choose_training_dtype
from lib.models.import_checkpoint import check_parameters
from lib.models.loading import load_model
from lib.models.merging import TOLERANCE, measure_logit_difference, merge
from lib.models.safetensors_streaming import build_empty_model
from lib.models.trial import (
    COMPLETIONS,
    HINT,
    draw_prompts,
    explain_failures,
    make_trial_model,
    score_alone,
    store_trial_model,
)
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest
from lib.training.adapter import build_lora_model, save_adapter
from lib.training.batching import IGNORED, Example
from lib.training.methods import METHODS, choose_quantization
from lib.training.trainer import build_adapter_trainer

_STEPS = 2
# What a trial is trained with, beside what decides whether it works.
_TRIAL = {
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "num_train_epochs": 1,
    "max_steps": _STEPS,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "eval_steps": 1,
    "logging_steps": 1,
    "group_by_length": False,
    "class_balance": "none",
    "loraplus_lr_ratio": 16.0,
    "quant_type": "nf4",
    "double_quant": True,
}
_LARGEST_DIFFERENCE = 1e-3  # of log probabilities, between a batch with a shared cache and each text alone


def main(args: argparse.Namespace) -> None:
    read_manifest(args.tokenizer)
    name = args.settings["model"]
    check_parameters(count_parameters(args.tokenizer), args.settings["parameters"], name)
    with publish_directory(args.trial) as folder, tempfile.TemporaryDirectory() as scratch:
        base, merged = Path(scratch) / "base", None
        base.mkdir()
        kind = "a small model of its kind"
        with explain_failures(name, f"{kind} cannot be made", base):
            make_trial_model(args.tokenizer, base)
        with explain_failures(name, f"{kind} cannot be scored", base):
            check_scores(base, name)
        for number, method in enumerate(args.settings["methods"]):
            merged = Path(scratch) / f"merged-{number}"
            title = METHODS[method["method"]].title
            with explain_failures(name, f"{kind} cannot be trained with {title}", base):
                train(base, method, Path(scratch) / f"work-{number}", merged, name)
        store_trial_model(merged or base, folder, args.tokenizer)
    write_manifest(
        args.trial, inputs={"tokenizer": build_manifest_path(args.tokenizer)}, settings=args.settings, extra={}
    )
    report_progress(f"check_training: {name} can be trained, merged and scored")


def count_parameters(tokenizer: Path) -> int:
    """Return the number of the base model's parameters, by its configuration; tied weights count once."""
    model = build_empty_model(tokenizer)
    model.tie_weights()  # which making it without weights undoes
    count: int = model.num_parameters()
    return count


def check_scores(base: Path, name: str) -> None:
    """Raise `UserError` when answers have other probabilities in a batch than alone."""
    model, prompts = load_model(base), draw_prompts(base)
    pairs = [(prompt, [list(answer) for answer in COMPLETIONS]) for prompt in prompts]
    found = score_choices(model, pairs, read_shared_prefix(model, pairs)).numpy()
    expected = [[score_alone(model, prompt, answer) for answer in answers] for prompt, answers in pairs]
    difference = float(np.abs(found - np.array(expected)).max())
    if not difference <= _LARGEST_DIFFERENCE:
        fail(f"its log probabilities differ by {difference:.1e} between a batch and each text alone", HINT, at=name)


def train(base: Path, method: Mapping[str, Any], work: Path, merged: Path, name: str) -> None:
    """Train an adapter for two steps, merge it into `merged`, and compare the two."""
    settings = {**_TRIAL, **method}
    dtype = choose_training_dtype(settings["dtype"])
    torch.manual_seed(0)
    model = build_lora_model(load_model(base, dtype, choose_quantization(settings)), settings)
    prompts = draw_prompts(base, (12, 30, 17, 40))
    rows = [build_example(ids) for ids in prompts]
    trainer = build_adapter_trainer(
        model,
        {"train": rows, "validation": rows},
        settings,
        seed=0,
        work=work,
        pad_id=0,
        measure=partial(measure_choices, prompts=prompts),
    )
    trainer.train()
    save_adapter(model, work / "adapter")
    merged.mkdir()
    quantization = choose_quantization(settings)
    _, stored = merge(base, work / "adapter", merged, quantization)
    difference = measure_logit_difference(base, work / "adapter", merged, prompts, quantization)
    if not difference <= TOLERANCE[stored]:
        fail(f"merged, its logits differ by {difference:.1e} of the largest", HINT, at=name)


def build_example(ids: list[int]) -> Example:
    return {"input_ids": ids, "labels": [IGNORED] * (len(ids) - 4) + ids[-4:]}


def measure_choices(model: Any, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Score answers as a validation does; the number itself means nothing."""
    pairs = [(prompt, [[11], [12, 13]]) for prompt in prompts]
    return {SELECTED_BY["classification"]: float(score_choices(model, pairs, read_shared_prefix(model, pairs)).mean())}


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument(
        "--settings", type=parse_settings, required=True, help="model, parameters, methods, versions"
    )
    arguments.add_argument("--tokenizer", type=Path, required=True, help="folder of the base model's small files")
    arguments.add_argument("--trial", type=Path, required=True, help="folder to write: the trial model, merged")
    run(arguments, main)
