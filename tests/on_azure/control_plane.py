"""Azure Machine Learning on loopback, for its unmodified client: jobs that really run, and the faults of a cloud.

with ControlPlane(folder, path=..., computes={"cpu": "AmlCompute", "arc": "Kubernetes"}) as plane:
    subprocess.run(driver, env={**os.environ, **plane.environment()})

The requests are held against the published API (contract.py). The client sends tokens over TLS only, so the server has
a certificate of its own; what jobs ask for (tokens, in place of the endpoint that a node has) is on a plain port, as
are the logs.
"""

import base64
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from . import contract
from .data import Data
from .nodes import BINDING, FINAL, Job, Nodes
from .server import Fault, RefusalError, Request, Server, certified_context, handler

SUBSCRIPTION = "5af10000-0000-4000-8000-000000000001"
GROUP = "slmflow-group"
WORKSPACE = "slmflow-workspace"
_SCOPE = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.MachineLearningServices"
_SCOPE += f"/workspaces/{WORKSPACE}"
_EXISTS = "A job with this name already exists. If you are trying to create a new job, use a different name. If you are"
_EXISTS += " trying to update an existing job, the existing job's {} cannot be changed. Only description, tags,"
_EXISTS += " displayName, properties, and isArchived can be updated."
_UPDATABLE = ("description", "tags", "displayName", "properties", "isArchived")
PATIENCE = 600  # seconds for what takes seconds on a quiet machine


class ControlPlane:
    """path: PATH of the jobs, whose `python` is their environment's. computes: name -> AmlCompute or Kubernetes.
    blob: connection string of the storage whose containers are the datastores. registries: a folder of
    <registry>/<model>/<version>. nodes: how many jobs run at a time. grace: seconds from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        folder: Path,
        *,
        path: str,
        computes: dict[str, str] | None = None,
        blob: str | None = None,
        registries: Path | None = None,
        nodes: int = 2,
        grace: float = 5,
    ) -> None:
        self.folder = folder
        self.computes = {"cpu-cluster": "AmlCompute", "arc-cluster": "Kubernetes"} if computes is None else computes
        self.jobs: dict[str, Job] = {}
        self.environments: dict[tuple[str, str], dict] = {}
        self.requests: list[Request] = []
        self.tokens: list[tuple[str, str | None]] = []  # resource and client id of each that was given
        self._data = Data(blob, registries)
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        self._secret = secrets.token_hex(16)
        self._servers = [Server(("127.0.0.1", 0), handler(self)) for _ in range(2)]
        self._certificate = folder / "certificate.pem"
        self._servers[0].socket = certified_context(self._certificate).wrap_socket(
            self._servers[0].socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://127.0.0.1:{self._servers[0].server_port}"
        self.plain_url = f"http://127.0.0.1:{self._servers[1].server_port}"
        identity = {"MSI_ENDPOINT": f"{self.plain_url}/msi/token", "MSI_SECRET": self._secret}
        self._identity = identity
        self._nodes = Nodes(nodes, grace, self._data, {"PATH": path, **identity})

    def __enter__(self) -> "ControlPlane":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._nodes.close()

    def environment(self) -> dict[str, str]:
        """Environment variables that lead a driver here, with an identity that it may use."""
        return {
            "AZUREML_DEV_URL_MFE": self.url,
            "REQUESTS_CA_BUNDLE": str(self._certificate),
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "NO_PROXY": "127.0.0.1,localhost",
            **self._identity,
        }

    def add_environment(self, name: str, version: str = "1") -> str:
        """Register an environment: how a job names it."""
        self.environments[name, version] = {"properties": {"image": "example.azurecr.io/image"}}
        return f"azureml:{name}:{version}"

    # Faults

    def throttle(self, n: int, seconds: float = 1, kind: str = "any") -> None:
        """The next n requests (of a kind: submit, poll, cancel, other, any) are answered 429."""
        self._faults.append(Fault(kind, n, 429, retry_after=seconds))

    def break_polls(self, n: int, status: int = 503) -> None:
        self._faults.append(Fault("poll", n, status))

    def lose_connection(self, n: int, kind: str = "any", late: bool = False) -> None:
        """The next n requests get no answer; late: though they have been carried out."""
        self._faults.append(Fault(kind, n, None, late=late))

    def mend(self) -> None:
        """Take back the faults that are left."""
        self._faults.clear()

    def preempt(self, name: str, requeue: bool) -> None:
        """Take the node of a running job away."""
        job = self.jobs[name]
        assert job.status == "Running", f"{name} is {job.status}"
        self._nodes.end(job, "requeue" if requeue else "lost")

    # Waiting

    def wait_for(self, name: str, *statuses: str, patience: float = PATIENCE) -> Job:
        """Wait until a job has been sent and has one of these states (none: has ended)."""
        wanted = statuses or FINAL
        self.wait_until(lambda: name in self.jobs and self.jobs[name].status in wanted, f"{name} is {wanted}", patience)
        return self.jobs[name]

    def wait_until(self, condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Wait for what jobs, logs or requests show."""
        end = time.monotonic() + patience
        while not self._nodes.wait(condition, 0.1):
            states = {name: f"{job.status} {job.error or ''}\n{job.log[-2000:]}" for name, job in self.jobs.items()}
            assert time.monotonic() < end, f"waited {patience:.0f} s until {what}: {states}"

    # What requests do

    def answer(self, method: str, path: str, query: dict[str, str], headers: dict, body: object) -> tuple:
        """Status, body and further headers."""
        for wanted, pattern, function in _ROUTES:
            match = re.fullmatch(pattern, path, re.IGNORECASE)
            if match and wanted == method:
                names = [unquote(name) for name in match.groups()]
                answer = function(self, *names, query=query, headers=headers, body=body)
                return (*answer, {}) if len(answer) == 2 else answer
        raise RefusalError(404, f"The resource {method} {path} was not found.", "ResourceNotFound")

    def fault(self, kind: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.left > 0 and fault.kind in ("any", kind):
                    fault.left -= 1
                    return fault
        return None

    def put_environment(self, name: str, version: str, *, body: object, **_) -> tuple:
        if found := contract.environment_violations(body):
            raise RefusalError(400, "; ".join(found))
        known = self.environments.setdefault((name, version), body)
        if known != body:
            raise RefusalError(400, f"Environment {name}:{version} exists with other settings.")
        return 201, self._resource(f"environments/{name}/versions", version, body["properties"])

    def get_environment(self, name: str, version: str, **_) -> tuple:
        if (name, version) not in self.environments:
            raise RefusalError(404, f"Environment {name}:{version} was not found.", "NotFound")
        properties = self.environments[name, version]["properties"]
        return 200, self._resource(f"environments/{name}/versions", version, properties)

    def put_job(self, name: str, *, body: object, **_) -> tuple:
        with self._lock:
            if found := contract.violations(body):
                raise RefusalError(400, "; ".join(found))
            if job := self.jobs.get(name):
                self._update(job, body["properties"])
                return 200, self._job(job)
            self._refuse_job(name, body["properties"])
            job = self.jobs[name] = Job(name, body, self.folder / "jobs" / name)
            answer = self._job(job)  # as it was accepted: not yet queued
        self._nodes.submit(job)
        return 201, answer

    def _update(self, job: Job, properties: dict) -> None:
        """A job that is sent again as it was is not another one: a client may repeat a request it had no answer to."""
        keys = properties.keys() | job.properties.keys()
        changed = sorted(key for key in keys if properties.get(key) != job.properties.get(key))
        if fixed := [key[0].upper() + key[1:] for key in changed if key not in _UPDATABLE]:
            raise RefusalError(400, _EXISTS.format(", ".join(fixed)))
        job.body["properties"] = properties

    def _refuse_job(self, name: str, properties: dict) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9][\w-]{0,254}", name, re.ASCII):
            raise RefusalError(400, f"{name!r} is no name of a job.")
        if properties.get("codeId"):
            raise RefusalError(400, "Code of jobs is not kept here.")
        compute = self._compute(self._part(properties.get("computeId"), "computes"), 400)
        if compute == "AmlCompute" and (properties.get("resources") or {}).get("instanceType"):
            raise RefusalError(400, "InstanceType cannot be chosen on an AmlCompute cluster.")
        environment = properties["environmentId"]
        match = re.fullmatch(f"{_SCOPE}/environments/([^/]+)/versions/([^/]+)", environment, re.IGNORECASE)
        if match is None or match.groups() not in self.environments:
            raise RefusalError(400, f"The environment {environment} is not registered.")
        inputs, outputs = properties.get("inputs") or {}, properties.get("outputs") or {}
        bound = {f"inputs.{key}" for key in inputs} | {f"outputs.{key}" for key in outputs}
        if unbound := [one for one in BINDING.findall(properties["command"]) if one not in bound]:
            raise RefusalError(400, f"The command uses what the job does not define: {', '.join(unbound)}")
        for key, one in (inputs | outputs).items():
            if one.get("uri") and not self._data.knows(one["uri"]):
                raise RefusalError(400, f"{key}: {one['uri']} was not found.")

    def _part(self, id_: str | None, kind: str) -> str:
        match = re.fullmatch(f"{_SCOPE}/{kind}/([^/]+)", id_ or "", re.IGNORECASE)
        if match is None:
            raise RefusalError(400, f"{id_!r} is not among the {kind} of the workspace.")
        return match[1]

    def get_job(self, name: str, **_) -> tuple:
        return 200, self._job(self._known(name))

    def list_jobs(self, *, query: dict[str, str], **_) -> tuple:
        tag = query.get("tag")
        jobs = sorted(self.jobs.values(), key=lambda job: job.created, reverse=True)
        return 200, {"value": [self._job(job) for job in jobs if tag is None or tag in job.tags]}

    def cancel_job(self, name: str, **_) -> tuple:
        self._nodes.end(self._known(name), "cancel")
        return 202, None, {"Location": f"{self.url}{_SCOPE}/operationResults/{name}", "Retry-After": "1"}

    def get_operation(self, name: str, **_) -> tuple:
        if self._known(name).status in FINAL:
            return 200, None
        return 202, None, {"Location": f"{self.url}{_SCOPE}/operationResults/{name}", "Retry-After": "1"}

    def get_details(self, name: str, **_) -> tuple:
        job = self._known(name)
        logs = {"user_logs/std_log.txt": f"{self.plain_url}/logs/{name}/user_logs/std_log.txt?sig={self._secret}"}
        return 200, {
            "runId": name,
            "target": job.properties["computeId"].rpartition("/")[2],
            "status": job.status,
            "startTimeUtc": job.begun and job.begun.isoformat(),
            "endTimeUtc": job.ended and job.ended.isoformat(),
            "error": {"error": job.error, "time": job.ended.isoformat()} if job.error else None,
            "warnings": [],
            "properties": job.properties.get("properties") or {},
            "logFiles": logs if job.log_file.exists() else {},
        }

    def get_log(self, name: str, *, query: dict[str, str], **_) -> tuple:
        if query.get("sig") != self._secret:
            raise RefusalError(403, "The signature did not match.", "AuthenticationFailed")
        return 200, self._known(name).log

    def get_workspace(self, **_) -> tuple:
        properties = {"discoveryUrl": f"{self.url}/discovery", "provisioningState": "Succeeded"}
        id_ = {"id": _SCOPE, "name": WORKSPACE, "type": "Microsoft.MachineLearningServices/workspaces"}
        return 200, {**id_, "location": "westeurope", "properties": properties}

    def get_discovery(self, **_) -> tuple:
        return 200, {"api": self.url, "history": self.url}

    def get_compute(self, name: str, **_) -> tuple:
        kind = self._compute(name, 404)
        properties = {"computeType": kind, "provisioningState": "Succeeded", "properties": _COMPUTES[kind]}
        return 200, {**self._resource("computes", name, properties), "location": "westeurope"}

    def _compute(self, name: str, status: int) -> str:
        if name not in self.computes:
            raise RefusalError(status, f"Compute {name} not found in workspace {WORKSPACE}", "ComputeNotFound")
        return self.computes[name]

    def get_datastore(self, name: str, **_) -> tuple:
        account = self._account(name)
        properties = {
            "datastoreType": "AzureBlob",
            "credentials": {"credentialsType": "AccountKey"},
            "accountName": account["name"],
            "containerName": name,
            "endpoint": account["endpoint"],
            "protocol": "http",
        }
        return 200, self._resource("datastores", name, properties)

    def list_secrets(self, name: str, **_) -> tuple:
        return 200, {"secretsType": "AccountKey", "key": self._account(name)["key"]}

    def _account(self, name: str) -> dict[str, str]:
        account = self._data.account(name)
        if account is None:
            raise RefusalError(404, f"Datastore {name} was not found.", "NotFound")
        return account

    def get_token(self, *, query: dict[str, str], headers: dict, **_) -> tuple:
        if headers.get("secret", headers.get("x-identity-header")) != self._secret:
            raise RefusalError(401, "The secret did not match.", "Unauthorized")
        if not (resource := query.get("resource")):
            raise RefusalError(400, "No resource.", "InvalidRequest")
        client = query.get("clientid")
        self.tokens.append((resource, client))
        expires = int(time.time()) + 24 * 3600
        token = _token({"aud": resource, "appid": client or "system", "exp": expires})
        return 200, {"access_token": token, "expires_on": str(expires), "resource": resource, "token_type": "Bearer"}

    def _known(self, name: str) -> Job:
        if name not in self.jobs:
            raise RefusalError(404, f"Job {name} not found.", "NotFound")
        return self.jobs[name]

    def _job(self, job: Job) -> dict:
        studio = {"jobServiceType": "Studio", "endpoint": f"{self.plain_url}/runs/{job.name}"}
        properties = {**job.properties, "status": job.status, "services": {"Studio": studio}}
        return self._resource("jobs", job.name, properties, job.created)

    def _resource(self, kind: str, name: str, properties: dict, created: datetime | None = None) -> dict:
        type_ = "Microsoft.MachineLearningServices/workspaces/" + kind.split("/")[0]
        system = {"createdAt": (created or datetime.now(UTC)).isoformat(), "createdBy": "a test"}
        id_ = f"{_SCOPE}/{kind}/{name}"
        return {"id": id_, "name": name, "type": type_, "systemData": system, "properties": properties}


_ROUTES = [
    ("PUT", f"{_SCOPE}/environments/([^/]+)/versions/([^/]+)", ControlPlane.put_environment),
    ("GET", f"{_SCOPE}/environments/([^/]+)/versions/([^/]+)", ControlPlane.get_environment),
    ("PUT", f"{_SCOPE}/jobs/([^/]+)", ControlPlane.put_job),
    ("GET", f"{_SCOPE}/jobs/([^/]+)", ControlPlane.get_job),
    ("GET", f"{_SCOPE}/jobs", ControlPlane.list_jobs),
    ("POST", f"{_SCOPE}/jobs/([^/]+)/cancel", ControlPlane.cancel_job),
    ("GET", f"{_SCOPE}/operationResults/([^/]+)", ControlPlane.get_operation),
    ("GET", f"/history/v1.0{_SCOPE}/runs/([^/]+)/details", ControlPlane.get_details),
    ("GET", _SCOPE, ControlPlane.get_workspace),
    ("GET", f"{_SCOPE}/computes/([^/]+)", ControlPlane.get_compute),
    ("GET", f"{_SCOPE}/datastores/([^/]+)", ControlPlane.get_datastore),
    ("POST", f"{_SCOPE}/datastores/([^/]+)/listSecrets", ControlPlane.list_secrets),
    ("GET", "/discovery", ControlPlane.get_discovery),
    ("GET", "/logs/([^/]+)/user_logs/std_log.txt", ControlPlane.get_log),
    ("GET", "/msi/token", ControlPlane.get_token),
]
_COMPUTES: dict[str, dict] = {
    "AmlCompute": {
        "vmSize": "STANDARD_NC24ADS_A100_V4",
        "vmPriority": "LowPriority",
        "scaleSettings": {"minNodeCount": 0, "maxNodeCount": 2, "nodeIdleTimeBeforeScaleDown": "PT2M"},
    },
    "Kubernetes": {
        "namespace": "azureml",
        "defaultInstanceType": "defaultinstancetype",
        "instanceTypes": {"defaultinstancetype": {}, "gpu-a100": {}},
    },
}


def _token(claims: dict) -> str:
    """What clients can read as a token; nobody has signed it."""
    parts = ({"alg": "RS256", "typ": "JWT"}, {**claims, "tid": SUBSCRIPTION, "oid": SUBSCRIPTION})
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + ".c2ln"
    )
