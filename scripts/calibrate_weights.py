"""Learn the int4 rounding of a merged model on the task's own training rows (AutoRound, Cheng et al. 2024).

Layer by layer, signed gradient descent moves roundings and scales so that the layer's outputs on the calibration
rows stay what they were. Rows come from the training file alone: what scores the model never shapes it. The ids of
the rows are in the manifest. The result is a checkpoint in the layout of GPTQ, which the onnxruntime-genai builder
takes over as it is; the vocabulary head (and the embeddings tied to it) are left to the builder.
"""

import argparse
import contextlib
import io
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lib.core.cli import build_parser, parse_settings, report_loaded, report_progress, run
from lib.core.files import publish_directory, read_json, write_json
from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.hardware.device import use_threads
from lib.hardware.memory import LIBRARIES_MB, require_memory
from lib.models.loading import load_model
from lib.onnx.calibration_rows import pack_ids, sample_calibration_rows
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest

BLOCK_SIZE = 32  # what the builder takes where a variant names none
_BATCH = 4  # sequences in a step


def main(args: argparse.Namespace) -> None:
    use_threads(args.threads)
    read_manifest(args.merged)
    weights = sum(file.stat().st_size for file in args.merged.glob("*.safetensors"))
    require_memory(LIBRARIES_MB + 2 * weights / 1e6, "calibrate_weights")
    variant, seed = args.settings["variant"], args.settings["seed"]
    rows = sample_calibration_rows(read_corpus(args.rows), variant["calibration"]["rows"], seed)
    packed = pack_ids(load_tokenizer(args.merged), rows, variant["calibration"]["length"])
    sequences = [torch.tensor([ids]) for ids in packed]
    with publish_directory(args.output) as folder:
        report_progress(
            f"calibrate_weights: {len(rows)} training rows, {len(sequences)} sequences of"
            f" {variant['calibration']['length']} tokens, {variant['calibration']['iterations']} steps a layer"
        )
        report_loaded()
        run_auto_round(args.merged, sequences, variant, seed, folder)
        keep_what_is_not_weights(args.merged, folder)
    write_manifest(
        args.output,
        inputs={"merged": build_manifest_path(args.merged), "rows": args.rows},
        settings=args.settings,
        extra={"calibration_rows": [row["id"] for row in rows], "sequences": len(sequences)},
    )


def run_auto_round(
    merged: Path, sequences: Sequence[torch.Tensor], variant: dict[str, Any], seed: int, folder: Path
) -> None:
    """Write the calibrated checkpoint to `folder`."""
    saved = folder / "saved"  # AutoRound puts a folder of its own naming into it
    with _quiet():
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


def keep_what_is_not_weights(merged: Path, folder: Path) -> None:
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


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="variant, seed, versions")
    arguments.add_argument("--merged", type=Path, required=True, help="folder of the merged model")
    arguments.add_argument("--rows", type=Path, required=True, help="corpus/train.jsonl")
    arguments.add_argument(
        "--output", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    arguments.add_argument("--threads", type=int, default=2)
    run(arguments, main)
