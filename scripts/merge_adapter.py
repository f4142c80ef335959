"""Merge a LoRA adapter into the base model (`lib.models.merging`).

An adapter that was trained on a 4-bit base (QLoRA) is added either to the original weights or to what the 4 bits stand
for, which is what it was trained on: `settings.into`. Before the merged model is published its logits are compared with
those of base and adapter on real prompts, in a forward pass that reads each layer's weights when it comes to it.
"""

import argparse
from pathlib import Path

from lib.core.cli import build_parser, fail, parse_settings, report_loaded, report_progress, run
from lib.core.files import hash_file, publish_directory
from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.hardware.device import use_threads
from lib.hardware.memory import LIBRARIES_MB, require_memory, return_freed_memory
from lib.models.merging import TOLERANCE, measure_logit_difference, merge
from lib.models.safetensors_streaming import locate_weights
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest

_CHECKED_ROWS = 8


def main(args: argparse.Namespace) -> None:
    return_freed_memory()
    use_threads(args.threads)
    for folder in (args.base, args.adapter):
        read_manifest(folder)
    if read_manifest(args.adapter)["inputs"]["base"] != hash_file(build_manifest_path(args.base)):
        fail("it was trained on another base model", "merge it into that one, or train it again", at=args.adapter)
    report_loaded()
    matrix = 4 * max(weight.elements for weight in locate_weights(args.base).values())
    require_memory(LIBRARIES_MB + matrix / 1e6, "merge_adapter")
    quantization = read_manifest(args.adapter)["quantization"] if args.settings["into"] == "dequantized" else None
    with publish_directory(args.merged) as folder:
        changed, dtype = merge(args.base, args.adapter, folder, quantization)
        rows = read_corpus(args.rows)[:_CHECKED_ROWS]
        prompts = load_tokenizer(folder).encode_batch([row["prompt"] for row in rows])
        difference = measure_logit_difference(args.base, args.adapter, folder, prompts, quantization)
        report_progress(f"merge_adapter: {changed} weights changed, logits differ by {difference:.1e} of the largest")
        if not difference <= TOLERANCE[dtype]:
            fail(
                f"the merged model differs from base and adapter by {difference:.1e} of the largest logit"
                f" (allowed {TOLERANCE[dtype]:.0e} for {dtype})",
                "this is a fault of the merge, not of your data: report it",
                at=args.adapter,
            )
    write_manifest(
        args.merged,
        inputs={"base": build_manifest_path(args.base), "adapter": build_manifest_path(args.adapter)},
        settings=args.settings,
        extra={"dtype": str(dtype).removeprefix("torch."), "weights_changed": changed},
    )


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="into, versions")
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    arguments.add_argument("--adapter", type=Path, required=True, help="folder of the adapter")
    arguments.add_argument("--rows", type=Path, required=True, help="corpus rows whose prompts are compared")
    arguments.add_argument(
        "--merged", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    arguments.add_argument("--threads", type=int, default=2)
    run(arguments, main)
