"""The stand-in for Azure itself: what it refuses, what its jobs see, how they end, and each fault it can make."""

import os
import shutil
import time
from pathlib import Path

import pytest
import requests
from azure.ai.ml import Input, Output
from azure.ai.ml.entities import Environment
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.identity import CredentialUnavailableError, ManagedIdentityCredential

from .azurite import running_azurite
from .client import ARC, REGISTRY_MODEL, Client, put
from .control_plane import ControlPlane
from .nodes import PATH

pytestmark = pytest.mark.azure


@pytest.fixture
def client(plane, tmp_path) -> Client:
    return Client(plane, tmp_path)


# What the workspace knows

REFUSED = {
    "unknown compute": ({"compute": "gone"}, "Compute gone not found"),
    "unregistered environment": ({"environment": "azureml:nothing:1"}, "environments/nothing/versions/1 is not reg"),
    "unbound input": ({"text": "cat ${{ inputs.rows }}"}, "does not define: inputs.rows"),
    "unbound output": ({"text": "cat ${{outputs.out}}"}, "does not define: outputs.out"),
    "instance type of a cluster": ({"instance_type": "gpu"}, "InstanceType cannot be chosen on an AmlCompute"),
    "unknown model": (
        {"inputs": {"model": Input(type="mlflow_model", path=REGISTRY_MODEL)}},
        f"model: {REGISTRY_MODEL} was not found",
    ),
    "name": ({"name": "a.b"}, "'a.b' is no name of a job"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_job_is_refused(client, name):
    settings, expected = REFUSED[name]
    settings = {"text": "true", **settings}
    with pytest.raises(HttpResponseError) as raised:
        client.send(**settings)
    assert raised.value.status_code == 400
    assert expected in str(raised.value)
    assert client.plane.jobs == {}


def test_a_name_serves_once(client):
    """The same job sent again is the same job; another one is refused, in Azure's words."""
    job = client.run("echo once", name="one")
    client.send("echo once", name="one", tags={"later": "yes"})
    with pytest.raises(HttpResponseError, match=r"already exists.*the existing job's Command cannot be changed"):
        client.send("echo twice", name="one")
    assert (job.started, job.log, job.tags) == (1, "once\n", {"later": "yes"})


def test_an_environment_is_registered_once(client):
    environments = client.real.environments
    for image, outcome in (("a/image", "made"), ("a/image", "the same"), ("another/image", "refused")):
        environment = Environment(name="mine", version="1", image=image)
        if outcome == "refused":
            with pytest.raises(HttpResponseError, match=r"mine:1 exists with other settings"):
                environments.create_or_update(environment)
        else:
            environments.create_or_update(environment)
    assert environments.get("mine", version="1").image == "a/image"
    assert client.run("true", environment="azureml:mine:1").status == "Completed"


def test_unknown_names_are_not_found(client):
    jobs = client.real.jobs
    for ask in (
        lambda: jobs.get("nothing"),
        lambda: jobs.begin_cancel("nothing"),
        lambda: jobs._runs_operations.get_run_details("nothing"),
        lambda: client.real.compute.get("nothing"),
        lambda: client.real.datastores.get("nothing"),
        lambda: client.real.environments.get("nothing", version="1"),
    ):
        with pytest.raises(ResourceNotFoundError):
            ask()


def test_the_client_reads_computes_datastores_and_jobs(client, azurite, container):
    computes = [client.real.compute.get(name) for name in ("cpu-cluster", "arc-cluster")]
    assert [(one.name, one.type) for one in computes] == [("cpu-cluster", "amlcompute"), ("arc-cluster", "kubernetes")]
    store = client.real.datastores.get(container, include_secrets=True)
    assert (store.container_name, store.account_name) == (container, "devstoreaccount1")
    assert store.credentials.account_key in azurite.connection_string
    sent = [client.send("true", tags=tags).name for tags in ({"run": "1"}, {})]
    assert [job.name for job in client.real.jobs.list()] == sent[::-1]
    assert [job.name for job in client.real.jobs.list(tag="run")] == sent[:1]


# Jobs

SEES = """
ls -A; env | cut -d= -f1 | grep -v -e PWD -e SHLVL -e ^_$ | sort | xargs; which python
cat ${{inputs.rows}} ${{ inputs.folder }}/deep/b ${{inputs.model}}/MLmodel; echo ${{inputs.count}} $RULE
touch mine; mkdir ${{outputs.out}}/sub; echo made > ${{outputs.out}}/sub/file
"""


@pytest.mark.parametrize("compute", [{}, ARC])
def test_a_job_sees_its_inputs_and_nothing_else(client, azurite, container, tmp_path, compute):
    client.plane.add_environment("registered", "3")
    azurite.put(container, {"in/rows.json": b"rows\n", "dir/a": b"a\n", "dir/deep/b": b"b\n"})
    model = tmp_path / "registries/azureml/Tiny/1"
    model.mkdir(parents=True)
    (model / "MLmodel").write_text("model\n")
    at = f"azureml://datastores/{container}/paths"
    job = client.run(
        SEES,
        inputs={
            "rows": Input(type="uri_file", path=f"{at}/in/rows.json", mode="ro_mount"),
            "folder": Input(type="uri_folder", path=f"{at}/dir", mode="download"),
            "model": Input(type="mlflow_model", path=REGISTRY_MODEL, mode="download"),
            "count": 3,
        },
        outputs={"out": Output(type="uri_folder", path=f"{at}/out", mode="rw_mount")},
        environment_variables={"RULE": "train"},
        **compute,
    )
    seen = ["AZUREML_RUN_ID HOME MSI_ENDPOINT MSI_SECRET PATH RULE", f"{PATH.split(':')[0]}/python"]
    assert job.log.splitlines() == [*seen, "rows", "b", "model", "3 train"]
    assert job.status == "Completed"
    assert job.history == ["NotStarted", "Queued", "Preparing", "Running", "Finalizing", "Completed"]
    assert azurite.blobs(container, "out/") == {"out/sub/file": 5}
    assert [path.name for path in job.folder.iterdir()] == ["mine"]
    assert client.real.jobs.get(job.name).status == "Completed"


def test_a_failure_has_a_reason_and_a_log(client):
    job = client.run("echo said; echo why >&2; exit 3")
    assert client.real.jobs.get(job.name).status == "Failed"
    details = client.real.jobs._runs_operations.get_run_details(job.name)
    assert details.status == "Failed"
    assert "exited with status code 3" in details.error.error.message
    (log,) = details.log_files.values()
    assert requests.get(log, timeout=60).text == "said\nwhy\n"
    assert requests.get(log.partition("?")[0], timeout=60).status_code == 403


def test_data_that_is_missing_fails_the_job(client, container):
    rows = Input(type="uri_file", path=f"azureml://datastores/{container}/paths/rows.json")
    job = client.run("cat ${{inputs.rows}}", inputs={"rows": rows})
    assert (job.status, job.error["message"]) == (
        "Failed",
        f"DataAccessError(NotFound): no blob rows.json in {container}",
    )


def test_a_job_ends_with_its_command(client):
    job = client.run("setsid sleep 600 & echo $!; sleep 0.2")
    assert job.status == "Completed"
    assert not alive(job.log.strip())


def test_a_mount_follows_what_is_removed(client, azurite, container):
    azurite.put(container, {"out/before": b"1", "out/kept": b"2"})
    out = Output(type="uri_folder", path=f"azureml://datastores/{container}/paths/out/", mode="rw_mount")
    client.run("cd ${{outputs.out}}; rm before; echo new > after", outputs={"out": out})
    assert azurite.blobs(container) == {"out/after": 4, "out/kept": 1}


def test_an_uploaded_output_begins_empty(client, azurite, container):
    azurite.put(container, {"out/before": b"1"})
    out = Output(type="uri_folder", path=f"azureml://datastores/{container}/paths/out", mode="upload")
    job = client.run("ls ${{outputs.out}}; touch ${{outputs.out}}/after", outputs={"out": out})
    assert (job.log, azurite.blobs(container)) == ("", {"out/before": 1, "out/after": 0})


def test_jobs_wait_for_a_node(client):
    first, second = (client.start("echo here; sleep 600") for _ in range(2))
    third, fourth = (client.send("echo ran") for _ in range(2))
    assert [third.status, fourth.status] == ["Queued", "Queued"]
    client.real.jobs.begin_cancel(third.name).wait()
    client.real.jobs.begin_cancel(first.name).wait()
    client.plane.wait_for(fourth.name, "Completed")
    assert (third.status, third.started, third.log) == ("Canceled", 0, "")
    assert second.status == "Running"


def test_a_cancelled_job_is_told_to_end(client):
    job = client.start("trap 'echo told; exit 0' TERM; echo here; sleep 600 & wait")
    client.real.jobs.begin_cancel(job.name).wait()
    assert job.log == "here\ntold\n"
    assert job.history[-3:] == ["Running", "CancelRequested", "Canceled"]
    assert client.real.jobs.get(job.name).status == "Canceled"


def alive(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"


STUBBORN = "trap '' TERM; setsid bash -c \"trap '' TERM; echo \\$\\$ here; while :; do sleep 1; done\" & wait"


def test_a_job_that_will_not_end_is_killed(client):
    """With what has left its process group."""
    job = client.start(STUBBORN)
    child = job.log.split()[0]
    assert alive(child)
    begun = time.monotonic()
    client.real.jobs.begin_cancel(job.name)
    client.plane.wait_for(job.name, "Canceled")
    assert time.monotonic() - begun > 1  # the grace
    assert not alive(child)


def test_a_job_is_stopped_at_its_limit(client):
    job = client.run("sleep 600", timeout=1)
    assert (job.status, job.error["code"]) == ("Canceled", "JobTimeout")


def test_nothing_runs_on_when_the_control_plane_ends(azurite, tmp_path, monkeypatch):
    with ControlPlane(tmp_path, path=PATH) as plane:
        for name, value in plane.environment().items():
            monkeypatch.setenv(name, value)
        job = Client(plane, tmp_path).start(STUBBORN)
        child = job.log.split()[0]
    assert not alive(child)
    with pytest.raises(requests.ConnectionError):
        put(plane, "jobs/b", {})


# Faults


def statuses(plane: ControlPlane, kind: str) -> list[int | None]:
    return [request.status for request in plane.requests if request.kind == kind]


def test_a_throttled_client_waits_as_it_is_told(client):
    client.plane.throttle(2, seconds=1, kind="submit")
    client.send("true")
    assert statuses(client.plane, "submit") == [429, 429, 201]
    first, second, third = (request.time for request in client.plane.requests if request.kind == "submit")
    assert second - first >= 1
    assert third - second >= 1


def test_throttling_without_end_reaches_the_caller(client):
    client.plane.throttle(1000, seconds=0, kind="poll")
    name = client.send("true").name
    with pytest.raises(HttpResponseError) as raised:
        client.real.jobs.get(name)
    assert raised.value.status_code == 429
    client.plane.mend()
    assert client.real.jobs.get(name).name == name


def test_broken_polls(client):
    name = client.send("true").name
    client.plane.break_polls(1)
    assert client.real.jobs.get(name).name == name
    assert statuses(client.plane, "poll") == [503, 200]
    client.plane.break_polls(1000, status=500)
    with pytest.raises(HttpResponseError) as raised:
        client.real.jobs.get(name)
    assert raised.value.status_code == 500


def test_lost_polls(client):
    name = client.send("true").name
    client.plane.lose_connection(1, kind="poll")
    assert client.real.jobs.get(name).name == name
    assert statuses(client.plane, "poll") == [None, 200]


@pytest.mark.parametrize(("late", "second"), [(False, 201), (True, 200)])
def test_a_lost_answer_makes_no_second_job(client, late, second):
    client.plane.lose_connection(1, kind="submit", late=late)
    job = client.run("echo once")
    assert statuses(client.plane, "submit") == [None, second]
    assert (job.log, list(client.plane.jobs)) == ("once\n", [job.name])


RESUMES = """
ls -A; if [ -e ${{outputs.out}}/saved ]; then echo resumed; exit; fi
trap 'echo told; exit 1' TERM; touch local ${{outputs.out}}/saved; echo here; sleep 600 & wait
"""


@pytest.mark.parametrize("requeue", [True, False])
def test_a_preempted_node(client, azurite, container, requeue):
    """What was written to a mounted output is there for the next start, what was on the node is not."""
    out = Output(type="uri_folder", path=f"azureml://datastores/{container}/paths/out", mode="rw_mount")
    job = client.start(RESUMES, outputs={"out": out})
    client.plane.wait_until(lambda: azurite.blobs(container) == {"out/saved": 0}, "the mount has sent it on")
    node = job.attempt
    client.plane.preempt(job.name, requeue)
    client.plane.wait_for(job.name)
    assert node.exists() != requeue
    if requeue:
        assert (job.status, job.started, job.log) == ("Completed", 2, "here\ntold\nresumed\n")
        assert job.history.count("Queued") == 2
    else:
        assert (job.status, job.started, job.log) == ("Failed", 1, "here\ntold\n")
        details = client.real.jobs._runs_operations.get_run_details(job.name)
        assert "preempted" in details.error.error.message


# Identity

ASKS = """
from azure.identity import ManagedIdentityCredential
print(ManagedIdentityCredential().get_token("https://storage.azure.com/.default").token.count("."))
"""


def test_a_job_has_the_identity_of_its_node(client, tmp_path):
    script = tmp_path / "asks.py"
    script.write_text(ASKS)
    job = client.run(f"python {script}")
    assert job.log == "2\n"
    assert ("https://storage.azure.com", None) in client.plane.tokens


def test_the_real_credential_gets_a_token(plane):
    credential = ManagedIdentityCredential(client_id="mine")
    token = credential.get_token("https://management.azure.com/.default")
    assert token.expires_on > time.time() + 3600
    assert plane.tokens == [("https://management.azure.com", "mine")]


def test_a_wrong_secret_gets_none(plane, monkeypatch):
    monkeypatch.setenv("MSI_SECRET", "wrong")
    with pytest.raises((ClientAuthenticationError, CredentialUnavailableError), match="secret did not match"):
        ManagedIdentityCredential().get_token("https://management.azure.com/.default")
    assert plane.tokens == []


# Azurite


def test_what_lies_in_azurite(azurite, container):
    azurite.put(container, {"a/b": b"12", "a/c": b"", "b": b"1"})
    assert azurite.blobs(container, "a/") == {"a/b": 2, "a/c": 0}
    assert azurite.read(container, "a/b") == b"12"


def test_an_azurite_that_is_missing_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("AZURITE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", os.path.dirname(shutil.which("true")))
    with pytest.raises(AssertionError, match="make azurite"), running_azurite(tmp_path):
        pass
