"""Trainings through Azure Machine Learning on loopback that something ends: the next one has the same bytes."""

import os
import signal

import pytest

from .runs import ADAPTER, interrupt

pytestmark = pytest.mark.azure


def test_ctrl_c_cancels_the_jobs_and_the_next_run_goes_on(workspace, undisturbed):
    process = workspace.start("--", ADAPTER)
    workspace.until_saved(process)
    assert interrupt(process) == 130
    said = (workspace.root / "run.txt").read_text()
    assert "Cancelling 1 jobs of Azure Machine Learning" in said
    assert "All are cancelled." in said
    assert "Error in rule" not in said, "a job that was cancelled has not failed"
    assert [job.status for job in workspace.jobs("train_adapter")] == ["Canceled"], (
        "when the run has ended, not some time later"
    )
    workspace.finish(workspace.start("--", ADAPTER, output="again.txt"), "again.txt")
    assert "resumed at step" in workspace.jobs("train_adapter")[1].log
    assert workspace.adapter() == undisturbed


@pytest.mark.parametrize("requeue", [True, False])
def test_a_preempted_training_goes_on(workspace, undisturbed, requeue):
    """Azure starts a preempted job again in an empty folder, or it fails and the profile's retry does."""
    process = workspace.start("--", ADAPTER)
    job = workspace.wait_for_job("train_adapter", process)
    workspace.until_saved(process)
    workspace.plane.preempt(job.name, requeue=requeue)
    said = workspace.finish(process)
    jobs = workspace.jobs("train_adapter")
    assert [(job.started, job.status) for job in jobs] == (
        [(2, "Completed")] if requeue else [(1, "Failed"), (1, "Completed")]
    )
    assert requeue or "preempted" in said
    assert "resumed at step" in jobs[-1].log
    assert workspace.adapter() == undisturbed


def test_a_killed_run_leaves_a_job_that_the_next_one_waits_for(workspace, undisturbed):
    process = workspace.start("--", ADAPTER)
    workspace.until_saved(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    workspace.finish(workspace.start("--", ADAPTER, output="again.txt"), "again.txt")
    first, second = workspace.jobs("train_adapter")
    assert {first.status, second.status} == {"Completed"}
    assert ("sequences" in first.log) + ("sequences" in second.log) <= 2
    assert "another process holds" in second.log or "already trained" in second.log
    assert workspace.adapter() == undisturbed
