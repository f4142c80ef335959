"""Probabilities of many answers behind many prompts, in ONNX Runtime: prompts once, answers in batches.

onnxruntime-genai reads on behind a prompt for one sequence only, so each answer would cost a pass over
all weights. Here the same model file runs in a session of ONNX Runtime itself, which takes the keys and
values of a prompt as inputs: answers of many rows go side by side, a token each at a time, with the
keys and values of their own prompt. GroupQueryAttention reads each row's length from the attention
mask, so prompts of different length stand together, padded behind.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from lib.core.paths import resolve_below
from lib.data.tokenizer import find_shared_prefix
from lib.hardware.memory import keep_freed_memory
from lib.onnx.packaged import GENAI_CONFIG, read_genai_config
from lib.onnx.runtime import OnnxModel, compute_log_softmax

_KEPT_BYTES = 256 << 20  # keys and values of the answers that are computed side by side
_KEPT = "kept"  # the input of our graph: places whose logits are wanted
_PRODUCTS = ("MatMulNBits", "MatMul", "Gemm")
_BEHIND_HEAD = ("Cast", "Add", "Mul", "Where", "Div", "Tanh")
_LAST = np.array([-1])
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Answer:
    """One answer that waits for its turn: where its sum goes, the ids, its prompt's length, keys and values."""

    place: tuple[int, int]
    ids: Sequence[int]
    behind: int
    cache: dict[str, np.ndarray]


class Scorer:
    """Scores answers with one session; computes what neighboring prompts begin with once."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Raise `ValueError` when the model takes more than ids, mask, positions, keys and values, or other types, or
        when its head is not found.
        """
        decoder = read_genai_config(folder)["model"]["decoder"]
        file = resolve_below(folder, decoder["filename"], at=folder / GENAI_CONFIG)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._session = onnxruntime.InferenceSession(
            _with_chosen_logits(file), options, providers=["CPUExecutionProvider"]
        )
        inputs = {given.name: given.type for given in self._session.get_inputs()}
        layers = range(decoder["num_hidden_layers"])
        self._past = [
            decoder["inputs"][kind] % layer for layer in layers for kind in ("past_key_names", "past_value_names")
        ]
        self._outputs = ["logits"] + [
            decoder["outputs"][kind] % layer
            for layer in layers
            for kind in ("present_key_names", "present_value_names")
        ]
        self._takes_positions = "position_ids" in inputs
        if set(inputs) - {"position_ids"} != {"input_ids", "attention_mask", _KEPT, *self._past}:
            raise ValueError(f"unknown inputs {sorted(inputs)}")
        if inputs[self._past[0]] not in _TYPES:
            raise ValueError(f"unknown type {inputs[self._past[0]]}")
        self._empty = np.zeros(
            (1, decoder["num_key_value_heads"], 0, decoder["head_size"]), dtype=_TYPES[inputs[self._past[0]]]
        )
        self._token_bytes = len(self._past) * self._empty.itemsize * self._empty.shape[1] * self._empty.shape[3]
        self._text: Sequence[int] = []
        self._cache = dict.fromkeys(self._past, self._empty)

    def log_probs(self, rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> Iterator[list[float]]:
        """Yield summed log probability of each answer's ids behind its prompt, row by row.

        rows: prompt ids with the ids of each answer.
        """
        sums: dict[int, list[float]] = {}
        waiting: list[Answer] = []
        for number, (prompt, answers) in enumerate(rows):
            first = compute_log_softmax(self._read(prompt, _LAST)[0])
            sums[number] = [float(first[ids[0]]) for ids in answers]
            waiting += [
                Answer((number, place), ids, len(prompt), self._cache)
                for place, ids in enumerate(answers)
                if len(ids) > 1
            ]
            longest = max((one.behind + len(one.ids) for one in waiting), default=0)
            if number == len(rows) - 1 or longest * len(waiting) * self._token_bytes > _KEPT_BYTES:
                self._add_following(waiting, sums)
                yield from sums.values()
                sums, waiting = {}, []

    def log_prob(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """Return the summed log probability of the ids of one long answer behind a prompt, all read in one call."""
        text = [*prompt, *answer[:-1]]
        logits = self._read(text, np.arange(len(prompt) - 1, len(text)))
        return float(select_log_probs(logits, answer).sum())

    def _read(self, text: Sequence[int], kept: np.ndarray) -> np.ndarray:
        """Return logits behind the ids at some places of a text, [kept, vocabulary]; keeps its keys and values.

        kept: places in the text, or -1.
        """
        first = min(int(place) % len(text) for place in kept)
        shared = min(find_shared_prefix([text, self._text]), first)
        known = {name: np.ascontiguousarray(states[:, :, :shared]) for name, states in self._cache.items()}
        places = kept % len(text) - shared
        logits, self._cache = self._run(np.array([text[shared:]]), np.array([len(text)]), known, places)
        self._text = text
        return logits[0]

    def _add_following(self, answers: Sequence[Answer], sums: dict[int, list[float]]) -> None:
        """Add the log probabilities of the ids behind the first, token by token, side by side."""
        # Long answers first, so that those that have ended can be left off at the end.
        answers = sorted(answers, key=lambda one: -len(one.ids))
        at_once = max(
            1, _KEPT_BYTES // max(1, self._token_bytes * max((a.behind + len(a.ids) for a in answers), default=1))
        )
        for start in range(0, len(answers), at_once):
            part = answers[start : start + at_once]
            cache = {name: _side_by_side([one.cache[name] for one in part]) for name in self._past}
            for step in range(len(part[0].ids) - 1):
                part = [one for one in part if len(one.ids) > step + 1]
                cache = {name: states[: len(part)] for name, states in cache.items()}
                given = np.array([[one.ids[step]] for one in part])
                lengths = np.array([one.behind + step + 1 for one in part])
                logits, cache = self._run(given, lengths, cache, last=len(part[0].ids) == step + 2)
                found = select_log_probs(logits[:, -1], [one.ids[step + 1] for one in part])
                for one, value in zip(part, found.tolist(), strict=True):
                    sums[one.place[0]][one.place[1]] += value

    def _run(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        past: dict[str, np.ndarray],
        kept: np.ndarray = _LAST,
        last: bool = False,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return logits [rows, kept, vocabulary] and the grown keys and values, none after a `last` call.

        ids: [rows, new]; lengths: [rows], real tokens of each with the new ones; past: [rows, heads, old, size]; kept:
        places among the new ids.
        """
        whole = past[self._past[0]].shape[2] + ids.shape[1]
        inputs: dict[str, Any] = {
            "input_ids": ids.astype(np.int64),
            "attention_mask": (np.arange(whole) < lengths[:, None]).astype(np.int64),
            _KEPT: kept,
            **past,
        }
        if self._takes_positions:
            inputs["position_ids"] = lengths[:, None] - ids.shape[1] + np.arange(ids.shape[1])
        if last:
            return self._session.run(self._outputs[:1], inputs)[0], {}
        logits, *present = self._session.run(self._outputs, inputs)
        return logits, dict(zip(self._past, present, strict=True))


def open_scorer(model: OnnxModel) -> Scorer | None:
    """Return a scorer for a loaded model, or None where only onnxruntime-genai knows how to run it."""
    if not model.on_cpu:
        return None
    keep_freed_memory()  # of the keys and values, the same sizes again and again
    try:
        return Scorer(model.folder, model.threads)
    except ValueError:
        return None


def _with_chosen_logits(file: Path) -> bytes:
    """Return the graph of an ONNX model, its weights left in their file, whose head runs on the ids at `kept` alone.

    `kept` is a new input, places among the ids of a call. A head on the last id alone (`prune_lm_head`) is no more.
    Raises `ValueError` where what leads to the logits is no product with the last hidden states.
    """
    model = onnx.load(file, load_external_data=False)
    producers = {name: node for node in model.graph.node for name in node.output}
    head = _find_head(producers)
    hidden = head.input[0]
    if _is_pruned(hidden, producers):
        hidden = producers[producers[hidden].input[0]].input[0]
    gather = onnx.helper.make_node("Gather", [hidden, _KEPT], ["kept_hidden"], axis=1)
    model.graph.input.append(onnx.helper.make_tensor_value_info(_KEPT, onnx.TensorProto.INT64, ["kept_ids"]))
    model.graph.node.insert(list(model.graph.node).index(head), gather)
    head.input[0] = gather.output[0]
    # Shapes that were written down for the head's way to the logits would still be those of all ids, or of one.
    del model.graph.value_info[:]
    for size in model.graph.output:
        if size.name == "logits":
            size.type.tensor_type.shape.dim[1].dim_param = "kept_ids"
    return model.SerializeToString()


def _find_head(producers: dict[str, onnx.NodeProto]) -> onnx.NodeProto:
    """Return the product that gives the logits: behind it a bias, a scale, a mask or a cap may stand."""
    node = producers.get("logits")
    while node is not None and node.op_type in _BEHIND_HEAD:
        node = next((producers[name] for name in node.input if name in producers), None)
    if node is None or node.op_type not in _PRODUCTS:
        raise ValueError("the logits are no product")
    return node


def _is_pruned(hidden: str, producers: dict[str, onnx.NodeProto]) -> bool:
    """Tell whether the builder takes the last id alone: a Gather of one place, and an Unsqueeze."""
    unsqueeze = producers[hidden]
    return unsqueeze.op_type == "Unsqueeze" and producers[unsqueeze.input[0]].op_type == "Gather"


def select_log_probs(logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Log probability of one id in each row of logits [rows, vocabulary]; [rows], summed in float64."""
    highest = logits.max(axis=-1)
    total = np.exp(logits - highest[:, None]).sum(axis=-1, dtype=np.float64)
    return logits[np.arange(len(ids)), ids].astype(np.float64) - highest - np.log(total)


def _side_by_side(states: Sequence[np.ndarray]) -> np.ndarray:
    """Return keys or values of several prompts, each [1, heads, tokens, size], as [prompts, heads, longest, size]."""
    longest = max(one.shape[2] for one in states)
    result = np.zeros((len(states), states[0].shape[1], longest, states[0].shape[3]), dtype=states[0].dtype)
    for index, one in enumerate(states):
        result[index, :, : one.shape[2]] = one[0]
    return result
