"""Runs through Azure Machine Learning on loopback that something happens to, and what is refused before anything runs."""

import hashlib
import json
import shutil

import pytest

from .control_plane import ControlPlane
from .nodes import PATH
from .runs import ADAPTER, copy_run, interrupt

pytestmark = pytest.mark.azure

BASELINES = "results/scores/baselines.json"  # of a job that takes a second


# What goes wrong


def test_a_failed_job_shows_its_reason_and_its_log(workspace):
    workspace.configure(lambda config: config["finetune"].update(learning_rate=1e30, warmup_steps=0))
    done = workspace.snakemake("--retries", "0", "--", ADAPTER)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "Azure Machine Learning: Failed. Execution failed. User process 'bash' exited with status code 1" in said
    assert done.stderr.splitlines()[-1] == "error: the loss is not a finite number; lower finetune.learning_rate"
    assert "results/runs/lora/adapter" not in workspace.blobs()


def test_a_busy_service_loses_no_job_and_starts_none_twice(workspace, undisturbed):
    plane = workspace.plane
    plane.throttle(3, seconds=1, kind="submit")
    plane.lose_connection(1, kind="submit", late=True)
    process = workspace.start("--", ADAPTER)
    workspace.wait_for_job("train_adapter", process)
    plane.break_polls(6)
    plane.throttle(2, seconds=2, kind="poll")
    plane.lose_connection(2, kind="poll")
    said = workspace.finish(process)
    assert sorted(job.tags["snakemake_rule"] for job in workspace.jobs()) == [
        "check_corpus",
        "check_tokenizer",
        "train_adapter",
    ]
    assert "does not tell how jobs stand" in said
    answered = [request.status for request in plane.requests]
    assert {429, 503, None} <= set(answered)
    assert workspace.adapter() == undisturbed


def test_throttling_is_respected(workspace):
    """A service that says when to come back is not asked before."""
    workspace.plane.throttle(1, seconds=6, kind="submit")
    workspace.run("--", BASELINES)
    first, second = [request for request in workspace.plane.requests if request.kind == "submit"][:2]
    assert first.status == 429
    assert second.time - first.time >= 6


def test_a_cancellation_that_is_not_answered_is_told(workspace):
    process = workspace.start("--", ADAPTER)
    job = workspace.wait_for_job("train_adapter", process)
    workspace.plane.wait_for(job.name, "Running")
    workspace.plane.throttle(3, seconds=1, kind="cancel")
    assert interrupt(process) == 130
    assert job.status == "Canceled", "it is asked again"


# What is refused before anything runs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config", "results=/out"], "results: /out is not a folder below this one"),
        (["--default-storage-prefix", "az://no-such-container/a"], "has no such container"),
        (["--azureml-compute", "no-such-cluster"], "has no compute no-such-cluster"),
        (["--azureml-workspace", "elsewhere"], "workspace elsewhere"),
        (["--azureml-identity", "root"], "--azureml-identity: root is not"),
        (["--azureml-inputs", "model=mlflow:azureml:x"], "is not NAME=TYPE:MODE:URI"),
        (["--azureml-conda-file", "missing.yaml"], "missing.yaml does not exist"),
        (["--azureml-environment", "azureml:a:1"], "not both"),
        (["--envvars", "AZURITE_CONNECTION_STRING", "HF_TOKEN"], "HF_TOKEN seems to be a secret"),
    ],
)
def test_mistakes_in_settings_cost_no_job(workspace, options, said):
    workspace.env["HF_TOKEN"] = "hf_" + 30 * "x"
    done = workspace.snakemake(*options, "--", ADAPTER)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert workspace.env["HF_TOKEN"] not in done.stdout + done.stderr
    assert not workspace.jobs()


def test_a_rule_on_a_compute_that_is_not_there_fails_and_others_go_on(workspace):
    done = workspace.snakemake(
        "--retries", "0", "--set-resources", "train_adapter:azureml_compute='nowhere'", "--", ADAPTER
    )
    assert done.returncode == 1
    assert "has no compute nowhere" in done.stdout + done.stderr
    assert sorted(job.tags["snakemake_rule"] for job in workspace.jobs()) == ["check_corpus", "check_tokenizer"]


def test_a_copy_without_git_is_told_what_jobs_would_lack(workspace):
    shutil.rmtree(workspace.root / ".git")
    done = workspace.snakemake("--", ADAPTER)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: jobs get their sources through git, but this folder is not a git repository; clone it"
    )
    assert not workspace.jobs()


def test_a_configuration_from_outside_is_refused(workspace, tmp_path):
    shutil.copy(workspace.root / "config.yaml", tmp_path / "mine.yaml")
    done = workspace.snakemake("--configfile", str(tmp_path / "mine.yaml"), "--", ADAPTER)
    assert done.returncode == 1
    assert "remote jobs cannot read files outside this folder; put it into" in done.stderr.splitlines()[-1]


# Rows and models that lie in Azure


def test_jobs_get_rows_from_a_datastore_and_the_model_from_a_registry(to_train, container, tiny_llama, tmp_path):
    azurite, rows = to_train.azurite, (to_train.root / "rows.json").read_bytes()
    azurite.put("rowstore", {"train/rows.json": rows})
    shutil.copytree(tiny_llama, tmp_path / "registries/company/tiny/3/model")
    options = {"blob": azurite.connection_string, "registries": tmp_path / "registries", "grace": 1}
    with ControlPlane(tmp_path / "plane", path=PATH, **options) as plane:
        workspace = copy_run(to_train, tmp_path / "copy", plane, container)
        uri, model = (
            "azureml://datastores/rowstore/paths/train/rows.json",
            "azureml://registries/company/models/tiny/versions/3",
        )

        def from_azure(config: dict) -> None:
            config["data"] |= {"source": uri, "sha256": hashlib.sha256(rows).hexdigest()}
            config["base_model"] |= {"source": model}
            del config["data"]["files"], config["base_model"]["path"]

        workspace.configure(from_azure)
        workspace.run("--", "results/corpus/leakage.json", "results/base.manifest.json")
        jobs = {job.tags["snakemake_rule"]: job for job in workspace.jobs()}
        assert {"fetch_data", "fetch_tokenizer", "fetch_model"} <= jobs.keys()
        assert jobs["fetch_data"].properties["inputs"]["data"] == {
            "jobInputType": "uri_file",
            "mode": "ReadOnlyMount",
            "uri": uri,
        }
        for rule, mode in (("fetch_tokenizer", "ReadOnlyMount"), ("fetch_model", "Download")):
            given = jobs[rule].properties["inputs"]["model"]
            assert (given["jobInputType"], given["mode"]) == ("mlflow_model", mode)
        assert json.loads(azurite.read(container, "project/results/data/rows.jsonl").splitlines()[0])["file"] == uri
        base = json.loads(azurite.read(container, "project/results/base.manifest.json"))
        assert base["settings"]["source"] == {"source": model}
        before = json.loads(azurite.read("to-train", "project/results/base.manifest.json"))
        assert base["files"] == before["files"], "the same model as from a folder"


# Kubernetes


def test_rules_choose_compute_and_instance_type(workspace):
    workspace.run(
        "--set-resources",
        "score_baselines:azureml_compute='arc-cluster'",
        "score_baselines:azureml_instance_type='gpu-a100'",
        "--",
        BASELINES,
    )
    (job,) = workspace.jobs()
    assert job.properties["computeId"].endswith("/computes/arc-cluster")
    assert job.properties["resources"]["instanceType"] == "gpu-a100"
