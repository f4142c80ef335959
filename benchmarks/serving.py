"""How many rows a second the server answers, and how long each waits: one client, and many at once.

    python benchmarks/serving.py --model results/model --rows results/corpus/test.jsonl --table benchmarks/serving.md

Each client sends one row after the other to /classify. Start-up is not counted. The rows are test rows of the run that
made the model.
"""

import argparse
import asyncio
import itertools
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import numpy as np
from bench import SCRIPTS, machine, markdown_table, write_table

from lib.core.files import read_json, read_jsonl
from lib.data.trained_chat_template import find_question


def start_server(model: Path, threads: int) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, str(SCRIPTS / "serve.py"), "--model", f"model={model}", "--port", "0", "--despite-gate"]
    process = subprocess.Popen([*command, "--threads", str(threads)], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    said = process.stderr.readline()
    match = re.search(r"at (http://\S+)", said)
    assert match, said
    return process, match[1]


async def load(url: str, texts: list[str], clients: int, seconds: float) -> list[float]:
    """Return the seconds that each answer took, for so many clients at once."""
    end, found, rows = time.monotonic() + seconds, [], itertools.cycle(texts)

    async def ask(client: httpx2.AsyncClient) -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            response = await client.post("/classify", json={"inputs": [next(rows)]})
            assert response.status_code == 200, response.text
            found.append(time.monotonic() - began)

    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))
    return found


def compare_with_predict(url: str, model: Path, column: str, texts: list[str]) -> str:
    """Ask the server and predict.py for every row; returns in a sentence how far their answers are apart."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps({column: text}) + "\n" for text in texts)
        file.flush()
        command = [sys.executable, str(SCRIPTS / "predict.py"), "--model", str(model), "--json", "--file", file.name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    expected = [json.loads(line) for line in done.stdout.splitlines()]
    found = []
    for start in range(0, len(texts), 100):
        response = httpx2.post(f"{url}/classify", json={"inputs": texts[start : start + 100]}, timeout=120)
        found += response.json()["answers"]
    other = sum(one["label"] != two["label"] for one, two in zip(found, expected, strict=True))
    apart = max(
        abs(one["probabilities"][label] - share)
        for one, two in zip(found, expected, strict=True)
        for label, share in two["probabilities"].items()
    )
    return f"Against predict.py, {other} of {len(texts):,} labels differ; probabilities by {apart:.1e} at most."


def main(args: argparse.Namespace) -> None:
    template = read_json(args.model / "template.json")
    texts = [find_question(template, row["prompt"]) for row in read_jsonl(args.rows)]
    process, url = start_server(args.model, args.threads)
    lines = []
    try:
        agreement = compare_with_predict(url, args.model, template["columns"][0], texts)
        for clients in (1, 8, 64):
            times = asyncio.run(load(url, texts, clients, args.seconds))
            points = np.percentile(times, [50, 95, 99]) * 1000
            lines.append([str(clients), f"{len(times) / args.seconds:.1f}", *(f"{one:,.0f}" for one in points)])
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    command = "    .venv/bin/python benchmarks/serving.py --model results/model --rows results/corpus/test.jsonl"
    head = ["clients", "rows/s", "p50 ms", "p95 ms", "p99 ms"]
    text = f"# The server under load\n\n{command}\n\n{machine('onnxruntime', threads=args.threads)}\n\n"
    labels = len(template["labels"])
    ended = "SIGTERM ended the server" if code == -signal.SIGTERM else f"the server ended with {code}"
    note = f"The demo's model, {labels} labels, one row a request, {args.seconds:.0f} s each; {ended}.\n\n"
    write_table(args.table, f"{text}{note}{markdown_table(head, lines)}\n\n{agreement}\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", type=Path, default=Path("results/model"))
    arguments.add_argument("--rows", type=Path, default=Path("results/corpus/test.jsonl"))
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--table", type=Path, default=Path("benchmarks/serving.md"), help="file to write")
    main(arguments.parse_args())
