"""AutoRound (Cheng et al. 2024): roundings and scales that change a layer's outputs least, for the builder.

The result has the layout of GPTQ, which the onnxruntime-genai builder takes over as it is; the vocabulary head (and the
embeddings tied to it) are left to the builder.
"""

import contextlib
import io
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lib.core.cli import explain_errors, fail, report_progress
from lib.models.loading import load_model
from lib.onnx.calibration_rows import pack_ids

_HINT = "take algo_config: gptq, k_quant or default"
_BATCH = 4  # sequences in a step


def run_auto_round(
    merged: Path,
    rows: Sequence[list[int]],
    folder: Path,
    *,
    size: int,
    is_symmetric: bool,
    calibration: Mapping[str, int],
    seed: int,
) -> None:
    """Write the merged model with its linear layers in 4 bits to `folder`, as safetensors and config.json.

    rows: ids of each; size: weights in a block. Raises `UserError` when AutoRound cannot run the model.
    """
    from transformers import AutoConfig

    check_layers(AutoConfig.from_pretrained(merged, trust_remote_code=False), calibration["length"], str(merged))
    sequences = [torch.tensor([ids]) for ids in pack_ids(rows, calibration["length"])]
    saved = folder / "saved"  # AutoRound puts a folder of its own naming into it
    what = f"AutoRound {version('auto-round')} cannot round this model"
    with explain_errors(what, _HINT), _quiet():
        from auto_round import AutoRound
        from transformers import AutoTokenizer

        AutoRound(
            load_model(merged),
            AutoTokenizer.from_pretrained(merged),
            bits=4,
            group_size=size,
            sym=is_symmetric,
            iters=calibration["iterations"],
            dataset=sequences,
            seqlen=calibration["length"],
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
