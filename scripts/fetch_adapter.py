"""Bring an adapter that exists already: copied as one that was trained here, once it fits the base model.

LoRA, rsLoRA and DoRA adapters of peft, as safetensors. Everything is checked from the headers of the files before
anything is copied.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch

from lib.adapters import adapted_weights, write_adapter_config
from lib.cli import fail, parser, progress, run, settings_argument
from lib.files import published_directory, read_json
from lib.manifests import manifest_path, read_manifest, write_manifest
from lib.streaming import Stored, read_weight, stored_weights

FILES = ("adapter_config.json", "adapter_model.safetensors")
_MERGE_YOURSELF = "merge it with peft, then give finetune.merged"
# What the merge does not know, where it is set to anything.
_UNSUPPORTED = (
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
)
_KEYS = ("r", "lora_alpha", "target_modules")


def main(args: argparse.Namespace) -> None:
    read_manifest(args.base)
    config = adapter_config(args.path)
    parts = stored_weights(args.path)
    check_weights(parts, config, stored_weights(args.base), args.path)
    with published_directory(args.adapter) as folder:
        for name in FILES:
            shutil.copyfile(args.path / name, folder / name)
        write_adapter_config(folder)
    write_manifest(
        args.adapter,
        inputs={"base": manifest_path(args.base)},
        settings=args.settings,
        extra={"dtype": "float32", "quantization": args.settings["quantization"]},
    )
    kind = "DoRA" if config.get("use_dora") else "rsLoRA" if config.get("use_rslora") else "LoRA"
    progress(f"fetch_adapter: {kind} with r {config['r']} on {len(adapted_weights(set(parts)))} weights")


def adapter_config(path: Path) -> dict[str, Any]:
    """The adapter's configuration. Raises `UserError` for what is no adapter, or one that cannot be merged."""
    if not path.is_dir():
        fail("no such folder", "check finetune.adapter", at=path)
    for name in FILES:
        if not (path / name).is_file():
            pickle = "adapter_model.bin"
            hint = "name the folder that peft's save_pretrained wrote"
            if name == FILES[1] and (path / pickle).is_file():
                hint = f"{pickle} can run code: save it as safetensors (save_pretrained does, in every peft since 0.7)"
            fail(f"it has no {name}", hint, at=path)
    config: dict[str, Any] = read_json(path / FILES[0])
    if config.get("peft_type") != "LORA":
        fail(f"it is a {config.get('peft_type')} adapter", "only LoRA, rsLoRA and DoRA can be merged", at=path)
    for name in ("bias", *_UNSUPPORTED):
        if config.get(name) and config[name] != "none":
            fail(f"its {name} is {config[name]!r}, which the merge does not know", _MERGE_YOURSELF, at=path)
    for name in _KEYS:
        if not config.get(name):
            fail(f"its {FILES[0]} names no {name}", "save it again with peft", at=path)
    return config


def check_weights(parts: dict[str, Stored], config: dict[str, Any], base: dict[str, Stored], path: Path) -> None:
    """Raises `UserError` when a weight of the adapter is unknown, fits no weight of the base, or is not finite."""
    try:
        adapted = adapted_weights(set(parts))
    except ValueError as unknown:
        fail(
            f"it holds {unknown}, which is no low-rank matrix", "merge it with peft, then give finetune.merged", at=path
        )
    if not adapted:
        fail("it holds no low-rank matrices", "name the folder that peft's save_pretrained wrote", at=path)
    rank = config["r"]
    for name, (a, b, magnitude) in adapted.items():
        if name not in base:
            fail(f"{name} is not in the base model", "name the base model that it was trained on", at=path)
        out, inner = base[name].shape
        wanted = {a: (rank, inner), b: (out, rank)} | ({magnitude: (out,)} if magnitude else {})
        for part, shape in wanted.items():
            if parts[part].shape != shape:
                fail(
                    f"{part} is {list(parts[part].shape)}, the base model asks for {list(shape)}",
                    "name the base model that it was trained on",
                    at=path,
                )
            if not torch.isfinite(read_weight(parts[part], part)).all():
                fail(f"{part} holds numbers that are not finite", "its training went wrong: train it anew", at=path)
    if bool(config.get("use_dora")) != any(magnitude for _, _, magnitude in adapted.values()):
        fail("use_dora and its weights do not agree", "save it again with peft", at=path)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--settings", type=settings_argument, required=True, help="adapter, quantization, versions")
    arguments.add_argument("--path", type=Path, required=True, help="folder of the adapter")
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    arguments.add_argument(
        "--adapter", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    run(arguments, main)
