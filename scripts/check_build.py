"""Refuse before the training what would stop the ONNX stages after it.

Block sizes, node names, calibration rows and lengths follow from the configuration, the corpus and the base model's
config.json. So they are checked as soon as these are there, in seconds, and not when hours of training are done.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import read_json
from lib.core.layout import SCORED_SPLITS, SPLITS
from lib.data.corpus import load_template, read_corpus
from lib.data.templates import UNSURE
from lib.data.tokenizer import Tokenizer, encode_pairs, load_tokenizer, read_max_tokens
from lib.evaluation.scoring import answer_limit, encode_choices
from lib.onnx.calibration_rows import pack_ids, sample_calibration_rows
from lib.provenance.manifests import read_manifest

BLOCK_SIZES = (16, 32, 64, 128, 256)
_BLOCK_SIZE = 32  # the builder's default
# The builder joins and splits these, whatever the checkpoint has.
_FUSED = ("qkv_proj", "q_proj", "k_proj", "v_proj", "gate_up_proj", "gate_proj", "up_proj")

Variant = Mapping[str, Any]


def main(args: argparse.Namespace) -> None:
    read_manifest(args.base)
    settings, tokenizer = args.settings, load_tokenizer(args.base)
    template = load_template(args.template)
    columns = read_row_lengths(args.base)
    layers = read_json(args.base / "config.json")["num_hidden_layers"]
    rows = {split: read_corpus(getattr(args, split)) for split in SPLITS}
    check_labels(template["labels"] or [], settings)
    for name, variant in settings["variants"].items():
        check_block_size(name, variant, columns)
        check_nodes(name, variant, columns, layers)
        check_calibration(name, variant, rows["train"], tokenizer, settings["seed"])
    choices = encode_choices(tokenizer, template, [rows["test"][0]["prompt"]])[0][1] if template["labels"] else []
    limit = answer_limit(template, choices, settings["evaluate"]["max_new_tokens"])
    for split in SCORED_SPLITS:
        check_lengths(getattr(args, split), rows[split], tokenizer, limit, read_max_tokens(args.base))
    prompts = rows["validation"][: settings["benchmark"]["prompts"]]
    check_lengths(args.validation, prompts, tokenizer, settings["benchmark"]["new_tokens"], read_max_tokens(args.base))
    report_progress(f"check_build: {len(settings['variants'])} variants fit the base model and the corpus")


def check_labels(labels: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for a label that the answer below the threshold of `decision` could be mistaken for."""
    if "decision" in settings and UNSURE in labels:
        fail(f"a label is called {UNSURE!r}, as the answer below the threshold of decision:", "rename the label")


def read_row_lengths(base: Path) -> dict[str, int]:
    """Return the row length of every weight that a build quantizes, by name, without reading weights."""
    from lib.models.safetensors_streaming import build_empty_model, list_linear_weights, locate_weights

    stored = locate_weights(base)
    names = list_linear_weights(build_empty_model(base)) & stored.keys()
    return {name: stored[name].shape[1] for name in sorted(names)}


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

    AutoRound needs whole blocks. Zero points in 4 bits are packed in pairs, but an odd number of them in a row fails in
    onnxruntime 1.32 (`quantization/neural_compressor/weight_only.py`, `make_matmul_weight_only_node`).
    """
    algo = variant.get("algo_config")
    if algo == "auto_round":
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


def check_calibration(
    name: str, variant: Variant, rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, seed: int
) -> None:
    """Raise `UserError` when the calibration rows fill no sequence."""
    if variant.get("algo_config") != "auto_round":
        return
    length, count = variant["calibration"]["length"], variant["calibration"]["rows"]
    chosen = sample_calibration_rows(rows, count, seed)
    if not pack_ids(tokenizer, chosen, length):
        what = f"variants.{name}: its {len(chosen)} calibration rows fill no sequence of {length} tokens"
        fail(what, "lower calibration.length or raise calibration.rows")


def check_lengths(
    file: Path, rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, new_tokens: int, limit: int
) -> None:
    """Raise `UserError`, naming the row, when prompt and answer are longer than what the model reads.

    new_tokens: of the longest free answer.
    """
    pairs = encode_pairs(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    for line, (prompt, completion) in enumerate(pairs, start=1):
        answer = max(len(completion), new_tokens)
        if len(prompt) + answer > limit:
            what = f"a prompt of {len(prompt)} tokens and an answer of up to {answer} exceed the model's {limit}"
            fail(what, "lower corpus.max_length, evaluate.max_new_tokens or benchmark.new_tokens", at=file, line=line)


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument(
        "--settings", type=parse_settings, required=True, help="seed, variants, evaluate, benchmark, versions"
    )
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    for split in SPLITS:
        arguments.add_argument(f"--{split}", type=Path, required=True, help=f"corpus/{split}.jsonl")
    arguments.add_argument("--template", type=Path, required=True, help="corpus/template.json")
    run(arguments, main)
