"""The loss of a node: alone, since it takes the jobs of all others with it."""

from collections.abc import Callable

import pytest

from .conftest import ADAPTER, ClusterWorkspace
from .onebox import wait_until

pytestmark = pytest.mark.slurm_slow


def dead_node(workspace: ClusterWorkspace, undisturbed: dict[str, str]) -> None:
    """The job goes on on the other node."""
    process = workspace.start(ADAPTER)
    workspace.until_trained()
    (job,) = workspace.queue()
    node = workspace.cluster.call("squeue", "-h", "-j", job, "-o", "%N")
    workspace.cluster.kill_node(node)
    wait_until(lambda: not workspace.trainers(), "the training died with its node", 10)
    try:
        workspace.finish(process)
    finally:
        workspace.cluster.start_node(node)
    jobs = workspace.cluster.ended(workspace.root)
    assert [job["JobState"] for job in jobs] == ["NODE_FAIL", "COMPLETED"]
    assert jobs[1]["NodeList"] != node
    assert "resumed at step" in workspace.job_logs("train_adapter")[1]
    assert workspace.adapter() == undisturbed


CASES: dict[str, Callable[..., None]] = {"a node dies": dead_node}


@pytest.mark.parametrize("name", CASES)
def test_through_slurm(running, name):
    running[name].result()
