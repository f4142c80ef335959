"""Fetch a base model in this process, or only its files from a hub."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lib.provenance.manifests import read_manifest, write_manifest
from support.fake_hub import COMMIT, FakeHub
from support.paths import ROOT


def parameters(folder: Path) -> int:
    """Number of parameters of a model by building it: independent of what fetch_model counts."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def edit_json(path: Path, **changes) -> None:
    """Set keys of a JSON file; None removes a key."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def fetch(
    source: dict, path: Path | None, out: Path, count: int, cache: Path | None = None, tokenizer: Path | None = None
) -> dict:
    """Fetch in this process (importing torch for every case takes too long); returns the manifest."""
    import fetch_model

    settings = {"source": source, "parameters": count, "versions": {}}
    places = {"path": path, "output": out, "cache": cache, "tokenizer": tokenizer or no_tokenizer(out.parent)}
    fetch_model.main(argparse.Namespace(settings=settings, **places))
    return read_manifest(out)


def fetch_tokenizer(source: dict, path: Path | None, out: Path, cache: Path | None = None) -> dict:
    """Fetch configuration and tokenizer in this process; returns the manifest."""
    import fetch_tokenizer

    settings = {"source": source, "versions": {}}
    fetch_tokenizer.main(argparse.Namespace(settings=settings, path=path, output=out, cache=cache))
    return read_manifest(out)


def no_tokenizer(folder: Path) -> Path:
    """An empty folder of a tokenizer, with which any base model agrees."""
    none = folder / "none" / "tokenizer"
    none.mkdir(parents=True, exist_ok=True)
    write_manifest(none, inputs={}, settings={})
    return none


def fetch_path(path: Path, out: Path, count: int) -> dict:
    return fetch({"path": "model"}, path, out, count)


def download(hub: FakeHub, tmp_path: Path, **environment) -> Path:
    """Download the files of the model a/b and nothing more, for what needs no torch; returns their folder."""
    code = "import sys; from lib.sources.huggingface import download_files; from lib.models.locate_model import select_needed_files;"
    code += f"print(download_files('a/b', '{COMMIT}', lambda names: select_needed_files(names, 'a/b')))"
    environment = hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT / "scripts"), **environment)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def refused(source: Path, tmp_path: Path, count: int, message: str) -> None:
    from lib.core.cli import UserError

    out = tmp_path / "base"
    with pytest.raises(UserError) as caught:
        fetch_path(source, out, count)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert not list(tmp_path.glob("base*"))
