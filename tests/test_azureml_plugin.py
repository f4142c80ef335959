"""The executor plugin by itself: what it submits, what it refuses, and that Snakemake finds it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_azureml import ExecutorSettings, _resources, _slug
from snakemake_executor_plugin_azureml.secrets import check_no_secrets
from snakemake_executor_plugin_azureml.specification import JobInput, JobSpecification, parse_inputs

REGISTRY = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/11"


def specification(settings: dict | None = None, **resources: object) -> JobSpecification:
    given = {"compute": "cpu-cluster", "image": "example.org/image", **(settings or {})}
    return JobSpecification.of(
        name="a-job",
        command="python -m snakemake",
        environment_variables={"A": "1"},
        settings=ExecutorSettings(**given),
        resources=resources,
        description="a job",
        tags={"snakemake_rule": "train"},
    )


def test_snakemake_lists_the_plugin_and_explains_every_setting():
    done = subprocess.run([sys.executable, "-m", "snakemake", "--help"], capture_output=True, text=True)
    assert "azureml executor plugin settings" in done.stdout
    for name in ExecutorSettings.__dataclass_fields__:
        assert f"--azureml-{name.replace('_', '-')}" in done.stdout
    assert "SNAKEMAKE_AZUREML_SUBSCRIPTION_ID" in done.stdout


def test_runs_that_do_not_use_it_do_not_load_azures_client():
    script = "import sys, snakemake_executor_plugin_azureml; print('azure.ai.ml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_resources_of_a_rule_go_before_settings_of_the_run():
    assert specification().compute == "cpu-cluster"
    own = specification(
        azureml_compute="arc",
        azureml_instance_type="gpu",
        azureml_image="other/image",
        runtime=90,
        azureml_conda_file=None,
    )
    assert (own.compute, own.instance_type, own.image, own.minutes) == ("arc", "gpu", "other/image", 90)
    registered = specification(azureml_environment="azureml:mine:3")
    assert (registered.environment, registered.image, registered.conda_file) == ("azureml:mine:3", None, None)
    image = specification({"image": None, "environment": "azureml:mine:3"}, azureml_image="other/image")
    assert (image.environment, image.image) == (None, "other/image")


def test_a_group_has_what_its_members_ask_for():
    members = [
        SimpleNamespace(resources={"azureml_compute": "gpu", "azureml_inputs": "a=uri_file:download:azureml:x"}),
        SimpleNamespace(resources={"azureml_compute": "gpu", "azureml_inputs": "b=uri_file:download:azureml:y"}),
    ]
    group = SimpleNamespace(name="group", resources={"runtime": 5}, jobs=members, is_group=lambda: True)
    assert _resources(group) == {
        "runtime": 5,
        "azureml_compute": "gpu",
        "azureml_inputs": "a=uri_file:download:azureml:x b=uri_file:download:azureml:y",
    }
    members[1].resources["azureml_compute"] = "cpu"
    with pytest.raises(WorkflowError, match="different resources azureml_compute"):
        _resources(group)


def test_inputs_and_outputs_are_told_to_the_command():
    job = specification(
        {"inputs": "raw=uri_file:ro_mount:azureml://datastores/d/paths/p"},
        azureml_inputs=f"model=mlflow_model:download:{REGISTRY}",
        azureml_outputs="work=azureml://datastores/d/paths/work",
    )
    assert job.inputs["model"] == JobInput("mlflow_model", "download", REGISTRY)
    assert job.command == (
        'export AZUREML_INPUT_RAW="${{inputs.raw}}" && export AZUREML_INPUT_MODEL="${{inputs.model}}"'
        ' && export AZUREML_OUTPUT_WORK="${{outputs.work}}" && python -m snakemake'
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model", "model is not NAME=VALUE"),
        ("a b=c", "a is not NAME=VALUE"),
        ("1a=uri_file:download:azureml:x", "is not NAME=VALUE"),
        ("a=uri_file:download:azureml:x a=uri_file:download:azureml:y", "a is given twice"),
        ("a=file:download:azureml:x", "with a type of uri_file, uri_folder"),
        ("a=uri_file:mount:azureml:x", "a mode of ro_mount, download"),
        ("a=uri_file:download:https://x", "begins with azureml:"),
    ],
)
def test_wrong_inputs_are_told(words, said):
    with pytest.raises(WorkflowError, match=said):
        parse_inputs(words, "--azureml-inputs")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"environment": "azureml:a:1", "image": "i"}, "not both"),
        ({"identity": "root"}, "--azureml-identity: root is not"),
        ({"identity": "user:me"}, "--azureml-identity: user:me is not"),
        ({"tags": "project"}, "--azureml-tags: project is not NAME=VALUE"),
        ({"outputs": "a=https://x"}, "--azureml-outputs: a=https://x does not begin with azureml:"),
        ({"conda_file": Path("missing.yaml")}, "--azureml-conda-file: missing.yaml does not exist"),
    ],
)
def test_wrong_settings_are_told(settings, said):
    with pytest.raises(WorkflowError, match=said):
        ExecutorSettings(**settings)


def test_a_job_without_place_or_software_is_refused():
    with pytest.raises(WorkflowError, match="no compute and no instance type"):
        specification({"compute": None})
    assert specification({"compute": None, "instance_type": "Standard_D4s_v5"}).compute is None, "serverless"
    with pytest.raises(WorkflowError, match="no environment"):
        specification({"image": None})
    with pytest.raises(WorkflowError, match=r"azureml_conda_file: gone\.yaml does not exist"):
        specification(azureml_conda_file="gone.yaml")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("db_password", "x"),
        ("STORAGE", "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=b=="),
        ("URL", "https://a.blob.core.windows.net/c?sv=2024&sig=abc"),
        ("AZURITE_CONNECTION_STRING", "AccountName=a;AccountKey=b;BlobEndpoint=http://example.org/a"),
        ("MY_TOKEN", "https://user:password@example.org/"),
        ("SOMETHING", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x"),
    ],
)
def test_secrets_are_refused_and_not_repeated(name, value):
    with pytest.raises(WorkflowError, match=f"{name} seems to be a secret") as error:
        check_no_secrets({"A": "1", name: value})
    assert value not in str(error.value)


def test_what_is_no_secret_passes():
    check_no_secrets(
        {
            "SNAKEMAKE_STORAGE_AZURE_ACCOUNT_NAME": "mystorage",
            "SLMFLOW_HF_TOKEN_SECRET": "https://vault.vault.azure.net/secrets/hf-token",
            "AZURITE_CONNECTION_STRING": "AccountName=a;AccountKey=b;BlobEndpoint=http://127.0.0.1:10000/a;",
        }
    )


@pytest.mark.parametrize(("name", "slug"), [("train_adapter", "train-adapter"), ("__", "job"), ("a" * 99, "a" * 60)])
def test_names_of_jobs_are_those_that_azure_takes(name, slug):
    assert _slug(name) == slug


def test_every_setting_and_resource_is_in_its_readme():
    text = (ROOT / "src/README.md").read_text()
    for name in ("compute", "instance_type", "environment", "image", "conda_file", "inputs", "outputs"):
        assert f"azureml_{name}" in text
