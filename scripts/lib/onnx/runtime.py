"""ONNX models as onnxruntime-genai runs them: load, append tokens, score answers, answer freely.

Imports neither torch nor transformers: `predict.py` starts in a second and `benchmark_onnx.py`
measures the memory of what ships, not of what made it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from lib.core.cli import extract_first_line, fail
from lib.data.tokenizer import find_shared_prefix
from lib.onnx.packaged import read_genai_config

_FATAL = 4  # what is less comes as an exception; ONNX Runtime's own lines would hold names out of the model as they are


@dataclass
class OnnxModel:
    """A loaded model (`og.Model` carries no types) and where it is from.

    Without `og.Tokenizer`, which reads some texts otherwise than the tokenizer of the training: ids come from
    `lib.data.tokenizer` here, too.
    """

    model: Any
    context_length: int
    folder: Path
    threads: int
    on_cpu: bool

    def start_generator(self, **search_options: int) -> Any:
        """Return an `og.Generator` with the given search options (`max_length`, `min_length`)."""
        params = og.GeneratorParams(self.model)
        params.set_search_options(**search_options)
        return og.Generator(self.model, params)

    @cached_property
    def gives_all_logits(self) -> bool:
        """Whether one call gives the logits behind each of its tokens; `prune_lm_head` leaves the last."""
        generator = self.start_generator(max_length=3)
        generator.append_tokens(np.array([0, 0], dtype=np.int32))
        return generator.get_output("logits").shape[1] == 2

    @cached_property
    def can_rewind(self) -> bool:
        """Whether a generator can go back to an earlier token; a recurrent state, as of LFM2 and Qwen 3.5, cannot."""
        generator = self.start_generator(max_length=3)
        generator.append_tokens(np.array([0, 0], dtype=np.int32))
        try:
            generator.rewind_to(1)
        except RuntimeError:
            return False
        return True


def load_onnx(folder: Path, threads: int) -> OnnxModel:
    """Load a genai folder; `threads` goes into the session options, not into the files.

    Raises `UserError` when the folder is none, may do more than answer, or ONNX Runtime cannot load its model.
    """
    with explain_runtime_errors("cannot load it", at=folder):
        return open_onnx(folder, threads)


@contextmanager
def explain_runtime_errors(what: str, *, at: Path) -> Iterator[None]:
    """Turn what ONNX Runtime raises for a model that it cannot load or run into `UserError`."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:  # C++ exceptions as pybind11 passes them on
        fail(f"ONNX Runtime {what}: {extract_first_line(error)}", "make the folder again", at=at)


def open_onnx(folder: Path, threads: int, session: Mapping[str, Any] | None = None) -> OnnxModel:
    """Load a model as `load_onnx` does, but raise ONNX Runtime's own `RuntimeError`. session: more session options."""
    made = read_genai_config(folder)
    on_cpu = not made["model"]["decoder"]["session_options"].get("provider_options")
    if not on_cpu:
        import onnxruntime

        onnxruntime.preload_dlls()  # CUDA's libraries lie in packages of their own, where the loader does not look
    config = og.Config(str(folder))
    options = {"intra_op_num_threads": threads, "log_severity_level": _FATAL, **(session or {})}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    return OnnxModel(
        model,
        read_context_length(made),
        folder,
        threads,
        on_cpu=on_cpu,
    )


def read_context_length(config: dict[str, Any]) -> int:
    """Return tokens that a model reads as it was trained to, by its genai_config.json.

    Where the configuration names a sliding window, its cache is as long as the window and cannot hold more: models that
    this project builds name none, and slide it within a cache as long as the text.
    """
    model = config["model"]
    window = (model["decoder"].get("sliding_window") or {}).get("window_size")
    return min(model["context_length"], window or model["context_length"])


class Reader:
    """Reads prompts one after the other with one generator, computing what neighbors share once.

    Prompts of one template begin alike, so only what differs is computed. Room is for the longest
    prompt and answer, never the whole context: the key-value cache is allocated at once.
    """

    def __init__(self, model: OnnxModel, room: int) -> None:
        """room: tokens of the longest prompt and its answer. Raises `UserError` beyond the model's context."""
        if room > model.context_length:
            fail(
                f"a prompt and its answer take {room} tokens, the model takes {model.context_length}",
                "shorten the input, or lower corpus.max_length",
            )
        self._generator = model.start_generator(max_length=room)
        self._model, self._room = model, room
        self._prompt: list[int] = []

    def read(self, prompt: list[int]) -> np.ndarray:
        """Read a prompt; logits behind it, [vocabulary]."""
        # The generator notices that it is no longer at an end only when it goes back by a token or more.
        shared = find_shared_prefix([prompt, self._prompt])
        if self._prompt:
            shared = self._go_back(shared)
        self._generator.append_tokens(np.array(prompt[shared:], dtype=np.int32))
        self._prompt = prompt
        return self._generator.get_logits()[0, -1].copy()

    def _go_back(self, length: int) -> int:
        """Go back to the first `length` tokens; returns how many the generator still has: none where it must begin
        anew, as models with a recurrent state do.
        """
        if self._model.can_rewind:
            self._generator.rewind_to(length)
            return length
        self._generator = self._model.start_generator(max_length=self._room)
        return 0

    def read_next(self) -> np.ndarray | None:
        """Return the logits behind the last token that `answer_tokens` wrote, [vocabulary]; None behind the end."""
        return None if self._generator.is_done() else self._generator.get_logits()[0, -1].copy()

    def answer(self, limit: int) -> list[int]:
        """Return ids of the free greedy answer to the prompt just read, at most `limit`, the end token included."""
        return list(self.answer_tokens(limit))

    def answer_tokens(self, limit: int) -> Iterator[int]:
        """Yield the ids of the answer one after the other, as `answer` returns them."""
        for _ in range(limit):
            if self._generator.is_done():
                return
            self._generator.generate_next_token()
            yield int(self._generator.get_next_tokens()[0])

    def log_probs(self, first: np.ndarray, answers: Sequence[Sequence[int]]) -> list[float]:
        """Return summed log probability of each answer's ids behind the prompt.

        first: what `read` returned. The prompt is not computed again for each answer.
        """
        start = compute_log_softmax(first)
        sums = []
        for ids in answers:
            total = float(start[ids[0]])
            if len(ids) > 1:
                if left := self._prompt[self._go_back(len(self._prompt)) :]:
                    self._generator.append_tokens(np.array(left, dtype=np.int32))
                following = compute_log_softmax(self._append(ids[:-1]))
                total += float(following[np.arange(len(ids) - 1), ids[1:]].sum())
            sums.append(total)
        return sums

    def _append(self, ids: Sequence[int]) -> np.ndarray:
        """Return logits behind each of `ids`, [ids, vocabulary]."""
        logits = []
        for step in [ids] if self._model.gives_all_logits else [[id_] for id_ in ids]:
            self._generator.append_tokens(np.array(step, dtype=np.int32))
            logits.append(self._generator.get_output("logits")[0])
        return np.concatenate(logits)


def compute_log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
