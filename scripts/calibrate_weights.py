"""Learn the int4 rounding of a merged model on the task's own training rows (AutoRound, Cheng et al. 2024).

Layer by layer, signed gradient descent moves roundings and scales so that the layer's outputs on the calibration
rows stay what they were. Rows come from the training file alone: what scores the model never shapes it. The ids of
the rows are in the manifest. The result is a checkpoint in the layout of GPTQ, which the onnxruntime-genai builder
takes over as it is; the vocabulary head (and the embeddings tied to it) are left to the builder.
"""

import argparse
from pathlib import Path

import torch

from lib.core.cli import build_parser, parse_settings, report_loaded, report_progress, run
from lib.core.files import publish_directory
from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.hardware.device import use_threads
from lib.hardware.memory import LIBRARIES_MB, require_memory
from lib.onnx.auto_round import check_layers, copy_small_files, run_auto_round
from lib.onnx.calibration_rows import pack_ids, sample_calibration_rows
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest


def main(args: argparse.Namespace) -> None:
    from transformers import AutoConfig  # after lib.core.cli, which turns telemetry off

    use_threads(args.threads)
    read_manifest(args.merged)
    weights = sum(file.stat().st_size for file in args.merged.glob("*.safetensors"))
    require_memory(LIBRARIES_MB + 2 * weights / 1e6, "calibrate_weights")
    variant, seed = args.settings["variant"], args.settings["seed"]
    config = AutoConfig.from_pretrained(args.merged, trust_remote_code=False)
    check_layers(config, variant["calibration"]["length"], str(args.merged))
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
        copy_small_files(args.merged, folder)
    write_manifest(
        args.output,
        inputs={"merged": build_manifest_path(args.merged), "rows": args.rows},
        settings=args.settings,
        extra={"calibration_rows": [row["id"] for row in rows], "sequences": len(sequences)},
    )


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
