"""DVC and Snakemake agree: real `dvc` with a local remote, on a tiny workspace that is a git checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lib.core.files import hash_file, read_json
from support.paths import ROOT
from support.workspaces import Workspace, restored

pytestmark = pytest.mark.workflow


class Repository(Workspace):
    """A workspace under git and DVC."""

    def tool(self, *words: str, check: bool = True) -> subprocess.CompletedProcess:
        names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c", "GIT_COMMITTER_NAME": "a"}
        environment = os.environ | names | {"GIT_COMMITTER_EMAIL": "a@b.c", "DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(words, cwd=self.root, env=environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def dvc(self, *words: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.tool(sys.executable, "-m", "dvc", *words, check=check)

    def adopt(self, *words: str) -> subprocess.CompletedProcess:
        return self.tool(sys.executable, "scripts/adopt.py", *words, check=False)

    def commit(self, message: str) -> None:
        self.tool("git", "add", "-A")
        self.tool("git", "commit", "-q", "-m", message)

    def started(self, done: subprocess.CompletedProcess) -> set[str]:
        """Rules whose jobs ran, by the log of the run that the last line names."""
        (log,) = re.findall(r"^complete log: (.+)", done.stdout + done.stderr, flags=re.MULTILINE)
        text = (self.root / log).read_text()
        return set(re.findall(r"^(?:local)?rule (\w+):", text, flags=re.MULTILINE))


def use_own_rows(root: Path) -> None:
    """As docs/reproducibility.md tells those who have rows of their own."""
    shutil.move(Workspace(root).rows, root / "data/rows.json")
    values = yaml.safe_load((root / "config.yaml").read_text())
    values["data"]["files"] = ["data/rows.json"]
    (root / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    pipeline = yaml.safe_load((root / "dvc.yaml").read_text())
    del pipeline["stages"]["rows"]
    (root / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))


@pytest.fixture(scope="session")
def committed(finished, tmp_path_factory) -> Path:
    """A workspace whose results DVC has, pushed to a local remote beside it."""
    place = tmp_path_factory.mktemp("dvc")
    repository = Repository(restored(finished, place / "repository").root)
    root = repository.root
    for name in (".dvcignore", ".gitignore", "dvc.yaml", "Makefile"):
        shutil.copy2(ROOT / name, root / name)
    (root / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    # So that make takes the environment as it is.
    for name in ("requirements.lock", "envs/cuda/torch.lock", "src/pyproject.toml"):
        os.utime(root / name, (0, 0))
    use_own_rows(root)
    repository.tool("git", "init", "-q", "-b", "main")
    (root / ".git/info/exclude").write_text(".venv\n")  # a link here, a folder for users
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    repository.dvc("remote", "add", "--default", "store", str(place / "store"))
    repository.dvc("add", "data/rows.json")
    repository.commit("project")
    repository.dvc("repro")
    repository.commit("results")
    repository.dvc("push")
    return root


@pytest.fixture
def repository(committed, tmp_path) -> Repository:
    return Repository(restored(committed, tmp_path / "repository").root)


@pytest.fixture
def clone(committed, tmp_path) -> Repository:
    """A fresh clone: nothing that git does not have."""
    done = subprocess.run(
        ["git", "clone", "-q", str(committed), str(tmp_path / "clone")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "clone/.venv").symlink_to(sys.prefix)
    return Repository(tmp_path / "clone")


def adapter_of(repository: Repository) -> str:
    return hash_file(repository.results / "runs/lora/adapter/adapter_model.safetensors")


def test_repro_again_does_nothing_and_both_say_so(repository):
    assert "didn't change, skipping" in repository.dvc("repro").stdout
    assert repository.planned("--", "evidence") == set()
    assert "up to date" in repository.dvc("status").stdout


def test_numbers_and_plots_are_shown(repository):
    shown = json.loads(repository.dvc("metrics", "show", "--json").stdout)
    (metrics,) = [one["data"] for one in next(iter(shown.values()))["data"].values()]
    summary = read_json(repository.results / "summary.json")
    assert metrics["test"]["accuracy"] == summary["model"]["test"]["accuracy"]
    assert metrics["gate_passed"] == summary["gate"]["passed"]
    repository.dvc("plots", "show", "--out", "shown")
    page = (repository.root / "shown/index.html").read_text()
    for title in ("learning curve", "confusion", "quality by size", "quality by speed"):
        assert title in page, title
    assert "int4" in page


@pytest.mark.slow
def test_an_experiment_trains_what_it_must_and_can_be_compared(repository):
    before = adapter_of(repository)
    done = repository.dvc("exp", "run", "--name", "small", "-S", "config.yaml:finetune.r=2")
    ran = repository.started(done)
    assert {"train_adapter", "merge_adapter", "build_onnx", "write_report"} <= ran
    assert not ran & {"fetch_data", "fetch_model", "audit_data", "render_corpus", "score_baselines"}
    assert adapter_of(repository) != before
    table = repository.dvc("exp", "show", "--csv").stdout
    assert "small" in table
    assert "test.accuracy" in table
    difference = json.loads(repository.dvc("metrics", "diff", "HEAD", "--json", "--all").stdout)
    assert "model.tokens_per_second" in difference["results/metrics.json"]
    assert repository.planned("--", "evidence") == set()


def test_a_failed_gate_is_recorded_all_the_same(repository):
    repository.configure(lambda config: config.update(gate={"minimum": {"accuracy": 1.0}}))
    repository.dvc("repro")
    assert read_json(repository.results / "metrics.json")["gate_passed"] is False
    assert "up to date" in repository.dvc("status").stdout


def test_results_are_pulled_into_a_fresh_clone_and_adopted(clone):
    done = clone.adopt("--pull")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to be done" in done.stdout
    assert clone.planned("--", "evidence") == set()
    verified = clone.tool(sys.executable, "scripts/trace_lineage.py", "--verify", check=False)
    assert verified.returncode == 0, verified.stderr
    clone.configure(lambda config: config["finetune"].update(learning_rate=0.02))
    planned = clone.planned()
    assert "train_adapter" in planned
    assert not planned & {"fetch_data", "fetch_model", "audit_data", "render_corpus", "score_baselines"}


def test_results_of_another_configuration_are_not_adopted(clone):
    clone.configure(lambda config: config["finetune"].update(learning_rate=0.02))
    done = clone.adopt("--pull")
    assert done.returncode == 1
    assert "error: dvc.lock: the files here are not those of dvc.lock" in done.stderr
    assert "config.yaml" in done.stderr


@pytest.mark.slow
def test_another_commit_and_back_trains_nothing_and_believes_nothing_wrong(repository):
    first = adapter_of(repository)
    repository.tool("git", "switch", "-q", "-c", "other")
    repository.configure(lambda config: config["finetune"].update(learning_rate=0.02))
    repository.dvc("repro")
    repository.commit("another learning rate")
    second = adapter_of(repository)
    assert second != first

    repository.tool("git", "switch", "-q", "main")
    repository.dvc("checkout")
    assert adapter_of(repository) == first
    assert repository.planned("--", "evidence") == set(), "the results are those of this commit"
    assert repository.adopt().returncode == 0
    repository.tool("git", "checkout", "-q", "other", "--", "config.yaml")
    assert "train_adapter" in repository.planned(), "this configuration's adapter is not here"
    assert repository.adopt().returncode == 1

    repository.commit("configuration of the other branch, results of this one")
    repository.dvc("repro")
    assert adapter_of(repository) == second
    repository.commit("its results")
    repository.tool("git", "switch", "-q", "other")
    repository.dvc("checkout")
    assert repository.planned("--", "evidence") == set()


def test_tampered_stores_are_noticed(clone, committed):
    """DVC checks nothing that it downloads by default; the lineage does."""
    store = committed.parent / "store"
    name = "adapter_model.safetensors"
    whole = (committed / "results/runs/lora/adapter" / name).read_bytes()
    (kept,) = [path for path in store.rglob("*") if path.is_file() and path.read_bytes() == whole]
    kept.chmod(0o644)
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = clone.adopt("--pull")
        verified = clone.tool(sys.executable, "scripts/trace_lineage.py", "--verify", check=False)
    finally:
        kept.write_bytes(whole)
    assert done.returncode == 1, done.stdout
    assert verified.returncode == 1
    assert "adapter" in verified.stderr


def test_a_listing_in_the_store_that_leads_out_of_the_project_writes_nothing(clone, committed):
    """`dvc pull` writes where a listing says, and hashes no listing."""
    listing = next(path for path in (committed.parent / "store").rglob("*.dir") if b"kept.jsonl" in path.read_bytes())
    whole = listing.read_bytes()
    listing.chmod(0o644)
    listing.write_bytes(whole.replace(b"kept.jsonl", b"../../../escaped.jsonl"))
    try:
        done = clone.adopt("--pull")
    finally:
        listing.write_bytes(whole)
    assert done.returncode == 1, done.stdout
    assert "its content is not that of its name; remove it, and ask who may write to the DVC remote" in done.stderr
    assert not clone.results.exists()
    assert not list(clone.root.parent.rglob("escaped.jsonl"))


def test_a_changed_row_starts_the_stage_again(repository):
    path = repository.root / "data/rows.json"
    path.write_text(path.read_text().replace('"phrase": "', '"phrase": "Suddenly: ', 1))
    assert "data" in repository.dvc("status").stdout
    assert "Running stage 'pipeline'" in repository.dvc("repro", "--dry").stdout
    assert {"fetch_data", "train_adapter"} <= repository.planned("--", "evidence")


def outputs_of_the_workflow(repository: Repository) -> set[str]:
    """Every output of a whole run, from the lineage."""
    lineage = read_json(repository.results / "lineage.json")
    return {path for job in lineage["jobs"] for path in job["outputs"]}


def test_every_out_of_dvc_is_an_output_or_a_parent_of_outputs_and_none_is_missing(repository):
    made = outputs_of_the_workflow(repository)
    beside = {"results/lineage.json", "results/logs", "results/timings"}
    stage = yaml.safe_load((repository.root / "dvc.lock").read_text())["stages"]["pipeline"]
    outs = {out["path"] for out in stage["outs"]}
    for out in outs - beside:
        assert out in made or any(path.startswith(f"{out}/") for path in made), out
    for path in made - {"results/gate.passed"}:
        assert path in outs or any(path.startswith(f"{out}/") for out in outs), path


def test_the_demos_rows_are_an_output_of_their_stage():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    (out,) = stages["rows"]["outs"]
    assert f'"{next(iter(out))}"' in (ROOT / "rules/common.smk").read_text()
    persistent = [next(iter(out.values())) for stage in stages.values() for out in stage["outs"]]
    assert all(one == {"persist": True} for one in persistent), "Snakemake decides what is removed"
