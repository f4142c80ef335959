"""Bring a fine-tuned model that exists already: copied as one that was merged here, once it fits the base model.

Prompts are written with the base model's tokenizer and its untouched weights are what the model must be worth more
than, so architecture and tokenizer have to be the base model's.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import publish_directory
from lib.core.paths import check_model_folder
from lib.data.tokenizer import load_tokenizer
from lib.data.tokenizer_trial import HARD_TEXTS
from lib.models.import_checkpoint import (
    ModelSource,
    check_no_pointers,
    find_weight_files,
    import_safetensors,
    load_causal_config,
)
from lib.models.safetensors_streaming import locate_weights, read_weight
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest

_SAME = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)


def main(args: argparse.Namespace) -> None:
    from lib.models.model_trial import try_configuration

    read_manifest(args.base)
    if not args.path.is_dir():
        fail("no such folder", "check finetune.merged", at=args.path)
    check_model_folder(args.path)
    weights, gguf = find_weight_files([file.name for file in args.path.iterdir()], str(args.path))
    if gguf:
        fail("it is a GGUF file", "give it as base_model.path with finetune.method: none", at=args.path)
    source = ModelSource(args.path, str(args.path), weights, None, {})
    check_no_pointers(source.folder, source.files, source.label)
    try_configuration(source)
    check_config(load_causal_config(source), args.base, args.path)
    with publish_directory(args.merged) as folder:
        parameters = sum(weight.elements for weight in locate_weights(args.base).values())
        facts = import_safetensors(source, folder, parameters)
        check_tokenizer(folder, args.base, args.path)
        changed = check_weights(folder, args.base, args.path)
        if not changed:
            hint = "save what merge_and_unload returns; the base model itself is measured with finetune.method: none"
            fail("all its weights are the base model's", hint, at=args.path)
    write_manifest(
        args.merged,
        inputs={"base": build_manifest_path(args.base)},
        settings=args.settings,
        extra={"dtype": facts["dtype"], "weights_changed": changed},
    )
    report_progress(f"fetch_merged: {changed} weights differ from the base model's")


def check_config(theirs: Any, base: Path, label: Path) -> None:
    """Raise `UserError` when it is a model of another shape than the base.

    Configurations (PreTrainedConfig) are compared, not their files: older files leave out what has a default.
    """
    from transformers import AutoConfig

    ours = AutoConfig.from_pretrained(base, trust_remote_code=False)
    for name in _SAME:
        our, their = getattr(ours, name, None), getattr(theirs, name, None)
        if our != their:
            fail(
                f"its {name} is {their}, the base model's {our}",
                "name the base model that it was made from",
                at=label,
            )


def check_tokenizer(folder: Path, base: Path, label: Path) -> None:
    """Raise `UserError` when it reads texts otherwise than the base model, or stops at other tokens."""
    ours, theirs = load_tokenizer(base), load_tokenizer(folder)
    texts = [*HARD_TEXTS, *ours.control]
    for text, one, other in zip(texts, ours.encode_batch(texts), theirs.encode_batch(texts), strict=True):
        if one != other:
            fail(
                f"its tokenizer reads {text!r} as {other[:8]}, the base model's as {one[:8]}",
                "name the base model that it was made from",
                at=label,
            )
    if ours.end_ids != theirs.end_ids:
        fail(
            f"it stops at the tokens {sorted(theirs.end_ids)}, the base model at {sorted(ours.end_ids)}",
            "take over the base model's generation_config.json",
            at=label,
        )


def check_weights(folder: Path, base: Path, label: Path) -> int:
    """Number of weights that differ from the base's, one read at a time.

    Raises `UserError` when names or shapes are others.
    """
    ours, theirs = locate_weights(base), locate_weights(folder)
    if different := sorted(ours.keys() ^ theirs.keys()):
        fail(f"{different[0]} is in one of the two models only", "name the base model that it was made from", at=label)
    changed = 0
    for name, stored in theirs.items():
        if stored.shape != ours[name].shape:
            fail(
                f"{name} is {list(stored.shape)}, in the base model {list(ours[name].shape)}", "name its base", at=label
            )
        changed += not torch.equal(read_weight(stored, name).float(), read_weight(ours[name], name).float())
    return changed


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="merged, versions")
    arguments.add_argument("--path", type=Path, required=True, help="folder of the fine-tuned model")
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    arguments.add_argument(
        "--merged", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    run(arguments, main)
