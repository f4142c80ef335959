"""What the client sends keeps the published contract, and whatever breaks it is named."""

import copy
from collections.abc import Callable

import pytest
from azure.ai.ml import Input, Output
from azure.ai.ml.entities import ManagedIdentityConfiguration

from . import contract
from .client import ARC, REGISTRY_MODEL, Client, put
from .control_plane import ControlPlane

pytestmark = pytest.mark.azure


@pytest.fixture(scope="module")
def bodies(tmp_path_factory) -> dict[str, dict]:
    """What the client sends for a job with all that a job can have: on both computes, and an environment."""
    folder = tmp_path_factory.mktemp("bodies")
    model = folder / "registries/azureml/Tiny/1"
    model.mkdir(parents=True)
    with (
        pytest.MonkeyPatch.context() as patch,
        ControlPlane(folder, path="", registries=folder / "registries") as plane,
    ):
        for name, value in plane.environment().items():
            patch.setenv(name, value)
        plane.add_environment("registered", "3")
        client = Client(plane, folder)
        data = "azureml://datastores/blobs/paths/"
        settings = {
            "inputs": {
                "data": Input(type="uri_file", path=f"{data}rows.json", mode="ro_mount"),
                "model": Input(type="mlflow_model", path=REGISTRY_MODEL, mode="download"),
                "count": 3,
            },
            "outputs": {"out": Output(type="uri_folder", path=f"{data}out", mode="rw_mount")},
            "environment_variables": {"A": "1"},
            "identity": ManagedIdentityConfiguration(),
            "shm_size": "8g",
            "instance_count": 1,
            "timeout": 600,
            "tags": {"a": "b"},
            "experiment_name": "tests",
        }
        sent = {
            "aml": client.send("cat ${{inputs.data}}", **settings).body,
            "arc": client.send("cat ${{inputs.data}}", **settings, **ARC).body,
            "spot": client.send("true", job_tier="Spot").body,
        }
        (anonymous,) = (body for key, body in plane.environments.items() if key != ("registered", "3"))
        return {**sent, "environment": anonymous}


@pytest.mark.parametrize("name", ["aml", "arc", "spot"])
def test_what_the_client_sends_is_accepted(bodies, name):
    assert contract.violations(bodies[name]) == []


def test_an_environment_that_the_client_sends_is_accepted(bodies):
    assert contract.environment_violations(bodies["environment"]) == []
    assert bodies["environment"]["properties"]["condaFile"]


def change(*path: str, to: object = None) -> Callable[[dict], None]:
    """Set a value of a body, or remove it (None)."""

    def apply(body: dict) -> None:
        for key in path[:-1]:
            body = body[key]
        if to is None:
            del body[path[-1]]
        else:
            body[path[-1]] = to

    return apply


IN, OUT = ("properties", "inputs"), ("properties", "outputs")
BROKEN_JOBS = {
    "unknown key": (change("properties", "color", to="red"), "properties.color: unknown to CommandJob"),
    "snake case": (change("properties", "compute_id", to="x"), "properties.compute_id: unknown to CommandJob"),
    "unknown key outside": (change("sku", to="x"), "sku: unknown to JobBase"),
    "name in the body": (change("name", to="x"), "name: read-only"),
    "no properties": (change("properties"), "properties: missing"),
    "no command": (change("properties", "command"), "properties.command: missing"),
    "empty command": (change("properties", "command", to=""), "properties.command: shorter than 1"),
    "no environment": (change("properties", "environmentId"), "properties.environmentId: missing"),
    "environment of signs": (
        change("properties", "environmentId", to="/:/"),
        "properties.environmentId: '/:/' does not match [a-zA-Z0-9_]",
    ),
    "a status": (change("properties", "status", to="Completed"), "properties.status: read-only"),
    "parameters": (change("properties", "parameters", to={}), "properties.parameters: read-only"),
    "no job type": (change("properties", "jobType"), "properties.jobType: missing"),
    "another job type": (change("properties", "jobType", to="Task"), "properties.jobType: 'Task' is none of"),
    "tags as a list": (change("properties", "tags", to=["a"]), "properties.tags: no object: ['a']"),
    "a tag that is a number": (change("properties", "tags", "a", to=1), "properties.tags.a: not of type str: 1"),
    "a variable that is a number": (
        change("properties", "environmentVariables", "A", to=1),
        "properties.environmentVariables.A: not of type str: 1",
    ),
    "archived as text": (change("properties", "isArchived", to="no"), "properties.isArchived: not of type bool: 'no'"),
    "input of another type": (
        change(*IN, "data", "jobInputType", to="uri_blob"),
        "properties.inputs.data.jobInputType: 'uri_blob' is none of",
    ),
    "input of no type": (change(*IN, "data", "jobInputType"), "properties.inputs.data.jobInputType: missing"),
    "input without address": (change(*IN, "data", "uri"), "properties.inputs.data.uri: missing"),
    "input with the client's word for a mode": (
        change(*IN, "data", "mode", to="ro_mount"),
        "properties.inputs.data.mode: 'ro_mount' is none of",
    ),
    "literal as a number": (change(*IN, "count", "value", to=3), "properties.inputs.count.value: not of type str: 3"),
    "output of another type": (
        change(*OUT, "out", "jobOutputType", to="literal"),
        "properties.outputs.out.jobOutputType: 'literal' is none of",
    ),
    "output with an input's mode": (
        change(*OUT, "out", "mode", to="Download"),
        "properties.outputs.out.mode: 'Download' is none of",
    ),
    "identity of another type": (
        change("properties", "identity", "identityType", to="managed"),
        "properties.identity.identityType: 'managed' is none of",
    ),
    "shared memory without unit": (
        change("properties", "resources", "shmSize", to="big"),
        r"properties.resources.shmSize: 'big' does not match \d+[bBkKmMgG]",
    ),
    "nodes as text": (
        change("properties", "resources", "instanceCount", to="1"),
        "properties.resources.instanceCount: not of type int: '1'",
    ),
    "a truth as a number of nodes": (
        change("properties", "resources", "instanceCount", to=True),
        "properties.resources.instanceCount: not of type int: True",
    ),
    "limit in seconds": (
        change("properties", "limits", "timeout", to="600"),
        "properties.limits.timeout: not of type duration: '600'",
    ),
    "a tier that is none": (
        change("properties", "queueSettings", to={"jobTier": "Cheap"}),
        "properties.queueSettings.jobTier: 'Cheap'",
    ),
    "another setting of the queue": (
        change("properties", "queueSettings", to={"rank": "1"}),
        "properties.queueSettings.rank: '1'",
    ),
}


@pytest.mark.parametrize("name", BROKEN_JOBS)
def test_a_broken_job_is_named(bodies, name):
    apply, expected = BROKEN_JOBS[name]
    body = copy.deepcopy(bodies["arc"])
    apply(body)
    (found,) = contract.violations(body)
    assert found.startswith(expected)


BROKEN_ENVIRONMENTS = {
    "no properties": (change("properties"), "properties: missing"),
    "neither image nor build": (change("properties", "image"), "properties: neither image nor build"),
    "conda as an object": (change("properties", "condaFile", to={}), "properties.condaFile: not of type str: {}"),
    "unknown key": (change("properties", "conda_file", to="x"), "properties.conda_file: unknown to EnvironmentVersion"),
    "a type": (change("properties", "environmentType", to="UserCreated"), "properties.environmentType: read-only"),
    "another system": (change("properties", "osType", to="Solaris"), "properties.osType: 'Solaris' is none of"),
}


@pytest.mark.parametrize("name", BROKEN_ENVIRONMENTS)
def test_a_broken_environment_is_named(bodies, name):
    apply, expected = BROKEN_ENVIRONMENTS[name]
    body = copy.deepcopy(bodies["environment"])
    apply(body)
    (found,) = contract.environment_violations(body)
    assert found.startswith(expected)


def test_the_server_refuses_what_breaks_the_contract(plane, bodies):
    plane.add_environment("registered", "3")
    body = copy.deepcopy(bodies["spot"])
    body["properties"]["environmentId"] = bodies["arc"]["properties"]["environmentId"]
    broken = copy.deepcopy(body)
    broken["properties"]["status"] = "Completed"
    answer = put(plane, "jobs/a", broken)
    assert answer.status_code == 400
    assert answer.json() == {"error": {"code": "UserError", "message": "properties.status: read-only"}}
    answer = put(plane, "environments/a/versions/1", {"properties": {}})
    assert answer.json()["error"]["message"] == "properties: neither image nor build"
    with_code = copy.deepcopy(body)
    with_code["properties"]["codeId"] = "azureml:code:1"
    assert "Code of jobs" in put(plane, "jobs/a", with_code).json()["error"]["message"]
    assert put(plane, "jobs/a", body, token=None).status_code == 401
    assert plane.jobs == {}
    assert put(plane, "jobs/a", body).status_code == 201
