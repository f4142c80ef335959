"""Rounding a model's weights by training rows: the methods of `lib.onnx.methods.CALIBRATED`, behind one function."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.core.files import read_json, write_json

BLOCK_SIZE = 32  # what the builder takes where a variant names none


def calibrate(merged: Path, rows: Sequence[list[int]], variant: Mapping[str, Any], seed: int, folder: Path) -> None:
    """Write a model with its linear layers in 4 bits to `folder`, in the layout of GPTQ's files.

    rows: ids of each. Raises `UserError` when the method cannot round this model.
    """
    options = {"size": variant.get("block_size") or BLOCK_SIZE, "is_symmetric": variant.get("is_symmetric", True)}
    if variant["algo_config"] == "gptq":
        from lib.onnx.gptq import run_gptq

        run_gptq(merged, rows, folder, **options)
    else:
        from lib.onnx.auto_round import run_auto_round

        run_auto_round(merged, rows, folder, calibration=variant["calibration"], seed=seed, **options)
    copy_small_files(merged, folder)


def copy_small_files(merged: Path, folder: Path) -> None:
    """Keep tokenizer and generation config as the merged model has them, and drop this machine's path from the
    config.
    """
    for file in merged.iterdir():
        weights = file.name.endswith((".safetensors", ".index.json"))
        if file.is_file() and not weights and file.name != "config.json" and not file.name.startswith("."):
            shutil.copyfile(file, folder / file.name)
    config = read_json(folder / "config.json")
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", config)
