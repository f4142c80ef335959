"""Unmodified clients against the server: `make test-clients`.

openai-python, litellm, and curl ask a server of tiny models on loopback, with the methods that their users call.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import litellm
import openai
import pytest

from lib.provenance.manifests import write_manifest
from support.onnx_samples import LABELS, TEXTS
from support.served import package_models, serving
from support.tiny_models import make_tiny_phi3


def ask_with_openai(url: str) -> dict[str, float]:
    """Chats with both models, a stream, the list of models, and a decision; returns its probabilities."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    assert {model.id for model in client.models.list()} == {"tones", "free"}
    messages = [{"role": "user", "content": TEXTS[0]}]
    said = client.chat.completions.create(model="tones", messages=messages)
    assert said.choices[0].message.content in (*LABELS, "unsure")
    whole = client.chat.completions.create(model="free", messages=messages).choices[0].message.content
    pieces = client.chat.completions.create(model="free", messages=messages, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole
    question = {"type": "choice", "instructions": "tone", "name": "q", "choices": [{"value": one} for one in LABELS]}
    (answer,) = client.decisions.create(model="tones", input=TEXTS[0], questions=[question]).answers
    assert answer.name == "q"
    with pytest.raises(openai.BadRequestError, match="answers are greedy"):
        client.chat.completions.create(model="tones", messages=messages, temperature=0.7)
    return {one.value: one.probability for one in answer.probabilities} if answer.type == "choice" else {}


def ask_with_litellm(url: str) -> None:
    messages = [{"role": "user", "content": TEXTS[0]}]
    options = {"api_base": f"{url}/v1", "api_key": "unused", "messages": messages}
    assert litellm.completion(model="openai/tones", **options).choices[0].message.content in (*LABELS, "unsure")
    pieces = litellm.completion(model="openai/free", stream=True, **options)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces)


def ask_with_curl(url: str) -> dict[str, float]:
    questions = {"q": {"type": "choice", "instructions": "tone", "criteria": dict.fromkeys(LABELS)}}
    body = json.dumps({"model": "tones", "state": TEXTS[0], "questions": questions})
    command = ["curl", "--silent", "--fail", f"{url}/v1/systemone", "--json", body]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)["answers"]["q"]["probabilities"]
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        base = make_tiny_phi3(Path(scratch) / "base")
        write_manifest(base, inputs={}, settings={})
        models = package_models(Path(scratch), base)
        with serving(models) as served:
            by_openai, by_curl = ask_with_openai(served.url), ask_with_curl(served.url)
            assert not by_openai or by_openai == by_curl
            ask_with_litellm(served.url)
    versions = f"openai {openai.__version__}, litellm and curl"
    print(f"{versions} were answered: chats, streams, models, decisions, System One", file=sys.stderr)
