"""A sample of the fault campaign: each fault on a rule that it can hurt most."""

import os

import pytest
from workspaces import Workspace

from faults.campaign import read_lineage_of, run_case
from faults.disturbances import FAULTS, Case

pytestmark = pytest.mark.workflow

SAMPLE = [
    ("train_adapter", "killed, all of it", 0.6),
    ("merge_adapter", "killed, the script", 0.9),
    ("build_onnx", "killed, all of it", 0.8),
    ("render_corpus", "Ctrl-C", 0.5),
    ("package_model", "no write permission", 0.5),
    ("merge_adapter", "disk full", 0.5),
    ("score_onnx", "input cut", 0.4),
    ("fetch_model", "two runs at once", 0.5),
]


@pytest.mark.parametrize(("rule", "fault", "moment"), SAMPLE, ids=lambda value: str(value))
def test_a_disturbed_rule_ends_with_the_same_bytes(finished, tmp_path, rule, fault, moment):
    if fault == "disk full" and os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root only")
    workspace = Workspace(finished)
    output = next(path for path, job in sorted(read_lineage_of(workspace).items()) if job["rule"] == rule)
    outcome = run_case(Case("finished", rule, output, fault, moment), {"finished": workspace}, tmp_path / "case")
    assert outcome.well, outcome


def test_the_sample_has_every_fault():
    assert {fault for _, fault, _ in SAMPLE} == set(FAULTS)
