"""Round the weights of a merged model to int4 by the task's own training rows.

By GPTQ (Frantar et al. 2023), which makes rounding errors good by other weights, or by AutoRound (Cheng et al. 2024),
which learns the rounding step by step. Rows come from the training file alone: what scores the model never shapes it.
The ids of the rows are in the manifest. The result is a checkpoint in the layout of GPTQ's files, which the
onnxruntime-genai builder takes over as it is; the vocabulary head (and the embeddings tied to it) are left to the
builder.
"""

import argparse
from pathlib import Path

from lib.core.cli import build_parser, parse_settings, report_loaded, report_progress, run
from lib.core.files import publish_directory
from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.hardware.device import use_threads
from lib.hardware.memory import LIBRARIES_MB, require_memory
from lib.onnx.calibration import calibrate
from lib.onnx.calibration_rows import encode_alone, sample_calibration_rows
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest


def main(args: argparse.Namespace) -> None:
    use_threads(args.threads)
    read_manifest(args.merged)
    weights = sum(file.stat().st_size for file in args.merged.glob("*.safetensors"))
    require_memory(LIBRARIES_MB + 2 * weights / 1e6, "calibrate_weights")
    variant, seed = args.settings["variant"], args.settings["seed"]
    rows = sample_calibration_rows(read_corpus(args.rows), variant["calibration"]["rows"], seed)
    with publish_directory(args.output) as folder:
        report_progress(f"calibrate_weights: {variant['algo_config']} on {len(rows)} training rows")
        report_loaded()
        calibrate(args.merged, encode_alone(load_tokenizer(args.merged), rows), variant, seed, folder)
    write_manifest(
        args.output,
        inputs={"merged": build_manifest_path(args.merged), "rows": args.rows},
        settings=args.settings,
        extra={"calibration_rows": [row["id"] for row in rows]},
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
