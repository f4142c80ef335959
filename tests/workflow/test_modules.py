"""slmflow as a module of another workflow: paths, errors, two at once, and the bytes of a run of its own."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake.io import is_flagged
from snakemake.path_modifier import PATH_MODIFIER_FLAG, PathModifier

from lib.config.loader import Module, load_config
from lib.core.cli import UserError
from lib.core.files import read_json
from lib.workflow.modules import (
    claim_results,
    find_module,
    find_results,
    is_first_module,
    is_made,
    keep_path,
)
from lib.workflow.steps import STEPS, find_own_name
from support.paths import ROOT
from support.workspaces import parameters_of, tiny_config, write_rows

CALLER = """
configfile: "config.yaml"

module one:
    snakefile: "SNAKEFILE"
    config: config["models"]["one"]
    prefix: "runs/a"

use rule * from one as one_*

module two:
    snakefile: "SNAKEFILE"
    config: config["models"]["two"]
    prefix: "runs/b/"

use rule * from two as two_*

rule all:
    default_target: True
    input:
        rules.one_write_report.output.report,
        rules.two_enforce_gate.output.passed,

rule make_rows:
    input: "raw.json"
    output: "rows.json"
    shell: "cp {input} {output}"

onsuccess:
    one.onsuccess()
""".replace("SNAKEFILE", str(ROOT / "Snakefile"))


class Caller:
    """A workflow of somebody else, whose own rule makes the rows of both models."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root, self.config = root, tiny_config(base)
        self.config["base_model"]["parameters"] = parameters_of(base)
        (root / "Snakefile").write_text(CALLER)
        other = self.config | {"seed": 1, "sweep": {"finetune": {"r": [2, 4]}, "sample": 1}}
        models = {"one": self.config, "two": other}
        (root / "config.yaml").write_text(yaml.safe_dump({"mine": 1, "models": models}, sort_keys=False))
        write_rows(root / "raw.json", json.loads((ROOT / "data/tones.json").read_text())[:80])

    def snakemake(self, *args: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *args]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True)

    def run_alone(self, target: str) -> Path:
        """Run slmflow by itself with the first model's configuration and the same rows; return the results."""
        folder = self.root / "alone"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(self.config))
        shutil.copy2(self.root / "rows.json", folder)
        words = ["--cores", "2", target, "-s", str(ROOT / "Snakefile"), "--configfile", "config.yaml"]
        subprocess.run([sys.executable, "-m", "snakemake", *words], cwd=folder, check=True, capture_output=True)
        return folder / "results"

    def run(self, *args: str) -> str:
        done = self.snakemake(*args)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
        return done.stdout + done.stderr


@pytest.fixture
def caller(tmp_path, tiny_llama) -> Caller:
    return Caller(tmp_path, tiny_llama)


# In real runs


@pytest.mark.workflow
def test_two_modules_are_planned_each_with_its_own_rules_settings_and_folder(caller):
    plan = caller.run("-n")
    _, *parts = re.split(r"^(?:local)?rule (\w+):$", plan, flags=re.MULTILINE)
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    assert {"make_rows", "one_package_model", "two_train_adapter", "two_enforce_gate"} <= found.keys()
    assert "one_enforce_gate" not in found
    for name, folder in {"one": "runs/a", "two": "runs/b"}.items():
        data = found[f"{name}_fetch_data"]
        assert re.search(r"input: rows\.json, \S*scripts/fetch_data\.py", data), "as they are, without the prefix"
        assert f"output: {folder}/results/data/rows.jsonl" in data
        assert f"log: {folder}/results/logs/fetch_data/log.txt" in data
    assert re.search(r"output: runs/b/results/runs/lora-r-[24]/adapter,", found["two_train_adapter"])
    assert not list(caller.root.glob("runs"))


@pytest.mark.workflow
def test_a_module_makes_the_bytes_of_a_run_of_its_own_and_notices_rows_that_changed(caller):
    """The rows come from a rule of the other workflow, so their bytes are not known before the run."""
    target = "runs/a/results/data/rows.jsonl"
    caller.run(target)
    alone = caller.run_alone("results/data/rows.jsonl")
    assert (caller.root / target).read_bytes() == (alone / "data/rows.jsonl").read_bytes()
    jobs = {job["rule"]: job for job in read_json(caller.root / "runs/a/results/lineage.json")["jobs"]}
    assert target in jobs["one_fetch_data"]["outputs"]
    assert not (caller.root / "runs/b").exists()
    write_rows(caller.root / "raw.json", json.loads((ROOT / "data/tones.json").read_text())[:81])
    caller.run(target)
    assert len((caller.root / target).read_text().splitlines()) == 81
    assert "Nothing to be done" in caller.run("-n", target)


@pytest.mark.workflow
def test_a_mistake_is_told_in_one_line_with_the_place_in_the_other_workflow(caller):
    file = caller.root / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("eval_steps", "eval_step", 1))
    line = next(number for number, one in enumerate(text.splitlines(), start=1) if "eval_steps" in one)
    done = caller.snakemake("-n", "-q")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: config.yaml:{line}: module one: finetune.eval_step is not a known key; did you mean eval_steps?"
    )


@pytest.mark.workflow
@pytest.mark.slow
@pytest.mark.end_to_end
def test_a_module_goes_the_whole_way_to_the_same_bytes(caller):
    target = "runs/a/results/report.html"
    caller.run(target)
    alone, here = caller.run_alone("results/report.html"), caller.root / "runs/a/results"
    names = [
        path.relative_to(alone)
        for folder in ("data", "corpus", "tokenizer", "runs")
        for path in (alone / folder).rglob("*")
    ]
    files = [name for name in names if (alone / name).is_file() and name.name != ".snakemake_timestamp"]
    assert len(files) > 30
    timed = {"training.json"}  # seconds
    assert [
        name for name in files if name.name not in timed and (alone / name).read_bytes() != (here / name).read_bytes()
    ] == []
    assert "Nothing to be done" in caller.run("-n", target)
    script = [sys.executable, str(ROOT / "scripts/trace_lineage.py"), "--verify", "--results", "runs/a/results"]
    done = subprocess.run(script, cwd=caller.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What the module knows of the other workflow


def workflow_with(prefix: str | None = None, config: dict | None = None, given: dict | None = None, **modifier):
    """What Snakemake has of a workflow while it reads a module."""
    storage = SimpleNamespace(default_storage_provider=None)
    workflow = SimpleNamespace(main_snakefile="Snakefile", storage_settings=storage)
    workflow.modifier_stack = [SimpleNamespace(globals={"config": config or {}})]
    found = {
        "is_main_snakefile": lambda: False,
        "namespace": "one",
        "skip_configfile": True,
        "parent_modifier": SimpleNamespace(base_snakefile=None),
        "path_modifier": PathModifier(None, prefix, workflow),
    }
    workflow.modifier = SimpleNamespace(**found | modifier)
    return workflow


@pytest.fixture
def snakefile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("Snakefile").write_text('configfile: "x"\n\nmodule one:\n    snakefile: "y"\n')


def test_a_workflow_of_its_own_is_no_module():
    workflow = workflow_with(is_main_snakefile=lambda: True)
    assert find_module(workflow, {}) is None
    assert find_results(workflow, None, "results") == "results"
    assert claim_results(workflow, None, "results")
    assert is_first_module(workflow)


def test_the_configuration_of_a_module_is_found_where_it_stands(snakefile):
    own = {"seed": 1}
    config = {"a": {"seed": 1}, "models": {"one": own}}
    assert find_module(workflow_with(config=config), own) == Module("one", ("models", "one"), "Snakefile", 3)
    assert find_module(workflow_with(config=config), {"seed": 1}) == Module("one", (), "Snakefile", 3)


def test_a_module_without_a_configuration_or_with_a_storage_is_refused(snakefile):
    with pytest.raises(UserError, match=r"^Snakefile:3: module one: has no config:; add one, such as config: config"):
        find_module(workflow_with(skip_configfile=False), {})
    workflow = workflow_with()
    workflow.storage_settings.default_storage_provider = "azure"
    with pytest.raises(
        UserError, match="^Snakefile:3: module one: its jobs cannot go through a storage; run slmflow by"
    ):
        find_module(workflow, {})


MODULE = Module("one", (), "Snakefile", 3)


@pytest.mark.parametrize(
    ("prefix", "folder"), [("a", "a/results"), ("a/b/", "a/b/results"), ("/x", "/x/results"), (None, "results")]
)
def test_results_lie_below_the_prefix(prefix, folder):
    assert find_results(workflow_with(prefix), MODULE, "results") == folder


@pytest.mark.parametrize("prefix", ["./a", "a/../b", "a//b", "{sample}", "a b", "-a"])
def test_a_prefix_that_snakemake_would_spell_otherwise_is_refused(prefix):
    with pytest.raises(UserError, match="^Snakefile:3: module one: prefix: the results would lie in "):
        find_results(workflow_with(prefix), MODULE, "results")


@pytest.mark.parametrize(
    ("other", "together"), [("a/results", True), ("a/results/x", True), ("a", True), ("a/results2", False)]
)
def test_two_modules_do_not_share_a_folder(other, together):
    workflow, two = workflow_with(), MODULE._replace(name="two", line=7)
    assert claim_results(workflow, MODULE, "a/results")
    assert not claim_results(workflow, MODULE, "a/results"), "each `use rule` reads the module again"
    assert is_first_module(workflow)
    if together:
        with pytest.raises(
            UserError, match=rf"^Snakefile:7: module two: its results folder {other} and a/results, that"
        ):
            claim_results(workflow, two, other)
    else:
        assert claim_results(workflow, two, other)
        assert not is_first_module(workflow)


def test_a_path_of_the_user_gets_no_prefix():
    path = keep_path("rows.json")
    assert path == "rows.json"
    assert is_flagged(path, PATH_MODIFIER_FLAG)
    assert PathModifier(None, "a", workflow_with()).modify(path) == "rows.json"


def test_a_mistake_in_no_file_is_told_with_the_module_statement(tmp_path):
    values = yaml.safe_load((ROOT / "config.yaml").read_text()) | {"sed": 1}
    with pytest.raises(UserError, match="^Snakefile:3: module one: sed is not a known key; did you mean seed"):
        load_config(values, [tmp_path / "config.yaml"], MODULE)


@pytest.mark.parametrize("rule", STEPS)
def test_logs_of_a_renamed_rule_are_found_by_its_own_name(rule):
    for name in (rule, f"slmflow_{rule}", f"{rule}_of_mine", f"my_model_{rule}"):
        assert find_own_name(name) == rule
    assert find_own_name(f"x{rule}") == f"x{rule}"


def test_a_file_that_another_module_makes_is_known():
    rules = [SimpleNamespace(is_producer=lambda path: path == "slm/data/raw/tweets.json")]
    assert is_made(SimpleNamespace(rules=rules), "slm/data/raw/tweets.json")
    assert not is_made(SimpleNamespace(rules=[]), "slm/data/raw/tweets.json")
