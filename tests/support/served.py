"""Packaged tiny models and a real server of them, in a process of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.onnx_samples import build, write_corpus
from support.packaged_model import package
from support.paths import SCRIPTS


def package_models(folder: Path, base: Path) -> dict[str, Path]:
    """A classifier with a threshold, and a model that answers freely, of the same weights."""
    build(base, write_corpus(folder / "corpus", base) / "rows.jsonl", folder / "runs/lora/onnx/int4")
    write_corpus(folder / "free", base, task="generation")
    models = {"tones": Path(shutil.copytree(package(folder, base, folder / "corpus"), folder / "tones" / "model"))}
    template = json.loads((models["tones"] / "template.json").read_text())
    decided = {"temperature": 2.0, "decision": {"coverage": 0.5}, "threshold": 0.26, "coverage": 0.5}
    (models["tones"] / "template.json").write_text(json.dumps(template | decided))
    models["free"] = Path(shutil.copytree(models["tones"], folder / "free" / "model"))
    shutil.copyfile(folder / "free" / "template.json", models["free"] / "template.json")
    return models


class Served:
    """A running server. url: of its root."""

    def __init__(self, process: subprocess.Popen, url: str) -> None:
        self.process, self.url = process, url
        self.port = int(url.rpartition(":")[2])


@contextmanager
def serving(models: dict[str, Path], *words: str, **environment: str) -> Iterator[Served]:
    """Serve models at a free port of this machine; the server must end by itself when it is asked to."""
    named = [word for name, folder in models.items() for word in ("--model", f"{name}={folder}")]
    command = [sys.executable, SCRIPTS / "serve.py", *named, "--port", "0", "--threads", "1", *words]
    process = subprocess.Popen(
        [str(word) for word in command], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        said = process.stderr.readline()
        match = re.search(r"at (http://\S+)", said)
        assert match, said + process.stderr.read()
        yield Served(process, match[1])
        process.send_signal(signal.SIGTERM)
        ended = time.monotonic()
        assert process.wait(60) in (0, -signal.SIGTERM), process.stderr.read()
        assert time.monotonic() - ended < 30
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
