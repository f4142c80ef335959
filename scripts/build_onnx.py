"""Build the ONNX model of one variant with the onnxruntime-genai builder, and prove that it works.

The builder succeeds on models that ONNX Runtime cannot load, so its exit code proves nothing. Weights of every build
are compared with the merged checkpoint's; for the cpu provider the model is also loaded and answers real prompts, and
its logits are compared with those of the PyTorch model that has the built weights. Only then does the manifest say
`verified: true`, and `compared` what was compared.
"""

import argparse
import shutil
from pathlib import Path

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import hash_file, publish_directory
from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer, read_end_token_ids
from lib.hardware.memory import LIBRARIES_MB, require_memory
from lib.onnx.build_checks import Compared, check_answers, check_graph, check_logits, check_weights, configure_search
from lib.onnx.builder import build, has_tied_head, list_builder_options
from lib.onnx.graph import Graph
from lib.onnx.packaged import read_genai_config
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest

_CHECKED_ROWS = 4


def main(args: argparse.Namespace) -> None:
    variant = args.settings["variant"]
    for given in filter(None, (args.merged, args.calibrated)):
        read_manifest(given)
    if args.calibrated and read_manifest(args.calibrated)["inputs"]["merged"] != hash_file(
        build_manifest_path(args.merged)
    ):
        fail("it was calibrated from another merged model", "delete it and run again", at=args.calibrated)
    # Measured: 1.0 to 1.2 times the weights beside the libraries, 2.4 times with k_quant (benchmarks/memory.md).
    weights = sum(file.stat().st_size for file in args.merged.glob("*.safetensors"))
    require_memory(LIBRARIES_MB + weights / 1e6, "build_onnx")
    prompts = [row["prompt"] for row in read_corpus(args.rows)[:_CHECKED_ROWS]]
    with publish_directory(args.output) as folder:
        options = list_builder_options(variant, has_tied_head(args.merged))
        build(args.calibrated or args.merged, folder, variant, options)
        shutil.copyfile(
            args.merged / "tokenizer.json", folder / "tokenizer.json"
        )  # saved again it may read other texts
        configure_search(folder, read_end_token_ids(args.merged))
        read_genai_config(folder)  # whoever opens the model holds it against what a builder writes
        graph = Graph(folder / "model.onnx")
        check_graph(graph, variant)
        compared = check_weights(graph, args.merged, variant, args.calibrated)
        verified, difference = variant["execution_provider"] == "cpu", None
        if verified:
            encoded = load_tokenizer(folder).encode_batch(prompts)
            check_answers(folder, encoded, args.threads)
            difference = check_logits(folder, graph, args.merged, encoded, args.threads)
            if not compared.weights and difference is None:
                fail("nothing of the built model could be compared with the merged one", "report this", at=args.merged)
        size = sum(file.stat().st_size for file in folder.iterdir())
        said = describe(compared, difference)
        report_progress(f"build_onnx: {size / 1e6:.1f} MB, {said}; {'verified' if verified else 'not run here'}")
    sources = {"merged": args.merged, "calibrated": args.calibrated}
    write_manifest(
        args.output,
        inputs={name: build_manifest_path(path) for name, path in sources.items() if path},
        settings=args.settings,
        extra={
            "verified": verified,
            "compared": {"weights": compared.weights, "of_weights": compared.of, "logits": difference is not None},
            "grid": compared.grid,
            "builder_options": options,
            "nodes": graph.operators(),
        },
    )


def describe(compared: Compared, difference: float | None) -> str:
    """Say what of a build was compared with the merged model. difference: of the logits, relative to the largest."""
    grid = f" (grid {compared.grid})" if compared.grid else ""
    more = "" if difference is None else f", and with these weights the logits ({difference:.0e} of the largest)"
    return f"compared with the merged model: {compared.weights} of {compared.of} weights{grid}{more}"


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="variant, versions")
    arguments.add_argument("--merged", type=Path, required=True, help="folder of the merged model")
    arguments.add_argument("--calibrated", type=Path, help="folder of its calibrated weights, which are built instead")
    arguments.add_argument("--rows", type=Path, required=True, help="corpus rows whose prompts are answered")
    arguments.add_argument(
        "--output", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    arguments.add_argument("--threads", type=int, default=2)
    run(arguments, main)
