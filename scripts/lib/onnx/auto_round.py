"""AutoRound (Cheng et al. 2024): roundings and scales that change a layer's outputs least, for the builder.

The result has the layout of GPTQ, which the onnxruntime-genai builder takes over as it is; the vocabulary head (and the
embeddings tied to it) are left to the builder.
"""

import contextlib
import io
import logging
import re
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lib.core.cli import explain_errors, fail, report_progress
from lib.core.files import read_json, write_json
from lib.models.loading import load_model

BLOCK_SIZE = 32  # what the builder takes where a variant names none
_HINT = "take algo_config: k_quant or default"
_BATCH = 4  # sequences in a step


def run_auto_round(
    merged: Path, sequences: Sequence[torch.Tensor], variant: dict[str, Any], seed: int, folder: Path
) -> None:
    """Write the calibrated checkpoint to `folder`. Raises `UserError` when AutoRound cannot run the model."""
    saved = folder / "saved"  # AutoRound puts a folder of its own naming into it
    what = f"AutoRound {version('auto-round')} cannot round this model"
    with explain_errors(what, _HINT), _quiet():
        from auto_round import AutoRound
        from transformers import AutoTokenizer

        length = variant["calibration"]["length"]
        AutoRound(
            load_model(merged),
            AutoTokenizer.from_pretrained(merged),
            bits=4,
            group_size=variant.get("block_size") or BLOCK_SIZE,
            sym=variant.get("is_symmetric", True),
            iters=variant["calibration"]["iterations"],
            dataset=list(sequences),
            seqlen=length,
            nsamples=len(sequences),
            batch_size=_BATCH,
            seed=seed,
            amp=False,  # in float32: half precision is slow on most CPUs and moves scales
            device_map="cuda" if torch.cuda.is_available() else "cpu",
            enable_torch_compile=False,
        ).quantize_and_save(str(saved), format="auto_gptq")
    (made,) = saved.iterdir()
    for file in made.iterdir():
        file.rename(folder / file.name)
    shutil.rmtree(saved)


def check_layers(config: Any, length: int, label: str) -> None:
    """Raise `UserError` for a model (PreTrainedConfig) whose layers differ in mask or positions.

    AutoRound runs every layer with the mask and the rotary embeddings that the first one was given, so other kinds of
    layers would be rounded for what they never see. length: of the calibration's sequences, in tokens.
    """
    kinds = set(getattr(config, "layer_types", None) or [])
    masks = {
        "full_attention" if kind == "sliding_attention" and length <= config.sliding_window else kind for kind in kinds
    }
    rotations = kinds & (getattr(config, "rope_parameters", None) or {}).keys()
    if len(masks) > 1 or len(rotations) > 1:
        what = f"AutoRound {version('auto-round')} runs every layer as the first, and this model has"
        fail(f"{label}: {what} {' and '.join(sorted(kinds))} layers", _HINT)


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


class _Bar(io.StringIO):
    """Takes what AutoRound draws and says how many layers are done: it goes on for minutes."""

    _layers = re.compile(r"Quantizing .*\| (\d+)/(\d+) \[")
    _said = 0

    def write(self, text: str) -> int:
        found = self._layers.search(text)
        if found and int(found[1]) >= self._said + 5:
            self._said = int(found[1])
            report_progress(f"calibrate_weights: {found[1]} of {found[2]} layers")
        return len(text)


@contextlib.contextmanager
def _quiet() -> Any:
    """Silence AutoRound, which logs a line for each layer and draws bars."""
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(_Bar()):
            yield
    finally:
        logging.disable(level)
