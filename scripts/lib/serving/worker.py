"""One packaged model and the thread that answers for it: rows that wait together go through it together."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lib.core.cli import UserError
from lib.data.templates import Template
from lib.evaluation.onnx_scorer import open_scorer
from lib.evaluation.scoring import encode_choices
from lib.onnx.packaged import explain_tokenizer_errors, load_packaged_tokenizer, read_packaged_template
from lib.onnx.runtime import Reader, load_onnx
from lib.serving.answers import choose_answer, stream
from lib.serving.inputs import Input, check_values, render_conversation, render_fitting_prompt

_BATCH = 16  # rows that are classified side by side


class BusyError(Exception):
    """More rows wait than the server keeps."""


@dataclass
class Job:
    """A prompt that waits for its answer, which goes to the event loop of whoever asked.

    pieces: parts of the answer, then None; an exception ends it too. is_cancelled: nobody waits any more.
    """

    prompt: str
    loop: asyncio.AbstractEventLoop
    pieces: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    is_cancelled: bool = False

    def send(self, piece: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:  # the loop has ended: so has whoever asked
            self.is_cancelled = True


class ServedModel:
    """A packaged model, loaded once, with a thread of its own."""

    def __init__(self, name: str, folder: Path, *, threads: int, most_waiting: int) -> None:
        """Raise `UserError` when the folder is no packaged model."""
        self.name, self.folder, self.most_waiting = name, folder, most_waiting
        self.template = read_packaged_template(folder)
        self.tokenizer = load_packaged_tokenizer(folder, [])
        self.model = load_onnx(folder, threads)
        self.is_classifier = self.template["task"] == "classification"
        self._scorer = open_scorer(self.model) if self.is_classifier else None
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=f"model {name}")
        self._thread.start()

    def count_waiting(self) -> int:
        return self._jobs.qsize()

    def render_prompt(self, row: dict[str, Any], at: str = "input") -> str:
        """Return the prompt of a row, under the rules of `predict.py`. Raises `UserError`."""
        one = Input(row, at)
        if chat := self.template.get("conversation"):
            values = render_conversation(one, chat, self.tokenizer)
        else:
            optional = self.template.get("optional_columns", ())
            values = check_values(one, self.template["columns"], self.tokenizer, optional)
        with explain_tokenizer_errors(self.folder):
            return render_fitting_prompt(one, values, self.template, self.tokenizer)

    async def classify(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Return label and probabilities of each prompt. Raises `BusyError`."""
        jobs = self._enqueue(prompts)
        try:
            return [_open(await job.pieces.get()) for job in jobs]
        finally:
            for job in jobs:
                job.is_cancelled = True

    async def stream(self, prompt: str) -> AsyncIterator[tuple[str, bool | None]]:
        """Yield the answer to a prompt as it grows, as `answers.stream` does. Raises `BusyError`."""
        (job,) = self._enqueue([prompt])
        try:
            while (piece := _open(await job.pieces.get())) is not None:
                yield piece
        finally:
            job.is_cancelled = True

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _enqueue(self, prompts: Sequence[str]) -> list[Job]:
        if self.count_waiting() + len(prompts) > self.most_waiting:
            raise BusyError
        loop = asyncio.get_running_loop()
        jobs = [Job(prompt, loop) for prompt in prompts]
        for job in jobs:
            self._jobs.put(job)
        return jobs

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            batch = [job for job in batch if not job.is_cancelled]
            try:
                if batch and self.is_classifier:
                    self._classify(batch)
                for job in [] if self.is_classifier else batch:
                    self._generate(job)
            except Exception as error:  # whoever asked is told; the thread goes on for the others
                for job in batch:
                    job.send(error)

    def _take(self) -> list[Job] | None:
        """Wait for a job; of a classifier, take others that wait with it. None when the server ends."""
        job = self._jobs.get()
        if job is None:
            return None
        batch = [job]
        while self.is_classifier and len(batch) < _BATCH and not self._jobs.empty():
            other = self._jobs.get()
            if other is None:
                self._jobs.put(None)
                break
            batch.append(other)
        return batch

    def _classify(self, batch: Sequence[Job]) -> None:
        encoded = encode_choices(self.tokenizer, cast(Template, self.template), [job.prompt for job in batch])
        if self._scorer:
            found = self._scorer.log_probs(encoded)
        else:
            reader = Reader(self.model, max(len(prompt) + max(map(len, choices)) for prompt, choices in encoded))
            found = (reader.log_probs(reader.read(prompt), choices) for prompt, choices in encoded)
        for job, log_probs in zip(batch, found, strict=True):
            job.send(choose_answer(log_probs, self.template))

    def _generate(self, job: Job) -> None:
        prompt = self.tokenizer.encode(job.prompt)
        limit = min(self.template["max_length"], self.model.context_length - len(prompt))
        reader = Reader(self.model, len(prompt) + limit)
        for piece in stream(reader, self.tokenizer, self.template, prompt, limit):
            if job.is_cancelled:
                return
            job.send(piece)
        job.send(None)


def _open(piece: Any) -> Any:
    """Return a piece, or raise what the thread ran into."""
    if isinstance(piece, Exception):
        raise piece if isinstance(piece, UserError) else RuntimeError(f"{type(piece).__name__}: {piece}")
    return piece
