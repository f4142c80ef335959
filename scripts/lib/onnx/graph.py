"""Weights inside an ONNX file: read back, compared with the weights they stand for.

Formats of quantized ones: operator MatMulNBits of ONNX Runtime (docs/ContribOperators.md, com.microsoft), and ONNX's
DequantizeLinear before a MatMul (QDQ). A weight [N, K] is cut along K into blocks; each block has a scale, codes of 4
or 8 bits and perhaps a zero point: value = (code - zero point) * scale.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from lib.core.paths import resolve_below

_ROWS = 8192  # of a weight that are compared at once
# Largest relative error of rounding to a type.
_ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


# Parts of a layer that the builder joins, by the name it gives them, and those that it takes out of a joined one: from
# the first rows (0), from the last (-1), or from those before (-2).
_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_SPLIT = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", -2),
    "v_proj": ("qkv_proj", -1),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", -1),
}


# What the builder calls a layer's part, and what models call it. Granite keeps gate and up in one matrix.
_MODULES = (
    (".attn.", ".self_attn."),
    (".attn.o_proj", ".self_attn.dense"),  # Phi-2
    (".attn.o_proj", ".self_attn.out_proj"),  # LFM2, as the next three
    (".mlp.gate_proj", ".feed_forward.w1"),
    (".mlp.up_proj", ".feed_forward.w3"),
    (".mlp.down_proj", ".feed_forward.w2"),
    (".mlp.gate_proj", ".shared_mlp.input_linear"),  # Granite 4, as the next two
    (".mlp.up_proj", ".shared_mlp.input_linear"),
    (".mlp.down_proj", ".shared_mlp.output_linear"),
    (".linear_attn.", ".linear_attn.in_proj_"),  # Qwen 3.5
)


@dataclass(frozen=True)
class Quantized:
    """codes: [N, blocks, block size]; scales, zeros: [N, blocks]; columns: K, without the padding.

    asymmetric: zero points are stored; else they are the middle of the codes. scale_error: largest relative error that
    rounding to the scales' own type may have made.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    columns: int
    bits: int
    asymmetric: bool
    scale_error: float = 0.0


class Graph:
    """The graph of an ONNX file; weights are read from its data file only when they are asked for."""

    def __init__(self, file: Path) -> None:
        self._folder = file.parent
        self._graph = onnx.load(str(file), load_external_data=False).graph
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        self.node_names = [node.name for node in self._graph.node]
        self.quantized = [node.name for node in self._graph.node if self._is_quantized(node)]
        self.plain = [node.name for node in self._graph.node if self._is_plain(node)]
        self.has_quantized_experts = any(node.op_type == "QMoE" for node in self._graph.node)
        self.embeds_as_head = any(
            node.op_type == "GatherBlockQuantized" and not self._is_quantized(node) for node in self._graph.node
        )

    def _is_quantized(self, node: onnx.NodeProto) -> bool:
        if node.op_type in ("DequantizeLinear", "GatherBlockQuantized"):
            return node.input[0] in self._weights and len(self._weights[node.input[0]].dims) == 2
        return node.op_type == "MatMulNBits"

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "MatMul" and node.input[1] in self._weights

    def operators(self) -> dict[str, int]:
        """Number of nodes by operator, sorted by name."""
        return dict(sorted(Counter(node.op_type for node in self._graph.node).items()))

    def fault(self) -> str | None:
        """Return why no runtime could load it: an input that nothing makes, or a weight that the data file lacks."""
        made = {value.name for value in self._graph.input} | set(self._weights) | {""}
        for node in self._graph.node:
            for name in node.input:
                if name not in made:
                    return f"node {node.name} reads {name}, which nothing makes"
            made.update(node.output)
        for tensor in self._weights.values():
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place:
                file = resolve_below(self._folder, place["location"], at=self._folder)
                end = int(place.get("offset", 0)) + int(place["length"])
                if not file.is_file() or file.stat().st_size < end:
                    return f"weight {tensor.name} is not in {file.name}"
        return next((f"nothing makes the output {o.name}" for o in self._graph.output if o.name not in made), None)

    def count_rows(self, name: str) -> int:
        """Return N of the quantized weight [N, K] of the node `name`."""
        node = self._node(name)
        if node.op_type in ("DequantizeLinear", "GatherBlockQuantized"):
            return int(self._weights[node.input[0]].dims[node.op_type == "DequantizeLinear"])
        return int(next(attribute.i for attribute in node.attribute if attribute.name == "N"))

    def read_plain(self, name: str) -> np.ndarray:
        """Return the weight of the MatMul node `name`, [N, K], in the type that it is stored in."""
        return self._array(self._node(name).input[1]).T

    def read_quantized(self, name: str) -> Quantized:
        """Return the weight of the MatMulNBits, DequantizeLinear or GatherBlockQuantized node `name`."""
        node = self._node(name)
        facts = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "DequantizeLinear":
            return self._read_qdq(node, facts["block_size"])
        if node.op_type == "GatherBlockQuantized":
            return self._read_embeddings(node, facts["block_size"])
        bits, block, rows, columns = (facts[key] for key in ("bits", "block_size", "N", "K"))
        blocks = -(-columns // block)
        codes = _unpack_codes(self._array(node.input[1]).reshape(rows, -1), bits).reshape(rows, blocks, block)
        scales = self._array(node.input[2]).reshape(rows, blocks)
        asymmetric = len(node.input) > 3 and bool(node.input[3])
        if asymmetric:
            zeros = _unpack_codes(self._array(node.input[3]).reshape(rows, -1), bits)[:, :blocks]
        else:
            zeros = np.full((rows, blocks), 1 << (bits - 1), dtype=np.uint8)
        return Quantized(
            codes, scales.astype(np.float32), zeros, columns, bits, asymmetric, _ROUNDING[scales.dtype.name]
        )

    def _read_qdq(self, node: onnx.NodeProto, block: int) -> Quantized:
        """Return the weight of a DequantizeLinear node: codes of 4 bits, [K, N], cut along K; without a sign from 0."""
        signed = self._weights[node.input[0]].data_type == onnx.TensorProto.INT4
        middle = 8 if signed else 0
        values = self._array(node.input[0]).astype(np.int16).T + middle
        rows, columns = values.shape
        scales = self._array(node.input[1]).T
        codes = np.zeros((rows, scales.shape[1] * block), dtype=np.uint8)
        codes[:, :columns] = values
        asymmetric = len(node.input) > 2 and bool(node.input[2])
        zeros = np.full(scales.shape, middle, dtype=np.uint8)
        if asymmetric:
            zeros = (self._array(node.input[2]).astype(np.int16).T + middle).astype(np.uint8)
        codes = codes.reshape(rows, -1, block)
        return Quantized(codes, scales.astype(np.float32), zeros, columns, 4, asymmetric, _ROUNDING[scales.dtype.name])

    def _read_embeddings(self, node: onnx.NodeProto, block: int) -> Quantized:
        """Return the weight of a GatherBlockQuantized node: codes of 4 bits, [N, K], cut along K."""
        signed = self._weights[node.input[0]].data_type == onnx.TensorProto.INT4
        values = self._array(node.input[0]).astype(np.int16) + (8 if signed else 0)
        rows, columns = values.shape
        scales = self._array(node.input[2])
        codes = np.zeros((rows, scales.shape[1] * block), dtype=np.uint8)
        codes[:, :columns] = values
        asymmetric = len(node.input) > 3 and bool(node.input[3])
        zeros = np.full(scales.shape, 8, dtype=np.uint8)
        if asymmetric:
            zeros = (self._array(node.input[3]).astype(np.int16) + (8 if signed else 0)).astype(np.uint8)
        codes = codes.reshape(rows, -1, block)
        return Quantized(codes, scales.astype(np.float32), zeros, columns, 4, asymmetric, _ROUNDING[scales.dtype.name])

    def _node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self._graph.node if node.name == name)

    def _array(self, name: str) -> np.ndarray:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(self._weights[name])
        if tensor.external_data:
            load_external_data_for_tensor(tensor, str(self._folder))
        return numpy_helper.to_array(tensor)


def list_merged_names(node: str, names: Collection[str]) -> list[str]:
    """Return names of the merged weights behind a node such as `/model/layers.0/attn/o_proj/MatMul_Q4`.

    Several where the builder joins them, q, k and v for instance; the joined one where it takes a part of it. None
    where the node has a name that no weight has.
    """
    module = node.strip("/").rpartition("/")[0].replace("/", ".")
    if module == "lm_head" and "lm_head.weight" not in names:
        module = "model.embed_tokens"  # tied
    stems = [module, *(module.replace(theirs, ours) for theirs, ours in _MODULES if theirs in module)]
    if ".linear_attn.in_proj_" in stems[-1]:
        stems[-1] = stems[-1].removesuffix("_proj")
    for stem in stems:
        layer, _, part = stem.rpartition(".")
        for parts in ((part,), _JOINED.get(part, ()), _SPLIT.get(part, ())[:1]):
            found = [f"{layer}.{one}.weight" if layer else f"{one}.weight" for one in parts]
            if found and all(name in names for name in found):
                return found
    return []


def select_rows_behind(node: str, merged: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` rows of a merged weight that a node has, where the builder takes it apart; else all of
    them.
    """
    start = locate_rows_behind(node, len(merged), count)
    return merged[start : start + count]


def locate_rows_behind(node: str, rows: int, count: int) -> int:
    """Return the first of the `count` rows that a node takes from a merged weight of `rows` rows."""
    _, place = _SPLIT.get(node.strip("/").split("/")[-2], ("", 0))
    return rows + place * count if place < 0 and rows > count else 0


def dequantize(weight: Quantized) -> np.ndarray:
    """Return the values that the codes stand for: [N, K], float32."""
    values = (weight.codes.astype(np.float32) - weight.zeros[:, :, None]) * weight.scales[:, :, None]
    return values.reshape(len(values), -1)[:, : weight.columns]


def dequantize_gptq(qweight: np.ndarray, scales: np.ndarray, qzeros: np.ndarray) -> np.ndarray:
    """Return the values that a 4-bit checkpoint in the layout of GPTQ stands for: [N, K], float32.

    qweight: [K / 8, N] int32, eight codes along K in each, the lowest bits first. scales: [groups, N].
    qzeros: [groups, N / 8] int32, zero points packed along N, stored less one (AutoGPTQ's format 1).
    """
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    codes = (qweight.view(np.uint32)[:, None, :] >> shifts[None, :, None] & 15).reshape(-1, qweight.shape[1])
    zeros = (qzeros.view(np.uint32)[:, :, None] >> shifts & 15).reshape(len(qzeros), -1) + 1
    size = -(-len(codes) // len(scales))
    steps, middles = (np.repeat(part.astype(np.float32), size, axis=0)[: len(codes)] for part in (scales, zeros))
    return ((codes.astype(np.float32) - middles) * steps).T


def is_rounded(stored: np.ndarray, original: np.ndarray) -> bool:
    """Return whether a weight that is not quantized is the original, rounded once to the type that it is stored in."""
    allowed = 1.001 * _ROUNDING[stored.dtype.name] * np.abs(original) + 2.0**-25  # half of float16's smallest step
    return bool((np.abs(stored.astype(np.float32) - original) <= allowed).all())


def select_rows(weight: Quantized, start: int, count: int) -> Quantized:
    """Return some rows of a weight."""
    rows = slice(start, start + count)
    return replace(weight, codes=weight.codes[rows], scales=weight.scales[rows], zeros=weight.zeros[rows])


def split_rows(weight: Quantized, original: np.ndarray) -> Iterator[tuple[Quantized, np.ndarray]]:
    """Yield some thousand rows of a weight and of the original, one after the other: a vocabulary head takes gigabytes
    in the numbers that they are compared in.
    """
    for start in range(0, len(weight.codes), _ROWS):
        yield select_rows(weight, start, _ROWS), original[start : start + _ROWS]


def measure_largest_error(weight: Quantized, original: np.ndarray) -> float:
    """Return largest |original - dequantized|, in steps of the block; rounding to the nearest gives 0.5.

    Values beyond the last code are compared with that: a symmetric grid has one code less above zero.
    original: [N, K].
    """
    return max(_measure_error(*rows) for rows in split_rows(weight, original))


def _measure_error(weight: Quantized, original: np.ndarray) -> float:
    zeros = weight.zeros.astype(np.float32)[:, :, None]
    steps = weight.scales[:, :, None]
    exact = np.divide(_blocks(original, weight), steps, out=np.zeros(weight.codes.shape, np.float32), where=steps != 0)
    wanted = np.clip(exact, -zeros, (1 << weight.bits) - 1 - zeros)
    error = np.abs(wanted - (weight.codes - zeros)).reshape(len(original), -1)[:, : weight.columns]
    return float(error.max())


def name_grid(weight: Quantized, original: np.ndarray) -> str:
    """Return how the scales were chosen, from the scales themselves.

    default: the value of largest size, with its sign, is code 0: scale = value / -8 in 4 bits.
    rtn: scale = 2 max|w| / 15 in 4 bits. asymmetric: with zero points. other: none of these.
    original: [N, K]. Builder and quantizer call both symmetric grids round-to-nearest; they differ
    in quality, so the manifest says which one it is.
    """
    if weight.asymmetric:
        return "asymmetric"
    shares = [(len(rows.codes), *_share_of_grids(rows, part)) for rows, part in split_rows(weight, original)]
    for place, name in enumerate(("default", "rtn"), start=1):
        if sum(one[0] * one[place] for one in shares) > 0.99 * len(weight.codes):
            return name
    return "other"


def _share_of_grids(weight: Quantized, original: np.ndarray) -> tuple[float, float]:
    """Return the shares of blocks whose scale the grids `default` and `rtn` would have."""
    blocks = _blocks(original, weight)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[:, :, None], axis=-1)[:, :, 0]

    def share(scales: np.ndarray) -> float:
        # A block of -m and +m may take either sign, and a block of zeros any scale.
        same = np.isclose(np.abs(scales), np.abs(weight.scales), rtol=1e-3, atol=1e-12) | (extreme == 0)
        return float(same.mean())

    return share(extreme / -(1 << (weight.bits - 1))), share(2 * np.abs(extreme) / ((1 << weight.bits) - 1))


def _blocks(original: np.ndarray, weight: Quantized) -> np.ndarray:
    """Return [N, K] as [N, blocks, block size], the last block filled up with zeros."""
    rows, blocks, size = weight.codes.shape
    padded = np.zeros((rows, blocks * size), dtype=np.float32)
    padded[:, : weight.columns] = original
    return padded.reshape(rows, blocks, size)


def _unpack_codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """Return bytes as codes along the last axis: two a byte in 4 bits, the low half first."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
