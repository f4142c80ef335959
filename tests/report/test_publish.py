"""Publishing: a dry run says what would go where, a missed gate stops it, and the same bytes come back."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lib.core.files import write_json
from lib.provenance.manifests import read_manifest, write_manifest
from support.fake_hub import FakeHub
from support.packaged_model import PACKAGE_SETTINGS, SUMMARY
from support.paths import SCRIPTS


@pytest.fixture(scope="module")
def finished(tiny_llama, tmp_path_factory) -> Path:
    """A results folder with what is published of it; no model was trained for it."""
    results = tmp_path_factory.mktemp("finished") / "results"
    (results / "model").mkdir(parents=True)
    (results / "assembled").mkdir()
    for name, content in {"model.onnx": b"onnx", "chat_template.jinja": b"{{ 1 }}", "README.md": b"# Card"}.items():
        (results / "model" / name).write_bytes(content)
    for part in ("merged", "adapter"):
        shutil.copytree(tiny_llama, results / "selected" / part)
    settings = {key: value for key, value in PACKAGE_SETTINGS.items() if key not in ("runs", "versions")}
    for name, extra in (("model", {}), ("selected", {}), ("assembled", {"made_by": settings})):
        write_manifest(results / name, inputs={}, settings={}, extra=extra)
    write_json(results / "gate.json", {"passed": True, "checks": []})
    write_json(results / "summary.json", SUMMARY)
    return results


@pytest.fixture
def results(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "results"))


def publish(hub: FakeHub, results: Path, *words: str, token: str = "geheim") -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / "publish.py", "--results", results, "--repo", "me/tones", *words]
    environment = hub.environment(results.parent / "home", HF_TOKEN=token, HF_HUB_DISABLE_XET="1")
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)


def test_a_dry_run_says_what_would_go_where(hub, results):
    done = publish(hub, results)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "model -> me/tones (private): 3 files, 0.0 MB",
        "  README.md, chat_template.jinja, model.onnx",
        "nothing was uploaded; add --upload",
    ]
    assert hub.requests == []


@pytest.mark.parametrize("what", ["model", "merged", "adapter"])
def test_the_same_bytes_come_back(hub, results, what):
    hub.token = "geheim"
    done = publish(hub, results, "--what", what, "--upload")
    assert done.returncode == 0, done.stderr
    assert f"uploaded as {hub.url}/me/tones/commit/" in done.stdout
    assert hub.private == {"me/tones": True}
    folder = results / "model" if what == "model" else results / "selected" / what
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = hub.repositories["me/tones"].files
    assert {name: found[name] for name in expected} == expected
    assert found.keys() - expected.keys() == (set() if what == "model" else {"README.md"})
    if what != "model":
        data = ModelCard(found["README.md"].decode()).data
        assert data.base_model == "someone/tiny"
        assert data.base_model_relation == {"merged": "finetune", "adapter": "adapter"}[what]
    assert sorted(path.name for path in results.iterdir()) == sorted(
        ["model", "assembled", "selected", "gate.json", "summary.json"]
        + [f"{name}.manifest.json" for name in ("model", "assembled", "selected")]
    )


def test_a_missed_gate_stops_it_unless_told(hub, results):
    write_json(results / "gate.json", {"passed": False, "checks": [{"name": "accuracy", "passed": False}]})
    done = publish(hub, results, "--upload")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {results}/gate.json: the model missed its gate (accuracy); mend it, or add --despite-gate\n"
    )
    assert hub.requests == []
    assert publish(hub, results, "--upload", "--despite-gate").returncode == 0


def test_what_stops_an_upload_is_one_line(hub, results):
    hub.token = "another"
    done = publish(hub, results, "--upload")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "error: the hub refuses me/tones (HTTP 403); set HF_TOKEN to a token that may write there",
    )
    (results / "gate.json").unlink()
    assert publish(hub, results).stderr.startswith(f"error: {results}/gate.json: no such file")
    write_json(results / "gate.json", {"passed": True, "checks": []})
    shutil.rmtree(results / "selected/adapter")
    write_manifest(results / "selected", inputs={}, settings={})
    assert "there is no adapter in it" in publish(hub, results, "--what", "adapter").stderr
    assert read_manifest(results / "model")["files"]
