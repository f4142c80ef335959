"""Build the ONNX model of one variant with the onnxruntime-genai builder, and prove that it works.

The builder succeeds on models that ONNX Runtime cannot load, so its exit code proves nothing. Weights of every build
are compared with the merged checkpoint's; for the cpu provider the model is also loaded and answers real prompts, and
in fp32 its logits are compared. Only then does the manifest say `verified: true`, and `compared` what was compared.
"""

import argparse
import contextlib
import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
from safetensors import safe_open

from lib.core.cli import build_parser, extract_first_line, fail, parse_settings, report_loaded, report_progress, run
from lib.core.files import hash_file, publish_directory, read_json, write_json
from lib.data.corpus import read_corpus
from lib.data.tokenizer import load_tokenizer, read_end_token_ids
from lib.hardware.memory import LIBRARIES_MB, require_memory
from lib.onnx.graph import (
    Graph,
    Quantized,
    dequantize,
    dequantize_gptq,
    is_rounded,
    list_merged_names,
    measure_largest_error,
    name_grid,
    select_rows_behind,
)
from lib.onnx.packaged import read_genai_config
from lib.onnx.runtime import Reader, open_onnx, read_context_length
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest

# Deterministic answers: what the model says most likely, whatever the base model's own defaults are.
SEARCH = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 1,
    "top_p": 1.0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
_BUILDER_PROVIDERS = {"trt-rtx": "NvTensorRtRtx"}  # where the builder's command line has another name
_NOT_OPTIONS = ("precision", "execution_provider", "score", "calibration")
_CHECKED_ROWS = 4
_CHECKED_WEIGHTS = 12
_ANSWER_TOKENS = 4
_LOGIT_TOLERANCE = 1e-3  # relative to the largest logit; float32 on both sides, sums in another order
_STEP_TOLERANCE = 0.02  # scales are stored in float32 or float16

T = TypeVar("T")


class Compared(NamedTuple):
    """Weights of a build that were compared with the merged ones, out of how many, and the grid of those quantized."""

    weights: int
    of: int
    grid: str | None


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
        configure_search(folder, read_end_token_ids(args.merged))
        read_genai_config(folder)  # whoever opens the model holds it against what a builder writes
        graph = Graph(folder / "model.onnx")
        check_graph(graph, variant)
        compared = check_weights(graph, args.merged, variant, args.calibrated)
        verified = variant["execution_provider"] == "cpu"
        logits = verified and variant["precision"] == "fp32"
        if verified:
            check_answers(folder, args.merged, variant, prompts, args.threads)
            if not compared.weights and not logits:
                fail("nothing of the built model could be compared with the merged one", "report this", at=args.merged)
        size = sum(file.stat().st_size for file in folder.iterdir())
        said = describe(compared, logits)
        report_progress(f"build_onnx: {size / 1e6:.1f} MB, {said}; {'verified' if verified else 'not run here'}")
    sources = {"merged": args.merged, "calibrated": args.calibrated}
    write_manifest(
        args.output,
        inputs={name: build_manifest_path(path) for name, path in sources.items() if path},
        settings=args.settings,
        extra={
            "verified": verified,
            "compared": {"weights": compared.weights, "of_weights": compared.of, "logits": logits},
            "grid": compared.grid,
            "builder_options": options,
            "nodes": graph.operators(),
        },
    )


def has_tied_head(model: Path) -> bool:
    """Tell whether a model's embeddings are its vocabulary head; many files leave it to their class's default."""
    from transformers import AutoConfig

    return bool(AutoConfig.from_pretrained(model, trust_remote_code=False).tie_word_embeddings)


def describe(compared: Compared, logits: bool) -> str:
    """Say what of a build was compared with the merged model."""
    grid = f" (grid {compared.grid})" if compared.grid else ""
    more = " and the logits" if logits else ""
    return f"compared with the merged model: {compared.weights} of {compared.of} weights{grid}{more}"


def build(merged: Path, folder: Path, variant: dict[str, Any], options: list[str]) -> None:
    """Run the builder in this process. Raises `UserError` when it refuses the variant."""
    said = io.StringIO()
    provider = variant["execution_provider"]
    provider = _BUILDER_PROVIDERS.get(provider, provider)
    with tempfile.TemporaryDirectory() as cache, _quiet(said), _no_checkout():
        from onnxruntime_genai.models.builder import create_model, parse_extra_options

        where = ("", str(merged), str(folder), variant["precision"], provider, cache)
        report_loaded()
        try:
            create_model(*where, **parse_extra_options(*where, options))
        except Exception as error:  # the builder raises anything from KeyError to AssertionError
            _refuse(f"the builder refuses it: {type(error).__name__}: {extract_first_line(error)}", error)
        finally:
            sys.stdout.write(said.getvalue())


def list_builder_options(variant: dict[str, Any], tied: bool) -> list[str]:
    """Return the variant's options as the builder's KEY=VALUE texts; null leaves the builder's default.

    tied: the base model's embeddings are its vocabulary head. The builder then keeps one weight for both, in a form
    that cannot be loaded when the head is asymmetric or in 8 bits, and refuses it in QDQ form; apart, both load
    (tests/onnx/test_variants.py tries every combination).
    """
    calibrated = variant.get("algo_config") == "auto_round"
    values = {name: value for name, value in variant.items() if name not in _NOT_OPTIONS and value is not None}
    if calibrated:  # the weights come rounded; the options are for the head
        values = {name: value for name, value in values.items() if name not in ("algo_config", "is_symmetric")}
    apart = (
        values.get("is_symmetric") is False
        or "last_matmul:int8" in values.get("matmul_mixed_precision", "")
        or values.get("use_qdq")
    )
    if tied and apart and values.get("algo_config", "default") == "default":
        values.setdefault("shared_embeddings", False)
    return ["hf_token=false", *(f"{name}={_option(name, value)}" for name, value in values.items())]


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ("/" if name == "op_types_to_quantize" else ",").join(value)
    return str(value)


@contextlib.contextmanager
def _quiet(said: io.StringIO) -> Iterator[None]:
    """Keep the builder's lines back: it logs one for each node and draws a bar for each weight."""
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _no_checkout() -> Iterator[None]:
    """Hide the git checkout that the builder's package may lie in.

    The builder writes that checkout's commit into the model, and it is ours where the environment lies in the project:
    each commit would change the bytes. Without one it takes its own package's commit.
    """
    before = os.environ.get("GIT_DIR")
    os.environ["GIT_DIR"] = os.devnull
    try:
        yield
    finally:
        os.environ.pop("GIT_DIR")
        if before is not None:
            os.environ["GIT_DIR"] = before


def configure_search(folder: Path, end_ids: frozenset[int]) -> None:
    """Make greedy decoding the model's default and check where it stops.

    Raises `UserError` when an end token of the merged model is unknown to the built one: it would
    run on behind its answers.
    """
    path = folder / "genai_config.json"
    config = read_json(path)
    found = config["model"]["eos_token_id"]
    missing = end_ids - set([found] if isinstance(found, int) else found)
    if missing:
        fail(f"the builder lost the end tokens {sorted(missing)}", "check generation_config.json of the base model")
    config["search"] |= SEARCH | {"max_length": min(config["search"]["max_length"], read_context_length(config))}
    write_json(path, config)


def check_graph(graph: Graph, variant: dict[str, Any]) -> None:
    """Raise `UserError` when the graph holds together badly or lacks a node that the variant names."""
    if fault := graph.fault():
        _refuse(f"the builder made a model that cannot be loaded: {fault}")
    for name in variant.get("nodes_to_exclude") or []:
        if name not in graph.node_names:
            known = [re.sub(r"(_DQ)?_Q[48]$", "", node) for node in graph.quantized]
            fail(f"nodes_to_exclude: the model has no node {name}", f"its nodes are {known[0]}, ..., {known[-1]}")


def check_weights(graph: Graph, merged: Path, variant: dict[str, Any], calibrated: Path | None = None) -> Compared:
    """Compare some weights with the merged ones, those behind quantized nodes and those behind others.

    Raises `UserError` when a weight is not what the merged one rounds to, on another grid than asked for, or, where it
    was calibrated, not what calibration made of it bit for bit.
    """
    nodes = [*graph.quantized, *graph.plain]
    compared, grids = 0, set()
    with _Checkpoint(calibrated or merged) as checkpoint:
        known = [(node, names) for node in nodes if (names := list_merged_names(node, checkpoint.weights))]
        for node, names in _pick_evenly(known, _CHECKED_WEIGHTS):
            if node in graph.plain:
                check_plain(node, names, graph.read_plain(node), checkpoint)
            else:
                grids.add(check_quantized(node, names, graph.read_quantized(node), checkpoint))
            compared += 1
    asked = "auto_round" if calibrated else variant.get("algo_config") or "default"
    if asked in ("default", "rtn") and variant.get("is_symmetric") is not False and grids - {asked}:
        fail(
            f"algo_config {asked} gave weights on the grid {'+'.join(sorted(grids))}", "this is a fault of the builder"
        )
    return Compared(compared, len(nodes), "+".join(sorted(grids)) or None)


def check_plain(node: str, names: Sequence[str], stored: np.ndarray, checkpoint: "_Checkpoint") -> None:
    """Raise `UserError` when a weight that is not quantized is not the merged one, rounded to its type."""
    original = select_rows_behind(node, checkpoint.read(names), len(stored))
    if original.shape != stored.shape or not is_rounded(stored, original):
        fail(f"{node} is not {' + '.join(names)} in {stored.dtype}", "this is a fault of the builder")


def check_quantized(node: str, names: Sequence[str], weight: Quantized, checkpoint: "_Checkpoint") -> str:
    """Return the grid that a quantized weight is on. Raises `UserError` when it does not stand for the merged one."""
    label = " + ".join(names)
    if checkpoint.is_calibrated(names):
        if not np.array_equal(
            dequantize(weight), select_rows_behind(node, checkpoint.read_calibrated(names), len(weight.codes))
        ):
            fail(f"{node} is not what calibration made of {label}", "this is a fault of the builder")
        return "calibrated"
    original = select_rows_behind(node, checkpoint.read(names), len(weight.codes))
    if original.shape != (len(weight.codes), weight.columns):
        fail(f"{node} has another shape than {label}", "this is a fault of the builder")
    error = measure_largest_error(weight, original)
    # With zero points some methods round twice, scale and zero point. Codes were chosen with scales of full precision.
    allowed = (1.0 if weight.asymmetric else 0.5) + _STEP_TOLERANCE + (1 << weight.bits) * weight.scale_error
    if not error <= allowed:
        fail(f"{node} differs from {label} by {error:.2f} quantization steps", "this is a fault of the builder")
    return name_grid(weight, original)


def check_answers(folder: Path, merged: Path, variant: dict[str, Any], prompts: Sequence[str], threads: int) -> None:
    """Load the model as users do and let it answer. Raises `UserError` when it cannot, or answers nonsense.

    In fp32 its logits must be those of the merged checkpoint.
    """
    try:
        model = open_onnx(folder, threads)
    except RuntimeError as error:
        _refuse(f"the builder made a model that ONNX Runtime cannot load: {_reason(error)}", error)
    encoded = load_tokenizer(folder).encode_batch(prompts)
    try:
        reader, logits = Reader(model, max(map(len, encoded)) + _ANSWER_TOKENS), []
        for ids in encoded:
            logits.append(reader.read(ids))
            reader.answer(_ANSWER_TOKENS)
    except RuntimeError as error:
        _refuse(f"the built model cannot run: {_reason(error)}", error)
    if not np.isfinite(logits).all():
        _refuse("the built model answers with numbers that are not finite")
    if variant["precision"] == "fp32":
        difference = measure_logit_difference(merged, encoded, logits, threads)
        report_progress(f"build_onnx: logits differ from the merged checkpoint by {difference:.1e} of the largest")
        if not difference <= _LOGIT_TOLERANCE:
            fail(
                f"logits differ from the merged checkpoint by {difference:.1e} of the largest", "report this", at=merged
            )


def measure_logit_difference(merged: Path, prompts: list[list[int]], found: list[np.ndarray], threads: int) -> float:
    """Return largest difference of the logits behind each prompt, relative to the largest logit."""
    import torch

    from lib.hardware.device import use_threads
    from lib.models.loading import load_model

    use_threads(threads)
    model = load_model(merged)
    with torch.inference_mode():
        inputs = [torch.tensor([ids], device=model.device) for ids in prompts]
        expected = np.stack([model(ids, logits_to_keep=1).logits[0, -1].float().cpu().numpy() for ids in inputs])
    return float(np.abs(expected - np.stack(found)).max() / np.abs(expected).max())


class _Checkpoint:
    """Weights of a safetensors folder, merged or calibrated, one matrix at a time."""

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        files = [self._stack.enter_context(safe_open(file, "pt")) for file in sorted(folder.glob("*.safetensors"))]
        self._file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.weights = {re.sub(r"\.qweight$", ".weight", name) for name in self._file_of}

    def __enter__(self) -> "_Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def is_calibrated(self, names: Sequence[str]) -> bool:
        """Tell whether the weights are stored as calibration leaves them, in 4 bits."""
        return names[0] not in self._file_of

    def read(self, names: Sequence[str]) -> np.ndarray:
        """Return the weights in float32, one below the other."""
        return np.concatenate([self._file_of[name].get_tensor(name).float().numpy() for name in names])

    def read_calibrated(self, names: Sequence[str]) -> np.ndarray:
        """Return the values that weights of 4 bits stand for, one below the other."""
        modules = [name.removesuffix(".weight") for name in names]
        parts = [[self._raw(f"{one}.{part}") for part in ("qweight", "scales", "qzeros")] for one in modules]
        return np.concatenate([dequantize_gptq(*part) for part in parts])

    def _raw(self, name: str) -> np.ndarray:
        """Return a tensor in the dtype it is stored in."""
        return self._file_of[name].get_tensor(name).numpy()


def _refuse(what: str, error: Exception | None = None) -> NoReturn:
    if error is not None:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    fail(what, "change the options of this variant")


def _reason(error: Exception) -> str:
    return re.sub(r"^Load model from .*? failed: ?", "", extract_first_line(error))


def _pick_evenly(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items, evenly from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


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
