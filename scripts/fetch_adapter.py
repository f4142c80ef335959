"""Bring an adapter that exists already: copied as one that was trained here, once it fits the base model.

LoRA, rsLoRA and DoRA adapters of peft, as safetensors. Everything is checked from the headers of the files before
anything is copied.
"""

import argparse
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import publish_directory
from lib.core.forms import allow_open_object, read_form
from lib.core.paths import check_model_folder
from lib.models.adapter_trial import check_fields, try_patterns
from lib.models.adapters import map_adapted_weights, write_adapter_config
from lib.models.import_checkpoint import FLOATS, check_no_pointers
from lib.models.loading import ADAPTER_HINT, EMPTY, find_wrapper_cause
from lib.models.safetensors_streaming import (
    Stored,
    add_adapter,
    build_empty_model,
    check_adapter,
    check_finite,
    locate_weights,
    read_header,
    read_weight,
)
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest
from lib.training.methods import find_title

FILES = ("adapter_config.json", "adapter_model.safetensors")
_MERGE_YOURSELF = "merge it with peft, then give finetune.merged"
_NEEDED = ("r", "lora_alpha", "target_modules")
# What the merge reads, or what says where and how it was trained; all other fields of LoraConfig must be unset.
ALLOWED = (
    *_NEEDED,
    *("peft_type", "task_type", "bias", "init_lora_weights", "use_rslora", "use_dora"),  # checked below
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "runtime_config"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("eva_config", "corda_config", "loftq_config", "lora_ga_config"),  # for inits of these names alone
    *("megatron_core", "qalora_group_size"),  # always written, and read with megatron_config and use_qalora alone
)
_KEEP_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")  # inits that leave the base weights alone


def main(args: argparse.Namespace) -> None:
    read_manifest(args.base)
    config = read_adapter_config(args.path)
    parts = read_header(args.path / FILES[1], args.path)
    check_weights(parts, config, locate_weights(args.base), args.path)
    with publish_directory(args.adapter) as folder:
        for name in FILES:
            shutil.copyfile(args.path / name, folder / name)
        write_adapter_config(folder)
        model = build_empty_model(args.base)
        try_patterns(config, [name for name, _ in model.named_modules()], args.path)
        check_adapter(add_adapter(model, folder, args.path), parts, args.path)
    write_manifest(
        args.adapter,
        inputs={"base": build_manifest_path(args.base)},
        settings=args.settings,
        extra={"dtype": "float32", "quantization": args.settings.get("quantization")},
    )
    report_progress(
        f"fetch_adapter: {find_title(config)} with r {config['r']} on {len(map_adapted_weights(set(parts)))} weights"
    )


def read_adapter_config(path: Path) -> dict[str, Any]:
    """Return the adapter's configuration. Raises `UserError` for what is no adapter, or one that cannot be merged."""
    if not path.is_dir():
        fail("no such folder", "check finetune.adapter", at=path)
    check_model_folder(path)
    for name in FILES:
        if not (path / name).is_file():
            pickle = "adapter_model.bin"
            hint = "name the folder that peft's save_pretrained wrote"
            if name == FILES[1] and (path / pickle).is_file():
                hint = f"{pickle} can run code: save it as safetensors (save_pretrained does, in every peft since 0.7)"
            fail(f"it has no {name}", hint, at=path)
    check_no_pointers(path, FILES, str(path))
    config: dict[str, Any] = read_form(path / FILES[0], allow_open_object(), "save it again with peft")
    if config.get("peft_type") != "LORA":
        fail(f"it is a {config.get('peft_type')} adapter", "only LoRA, rsLoRA and DoRA can be merged", at=path)
    for name, value in config.items():
        if (name not in ALLOWED and value) or (name == "bias" and value not in ("none", None)):
            hint = "train it as plain LoRA: aLoRA cannot be merged" if name.startswith("alora_") else _MERGE_YOURSELF
            fail(f"its {name} is {value!r:.80}, which the merge does not know", hint, at=path)
    init = config.get("init_lora_weights")
    if (init.lower() if isinstance(init, str) else init) not in _KEEP_BASE:
        fail(f"its init_lora_weights is {init!r}, which changes the base model's weights", _MERGE_YOURSELF, at=path)
    if config.get("task_type") not in ("CAUSAL_LM", None):
        fail(f"it was trained for {config['task_type']}", "give an adapter of a causal language model", at=path)
    for name in _NEEDED:
        if not config.get(name):
            fail(f"its {FILES[0]} names no {name}", "save it again with peft", at=path)
    if type(config["r"]) is not int or type(config["lora_alpha"]) not in (int, float):
        fail(f"its r or lora_alpha is not a number ({config['r']!r}, {config['lora_alpha']!r})", "mend it", at=path)
    check_fields(config, path)
    return config


def check_weights(parts: dict[str, Stored], config: dict[str, Any], base: dict[str, Stored], path: Path) -> None:
    """Raise `UserError` when a part of the adapter is unknown, fits no weight of the base, or is not finite."""
    if empty := sorted(name for name, part in parts.items() if 0 in part.shape):
        fail(f"{len(empty)} of its {len(parts)} tensors are empty, such as {empty[0]}", EMPTY, at=path)
    try:
        adapted = map_adapted_weights(set(parts))
    except ValueError as unknown:
        hint = _cause(str(unknown), base) or _MERGE_YOURSELF
        fail(f"it holds {unknown}, which is not a low-rank matrix", hint, at=path)
    if not adapted:
        fail("it holds no low-rank matrices", "name the folder that peft's save_pretrained wrote", at=path)
    for name, (a, b, magnitude) in adapted.items():
        if name not in base:
            hint = _cause(name, base) or "name the base model that it was trained on"
            fail(f"{name} is not in the base model", hint, at=path)
        check_shapes(parts, (a, b, magnitude), config["r"], base[name].shape, path)
    if bool(config.get("use_dora")) != any(magnitude for _, _, magnitude in adapted.values()):
        fail("use_dora and its weights do not agree", "save it again with peft", at=path)
    for name, part in parts.items():
        if part.dtype not in FLOATS:
            fail(f"{name} is stored as {part.dtype}", "save it in float32, float16 or bfloat16", at=path)
    check_finite(parts, path)
    if not any(_has_effect(parts, names) for names in adapted.values()):
        fail("it has no effect: one matrix of each pair is zero", "save it after training", at=path)


def _has_effect(parts: dict[str, Stored], names: tuple[str, str, str | None]) -> bool:
    """Tell whether the product of A and B may be more than zero, or a learned length (DoRA) replaces the base's."""
    a, b, magnitude = names
    return magnitude is not None or all(bool(read_weight(parts[name], name).any()) for name in (a, b))


def check_shapes(
    parts: dict[str, Stored], names: tuple[str, str, str | None], rank: int, shape: tuple[int, ...], path: Path
) -> None:
    """Raise `UserError` unless A, B and magnitude fit a weight of the base, [out, in], and the rank of the config."""
    a, b, magnitude = names
    if len(shape) != 2:
        fail(f"{a} adapts a weight of {len(shape)} dimensions", _MERGE_YOURSELF, at=path)
    out, inner = shape
    found = parts[a].shape[:1]
    if found != (rank,) and (parts[a].shape, parts[b].shape) == ((*found, inner), (out, *found)):
        fail(
            f"its {FILES[0]} says r {rank}, {a} has rank {found[0]}",
            ADAPTER_HINT,
            at=path,
        )
    wanted = {a: (rank, inner), b: (out, rank)} | ({magnitude: (out,)} if magnitude else {})
    for part, fitting in wanted.items():
        if parts[part].shape != fitting:
            fail(
                f"{part} is {list(parts[part].shape)}, the base model asks for {list(fitting)}",
                "name the base model that it was trained on",
                at=path,
            )


def _cause(name: str, base: Collection[str]) -> str | None:
    """Say why a tensor of an adapter fits nowhere, and what to do, where its name says so."""
    if re.search(r"lora_[AB]\.\w+\.weight$", name):
        return "the adapter's own name is in it: save it with save_pretrained, not from the model's state_dict"
    if "lm_head" in name and "lm_head.weight" not in base:
        return "the base model's head is its embedding matrix, where peft merges wrongly: train it without lm_head"
    return find_wrapper_cause(name)


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="adapter, quantization, versions")
    arguments.add_argument("--path", type=Path, required=True, help="folder of the adapter")
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    arguments.add_argument(
        "--adapter", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    run(arguments, main)
