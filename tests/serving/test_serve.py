"""A real server of packaged models: answers are those of predict.py, and everything else is refused with a reason."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from lib.core.cli import UserError
from support.onnx_samples import LABELS, TEXTS
from support.paths import SCRIPTS
from support.served import package_models, serving


@pytest.fixture(scope="module")
def models(tiny_phi3, tmp_path_factory):
    return package_models(tmp_path_factory.mktemp("served"), tiny_phi3)


@pytest.fixture(scope="module")
def server(models):
    with serving(models) as served:
        yield served


@pytest.fixture(scope="module")
def client(server):
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


def predicted(model, *texts: str) -> list[dict]:
    command = [sys.executable, SCRIPTS / "predict.py", "--model", model, "--json", "--threads", "1", *texts]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


QUESTION = {"type": "choice", "instructions": "tone"}


def test_answers_are_those_of_predict(client, models):
    expected = predicted(models["tones"], *TEXTS)
    found = client.post("/classify", json={"model": "tones", "inputs": TEXTS}).json()["answers"]
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
    assert {one["label"] for one in found} <= {*LABELS, "unsure"}
    chats = [{"model": "free", "messages": [{"role": "user", "content": text}]} for text in TEXTS[:2]]
    said = [client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"] for chat in chats]
    assert said == [one["answer"] for one in predicted(models["free"], *TEXTS[:2])]


def test_a_stream_is_the_answer_in_pieces(client):
    body = {"model": "free", "messages": [{"role": "user", "content": TEXTS[1]}]}
    whole = client.post("/v1/chat/completions", json=body).json()
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == whole["choices"][0]["message"]["content"]
    assert events[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_each_protocol_gives_the_same_probabilities(client):
    (expected,) = client.post("/classify", json={"model": "tones", "inputs": [TEXTS[0]]}).json()["answers"]
    criteria = dict.fromkeys(LABELS)
    system_one = {"model": "tones", "state": TEXTS[0], "questions": {"a": QUESTION | {"criteria": criteria}}}
    found = client.post("/v1/systemone", json=system_one).json()["answers"]["a"]
    assert found["probabilities"] == expected["probabilities"]
    assert found["unsure"] == (expected["label"] == "unsure")
    choices = [{"value": label} for label in reversed(LABELS)]
    decisions = {"model": "tones", "input": TEXTS[0], "questions": [QUESTION | {"choices": choices, "name": "b"}]}
    answer = client.post("/v1/decisions", json=decisions).json()["answers"][0]
    if expected["label"] == "unsure":
        assert answer == {"type": "refusal", "name": "b"}
    else:
        assert {one["value"]: one["probability"] for one in answer["probabilities"]} == expected["probabilities"]
    parts = [{"type": "input_json", "data": {"text": TEXTS[0]}}]
    as_json = decisions | {"input": [{"role": "user", "content": parts}]}
    assert client.post("/v1/decisions", json=as_json).json()["answers"][0] == answer
    chat = {"model": "tones", "messages": [{"role": "user", "content": TEXTS[0]}]}
    completion = client.post("/v1/chat/completions", json=chat).json()
    assert completion["choices"][0]["message"]["content"] == expected["label"]
    assert completion["slmflow"] == expected


def test_the_list_of_models_says_what_may_be_asked(client):
    listed = {one["id"]: one["slmflow"] for one in client.get("/v1/models").json()["data"]}
    assert listed["tones"]["labels"] == LABELS
    assert listed["tones"]["threshold"] == 0.26
    (instructions, target) = listed["tones"]["question"]["instructions"]
    assert target == "tone"
    assert "Which tone?\n{text}" in instructions
    assert listed["free"] == {"task": "generation", "columns": ["text"]}


CHAT = {"model": "tones", "messages": [{"role": "user", "content": "He cried"}]}
CHOICES = [{"value": label} for label in LABELS]
REFUSED = [
    ("/v1/chat/completions", CHAT | {"model": "gpt-9"}, "there is no model 'gpt-9'"),
    ("/v1/chat/completions", CHAT | {"n": 2}, "'n' is not supported"),
    ("/v1/chat/completions", CHAT | {"temperature": 0.7}, "'temperature' is not supported: answers are greedy"),
    ("/v1/chat/completions", CHAT | {"logprobs": True}, "'logprobs' is not supported"),
    ("/v1/chat/completions", CHAT | {"tools": [{"type": "function"}]}, "'tools' is not supported"),
    ("/v1/chat/completions", CHAT | {"unheard_of": 1}, "'unheard_of' is not supported"),
    ("/v1/chat/completions", {"model": "tones"}, "messages must be a list"),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "system", "content": "x"}]}, "trained on one question"),
    ("/v1/chat/completions", CHAT | {"messages": CHAT["messages"] * 2}, "trained on one question"),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": 3}]}, "content must be a text"),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": " "}]}, "empty text"),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "a<|end|>b"}]}, "control token"),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "word " * 300}]}, "tokens"),
    ("/v1/decisions", {"model": "free", "input": "a", "questions": []}, "answers with free text"),
    ("/v1/decisions", {"model": "tones", "input": "a", "questions": []}, "questions must be a list"),
    ("/v1/decisions", {"model": "tones", "input": "a", "questions": [QUESTION | {"choices": CHOICES[:2]}]}, "other options"),
    (
        "/v1/decisions",
        {"model": "tones", "input": "a", "questions": [QUESTION | {"choices": CHOICES, "instructions": "Is it spam?"}]},
        "trained on one question: its instructions are",
    ),
    (
        "/v1/decisions",
        {"model": "tones", "input": "a", "questions": [{"type": "predicate", "instructions": "tone", "choices": CHOICES}]},
        "of the type choice, not 'predicate'",
    ),
    (
        "/v1/systemone",
        {"model": "tones", "state": "a", "questions": {"a": QUESTION | {"criteria": dict.fromkeys(LABELS, "what it is")}}},
        "they take no descriptions",
    ),
    ("/v1/systemone", {"model": "tones", "state": {"x": 1}, "questions": {"a": QUESTION | {"criteria": dict.fromkeys(LABELS)}}}, "has no 'text'"),
    ("/classify", {"model": "tones", "inputs": []}, "inputs must be a list"),
    ("/classify", {"model": "tones", "inputs": ["a"] * 1001}, "send at most 1000"),
    ("/classify", {"model": "tones", "inputs": [7]}, "the state must be a text or an object with text"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "said"), REFUSED)
def test_what_is_not_the_trained_question_is_refused_with_the_reason(client, path, body, said):
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "said"),
    [
        (b"{", "application/json", 400, "not JSON"),
        (b"[" * 100_000, "application/json", 400, "not JSON"),
        (b"[]", "application/json", 400, "must be a JSON object"),
        (b"{}", "text/plain", 400, "content-type: application/json"),
        (b" " * (2 << 20), "application/json", 413, "more than 1048576 bytes"),
        (b"\xff\xfe", "application/json", 400, "not JSON"),
    ],
)
def test_bodies_that_are_no_requests(client, content, kind, status, said):
    response = client.post("/classify", content=content, headers={"content-type": kind})
    assert response.status_code == status
    assert said in response.json()["error"]["message"]


def test_health_metrics_and_other_paths(client):
    assert client.get("/health").json() == {"status": "ok", "models": ["tones", "free"]}
    assert client.get("/nothing").status_code == 404
    assert client.get("/classify").status_code == 405
    metrics = client.get("/metrics").text
    assert 'slmflow_requests_total{route="/classify",status="200"}' in metrics
    assert 'route="other"' in metrics
    assert 'slmflow_waiting_rows{model="tones"} 0.0' in metrics


def test_other_names_of_this_machine_are_refused(client):
    """A page elsewhere could have its own name lead here."""
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 400


def test_the_page_needs_nothing_from_elsewhere(client):
    page = client.get("/")
    assert "http" not in page.text.replace("HTTP", "").replace('"utf-8"', "")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_malformed_slow_and_cut_requests_leave_the_server_whole(server, client):
    """200 of them, and afterwards it answers, with as many open files and threads as before."""
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    body = json.dumps({"model": "tones", "inputs": [TEXTS[0]]}).encode()
    kinds = [b"\x00\xff\r\n\r\n", b"GET / HTTP/9\r\n\r\n", head + b"-1\r\n\r\n", head + b"99\r\n\r\n{", head + b"7\r\n\r\n{}{}{}{",
             head + str(len(body)).encode() + b"\r\n\r\n" + body, head + b"5"]  # fmt: skip

    def open_files() -> int:
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    client.get("/health")
    before = open_files()

    def attack(number: int) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(kinds[number % len(kinds)])
            if number % 3 == 0:
                time.sleep(0.05)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(attack, range(200)))
    for _ in range(100):
        if open_files() <= before + 2:
            break
        time.sleep(0.1)
    assert open_files() <= before + 2
    assert client.post("/classify", json={"model": "tones", "inputs": [TEXTS[0]]}).status_code == 200


def test_too_many_rows_are_refused_and_those_accepted_are_answered_before_it_ends(models):
    with serving({"tones": models["tones"]}, "--most-waiting", "40") as served:
        statuses = []

        def ask() -> None:
            body = {"inputs": TEXTS * 6}
            statuses.append(httpx2.post(f"{served.url}/classify", json=body, timeout=60).status_code)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        served.process.terminate()
        for thread in threads:
            thread.join()
    assert 200 in statuses
    assert set(statuses) <= {200, 429}


def test_elsewhere_it_asks_for_a_key(models):
    tones = {"tones": models["tones"]}
    with serving(tones, "--host", "0.0.0.0", SLMFLOW_API_KEY="geheim") as served:
        url = f"http://127.0.0.1:{served.port}"
        assert httpx2.get(f"{url}/health").status_code == 200
        for given in ({}, {"authorization": "Bearer wrong"}):
            assert httpx2.get(f"{url}/v1/models", headers=given).status_code == 401
        assert httpx2.get(f"{url}/v1/models", headers={"authorization": "Bearer geheim"}).status_code == 200


def refused(*words: object) -> str:
    command = [sys.executable, SCRIPTS / "serve.py", *words]
    environment = {key: value for key, value in os.environ.items() if key != "SLMFLOW_API_KEY"}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_what_cannot_be_served_is_one_line(models, server, tmp_path):
    tones = models["tones"]
    assert "no such folder; name the folder that package_model wrote" in refused("--model", tmp_path / "none")
    assert "not a packaged model" in refused("--model", tmp_path, "--port", "0")
    assert "two models are called a" in refused("--model", f"a={tones}", "--model", f"a={tones}")
    assert f"port {server.port} of 127.0.0.1 cannot be used" in refused("--model", tones, "--port", server.port)
    assert "can be reached from elsewhere; set SLMFLOW_API_KEY" in refused("--model", tones, "--host", "0.0.0.0")
    (tones.parent / "gate.json").write_text('{"passed": false, "checks": []}')
    try:
        assert "the model missed its gate; mend it, or add --despite-gate" in refused("--model", tones)
    finally:
        (tones.parent / "gate.json").unlink()


def test_a_port_is_taken_from_the_start():
    """Who reads the address connects at once, and a second server of the same port is told so."""
    from serve import open_port

    with open_port("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be used"):
            open_port("127.0.0.1", port)
