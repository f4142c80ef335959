"""The workflow through Azure Machine Learning on loopback, the whole way, and what a second run makes again."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lib.core.files import read_json
from support.workspaces import Workspace, tiny_workspace

from .azurite import KEY
from .runs import ADAPTER, AzureWorkspace, as_checkout, copy_run, running_plane

pytestmark = pytest.mark.azure

HERE = {
    "fetch_data",
    "fetch_tokenizer",
    "fetch_model",
    "select_model",
    "fit_temperature",
    "check_gate",
    "summarize",
    "write_plots",
    "write_report",
    "enforce_gate",
}
TRAINING = {
    "train_adapter",
    "merge_adapter",
    "build_onnx",
    "score_checkpoint",
    "score_onnx",
    "benchmark_onnx",
    "assemble_model",
    "package_model",
}


@pytest.fixture(scope="module")
def ran(azurite, tiny_llama, tmp_path_factory) -> Iterator[AzureWorkspace]:
    """A workspace that was run the whole way."""
    root = tmp_path_factory.mktemp("ran") / "workspace"
    root.mkdir()
    tiny_workspace(root, tiny_llama)
    as_checkout(root)
    azurite.client().create_container("ran")
    with running_plane(azurite, root.parent / "plane") as plane:
        workspace = AzureWorkspace(root, azurite, plane, "ran")
        workspace.said = workspace.run().stdout
        yield workspace


# The whole way


def test_rules_run_as_jobs_and_what_takes_no_time_here(ran):
    assert {job.status for job in ran.jobs()} == {"Completed"}
    in_jobs = {job.tags["snakemake_rule"] for job in ran.jobs()}
    assert {"audit_data", "render_corpus", *TRAINING} <= in_jobs
    assert not in_jobs & HERE


def test_results_lie_in_the_storage_and_what_a_person_reads_here(ran):
    blobs = ran.blobs()
    assert {"results/model/genai_config.json", "results/base/model.safetensors", "results/report.html"} <= blobs.keys()
    assert "results/logs/train_adapter/lora.txt" in blobs
    assert not any(name.startswith("snakemake-workflow-sources") for name in blobs), "sources go when the run ends"
    assert read_json(ran.results / "summary.json")["selected"]["variant"] == "int4"
    assert (ran.results / "report.html").is_file()
    assert "accuracy" in ran.said
    assert not (ran.results / "model").exists()


def test_the_report_knows_the_times_of_jobs_elsewhere(ran):
    report = (ran.results / "report.html").read_text()
    assert re.search(r"train_adapter</t[dh]>\s*<td[^>]*>1<", report)


def test_the_run_card_names_the_commit_that_jobs_do_not_have(ran):
    card = json.loads(ran.azurite.read(ran.container, "project/results/model/run_card.json"))
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ran.root, text=True).strip()
    assert card["code"]["commit"] == commit


def test_no_job_carries_a_secret(ran):
    for job in ran.jobs():
        sent = json.dumps(job.body)
        assert set(job.environment) == {
            "AZURITE_CONNECTION_STRING",  # an emulator's, whose key is no secret
            "SNAKEMAKE_STORAGE_AZURE_ACCOUNT_NAME",
            "SLMFLOW_CODE",
        }
        assert KEY not in job.command
        assert sent.count(KEY) == 1
        assert KEY not in job.log


def test_jobs_end_at_the_time_that_their_rule_asks_for(ran):
    (training,) = ran.jobs("train_adapter")
    assert training.properties["limits"]["timeout"] == "PT11M"
    assert "runtime=11" in training.log


def test_a_second_run_has_nothing_to_do(ran):
    before = len(ran.jobs())
    assert ran.planned() == set()
    ran.run()
    assert len(ran.jobs()) == before


def test_one_changed_parameter_makes_again_what_depends_on_it(ran):
    changed = copy_tree(ran, "changed")
    changed.configure(lambda config: config["finetune"].update(lora_alpha=16))
    assert changed.planned() == {
        *TRAINING,
        "keep_selected",
        *(HERE - {"fetch_data", "fetch_tokenizer", "fetch_model"}),
        "all",
    }
    changed.configure(
        lambda config: (config["finetune"].update(lora_alpha=8), config.update(gate={"minimum": {"accuracy": 0.1}}))
    )
    assert changed.planned() == {
        "check_gate",
        "summarize",
        "package_model",
        "write_plots",
        "write_report",
        "enforce_gate",
        "all",
    }


def test_an_edited_script_makes_again_what_it_wrote(ran):
    edited = copy_tree(ran, "edited")
    edited.edit("scripts/package_model.py", "import argparse", "# edited\nimport argparse")
    assert "package_model" in edited.planned()
    assert not edited.planned() & {"train_adapter", "build_onnx", "audit_data"}


def test_a_fresh_clone_has_nothing_to_do(ran, tmp_path):
    subprocess.run(["git", "clone", "-q", str(ran.root), str(tmp_path / "clone")], check=True)
    clone = AzureWorkspace(tmp_path / "clone", ran.azurite, ran.plane, ran.container)
    assert clone.planned() == set()
    clone.configure(lambda config: config["finetune"].update(lora_alpha=16))
    assert "train_adapter" in clone.planned(), "it knows what they were made by"
    clone.edit("rows.json", '"phrase": "', '"phrase": "Suddenly: ')
    os.utime(clone.root / "rows.json", (0, 0))
    assert "fetch_data" in clone.planned(), "and from which rows, though these are older than the blobs"


def test_what_another_machine_made_again_is_known_here(ran, container, tmp_path):
    """Its blobs are newer than the record here, which says how older ones were made."""
    with running_plane(ran.azurite, tmp_path / "plane") as plane:
        here = copy_run(ran, tmp_path / "here", plane, container)
        assert here.planned("--", ADAPTER) == set()
        there = AzureWorkspace(tmp_path / "there", ran.azurite, plane, container)
        shutil.copytree(here.root, there.root)
        there.configure(lambda config: config["finetune"].update(lora_alpha=16))
        there.run("--", ADAPTER)
        assert len(there.jobs()) == 1
        assert "train_adapter" in here.planned("--", ADAPTER), "the adapter there is another one"
        here.configure(lambda config: config["finetune"].update(lora_alpha=16))
        assert here.planned("--", ADAPTER) == set()


def test_bytes_that_no_job_wrote_are_made_again(ran, container, tmp_path):
    here = copy_run(ran, tmp_path / "here", ran.plane, container)
    assert here.planned() == set()
    ran.azurite.put(container, {"project/results/data/split.json": b"{}"})
    assert {"split_data", "train_adapter"} <= here.planned()


def test_fetched_results_are_those_of_a_run_here(ran):
    """Snakemake has nothing to make, and every artifact leads back to its source."""
    fetched = copy_tree(ran, "fetched")
    command = [sys.executable, "scripts/fetch_results.py", "--storage", f"az://{ran.container}/project/results"]
    done = subprocess.run(command, cwd=fetched.root, env=ran.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (fetched.results / "model/genai_config.json").is_file()
    assert Workspace(fetched.root).planned() == set()
    verified = subprocess.run(
        [sys.executable, "scripts/trace_lineage.py", "--verify"], cwd=fetched.root, capture_output=True, text=True
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    again = subprocess.run(command, cwd=fetched.root, env=ran.env, capture_output=True, text=True)
    assert "fetch_results: 0 of" in again.stderr
    wrong = subprocess.run([*command, "--only", "modle"], cwd=fetched.root, env=ran.env, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("error: az://ran/project/results: there is no modle; give your")


def copy_tree(ran: AzureWorkspace, name: str) -> AzureWorkspace:
    """The same checkout with Snakemake's record, elsewhere; the storage is the same one."""
    root = ran.root.parent / name
    shutil.copytree(ran.root, root, symlinks=True)
    return AzureWorkspace(root, ran.azurite, ran.plane, ran.container)
