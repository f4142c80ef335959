"""Profiles say how and where: what every rule asks for under each of them."""

import difflib

import pytest
import yaml
from resource_table import TABLE, as_text, tables

from lib.core.cli import UserError
from lib.workflow.helpers import check_gpus, tell_unused_gpus
from support.paths import ROOT
from support.workspaces import tiny_workspace

PROFILES = {path.parent.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("profiles/*/profile.yaml")}
RULES = {name for path in ROOT.glob("rules/*.smk") for name in path.read_text().split() if name.endswith(":")}


def test_every_rule_asks_under_every_profile_for_what_the_table_says():
    found, expected = as_text(tables()), TABLE.read_text()
    changes = "\n".join(difflib.unified_diff(expected.splitlines(), found.splitlines(), n=0, lineterm=""))
    assert found == expected, f"{changes}\nif it is meant: make generated"
    assert "TBD" not in expected


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_names_only_rules_that_there_are(name):
    """Snakemake ignores others without a word."""
    for key in ("set-resources", "set-threads"):
        for rule in PROFILES[name].get(key, {}):
            assert f"{rule}:" in RULES


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "default"])
def test_a_profile_repeats_no_key_of_the_default_one(name):
    """The default one would win."""
    assert not PROFILES[name].keys() & PROFILES["default"].keys()


def test_unused_gpus_are_told_to_those_who_asked_for_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    tell_unused_gpus({})
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    tell_unused_gpus({"train_adapter": {"gpu": "1"}})
    assert capsys.readouterr().err == ""
    tell_unused_gpus({"train_adapter": {"runtime": "1"}})
    assert "--profile profiles/gpu" in capsys.readouterr().err


@pytest.mark.parametrize("resources", [{"gpu": 6, "nodes": 3}, {"gpu": 2}, {"nodes": 3}, {"gpu": 0, "nodes": 2}])
def test_gpus_that_nodes_share_evenly_are_taken(resources):
    check_gpus({"train_adapter": resources})


def test_gpus_that_nodes_cannot_share_are_refused_before_anything_runs(tmp_path, tiny_llama):
    """Some node would train without any, as slow as a CPU is."""
    with pytest.raises(UserError, match="multiple of 3"):
        check_gpus({"train_adapter": {"gpu": 2, "nodes": 3}})
    workspace = tiny_workspace(tmp_path, tiny_llama)
    done = workspace.snakemake("--set-resources", "train_adapter:gpu=2", "train_adapter:nodes=3")
    assert done.returncode == 1
    assert "error: set-resources: train_adapter: gpu=2 cannot be shared evenly by nodes=3; gpu counts" in done.stderr
    assert not workspace.results.exists()
