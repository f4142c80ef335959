"""What a build has to show before it counts: a graph that holds together, the merged model's weights, its logits.

The builder succeeds on models that ONNX Runtime cannot load, and on graphs that compute another model: its exit code
proves nothing. Weights are compared with those that they stand for. Then the graph is run in float32 beside the PyTorch
model that has the built weights, rounding and all: what differs is the builder's own error, not what rounding costs.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx
from safetensors import safe_open

from lib.core.cli import extract_first_line, fail, report_progress
from lib.core.files import read_json, write_json
from lib.onnx.builder import refuse_variant
from lib.onnx.graph import (
    Graph,
    Quantized,
    dequantize,
    dequantize_gptq,
    is_rounded,
    list_merged_names,
    locate_rows_behind,
    measure_largest_error,
    name_grid,
    select_rows,
    select_rows_behind,
    split_rows,
)
from lib.onnx.runtime import Reader, open_onnx, read_context_length

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
# Largest difference of logits, relative to the largest logit: both sides compute in float32 and differ in the order of
# sums (1e-6 to 1e-5 measured); a norm without its mean or a wrong epsilon gives 2e-3 to 0.7.
LOGIT_TOLERANCE = 1e-3
_FLOAT_SESSION = {"session.qdq_matmulnbits_accuracy_level": "1"}
_CHECKED_WEIGHTS = 12
_ANSWER_TOKENS = 4
_STEP_TOLERANCE = 0.02  # scales are stored in float32 or float16

T = TypeVar("T")


class Compared(NamedTuple):
    """Weights of a build that were compared with the merged ones, out of how many, and the grid of those quantized."""

    weights: int
    of: int
    grid: str | None


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
    if config["model"]["type"].startswith("qwen3_5"):
        # Without them the runtime takes token 0, an exclamation mark, for an image, and refuses the text.
        config["model"] |= dict.fromkeys(("image_token_id", "video_token_id"), config["model"]["vocab_size"])
    config["search"] |= SEARCH | {"max_length": min(config["search"]["max_length"], read_context_length(config))}
    write_json(path, config)


def check_graph(graph: Graph, variant: dict[str, Any]) -> None:
    """Raise `UserError` when the graph holds together badly or lacks a node that the variant names."""
    if fault := graph.fault():
        refuse_variant(f"the builder made a model that cannot be loaded: {fault}")
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
    asked = "calibrated" if calibrated else variant.get("algo_config") or "default"
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


def check_answers(
    folder: Path, encoded: Sequence[list[int]], threads: int, session: dict[str, str] | None = None
) -> list[np.ndarray]:
    """Load the model as users do, let it answer prompts, and return the logits behind each, [vocabulary].

    session: more session options. Raises `UserError` when it cannot, or answers nonsense.
    """
    try:
        model = open_onnx(folder, threads, session)
    except RuntimeError as error:
        refuse_variant(f"the builder made a model that ONNX Runtime cannot load: {_reason(error)}", error)
    try:
        reader, logits = Reader(model, max(map(len, encoded)) + _ANSWER_TOKENS), []
        for ids in encoded:
            logits.append(reader.read(ids))
            reader.answer(_ANSWER_TOKENS)
    except RuntimeError as error:
        refuse_variant(f"the built model cannot run: {_reason(error)}", error)
    if not np.isfinite(logits).all():
        refuse_variant("the built model answers with numbers that are not finite")
    return logits


def check_logits(folder: Path, graph: Graph, merged: Path, encoded: Sequence[list[int]], threads: int) -> float | None:
    """Return how far the graph, run in float32, is from the PyTorch model with the built weights.

    The largest difference of the logits behind each prompt, relative to the largest logit; None where the graph holds
    quantized weights that stand for no known ones (experts). Raises `UserError` above `LOGIT_TOLERANCE`: rounding is on
    both sides, so what differs is the builder's fault.
    """
    names = _list_names(merged)
    unknown = next((node for node in graph.quantized if not list_merged_names(node, names)), None)
    if graph.has_quantized_experts or unknown:
        report_progress(f"the logits were not compared: {unknown or 'experts'} stands for no weight that is known")
        return None
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        found = check_answers(write_float_copy(folder, Path(scratch)), encoded, threads, _FLOAT_SESSION)
    difference = measure_logit_difference(merged, graph, encoded, found, threads)
    if not difference <= LOGIT_TOLERANCE:
        fail(
            f"the built model computes something else than the merged one: with the same weights its logits differ by"
            f" {difference:.1e} of the largest (allowed {LOGIT_TOLERANCE:.0e})",
            "this is a fault of the builder; choose another base model (docs/models.md)",
            at=merged,
        )
    return difference


def write_float_copy(folder: Path, target: Path) -> Path:
    """Write a build again with products in float32, where the default rounds activations to 8 bits; returns `target`.

    The weights are the same files. Attribute `accuracy_level` of MatMulNBits is 1 (docs/ContribOperators.md of ONNX
    Runtime); products of QDQ form take it from the session, `_FLOAT_SESSION`.
    """
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("accuracy_level", 1)])
    for file in folder.iterdir():
        if file.name == "model.onnx":
            continue
        try:
            os.link(file, target / file.name)
        except OSError:  # a file system without links
            shutil.copyfile(file, target / file.name)
    onnx.save(model, str(target / "model.onnx"))
    return target


def measure_logit_difference(
    merged: Path, graph: Graph, prompts: Sequence[list[int]], found: Sequence[np.ndarray], threads: int
) -> float:
    """Return the largest difference of the logits behind each prompt, relative to the largest logit.

    The PyTorch model has the weights that the graph holds, each read when its layer comes.
    """
    from lib.hardware.device import use_threads
    from lib.models.safetensors_streaming import compute_last_logits, stream_model

    use_threads(threads)
    model = stream_model(merged, replace=map_built_weights(graph, merged))
    expected = compute_last_logits(model, prompts).numpy()
    return float(np.abs(expected - np.stack(found)).max() / np.abs(expected).max())


def _list_names(merged: Path) -> Collection[str]:
    from lib.models.safetensors_streaming import locate_weights

    return locate_weights(merged).keys()


def map_built_weights(graph: Graph, merged: Path) -> dict[str, Callable[[Any], Any]]:
    """Return, by a parameter's name, what makes the graph's weight of the merged one (torch tensors, [N, K])."""
    from lib.models.safetensors_streaming import locate_weights

    shapes = {name: stored.shape for name, stored in locate_weights(merged).items()}
    parts: dict[str, list[tuple[str, int, int]]] = {}  # of each weight: node, its first row there, and here
    for node in graph.quantized:
        names, rows = list_merged_names(node, shapes), graph.count_rows(node)
        if node.strip("/").startswith("lm_head") and names != ["lm_head.weight"]:
            parts["lm_head.weight"] = [(node, 0, 0)]
            if graph.embeds_as_head:
                parts[names[0]] = [(node, 0, 0)]
            continue
        start = 0
        for name in names:
            here = locate_rows_behind(node, shapes[name][0], rows) if len(names) == 1 else 0
            parts.setdefault(name, []).append((node, start, here))
            start += shapes[name][0]
    return {name: _Built(graph, tuple(pieces)) for name, pieces in parts.items()}


@dataclass(frozen=True)
class _Built:
    """Makes the built weight of a merged one; pieces: node, first row of it there, and here."""

    graph: Graph
    pieces: tuple[tuple[str, int, int], ...]

    def __call__(self, original: Any) -> Any:
        made = original.float().clone()
        for node, there, here in self.pieces:
            weight = self.graph.read_quantized(node)
            count = min(len(weight.codes) - there, len(made) - here)
            for rows, part in split_rows(select_rows(weight, there, count), made[here : here + count].numpy()):
                part[:] = dequantize(rows)
        return made


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


def _reason(error: Exception) -> str:
    return re.sub(r"^Load model from .*? failed: ?", "", extract_first_line(error))


def _pick_evenly(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items, evenly from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]
