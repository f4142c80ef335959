"""The shape of the workflow's own text: a short Snakefile, and rules that say what they are about."""

import ast
import re
from pathlib import Path

import pytest

from lib.workflow.job_inputs import describe_data_input, describe_model_input
from lib.workflow.remote_storage import build_fetch_command, find_results_copy

ROOT = Path(__file__).resolve().parents[2]
SNAKEFILE, RULES = ROOT / "Snakefile", sorted((ROOT / "rules").glob("*.smk"))
STAGES = ("data", "train", "onnx", "select", "report")


def test_rule_all_is_on_the_first_screen_of_a_short_snakefile():
    lines = SNAKEFILE.read_text().splitlines()
    assert lines.index("rule all:") < 25
    assert len(lines) < 45
    assert "def " not in SNAKEFILE.read_text()


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_a_file_of_rules_says_in_its_first_line_what_it_is_about(file):
    assert re.match(r'"""\S.*\."""$', file.read_text().splitlines()[0])
    assert f'include: "rules/{file.name}"' in SNAKEFILE.read_text()


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_retries_stand_in_profiles(file):
    """In a rule, Snakemake would repeat them inside each job that it has submitted."""
    assert not re.search(r"^ +retries:", file.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("stage", STAGES)
def test_a_reader_of_a_stage_meets_no_storage(stage):
    """Helpers of the same name do nothing where files are shared; `azureml_inputs` is what an executor calls it."""
    text = (ROOT / f"rules/{stage}.smk").read_text().replace("azureml_inputs", "")
    assert not re.search(r"azure|storage_|az://", text, flags=re.IGNORECASE)


def test_where_files_are_shared_each_helper_of_remote_jobs_does_nothing():
    text = (ROOT / "rules/remote.smk").read_text()
    shared, remote = text[text.index("if not STORED:") :].split("\nelse:\n")
    names = re.compile(r"^    def (\w+)\(", flags=re.MULTILINE)
    assert set(names.findall(shared)) == set(names.findall(remote)) - {"fetch_results_command"}
    assert len(names.findall(shared)) == 7
    for function in ast.parse("if True:\n" + shared.partition("\n")[2]).body[0].body:
        *_, last = function.body
        nothing = (
            "return keep_path(path)",
            "return path",
            "return RESULTS",
            "return []",
            "return ['true']",
            "return ['--cache', 'work/base']",
        )
        assert ast.unparse(last) in nothing


# What remote.smk takes from Python


def test_a_job_finds_its_copy_of_the_results_by_its_own_output():
    assert (
        find_results_copy("/tmp/results/az/c/p/results/runs/lora/adapter", "results") == "/tmp/results/az/c/p/results"
    )
    assert find_results_copy("/tmp/az/project/results/base", "results") == "/tmp/az/project/results"


def test_results_are_fetched_from_where_the_storage_has_them():
    command = build_fetch_command("scripts/fetch_results.py", "az://c/p/results", "here", ["--only", "logs"])
    assert command[:2] == ["python", "scripts/fetch_results.py"]
    assert command[2:] == ["--storage", "az://c/p/results", "--results", "here", "--only", "logs"]


def test_jobs_get_inputs_of_azure_only_where_the_configuration_names_some():
    assert describe_data_input(None) == describe_model_input(None, None, "download") == ""
    uri = "azureml://datastores/d/paths/rows.jsonl"
    assert describe_data_input(uri) == f"data=uri_file:ro_mount:{uri}"
    assert describe_model_input("azureml://datastores/d/paths/m.GGUF", None, "download") == (
        "model=uri_file:download:azureml://datastores/d/paths/m.GGUF"
    )
    model = "azureml://registries/r/models/m/versions/1"
    assert describe_model_input(model, None, "ro_mount") == f"model=mlflow_model:ro_mount:{model}"
    assert describe_model_input(model, "custom_model", "download") == f"model=custom_model:download:{model}"
