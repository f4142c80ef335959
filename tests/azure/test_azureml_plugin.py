"""The executor plugin by itself: what it submits, what it refuses, and that Snakemake finds it."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_azureml import ExecutorSettings, _resources, _slug
from snakemake_executor_plugin_azureml.secrets import check_no_secrets
from snakemake_executor_plugin_azureml.specification import JobInput, JobSpecification, parse_inputs
from support.paths import ROOT

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


@pytest.mark.parametrize("scheme", ["azureml", "AZUREML", "AzureML"])
def test_the_scheme_of_an_address_may_be_in_any_case(scheme):
    job = specification(
        azureml_inputs=f"a=uri_file:download:{scheme}:Mine:1", azureml_outputs=f"b={scheme}://datastores/D/paths/P"
    )
    assert job.inputs["a"].uri == "azureml:Mine:1"
    assert job.outputs["b"] == "azureml://datastores/D/paths/P"


# No secret of anybody: shapes as their makers document them, put together here so that no scanner takes them for real.
WORD = "Abcdefghij0123456789" * 3
SHAPES = {
    "Hugging Face": f"hf_{WORD[:34]}",
    "in a header": f"Bearer hf_{WORD[:34]}",
    "GitHub, classic": f"ghp_{WORD[:36]}",
    "GitHub, OAuth": f"gho_{WORD[:36]}",
    "GitHub, server": f"ghs_{WORD[:36]}",
    "GitHub, fine-grained": f"github_pat_{WORD[:22]}_{WORD}",
    "GitLab": f"glpat-{WORD[:20]}",
    "GitLab, runner": f"glrt-{WORD[:20]}",
    "Amazon": "AKIA" + "ABCDEFGH01234567",
    "Amazon, session": "ASIA" + "ABCDEFGH01234567",
    "Google": f"AIza{WORD[:35]}",
    "OpenAI": f"sk-{WORD[:48]}",
    "OpenAI, project": f"sk-proj-{WORD[:40]}",
    "Anthropic": f"sk-ant-api03-{WORD[:40]}",
    "Stripe": f"sk_live_{WORD[:24]}",
    "Slack": f"xoxb-123456789012-{WORD[:24]}",
    "Slack, app": f"xapp-1-{WORD[:24]}",
    "PyPI": f"pypi-AgEIcHlwaS5vcmc{WORD}",
    "npm": f"npm_{WORD[:36]}",
    "header with a token": f"Authorization: bearer {WORD}",
    "password in an address": "https://user:pass@example.org/x",
    "password in another": "postgresql://admin:p%40ss@db:5432/x",
    "token in an address": "https://:abc@example.org",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMII",
    "private key, OpenSSH": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "private key, PKCS 8": "-----BEGIN PRIVATE KEY-----",
    "shared access signature": "https://a.blob.core.windows.net/c?sv=2024-01-01&sp=r&sig=abc%3D",
    "signature alone": "?sig=abc",
    "storage connection string": "DefaultEndpointsProtocol=https;AccountName=a;accountkey = b==",
    "service bus": "Endpoint=sb://a.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=k",
    "database": "Server=tcp:a.database.windows.net;User ID=u;Password=p;",
    "JSON Web Token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x",
    "in other text": f"see hf_{WORD[:34]}, please",
    "emulator away": "AccountName=a;AccountKey=b;BlobEndpoint=http://127.0.0.1.example.org/a",
    "emulator and another": "AccountKey=b;BlobEndpoint=http://127.0.0.1:1/a;QueueEndpoint=https://example.org/a",
}
NAMES = [
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "db_password",
    "OPENAI_API_KEY",
    "apikey",
    "KEY",
    "storageKey",
    "A_SAS",
    "GH_PAT",
]
NAMES += ["DB_PWD", "AZURITE_CONNECTION_STRING", "MYSQL_CONN_STR", "SSH_PASSPHRASE", "my-credentials", "BASIC_AUTH"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_secret_is_known_by_its_shape_under_any_name_and_not_repeated(shape):
    with pytest.raises(WorkflowError, match="HARMLESS seems to be a secret") as error:
        check_no_secrets({"A": "1", "HARMLESS": SHAPES[shape]})
    assert SHAPES[shape] not in str(error.value)


@pytest.mark.parametrize(
    "value", ["x", "123456", "hunter2 hunter2", "/run/x", "https://example.org/x", "correct-horse"]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_secret_is_known_by_its_name_whatever_it_looks_like(name, value):
    with pytest.raises(WorkflowError, match=f"{name} seems to be a secret") as error:
        check_no_secrets({name: value})
    assert value not in str(error.value).replace(name, "")


VAULT = "https://vault.vault.azure.net/secrets/hf-token"
ALMOST = [f"{VAULT}?sig=x", VAULT.replace("https://", "https://u:p@"), VAULT.replace(".net", ".net.example.org")]
ALMOST += [
    VAULT.replace("https", "http"),
    VAULT.replace("/secrets/", "/x/"),
    "https://[",
    "https://vault.azure.net/secrets/x",
]


@pytest.mark.parametrize("value", ALMOST)
def test_only_the_address_of_a_vault_may_stand_under_the_name_of_a_secret(value):
    check_no_secrets(
        {"MY_TOKEN": VAULT, "MY_KEY": VAULT.replace(".net", ".cn"), "SAS": VAULT.replace("https", "HTTPS")}
    )
    with pytest.raises(WorkflowError, match="MY_TOKEN seems to be a secret"):
        check_no_secrets({"MY_TOKEN": value})


PLAIN = {
    "SNAKEMAKE_STORAGE_AZURE_ACCOUNT_NAME": "mystorage",
    "AZURITE_CONNECTION_STRING": "AccountName=a;AccountKey=b;BlobEndpoint=http://127.0.0.1:10000/a;",
    "TOKENIZERS_PARALLELISM": "false",
    "TOKENIZER": "results/base/tokenizer.json",
    "USE_TOKEN": "off",
    "MAX_NEW_TOKENS": "512",
    "MONKEY": "banana",
    "SASKIA": "a name",
    "AUTHOR": "somebody",
    "PWD": "/home/somebody",
    "KEYBOARD": "de",
    "REVISION": "f39ac1d28e925b323eae81227eaba4464caced4e",
    "SHA256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "UUID": "123e4567-e89b-12d3-a456-426614174000",
    "FILE": "sk-learn_baseline-of-2026-with-a-long-name.jsonl",
    "COLUMN": "hf_score, key, token, password",
    "LABELS": "basic configuration, bearer of bad news, sk-2024",
    "PROMPT": "Which password was asked for? {text}: reset, sign in; user@example.org",
    "MODEL": "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/11",
    "URL": "https://example.org:8443/path?query=signal&x=1#user@host",
    "REMOTE": "git@github.com:owner/repository.git",
    "IMAGE": "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04@sha256:" + "0" * 64,
}


def test_what_is_no_secret_passes():
    check_no_secrets(PLAIN)


def test_no_value_of_a_shipped_configuration_seems_a_secret():
    """Under the name of its key: its words are none of those that name secrets either."""
    values = {}
    for path in (ROOT / "config.yaml", *(ROOT / "examples").glob("*.yaml"), *(ROOT / "profiles").glob("*/*.yaml")):
        waiting = [("", yaml.safe_load(path.read_text()))]
        while waiting:
            name, value = waiting.pop()
            below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            waiting += [(f"{name}.{key}", one) for key, one in below]
            values[f"{path.name}{name}"] = str(value)
    assert len(values) > 100
    check_no_secrets(values)


def test_a_long_value_is_searched_at_once():
    begin = time.monotonic()
    for text in ("://", "a", ":", "eyJ", "-eyJ", "password ", "bearer ", "sk-", "?sig", "-----BEGIN "):
        check_no_secrets({"A": text * (32_000 // len(text))})
        check_no_secrets({"A": "://" + text * (32_000 // len(text))})
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(("name", "slug"), [("train_adapter", "train-adapter"), ("__", "job"), ("a" * 99, "a" * 60)])
def test_names_of_jobs_are_those_that_azure_takes(name, slug):
    assert _slug(name) == slug
