"""Finished tiny workspaces that have every rule between them, restored for each case, and what their files are."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lib.core.files import hash_file, hash_text
from lib.provenance.lineage import read_lineage
from lib.workflow.snakemake_metadata import open_metadata
from support.tiny_models import make_tiny_llama
from support.workspaces import BASE, HOSTILE, PROJECT, ROWS, copy_project, parameters_of, tiny_config, write_rows

TESTS = Path(__file__).resolve().parents[1]
ADAPTER, MERGED = f"-{HOSTILE}{{v-2}} adapter", f"-{HOSTILE}{{v-2}} merged"
# What two undisturbed runs do not have in common: times, speed and memory, and what quotes them.
VARYING = ("training.json", "run_card.json", "report.html", "/speed/", "lineage.json")
# What has such numbers in it: when an input has to be made again, so is everything after it, and speed is measured again.
QUOTING = (
    "selection.json",
    "summary.json",
    "assembled.manifest.json",
    "model.manifest.json",
    "selected.manifest.json",
    "model/README.md",
)
QUOTING += ("scores/model.test.json", "plots/variants.csv", "metrics.json")
# Planted where secrets are: none of these may ever be shown or written.
MARK = "planted-5ecret-"
SECRETS = {
    name: f"{MARK}{number}"
    for number, name in enumerate(
        ("AZURE_CLIENT_SECRET", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY", "WANDB_API_KEY", "GITHUB_TOKEN")
    )
} | {"HF_TOKEN": f"hf_{MARK}9"}


# Of every run, as in the finished workspace of the other tests: the last digits depend on the number of threads.
CORES = "2"
# What is done to every workspace that is restored: `campaign.py --plant` changes its code.
after_restoring: list[Callable[[Path], None]] = []


class Job(NamedTuple):
    """One job of a finished workspace. inputs: what jobs made; given: what a person gave; size: bytes of the outputs."""

    workspace: str
    rule: str
    outputs: list[str]
    inputs: list[str]
    given: list[str]
    command: str
    size: int


def environment(folder: Path | None = None) -> dict[str, str]:
    """Return the environment of every run: libraries start with one thread each, and planted secrets."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    own = {"TMPDIR": str(folder)} if folder else {}
    return threads | SECRETS | own | {"PATH": path, "CUDA_VISIBLE_DEVICES": "", "GOMP_SPINCOUNT": "0"}


def tree_sha256(campaign: str = "tests/faults") -> str:
    """Return the sha256 of all code that decides how a case ends, with that part of the campaign."""
    root, places = TESTS.parent, [*PROJECT, campaign, "tests/support/workspaces.py", "tests/support/tiny_models.py"]
    found = [path for place in places for path in sorted([root / place, *(root / place).rglob("*")])]
    kept = [
        path
        for path in found
        if path.is_file() and path.suffix in (".py", ".smk", ".lock", ".yaml", ".j2", ".json", "")
    ]
    names = [path for path in kept if "__pycache__" not in path.parts and "raw" not in path.parts]
    return hash_text("".join(f"{path.relative_to(root)} {hash_file(path)}\n" for path in names))


def prepare(root: Path) -> dict[str, Job]:
    """Make the finished workspaces in `root` unless those of the same code are there, and return a job for each rule."""
    note, tree = root / "jobs.json", tree_sha256("tests/faults/finished.py")
    if note.is_file():
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["tree"] == tree:
            return {rule: Job(*job) for rule, job in known["jobs"].items()}
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    jobs = find_jobs(make_workspaces(root))
    note.write_text(json.dumps({"tree": tree, "jobs": jobs}), encoding="utf-8")
    return jobs


def make_workspaces(root: Path) -> list[Path]:
    """Make those that have every rule: a 4-bit base, fetched rows, a given adapter, a given merged model.

    Folders, rows and base have the worst of names. All that is read lies in the workspace, so that a case may harm it.
    """
    base = make_tiny_llama(root / "base")
    calibrated = {"algo_config": "auto_round", "calibration": {"rows": 8, "length": 32, "iterations": 1}}
    finetune = tiny_config(base)["finetune"] | {"method": "qlora", "dtype": "float32"}
    trained = _make(root, "trained", base, finetune=finetune, variants={"int4": {}, "int4-calibrated": calibrated})
    _snakemake(trained)
    tweets = root / "tweets" / HOSTILE
    tweets.mkdir(parents=True)
    copy_project(tweets)
    _snakemake(tweets, "--", "results/data/rows.jsonl")
    run, given = next((trained / "results/runs").iterdir()), []
    for kind, name in (("adapter", ADAPTER), ("merged", MERGED)):
        workspace = _make(root, kind, base, finetune={kind: name}, variants={"int4": {}})
        shutil.copytree(run / kind, workspace / name)
        (workspace / name / ".snakemake_timestamp").unlink(missing_ok=True)
        _snakemake(workspace, "--until", f"fetch_{kind}")
        given.append(workspace)
    return [trained, tweets, *given]


def _make(root: Path, name: str, base: Path, **sections: Any) -> Path:
    workspace = root / name / HOSTILE
    workspace.mkdir(parents=True)
    copy_project(workspace)
    write_rows(workspace / ROWS, json.loads((TESTS.parent / "data/tones.json").read_text())[:120])
    shutil.copytree(base, workspace / BASE)
    values = tiny_config(base) | sections
    values["data"]["files"] = [ROWS]
    values["base_model"] = {"path": BASE, "parameters": parameters_of(base)}
    (workspace / "config.yaml").write_text(json.dumps(values, indent=1))  # JSON is YAML
    return workspace


def _snakemake(workspace: Path, *targets: str) -> None:
    command = [sys.executable, "-m", "snakemake", "--cores", CORES, *targets]
    clean = {key: value for key, value in environment().items() if key not in SECRETS}
    done = subprocess.run(command, cwd=workspace, env=os.environ | clean, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: a workspace of the campaign cannot be made:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def find_jobs(workspaces: Iterable[Path]) -> dict[str, Job]:
    """Return the first job of each rule, with the command that Snakemake recorded for it."""
    found: dict[str, Job] = {}
    for workspace in workspaces:
        with working_directory(workspace):
            records = open_metadata()
            for job in read_lineage(Path("results")).jobs():
                outputs = sorted(job["outputs"])
                record = records._read_record(outputs[0])
                read = [path for path in job["record"]["input"] if not path.startswith(("scripts/", "./scripts/"))]
                made = [path for path in read if path.startswith("results/")]
                given = [path for path in read if path not in made]
                size = sum(size_of(Path(path)) for path in outputs)
                command = record.shellcmd if record else ""
                found.setdefault(job["rule"], Job(str(workspace), job["rule"], outputs, made, given, command, size))
    return {rule: found[rule] for rule in sorted(found)}


@contextmanager
def restored(job: Job, place: Path, small: bool = False) -> Iterator[Path]:
    """Yield a copy of the job's workspace below `place`: bytes, time stamps and Snakemake's own record.

    small: on a file system of its own.
    """
    workspace = place / HOSTILE
    workspace.mkdir(parents=True)
    (place / "tmp").mkdir()
    if small:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(workspace)], check=True)
    try:
        shutil.copytree(job.workspace, workspace, symlinks=True, dirs_exist_ok=True)
        for change in after_restoring:
            change(workspace)
        yield workspace
    finally:
        if small:
            subprocess.run(["umount", "-l", str(workspace)], check=True)
        shutil.rmtree(place, ignore_errors=True)


def artifacts(workspace: Path) -> dict[str, str]:
    """Return the sha256 of every file of the results, by path; logs and timings tell of the run and are left out."""
    beside = ("results/logs/", "results/timings/")
    names = {path.relative_to(workspace).as_posix(): path for path in sorted((workspace / "results").rglob("*"))}
    return {
        name: hash_file(path)
        for name, path in names.items()
        if path.is_file() and not name.startswith(beside) and path.name != ".snakemake_timestamp"
    }


def differences(before: dict[str, str], after: dict[str, str], measured_again: bool = False) -> list[str]:
    """Return what is not as it was before the fault."""
    measured = measured_again or any("/speed/" in path and after.get(path) != sha256 for path, sha256 in before.items())
    varying = VARYING + QUOTING if measured else VARYING
    found = [f"{path} is missing" for path in before.keys() - after.keys()]
    found += [f"{path} is left" for path in after.keys() - before.keys()]
    found += [
        f"{path} differs"
        for path in before.keys() & after.keys()
        if before[path] != after[path] and not any(part in path for part in varying)
    ]
    return sorted(found)


def leaks(place: Path, said: str) -> list[str]:
    """Return where a planted secret is, beside the configuration that has it, and what a hostile name ran."""
    found = ["a secret was shown"] if MARK in said else []
    for path in place.rglob("*"):
        with contextlib.suppress(OSError):
            if path.name == "OWNED":
                found.append("a file name was run as a command")
            if (
                path.name != "config.yaml"
                and path.is_file()
                and path.stat().st_size < 4e6
                and MARK.encode() in path.read_bytes()
            ):
                found.append(f"a secret is in {path.name}")
    return found


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def working_directory(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)
