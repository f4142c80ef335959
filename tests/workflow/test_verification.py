"""`trace_lineage.py --verify` finds what was edited, added or lost in results, and takes nothing for it that belongs there."""

import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lib.core import files as files_module
from lib.core.cli import UserError
from lib.core.files import dump_canonical_json, hash_file, read_json, write_json
from lib.provenance.lineage import Job, Lineage, find_sha256, write_lineage
from lib.provenance.manifests import write_manifest
from lib.workflow.verification import UNTIMED
from support.paths import ROOT, SCRIPTS

RESULTS = Path("results")
BASE, SPLIT, LINEAGE = RESULTS / "base", RESULTS / "data/split.json", RESULTS / "lineage.json"


@pytest.fixture(scope="module")
def trace() -> ModuleType:
    """The script; Python has a module of the same name."""
    spec = importlib.util.spec_from_file_location("trace_script", SCRIPTS / "trace_lineage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def verify(trace, tmp_path, monkeypatch) -> Callable[[], str]:
    """Verify results of three jobs, in the working folder: a base model, a split, and the gate."""
    monkeypatch.chdir(tmp_path)
    Path("rows.json").write_text("[]")
    (BASE / "onnx").mkdir(parents=True)
    for name in ("config.json", "onnx/weights"):
        (BASE / name).write_text(name)
    (BASE / ".snakemake_timestamp").touch()
    settings = {"seed": 3, "source": {"path": "base"}, "versions": {"torch": "2.13.0"}}
    write_manifest(BASE, inputs={}, settings=settings)
    write_json(SPLIT, {"train": []})
    (RESULTS / "gate.passed").write_text("")
    jobs = [
        job(
            "fetch_model", [f"{BASE}", f"{BASE}.manifest.json"], settings | {"source": {"path": "base", "sha256": "a"}}
        ),
        job("split_data", [f"{SPLIT}"], {"seed": 3}, {"rows.json": hash_file(Path("rows.json"))}),
        job("enforce_gate", ["results/gate.passed"], {}, {f"{SPLIT}": hash_file(SPLIT)}),
    ]
    for one in jobs:
        for kind, suffix in (("logs", "txt"), ("timings", "tsv")):
            if kind == "logs" or one["rule"] not in UNTIMED:
                file = RESULTS / kind / one["rule"] / f"log.{suffix}"
                file.parent.mkdir(parents=True)
                file.write_text("time: ")
    write_lineage(RESULTS, Lineage({path: one for one in jobs for path in one["outputs"]}))
    return lambda: trace.verify(RESULTS)


def job(rule: str, outputs: list[str], settings: dict[str, Any], inputs: dict[str, str] | None = None) -> Job:
    inputs = inputs or {}
    record = {
        "rule": rule,
        "input": list(inputs),
        "input_checksums": {path: f"sha256:{sha256}" for path, sha256 in inputs.items()},
        "params": [repr(dump_canonical_json(settings))],
        "record_format_version": 6,
    }
    hashes = {path: find_sha256(Path(path)) or "" for path in outputs}
    return {"rule": rule, "outputs": hashes, "record": record, "sources": {}}


def edit(change: Callable[[Any], object]) -> None:
    """Change the lineage as somebody does who knows nothing of its hashes."""
    value = read_json(LINEAGE)
    change(value)
    LINEAGE.write_text(json.dumps(value))


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def of_rule(value: Any, rule: str) -> Any:
    return next(one for one in value["jobs"] if one["rule"] == rule)


def forge_seed(rule: str) -> None:
    """Another seed in the parameters, with the hash that belongs to it."""
    value = read_json(LINEAGE)
    record = of_rule(value, rule)["record"]
    record["params"] = [text.replace('"seed":3', '"seed":4') for text in record["params"]]
    write_lineage(RESULTS, Lineage({path: one for one in value["jobs"] for path in one["outputs"]}))


def drop_job(rule: str) -> None:
    """A job less, with the hashes of the others."""
    jobs = [one for one in read_json(LINEAGE)["jobs"] if one["rule"] != rule]
    write_lineage(RESULTS, Lineage({path: one for one in jobs for path in one["outputs"]}))


FOUND: dict[str, tuple[Callable[[], object], str]] = {
    "a seed in the lineage": (
        lambda: replace_text(LINEAGE, r"\"seed\":3}'", r"\"seed\":4}'"),
        f"{LINEAGE}: what it says of split_data ({SPLIT}) was edited; bring it back",
    ),
    "a rule in the lineage": (
        lambda: edit(lambda value: of_rule(value, "split_data").update(rule="audit_data")),
        f"{LINEAGE}: what it says of audit_data ({SPLIT}) was edited",
    ),
    "an input less in the lineage": (
        lambda: edit(lambda value: of_rule(value, "split_data")["record"].update(input=[], input_checksums={})),
        f"{LINEAGE}: what it says of split_data",
    ),
    "a job less in the lineage": (
        lambda: edit(lambda value: value["jobs"].pop()),
        f"{LINEAGE}: has not as many jobs as hashes",
    ),
    "hashes of another form": (
        lambda: edit(lambda value: value.update(sha256="0" * 64)),
        f"{LINEAGE}: has not as many jobs as hashes",
    ),
    "a seed, with its hash": (
        lambda: forge_seed("fetch_model"),
        f"{BASE}.manifest.json: fetch_model wrote it with seed 3, and lineage.json says 4",
    ),
    "a job less, with its hash": (lambda: drop_job("split_data"), f"{SPLIT}: no job wrote it"),
    "a file of no job": (lambda: (RESULTS / "data/notes.txt").write_text("x"), "results/data/notes.txt: no job wrote"),
    "a hidden file of no job": (lambda: (RESULTS / ".evil.py").write_text("x"), "results/.evil.py: no job wrote it"),
    "a link of no job": (lambda: (RESULTS / "more").symlink_to("/"), "results/more: no job wrote it"),
    "a link that leads nowhere": (lambda: (RESULTS / "more").symlink_to("none"), "results/more: no job wrote it"),
    "a pipe of no job": (lambda: os.mkfifo(RESULTS / "pipe"), "results/pipe: no job wrote it"),
    "a link to a folder inside": (
        lambda: (BASE / "more").symlink_to("/"),
        f"{BASE}/more: no job wrote this link to a folder; move it out of the results",
    ),
    "an empty folder inside": (lambda: (BASE / "onnx/empty").mkdir(), f"{BASE}/onnx/empty: no job wrote this empty"),
    "a hidden file inside": (lambda: (BASE / ".evil.py").write_text("x"), f"{BASE}/.evil.py: no job wrote this hidden"),
    "a pipe inside": (lambda: os.mkfifo(BASE / "pipe"), f"{BASE}/pipe: no job wrote it: it is not a regular file"),
    "Snakemake's file with content": (
        lambda: (BASE / ".snakemake_timestamp").write_text("x"),
        f"{BASE}/.snakemake_timestamp: Snakemake leaves this file empty, and it is not",
    ),
    "Snakemake's file deeper inside": (
        lambda: (BASE / "onnx/.snakemake_timestamp").touch(),
        f"{BASE}/onnx/.snakemake_timestamp: no job wrote this hidden file",
    ),
    "a file inside": (lambda: (BASE / "x").write_text("x"), f"{BASE}: has sha256"),
    "a log less": (
        (RESULTS / "logs/split_data/log.txt").unlink,
        "results/logs/split_data: no logs of split_data are there; bring the results as a whole",
    ),
    "a timing less": (
        (RESULTS / "timings/fetch_model/log.tsv").unlink,
        "results/timings/fetch_model: no timings of fetch_model are there",
    ),
}


@pytest.mark.parametrize(("change", "said"), FOUND.values(), ids=FOUND)
def test_what_was_edited_added_or_lost_is_found(verify, change, said):
    change()
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        verify()


def write_as_before() -> None:
    """As versions before this one wrote it."""
    value = read_json(LINEAGE)
    lines = ",\n".join(json.dumps(one, ensure_ascii=False, sort_keys=True) for one in value["jobs"])
    LINEAGE.write_text(f'{{"jobs": [\n{lines}\n]}}\n')


def lock() -> None:
    for name in (".snakemake/locks", RESULTS / "data/tmpx1"):
        Path(name).mkdir(parents=True)
    Path(".snakemake/locks/0.output.lock").write_text("")
    (RESULTS / "data/tmpx1/half.txt").write_text("")


def link_into_cache() -> None:
    """As DVC does it with cache.type symlink."""
    (BASE / "config.json").rename("cached")
    (BASE / "config.json").symlink_to(Path("cached").absolute())


def hide(*names: str) -> None:
    for name in names:
        (RESULTS / name).write_text("x")


KEPT: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "of other programs": lambda: hide(".gitignore", "model.dvc", ".DS_Store", "base/.DS_Store", "base/._x", ".nfs00a1"),
    "a run in progress": lock,
    "left by a kill": lambda: hide("data/rows.jsonl.partial.17"),
    "an empty folder of no artifact": (RESULTS / "plots").mkdir,
    "links of DVC": link_into_cache,
    "without Snakemake's file": (BASE / ".snakemake_timestamp").unlink,
    "other times": lambda: os.utime(BASE / "config.json", (0, 0)),
    "an older lineage": write_as_before,
    "more logs": lambda: (RESULTS / "logs/split_data/of-an-older-run.txt").write_text(""),
}


@pytest.mark.parametrize("change", KEPT.values(), ids=KEPT)
def test_what_belongs_there_is_no_false_alarm(verify, change):
    change()
    said = verify()
    assert said.startswith("4 artifacts from 3 jobs verified, back to 1 sources: rows.json")
    assert ("no hashes of its own: an older version wrote it" in said) == (change is write_as_before)


def test_outputs_of_a_run_that_was_killed_are_known_by_snakemakes_record(verify):
    """The lineage learns of them when the next run starts."""
    from snakemake.persistence import MetadataRecord

    from lib.workflow.snakemake_metadata import open_metadata

    drop_job("split_data")
    open_metadata()._write_record(str(SPLIT), MetadataRecord.model_validate({"record_format_version": 6}))
    assert verify().startswith("3 artifacts from 2 jobs")


def test_another_folder_is_not_verified_in_place_of_this_one(verify, trace):
    RESULTS.rename("theirs")
    with pytest.raises(
        UserError, match="theirs/lineage.json: its jobs wrote to results, and not here; give the folder"
    ):
        trace.verify(Path("theirs"))
    Path("theirs").rename(RESULTS)
    assert trace.verify(RESULTS.absolute()).startswith("4 artifacts")


def test_a_file_with_several_names_is_read_once(verify, monkeypatch):
    read: list[Path] = []
    monkeypatch.setattr(files_module, "hash_file", lambda path: read.append(path) or hash_file(path))
    (BASE / "onnx/weights").unlink()
    (BASE / "onnx/weights").hardlink_to(SPLIT)
    write_manifest(BASE, inputs={}, settings={})
    value = read_json(LINEAGE)
    of_rule(value, "fetch_model")["outputs"] = {
        path: find_sha256(Path(path)) for path in (f"{BASE}", f"{BASE}.manifest.json")
    }
    write_lineage(RESULTS, Lineage({path: one for one in value["jobs"] for path in one["outputs"]}))
    read.clear()
    verify()
    assert len({os.stat(path).st_ino for path in read}) == len(read) == 5


def test_rules_without_a_timing_are_those_that_write_none():
    blocks = [
        block
        for file in (ROOT / "rules").glob("*.smk")
        for block in re.split(r"^ *rule ", file.read_text(), flags=re.M)[1:]
    ]
    assert {block.partition(":")[0] for block in blocks if "benchmark:" not in block} == UNTIMED
    assert all("log:" in block for block in blocks)
