"""Adapters on disk: what stands in their configuration, and the same bytes for the same adapter."""

import json
from pathlib import Path
from typing import Any

from lib.core.files import read_json


def write_adapter_config(folder: Path) -> None:
    """Rewrite `adapter_config.json` without this machine's path, and with `target_modules` sorted.

    peft writes them, a set, in the order of its hashes. How the weights were initialized no longer matters, and peft
    would do it again, on weights that are not there yet, before it reads the adapter's own.
    """
    path = folder / "adapter_config.json"
    config: dict[str, Any] = read_json(path)
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = None
    config["init_lora_weights"] = True
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def map_adapted_weights(adapter: set[str]) -> dict[str, tuple[str, str, str | None]]:
    """Return names of (A, B, magnitude) of each adapted weight, by the weight's name in the base.

    A is [r, in], B is [out, r]; the magnitude, [out], is there with DoRA only. Raises `ValueError` when the
    adapter holds anything else.
    """
    suffix = ".lora_A.weight"
    found: dict[str, tuple[str, str, str | None]] = {}
    for module in (name.removesuffix(suffix) for name in sorted(adapter) if name.endswith(suffix)):
        magnitude = f"{module}.lora_magnitude_vector"
        found[f"{module.removeprefix('base_model.model.')}.weight"] = (
            module + suffix,
            f"{module}.lora_B.weight",
            magnitude if magnitude in adapter else None,
        )
    if other := adapter ^ {part for parts in found.values() for part in parts if part}:
        raise ValueError(min(other))
    return found
