"""What clients send and get: OpenAI's chat completions and decisions, System One, and rows to classify.

A packaged model answers the question that it was trained on. A request that asks anything else, or for something that
it cannot do, is refused with the reason; nothing in it is passed over.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from lib.data.conversations import TURNS
from lib.data.rows import MISSING, get_column
from lib.data.templates import UNSURE, format_placeholder

_MOST_ROWS = 1000  # of one request


class RequestError(ValueError):
    """Why a request is refused, in a sentence."""


# Chat completions

# Keys that change nothing here, or whose only possible value is what the model does.
_CHAT: dict[str, Any] = {
    "model": None,
    "messages": None,
    "stream": None,
    "user": None,
    "metadata": None,
    "store": (None, False),
    "n": (None, 1),
    "temperature": (None, 0, 1),  # 1 is what clients send by default; answers are greedy
    "top_p": (None, 1),
    "seed": None,
    "stop": (None, []),
    "max_tokens": None,
    "max_completion_tokens": None,
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "stream_options": None,
}


def read_chat(body: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row that a chat asks about: a conversation, or the columns in its one turn of the user."""
    _check_keys(body, _CHAT)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise RequestError("messages must be a list of turns")
    if chat := template.get("conversation"):
        return {chat["column"]: messages}
    if len(messages) > 1 or messages[0].get("role") != "user":
        raise RequestError("this model was trained on one question: give one turn of the user, and no other")
    return read_content(messages[0].get("content"), template["columns"])


def read_content(content: Any, columns: Sequence[str]) -> dict[str, Any]:
    """Return the columns in a turn: its text, or one text part for each column."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise RequestError("content parts must be of the type text")
        if len(columns) > 1 and len(parts) == len(columns):
            return dict(zip(columns, parts, strict=True))
        content = "".join(part for part in parts if part)
    if not isinstance(content, str):
        raise RequestError("content must be a text, or text parts")
    if len(columns) > 1:
        raise RequestError(f"give one text part for each of: {', '.join(columns)}")
    return {columns[0]: content}


def build_completion(model: str, answer: Mapping[str, Any], usage: Mapping[str, int]) -> dict[str, Any]:
    """Return a chat completion; of a classifier with all probabilities beside the label."""
    text = answer["label"] if "label" in answer else answer["answer"]
    reason = "stop" if "label" in answer or answer["stopped"] else "length"
    message = {"role": "assistant", "content": text, "refusal": None}
    more = {"slmflow": dict(answer)} if "label" in answer else {}
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    return {**_envelope("chat.completion", model), "choices": [choice], "usage": dict(usage), **more}


def build_chunk(head: Mapping[str, Any], delta: Mapping[str, str], reason: str | None = None) -> dict[str, Any]:
    """Return a piece of a streamed completion. head: id, time and model, the same in all pieces."""
    return {**head, "choices": [{"index": 0, "delta": dict(delta), "finish_reason": reason, "logprobs": None}]}


def build_chunk_head(model: str) -> dict[str, Any]:
    return _envelope("chat.completion.chunk", model)


def _envelope(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


# Decisions


def describe_question(template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the question that a classifier was trained on, as decision protocols ask it."""
    instructions = "".join(
        segment["text"] if "text" in segment else format_placeholder(segment["column"])
        for segment in template["prompt"]
    )
    return {"type": "choice", "instructions": [instructions, template["target"]], "labels": template["labels"]}


def check_question(question: Mapping[str, Any], labels: Sequence[Any], template: Mapping[str, Any]) -> None:
    """Raise `RequestError` unless it is the trained question, and its options are the trained labels."""
    trained = describe_question(template)
    if question.get("type") != "choice":
        raise RequestError(f"this model answers questions of the type choice, not {question.get('type')!r}")
    if question.get("instructions") not in trained["instructions"]:
        known = " or ".join(repr(one) for one in trained["instructions"])
        raise RequestError(f"this model was trained on one question: its instructions are {known}")
    if sorted(map(str, labels)) != sorted(trained["labels"]) or not all(isinstance(one, str) for one in labels):
        raise RequestError(f"this model was trained on other options: {', '.join(trained['labels'])}")


def read_decisions(body: Mapping[str, Any], template: Mapping[str, Any]) -> tuple[dict[str, Any], list[str | None]]:
    """Return the row and the names of the questions of a request to `/v1/decisions`, in OpenAI's form."""
    known = ("model", "input", "questions", "prompt_cache_key", "prompt_cache_options", "safety_identifier")
    _check_keys(body, dict.fromkeys(known))
    questions = body.get("questions")
    if not isinstance(questions, list) or not questions or not all(isinstance(one, dict) for one in questions):
        raise RequestError("questions must be a list of questions")
    for question in questions:
        choices = question.get("choices")
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise RequestError("choices must be a list of options, each with a value")
        _check_descriptions(choice.get("description") for choice in choices)
        check_question(question, [choice.get("value") for choice in choices], template)
    return read_state(_read_input(body.get("input")), template), [question.get("name") for question in questions]


def _read_input(given: Any) -> Any:
    """Return the text or the JSON of an input: a text, or one message of the user with one part."""
    if not isinstance(given, list):
        return given
    if len(given) != 1 or not isinstance(given[0], dict) or given[0].get("role") != "user":
        raise RequestError("input must be a text, or one message of the user")
    content = given[0].get("content")
    if not isinstance(content, list):
        return content
    if len(content) != 1 or not isinstance(content[0], dict):
        raise RequestError("give the input as one part")
    if content[0].get("type") == "input_json":
        return content[0].get("data")
    if content[0].get("type") != "input_text":
        raise RequestError(f"input parts of the type {content[0].get('type')!r} are not read")
    return content[0].get("text")


def build_decisions(model: str, names: Sequence[str | None], answer: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Return the answers to all questions, which are the same question; an unsure one is a refusal."""
    probabilities = [{"value": label, "probability": share} for label, share in answer["probabilities"].items()]
    best = answer.get("best", answer["label"])
    confidence = measure_confidence(answer["probabilities"])
    given = {"type": "choice", "choice": best, "confidence": confidence, "probabilities": probabilities}
    found = {"type": "refusal"} if answer["label"] == UNSURE else given
    usage = {
        "input_tokens": tokens,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens,
    }
    return {"model": model, "answers": [{**found, "name": name} for name in names], "usage": usage}


def read_system_one(body: Mapping[str, Any], template: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the row and the ids of the questions of a request to `/v1/systemone`."""
    _check_keys(body, dict.fromkeys(("model", "state", "questions")))
    questions = body.get("questions")
    if not isinstance(questions, dict) or not questions or not all(isinstance(one, dict) for one in questions.values()):
        raise RequestError("questions must be an object of questions by id")
    for question in questions.values():
        criteria = question.get("criteria")
        if not isinstance(criteria, dict):
            raise RequestError("criteria must be an object of options")
        _check_descriptions(criteria.values())
        check_question(question, list(criteria), template)
    return read_state(body.get("state"), template), list(questions)


def build_system_one(model: str, ids: Sequence[str], answer: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Return the answer to each question, which is the same one; `unsure` says where no option is probable enough."""
    found = {
        "type": "choice",
        "choice": answer.get("best", answer["label"]),
        "confidence": measure_confidence(answer["probabilities"]),
        "probabilities": answer["probabilities"],
        "unsure": answer["label"] == UNSURE,
    }
    return {"model": model, "answers": dict.fromkeys(ids, found), "usage": {"input_tokens": tokens, "output_tokens": 0}}


def read_state(state: Any, template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row in a state: a text where the model has one column, or an object with its columns."""
    columns = template["columns"]
    if chat := template.get("conversation"):
        turns = state.get(TURNS, state) if isinstance(state, dict) else state
        return {chat["column"]: turns if isinstance(turns, list) else [{"role": "user", "content": turns}]}
    if isinstance(state, str) and len(columns) == 1:
        return {columns[0]: state}
    if isinstance(state, dict):
        needed = [name for name in columns if name not in template.get("optional_columns", ())]
        if missing := [name for name in needed if get_column(state, name) is MISSING]:
            raise RequestError(f"the state has no {missing[0]!r}; the columns are {', '.join(columns)}")
        return state
    text = "a text or " if len(columns) == 1 else ""
    raise RequestError(f"the state must be {text}an object with {', '.join(columns)}")


def measure_confidence(probabilities: Mapping[str, float]) -> float:
    """Return 1 where one option has all the probability and 0 where all have the same; no chance of being right."""
    count = len(probabilities)
    return 1.0 if count == 1 else (max(probabilities.values()) - 1 / count) / (1 - 1 / count)


# Rows


def read_rows(body: Mapping[str, Any], template: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a request to `/classify`: `inputs`, texts or objects with the columns."""
    _check_keys(body, dict.fromkeys(("model", "inputs")))
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise RequestError("inputs must be a list of texts or rows")
    if len(inputs) > _MOST_ROWS:
        raise RequestError(f"{len(inputs)} inputs; send at most {_MOST_ROWS} at once")
    return [read_state(one, template) for one in inputs]


def _check_keys(body: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise `RequestError` for a key that is unknown, or whose value asks for what is not done here."""
    for key, value in body.items():
        if key not in known:
            raise RequestError(f"{key!r} is not supported")
        if known[key] is not None and value not in known[key]:
            raise RequestError(f"{key!r} is not supported: answers are greedy, one for each request")


def _check_descriptions(descriptions: Any) -> None:
    if any(description not in (None, "") for description in descriptions):
        raise RequestError("options are the trained labels: they take no descriptions")
