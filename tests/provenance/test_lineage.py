"""Every number leads back to its sources, and no wrong artifact is taken for a right one, on real Snakemake runs."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lib.core.files import hash_file, read_json, write_json
from lib.provenance.lineage import find_broken_links, read_lineage, walk
from lib.workflow.snakemake_metadata import UNKNOWN, agree, open_metadata
from support.workspaces import Workspace

pytestmark = pytest.mark.workflow


@pytest.fixture
def inside(workspace, monkeypatch) -> Workspace:
    """The restored workspace as working directory: paths in a lineage start there."""
    monkeypatch.chdir(workspace.root)
    return workspace


def trace(workspace: Workspace, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/trace_lineage.py", *words]
    return subprocess.run(command, cwd=workspace.root, capture_output=True, text=True)


def put_from_elsewhere(results: Path, elsewhere: Path) -> None:
    """Other results in place of these, as `dvc checkout` does it: new times, Snakemake's own files in folders stay."""
    for path in sorted(results.rglob("*"), reverse=True):
        if path.is_file() and path.name != ".snakemake_timestamp":
            path.unlink()
    for path in elsewhere.rglob("*"):
        if path.is_file() and path.name != ".snakemake_timestamp":
            target = results / path.relative_to(elsewhere)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


# The chain


def test_every_artifact_is_known_with_its_bytes(inside):
    lineage = read_lineage(Path("results"))
    inside_folders = [path for path in lineage.by_output if Path(path).is_dir()]
    for path in Path("results").rglob("*"):
        name = path.as_posix()
        beside = path.parts[1] in ("logs", "timings", "lineage.json") or path.name == ".snakemake_timestamp"
        if path.is_file() and not beside and not any(path.is_relative_to(folder) for folder in inside_folders):
            assert lineage.sha256(name) == hash_file(path), name
    assert {"results/base", "results/runs/lora/adapter", "results/model"} <= set(inside_folders)


def test_every_number_leads_back_to_the_rows_and_the_base_weights(inside):
    lineage = read_lineage(Path("results"))
    base = yaml.safe_load(Path("config.yaml").read_text())["base_model"]["path"]
    for start in ("results/summary.json", "results/report.html", "results/model", "results/scores/model.test.json"):
        sources = {path for path in walk(lineage, [start]) if path not in lineage.by_output}
        assert sources == {f"./{inside.rows.name}", f"./{base}"}, start
    assert not any(job["sources"] for job in lineage.jobs()), "as they were when the run ended"


def test_trace_prints_the_chain_with_hashes(inside):
    done = trace(inside, "results/model")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(
        any(line.strip().startswith(name) for line in lines) for name in ("results/base ", f"./{inside.rows.name}")
    )
    rows = next(line for line in lines if line.strip().startswith(f"./{inside.rows.name}"))
    assert hash_file(inside.rows)[:12] in rows
    assert "ok  source" in rows
    assert "CHANGED" not in done.stdout
    assert "MISSING" not in done.stdout
    assert len([line for line in lines if "made" in line or "train_adapter" in line]) >= 1


def test_a_number_is_traced_to_the_file_that_it_was_taken_from(inside):
    done = trace(inside, "model.test.accuracy")
    value = read_json(Path("results/scores/model.test.json"))["quality"]["accuracy"]
    assert done.stdout.splitlines()[0] == f"model.test.accuracy = {value}, from results/scores/model.test.json"
    done = trace(inside, "runs.lora.stages.adapter.validation.macro_f1")
    assert "from results/scores/lora/adapter.validation.json" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.test.acuracy"], "results/summary.json: no model.test.acuracy in it; there is n, accuracy"),
        (["results/nothing"], "results/nothing: no job of this workflow made it"),
        (["--verify", "--results", "elsewhere"], "elsewhere/lineage.json: no such file; run the workflow"),
    ],
)
def test_what_cannot_be_traced_is_one_line(inside, words, expected):
    done = trace(inside, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {expected}"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_verify_checks_everything(inside):
    done = trace(inside, "--verify")
    assert done.returncode == 0, done.stderr
    assert "back to 2 sources" in done.stdout


def test_any_changed_byte_of_any_artifact_is_found(inside):
    """Times stay, so that the bytes alone can tell."""
    lineage = read_lineage(Path("results"))
    files = [
        file
        for path in lineage.by_output
        for file in (sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)])
        if file.is_file() and file.name != ".snakemake_timestamp" and file.stat().st_size
    ]
    assert len(files) > 60
    for file in files:
        times, whole = file.stat(), file.read_bytes()
        place = len(whole) // 2
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        broken = [one.path for one in find_broken_links(lineage, sorted(lineage.by_output))]
        assert any(file.is_relative_to(path) for path in broken), file
        file.write_bytes(whole)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert list(find_broken_links(lineage, sorted(lineage.by_output))) == []


@pytest.mark.parametrize("source", ["rows", "scripts/lib/training/batching.py"])
def test_changed_rows_and_changed_code_are_broken_links(inside, source):
    source = f"./{inside.rows.name}" if source == "rows" else source
    inside.edit(source, "a", "A")
    done = trace(inside, "--verify")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {source}: has changed since: results/"), done.stderr


# What is put there from elsewhere


def test_results_that_were_brought_into_a_fresh_clone_are_known(workspace):
    """As after `dvc pull`: no record of Snakemake, all times new."""
    shutil.copytree(workspace.results, workspace.root / "other")
    shutil.rmtree(workspace.root / ".snakemake")
    put_from_elsewhere(workspace.results, workspace.root / "other")
    assert workspace.planned() == set()
    workspace.configure(lambda config: config["finetune"].update(learning_rate=0.02))
    planned = workspace.planned()
    assert "train_adapter" in planned
    assert not planned & {"fetch_model", "audit_data", "render_corpus", "score_baselines"}


def test_results_without_lineage_and_record_are_not_believed(workspace):
    shutil.rmtree(workspace.root / ".snakemake")
    (workspace.results / "lineage.json").unlink()
    assert {"fetch_model", "fetch_data", "train_adapter", "build_onnx", "write_report"} <= workspace.planned()


@pytest.mark.slow
def test_going_back_to_older_results_trains_nothing_and_believes_nothing_wrong(workspace):
    """The hard case: Snakemake remembers one learning rate, the adapter that was restored has another."""
    older = (workspace.root / "config.yaml").read_text()
    shutil.copytree(workspace.results, workspace.root / "older")
    workspace.configure(lambda config: config["finetune"].update(learning_rate=0.02))
    workspace.run()
    newer = (workspace.root / "config.yaml").read_text()
    shutil.copytree(workspace.results, workspace.root / "newer")
    assert hash_file(workspace.root / "older/runs/lora/adapter.manifest.json") != hash_file(
        workspace.root / "newer/runs/lora/adapter.manifest.json"
    )

    put_from_elsewhere(workspace.results, workspace.root / "older")
    (workspace.root / "config.yaml").write_text(older)
    assert workspace.planned() == set(), "the older results are those of the older configuration"
    (workspace.root / "config.yaml").write_text(newer)
    assert "train_adapter" in workspace.planned(), "and not those of the newer one"

    put_from_elsewhere(workspace.results, workspace.root / "newer")
    assert workspace.planned() == set()


@pytest.mark.parametrize("name", ["runs/lora/adapter", "runs/lora/merged", "model"])
def test_a_folder_that_was_exchanged_alone_is_made_again(workspace, name):
    """Its manifest and Snakemake's own file in it say nothing of it; only the bytes do."""
    for file in (workspace.results / name).rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            shutil.copyfile(file, workspace.root / "copied")
            whole = file.read_bytes()
            file.unlink()
            file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            break
    rule = {"runs/lora/adapter": "train_adapter", "runs/lora/merged": "merge_adapter", "model": "package_model"}[name]
    assert rule in workspace.planned()


LONG_AGO = (10**18, 10**18)


def other_file(path: Path) -> Path:
    """A file beside it with as many bytes, and not the same, from long ago."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=LONG_AGO)
    return other


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


BASE, ADAPTER = Path("results/base"), Path("results/runs/lora/adapter/adapter_model.safetensors")
FOLDER_CHANGES = {
    "an older file": lambda: other_file(BASE / "model.safetensors").replace(BASE / "model.safetensors"),
    "two files exchanged": lambda: exchange(BASE / "config.json", BASE / "tokenizer.json"),
    "a file less": lambda: Path("results/model/README.md").unlink(),
    "a small file less": lambda: (BASE / "generation_config.json").unlink(),
    "an older file more": lambda: other_file(BASE / "config.json").rename(BASE / "chat_template.json"),
    "an older adapter": lambda: other_file(ADAPTER).replace(ADAPTER),
}


@pytest.mark.parametrize("change", FOLDER_CHANGES.values(), ids=FOLDER_CHANGES)
def test_a_folder_in_which_nothing_is_newer_is_not_believed_for_that(inside, change, capfd):
    """Its own time, and those of its files, which all of these changes leave old, say nothing."""
    agree(Path("results"))
    assert "lineage:" not in capfd.readouterr().err
    change()
    for _ in range(2):
        changed = [path for path, job in agree(Path("results")).by_output.items() if is_unknown(path)]
        assert len(changed) == 1
        assert Path(changed[0]).is_dir()
    assert capfd.readouterr().err.count("is not what a job wrote there") == 1


def is_unknown(path: str) -> bool:
    record = open_metadata()._read_record(path)
    return record.params == UNKNOWN["params"]


def test_a_folder_with_other_times_and_the_same_bytes_is_still_known(inside, capfd):
    agree(Path("results"))
    for file in BASE.iterdir():
        os.utime(file, ns=LONG_AGO)
    agree(Path("results"))
    assert not is_unknown("results/base")
    capfd.readouterr()
    agree(Path("results"))
    assert capfd.readouterr().err == "", "and nothing is read or told again"


def test_an_edited_result_is_made_again_and_not_built_upon(workspace):
    rows = workspace.results / "corpus/train.jsonl"
    before = rows.read_bytes()
    rows.write_bytes(before.replace(b"Tone?", b"Mood?", 1))
    done = workspace.snakemake("-n")
    assert "lineage: results/corpus/train.jsonl is not what a job wrote there" in done.stderr
    assert "render_corpus" in workspace.planned()
    workspace.run("--", "results/corpus/train.jsonl")
    assert rows.read_bytes() == before
    assert trace(workspace, "--verify").returncode == 0


def test_an_edited_report_is_a_broken_link_until_it_is_made_again(workspace):
    report = workspace.results / "report.html"
    report.write_text(report.read_text().replace("</body>", "<!-- --></body>"))
    for _ in range(2):
        assert "write_report" in workspace.planned()
        done = trace(workspace, "--verify")
        assert done.stderr.startswith("error: results/report.html: has sha256 "), done.stderr
    workspace.run()
    assert trace(workspace, "--verify").returncode == 0


def test_touched_results_are_still_known_and_touched_inputs_make_nothing_again(workspace):
    for path in workspace.root.rglob("*"):
        if ".snakemake" not in path.parts:
            later = 0 if path.is_relative_to(workspace.results) else 5
            os.utime(path, (time.time() + later,) * 2)
    assert workspace.planned() == set()


def test_a_run_in_progress_is_left_alone(workspace):
    (workspace.root / ".snakemake/locks").mkdir(exist_ok=True)
    (workspace.root / ".snakemake/locks/0.output.lock").write_text("results/elsewhere\n")
    before = (workspace.results / "lineage.json").read_bytes()
    (workspace.results / "corpus/train.jsonl").write_text("{}\n")
    done = workspace.snakemake("-n")
    assert "lineage:" not in done.stderr
    assert (workspace.results / "lineage.json").read_bytes() == before


def test_a_failed_gate_and_a_killed_run_are_in_the_lineage(workspace):
    workspace.configure(lambda config: config.update(gate={"minimum": {"accuracy": 1.0}}))
    assert workspace.snakemake().returncode == 1
    assert trace(workspace, "--verify").returncode == 0
    gate = trace(workspace, "gate.passed").stdout.splitlines()[0]
    assert gate == "gate.passed = False, from results/gate.json"
    # What a run that was killed right after its last job leaves: newer outputs than the lineage has.
    value = read_json(workspace.results / "lineage.json")
    value["jobs"] = [job for job in value["jobs"] if job["rule"] != "write_report"]
    write_json(workspace.results / "lineage.json", value)
    assert workspace.planned() == {"enforce_gate", "all"}
    assert trace(workspace, "results/report.html").returncode == 1, "a plan writes nothing"
    assert "Nothing to be done" in workspace.run("--", "evidence").stderr
    assert trace(workspace, "results/report.html").returncode == 0, "a run writes it, also when it has nothing to do"


# The run card


def test_the_run_card_tells_of_machine_and_code_and_makes_nothing_again(workspace):
    card = read_json(workspace.results / "model/run_card.json")
    assert card["configuration"]["finetune"]["r"] == 4
    assert card["configuration"]["variant"]["name"] == "int4"
    assert card["lock_sha256"] == hash_file(workspace.root / "requirements.lock")
    assert card["versions"]["torch"]
    assert card["machine"]["cores"] >= 1
    assert card["code"]["commit"] is None, "this folder is no git checkout"
    assert "run_card.json" not in read_json(workspace.results / "model.manifest.json")["files"]
    assert "lock_sha256" in (workspace.results / "report.html").read_text()

    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], cwd=workspace.root, check=True)
    assert workspace.planned() == set(), "a commit makes nothing again"
    (workspace.root / "rows.txt").write_text("new")
    workspace.run("--forcerun", "assemble_model", "--", "results/assembled.manifest.json")
    code = read_json(workspace.results / "assembled/run_card.json")["code"]
    assert len(code["commit"]) == 40
    assert code["clean"] is False
    assert "rows.txt" in code["changed"]
    manifest = json.loads((workspace.results / "model.manifest.json").read_text())
    assert "run_card.json" not in manifest["files"]


# Two machines


def compare(workspace: Workspace, other: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/compare_results.py", "results", str(other)]
    return subprocess.run(command, cwd=workspace.root, capture_output=True, text=True)


@pytest.mark.slow
def test_another_run_of_the_same_has_the_same_bytes(workspace, finished):
    for name in ("results", "work", ".snakemake"):
        shutil.rmtree(workspace.root / name)
    workspace.run()
    done = compare(workspace, finished / "results")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 6 models have the same bytes" in done.stdout


def other_scores(workspace: Workspace, changed: int, shift: float) -> Path:
    """A copy with another adapter, another answer to `changed` rows, and an accuracy that lies `shift` higher."""
    other = workspace.root / "theirs/results"
    shutil.copytree(workspace.results, other)
    lineage = json.loads((other / "lineage.json").read_text())
    for job in lineage["jobs"]:
        if "results/runs/lora/adapter.manifest.json" in job["outputs"]:
            job["outputs"]["results/runs/lora/adapter.manifest.json"] = "0" * 64
    (other / "lineage.json").write_text(json.dumps(lineage))
    for path in (other / "scores").rglob("*.json"):
        score = json.loads(path.read_text())
        if "quality" in score:
            score["quality"]["accuracy"] += shift
            path.write_text(json.dumps(score))
            rows = path.with_suffix(".predictions.jsonl")
            lines = [json.loads(line) for line in rows.read_text().splitlines()]
            lines = [{**line, "predicted": "?"} if place < changed else line for place, line in enumerate(lines)]
            rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return other


def test_scores_are_compared_where_bytes_differ(workspace):
    done = compare(workspace, other_scores(workspace, 4, 0.05))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 6 models differ, the first of them runs/lora/adapter.manifest.json" in done.stdout
    assert "(+0.050), 4 of " in done.stdout


@pytest.mark.parametrize(("changed", "shift"), [(1, 0.2), (20, 0.0)])
def test_scores_that_luck_does_not_explain_are_told(workspace, changed, shift):
    """Further apart than so few answers account for; or more answers than another rounding changes."""
    done = compare(workspace, other_scores(workspace, changed, shift))
    assert done.returncode == 1
    assert "OUTSIDE" in done.stdout
    assert "scores are further apart than rounding explains" in done.stderr


def test_runs_of_other_rows_are_not_compared(workspace):
    other = workspace.root / "theirs/results"
    shutil.copytree(workspace.results, other)
    text = (other / "lineage.json").read_text()
    sha256 = hash_file(workspace.results / "corpus/train.jsonl")
    (other / "lineage.json").write_text(
        text.replace(f'"results/corpus/train.jsonl": "{sha256}"', f'"results/corpus/train.jsonl": "{"0" * 64}"')
    )
    done = compare(workspace, other)
    assert done.returncode == 1
    assert "did not begin with the same bytes" in done.stderr
