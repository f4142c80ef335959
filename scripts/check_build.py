"""Build the trial model of `check_training` as one variant says, and compare it with transformers, before the training.

The architecture is looked up in the builder's own list; what follows from true sizes is computed from the base model's
configuration. In float32 the graph must give the logits and log probabilities of transformers, within a sliding window
and behind it; the variant's own build must give those of the weights that it holds.
"""

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lib.core.cli import (
    UserError,
    build_parser,
    fail,
    parse_settings,
    report_loaded,
    report_progress,
    run,
)
from lib.core.files import write_json
from lib.data.tokenizer import read_end_token_ids
from lib.models.small_config import read_rotated_share
from lib.onnx.build_checks import (
    LOGIT_TOLERANCE,
    check_answers,
    check_graph,
    check_logits,
    check_weights,
    configure_search,
)
from lib.onnx.builder import (
    build,
    check_architecture,
    has_tied_head,
    list_builder_options,
    name_builder,
    run_builder,
)
from lib.onnx.graph import Graph
from lib.onnx.methods import CALIBRATED
from lib.onnx.packaged import read_genai_config
from lib.onnx.runtime import Reader, open_onnx
from lib.provenance.manifests import read_manifest

BLOCK_SIZES = (16, 32, 64, 128, 256)
_BLOCK_SIZE = 32  # the builder's default
# The builder joins, splits and names these, whatever the checkpoint has.
_FUSED = ("qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "gate_proj", "up_proj", "down_proj")
_HEAD_STEP = 16  # GroupQueryAttention of onnxruntime 1.32 takes heads of a multiple of it
_FLOAT = {"precision": "fp32", "execution_provider": "cpu"}
_ANSWER_TOKENS = 6
_LARGEST_DIFFERENCE = 1e-3  # of log probabilities of answers

Variant = dict[str, Any]


def main(args: argparse.Namespace) -> None:
    from transformers import AutoConfig

    read_manifest(args.tokenizer), read_manifest(args.trial)
    name, variant = args.settings["model"], args.settings["variant"]
    config = AutoConfig.from_pretrained(args.tokenizer, trust_remote_code=False)
    check_architecture(config, name)
    check_heads(config, name)
    columns = read_row_lengths(args.tokenizer)
    check_block_size(args.variant, variant, columns)
    if variant.get("algo_config") == "auto_round":
        from lib.onnx.auto_round import check_layers

        check_layers(config, variant["calibration"]["length"], f"variants.{args.variant}")
    check_nodes(args.variant, variant, columns, config.num_hidden_layers)
    report_loaded()
    difference = compare_in_float(args.trial, name, config.architectures[0])
    rounding = try_variant(args.trial, args.variant, variant, args.settings["seed"])
    verdict = {"architecture": config.architectures[0], "builder": name_builder(), "logits": difference}
    write_json(args.output, verdict | {"logits_of_built_weights": rounding})
    report_progress(
        f"check_build: a small {config.architectures[0]} in fp32 gives the logits of transformers"
        f" ({difference:.0e} of the largest), and {args.variant} can be built"
    )


def check_heads(config: Any, name: str) -> None:
    """Raise `UserError` for heads of a size that ONNX Runtime's attention does not take. config: PreTrainedConfig."""
    size = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    rotated = int(size * read_rotated_share(config.to_dict()))
    for what, values in (("attention heads", size), ("rotary embeddings", rotated)):
        if values % _HEAD_STEP:
            why = f"its {what} have {values} values; ONNX Runtime takes multiples of {_HEAD_STEP}"
            fail(why, "take another base model (docs/models.md)", at=name)


def read_row_lengths(tokenizer: Path) -> dict[str, int]:
    """Return the row length of every weight that a build quantizes, by name, from the base model's configuration."""
    from lib.models.safetensors_streaming import build_empty_model, list_linear_weights

    model = build_empty_model(tokenizer)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    return {name: shapes[name][1] for name in sorted(list_linear_weights(model))}


def check_block_size(name: str, variant: Variant, columns: Mapping[str, int]) -> None:
    """Raise `UserError` when the method cannot cut the rows of some weight into blocks of this size."""
    size = variant.get("block_size") or _BLOCK_SIZE
    weight = next((weight for weight, length in columns.items() if not can_quantize(variant, size, length)), None)
    if weight is None:
        return
    sizes = [str(one) for one in BLOCK_SIZES if all(can_quantize(variant, one, length) for length in columns.values())]
    fail(
        f"variants.{name}: {variant['algo_config']} cannot cut the {columns[weight]} columns of {weight} into blocks of"
        f" block_size {size}",
        f"take {' or '.join([*sizes, 'algo_config: default'])}",
    )


def can_quantize(variant: Variant, size: int, length: int) -> bool:
    """Tell whether a variant's method can cut a row of `length` weights into blocks of `size`.

    Methods that see rows need whole blocks. Zero points in 4 bits are packed in pairs, but an odd number of them in a
    row fails in onnxruntime 1.32 (`quantization/neural_compressor/weight_only.py`, `make_matmul_weight_only_node`).
    """
    algo = variant.get("algo_config")
    if algo in CALIBRATED:
        return length % size == 0
    has_zero_points = algo == "k_quant" or (algo == "rtn" and not variant.get("is_symmetric", True))
    return variant["precision"] != "int4" or not has_zero_points or -(-length // size) % 2 == 0


def check_nodes(name: str, variant: Variant, columns: Mapping[str, int], layers: int) -> None:
    """Raise `UserError` for a node of `nodes_to_exclude` that no build of this model has."""
    projections = "|".join(sorted({weight.split(".")[-2] for weight in columns} | set(_FUSED)))
    for node in variant.get("nodes_to_exclude", []):
        found = re.fullmatch(rf"/lm_head/MatMul|/model/layers\.(\d+)/\w+/(?:{projections})/MatMul", node)
        if not found or int(found[1] or 0) >= layers:
            what = f"variants.{name}: nodes_to_exclude: this model of {layers} layers has no node {node}"
            fail(what, f"names are /lm_head/MatMul and such as /model/layers.0/mlp/{projections.split('|')[0]}/MatMul")


def compare_in_float(trial: Path, name: str, architecture: str) -> float:
    """Build the trial model in float32 and compare it with transformers: logits, log probabilities, what it writes.

    Returns the largest difference of logits, relative to the largest. Raises `UserError` above `LOGIT_TOLERANCE`.
    """
    from lib.models.loading import load_model
    from lib.models.trial import COMPLETIONS, HINT, draw_prompts, explain_failures, score_alone

    prompts, model = draw_prompts(trial), load_model(trial)
    what = f"{name_builder()} cannot build {architecture}"
    with tempfile.TemporaryDirectory() as scratch, explain_failures(name, what, trial):
        folder = Path(scratch) / "fp32"
        run_builder(trial, folder, _FLOAT, list_builder_options(_FLOAT, has_tied_head(trial)))
        configure_search(folder, read_end_token_ids(trial))
        reader = Reader(open_onnx(folder, 1), max(map(len, prompts)) + _ANSWER_TOKENS)
        pairs = [pair for ids in prompts for pair in read_logits(reader, model, ids)]
        scores = [(ids, reader.log_probs(reader.read(ids), COMPLETIONS)) for ids in prompts]
    found, expected = (np.stack(side) for side in zip(*pairs, strict=True))
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= LOGIT_TOLERANCE:
        what = f"{name_builder()} builds another model of {architecture}: its logits differ from those of transformers"
        fail(f"{what} by {difference:.0e} of the largest", HINT, at=name)
    alone = [[score_alone(model, ids, answer) for answer in COMPLETIONS] for ids in prompts]
    if not np.abs(np.array([values for _, values in scores]) - alone).max() <= _LARGEST_DIFFERENCE:
        fail(f"ONNX Runtime GenAI gives other log probabilities for {architecture} than transformers", HINT, at=name)
    return difference


def read_logits(reader: Reader, model: Any, ids: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the logits of ONNX and of transformers behind a prompt, and behind each token that is written after it."""
    from lib.models.trial import compute_logits

    yield reader.read(ids), compute_logits(model, ids)[0]
    for id_ in reader.answer_tokens(_ANSWER_TOKENS - 1):
        ids = [*ids, id_]
        if (found := reader.read_next()) is not None:
            yield found, compute_logits(model, ids)[0]


def try_variant(trial: Path, name: str, variant: Variant, seed: int) -> float | None:
    """Build the trial model as a variant says and return how far its logits are from those of its own weights.

    None where it does not run on this machine's CPU. Raises `UserError` when it cannot be built or loaded.
    """
    from lib.models.trial import draw_prompts

    prompts = draw_prompts(trial)
    with tempfile.TemporaryDirectory() as scratch, name_variant(name, trial):
        folder, calibrated = Path(scratch) / "built", None
        variant = fit_blocks(variant, read_row_lengths(trial))
        if variant.get("algo_config") in CALIBRATED:
            calibrated = round_weights(trial, variant, seed, Path(scratch) / "calibrated")
        build(calibrated or trial, folder, variant, list_builder_options(variant, has_tied_head(trial)))
        configure_search(folder, read_end_token_ids(trial))
        read_genai_config(folder)
        graph = Graph(folder / "model.onnx")
        check_graph(graph, {**variant, "nodes_to_exclude": []})  # of layers that the trial model may not have
        check_weights(graph, trial, variant, calibrated)
        if variant["execution_provider"] != "cpu":
            return None
        check_answers(folder, prompts, 1)
        return check_logits(folder, graph, trial, prompts, 1)


def fit_blocks(variant: Variant, columns: Mapping[str, int]) -> Variant:
    """Return the variant with a smaller block size where the trial model's rows are too short for its own."""
    asked = variant.get("block_size") or _BLOCK_SIZE
    sizes = [size for size in BLOCK_SIZES if size <= asked]
    fitting = [size for size in sizes if all(can_quantize(variant, size, length) for length in columns.values())]
    return {**variant, "block_size": max(fitting)} if fitting and max(fitting) < asked else variant


@contextmanager
def name_variant(name: str, trial: Path) -> Iterator[None]:
    """Put the variant's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        said = str(error).removeprefix(f"{trial}: ").replace(str(trial), "the small model")
        raise UserError(f"variants.{name}: tried on a small model of the base model's kind: {said}") from error


def round_weights(trial: Path, variant: Variant, seed: int, folder: Path) -> Path:
    """Round the trial model's weights by a few random ids, as far as blocks of its widths go."""
    from lib.models.trial import draw_prompts
    from lib.onnx.calibration import calibrate

    folder.mkdir()
    rows = draw_prompts(trial, (32, 32, 32))
    calibrate(trial, rows, {**variant, "calibration": {"length": 32, "iterations": 2}}, seed, folder)
    return folder


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="model, variant, seed, versions")
    arguments.add_argument("--variant", required=True, help="its name")
    arguments.add_argument("--tokenizer", type=Path, required=True, help="folder of the base model's small files")
    arguments.add_argument("--trial", type=Path, required=True, help="folder of the trial model, by check_training")
    arguments.add_argument("--output", type=Path, required=True, help="verdict to write")
    run(arguments, main)
