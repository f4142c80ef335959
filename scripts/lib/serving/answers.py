"""The answers of a packaged model: a label with the probability of each, or free text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from lib.data.templates import UNSURE, Template
from lib.data.tokenizer import Tokenizer
from lib.evaluation.scoring import answer_text, encode_choices
from lib.evaluation.temperature import compute_shares
from lib.onnx.runtime import OnnxModel, Reader


def classify(
    model: OnnxModel, tokenizer: Tokenizer, template: dict[str, Any], prompts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the most probable label of each prompt, and the probability of each label, corrected by the temperature."""
    encoded = encode_choices(tokenizer, cast(Template, template), prompts)
    reader = Reader(model, max(len(prompt) + max(map(len, choices)) for prompt, choices in encoded))
    for prompt, choices in encoded:
        yield choose_answer(reader.log_probs(reader.read(prompt), choices), template)


def choose_answer(log_probs: Sequence[float], template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the most probable label, or that none is probable enough. log_probs: of the labels, in their order."""
    shares = compute_shares(np.array([log_probs]), template.get("temperature", 1.0))[0].tolist()
    probabilities = dict(zip(template["labels"], shares, strict=True))
    label = max(probabilities, key=lambda one: probabilities[one])
    answer = {"label": label, "probability": probabilities[label], "probabilities": probabilities}
    if "threshold" in template and (template["threshold"] is None or probabilities[label] < template["threshold"]):
        return {**answer, "label": UNSURE, "best": label}
    return answer


def generate(
    model: OnnxModel, tokenizer: Tokenizer, template: dict[str, Any], prompts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the greedy answer to each prompt, at most as long as the longest row of the training data."""
    encoded = tokenizer.encode_batch(prompts)
    longest = max(map(len, encoded))
    limit = min(template["max_length"], model.context_length - longest)
    reader = Reader(model, longest + limit)
    for prompt in encoded:
        reader.read(prompt)
        answer, stopped = answer_text(tokenizer, cast(Template, template), reader.answer(limit))
        yield {"answer": answer, "stopped": stopped}


def stream(
    reader: Reader, tokenizer: Tokenizer, template: dict[str, Any], prompt: Sequence[int], limit: int
) -> Iterator[tuple[str, bool | None]]:
    """Yield the answer to one prompt as it grows: what is new each time, and at the end whether it stopped by itself.

    What the template may still take off at the end is held back until more follows.
    """
    reader.read(list(prompt))
    ids: list[int] = []
    shown = ""
    for id_ in reader.answer_tokens(limit):
        ids.append(id_)
        text, stopped = answer_text(tokenizer, cast(Template, template), ids)
        if not stopped and text.startswith(shown) and not text.endswith("\ufffd"):
            held = text.rsplit(" ", 1)[0] if " " in text else ""
            if len(held) > len(shown):
                yield held[len(shown) :], None
                shown = held
    text, stopped = answer_text(tokenizer, cast(Template, template), ids)
    yield text[len(shown) :], stopped
