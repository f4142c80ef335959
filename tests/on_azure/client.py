"""Azure's real client, and the job that the control plane made of what it sent."""

import uuid
from pathlib import Path

import requests
from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import Environment
from azure.identity import DefaultAzureCredential

from .control_plane import GROUP, SUBSCRIPTION, WORKSPACE, ControlPlane, Job

CONDA = "name: job\ndependencies:\n- python=3.11\n"
ARC = {"compute": "arc-cluster", "instance_type": "gpu-a100", "environment": "azureml:registered:3"}
REGISTRY_MODEL = "azureml://registries/azureml/models/Tiny/versions/1"


def new_client() -> MLClient:
    return MLClient(
        DefaultAzureCredential(), SUBSCRIPTION, GROUP, WORKSPACE, show_progress=False, enable_telemetry=False
    )


def a_job(text: str, folder: Path, **more):
    """A command with an environment of its own, on the AmlCompute cluster unless told otherwise."""
    conda = folder / "conda.yaml"
    conda.write_text(CONDA)
    usual = {
        "name": f"job-{uuid.uuid4().hex[:8]}",
        "compute": "cpu-cluster",
        "environment": Environment(image="example.azurecr.io/image", conda_file=str(conda)),
    }
    return command(command=text, **{**usual, **more})


class Client:
    """The real one, and the job that it made of what it sent."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane, self.folder, self.real = plane, folder, new_client()

    def send(self, text: str, **more) -> Job:
        sent = self.real.jobs.create_or_update(a_job(text, self.folder, **more))
        return self.plane.jobs[sent.name]

    def run(self, text: str, **more) -> Job:
        return self.plane.wait_for(self.send(text, **more).name)

    def start(self, text: str, **more) -> Job:
        """Send a job and wait until its command has said `here`."""
        job = self.send(text, **more)
        self.plane.wait_until(lambda: "here" in job.log, f"{job.name} says where it is")
        return job


def put(plane: ControlPlane, path: str, body: object, token: str | None = "t") -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    scope = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.MachineLearningServices"
    url = f"{plane.url}{scope}/workspaces/{WORKSPACE}/{path}"
    return requests.put(url, json=body, headers=headers, timeout=60)
