"""Plans, summaries, lints and reports leave a workspace as it is: every byte and every time stamp."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.workflow

# Snakemake's own, below .snakemake/: what it logs, locks and caches, whatever it is asked for.
OWN = {"log", "locks", "iocache"}


def read_tree(root: Path) -> dict[str, tuple[int, str | None]]:
    """Return time and sha256 of everything in a folder, but what Snakemake or Python keeps there for itself."""
    found: dict[str, tuple[int, str | None]] = {}
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if "__pycache__" in parts or parts == (".snakemake",) or (parts[0] == ".snakemake" and parts[1] in OWN):
            continue
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found["/".join(parts)] = (path.lstat().st_mtime_ns, sha256)
    return found


def bring_from_elsewhere(root: Path) -> None:
    """Make it look as after `dvc pull` in a fresh clone, with one file that somebody edited since."""
    shutil.rmtree(root / ".snakemake/metadata")
    (root / ".snakemake/metadata").mkdir()
    for note in (root / ".snakemake/lineage").iterdir():
        note.unlink()
    for path in (root / "results").rglob(".snakemake_timestamp"):
        path.unlink()
    for path in (root / "results").rglob("*"):
        os.utime(path)
    rows = root / "results/corpus/train.jsonl"
    rows.write_bytes(rows.read_bytes().replace(b"Tone?", b"Mood?", 1))


CHANGES = {"as a run left it": lambda root: None, "brought from elsewhere and edited": bring_from_elsewhere}


@pytest.fixture(params=CHANGES.values(), ids=CHANGES)
def changed(request, workspace):
    request.param(workspace.root)
    return workspace


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Take every write permission away but for Snakemake's own, and for results: it plans no job that cannot replace them."""
    kept = {root / "results", *(root / ".snakemake" / name for name in OWN)}
    for folder in kept:
        folder.mkdir(exist_ok=True)
    paths = [path for path in (root, *root.rglob("*")) if not path.is_symlink() and not kept & {path, *path.parents}]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & 0o555)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def ask(workspace, *words: str) -> subprocess.CompletedProcess:
    """Start Snakemake as somebody whom permissions stop, which they do not do for root."""
    as_others = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
    prefix = as_others if os.geteuid() == 0 and shutil.which("setpriv") else []
    command = [*prefix, sys.executable, "-m", "snakemake", "--cores", "2", *words]
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def answers(workspace) -> list[str]:
    """What a plan and a summary say of the files, without times and names of logs; jobs may come in another order."""
    plan, summary = ask(workspace, "-n"), ask(workspace, "--summary")
    told = re.findall(r"^lineage: .*|^(?:local)?rule \w+:|^Nothing to be done", plan.stdout + plan.stderr, flags=re.M)
    return sorted([*told, *summary.stdout.splitlines()])


def test_asking_changes_nothing_and_is_answered_as_where_everything_may_be_written(changed, tmp_path):
    before = read_tree(changed.root)
    assert len(before) > 300, "metadata, results and code"
    told = answers(changed)
    assert read_tree(changed.root) == before
    with read_only(changed.root):
        assert answers(changed) == told
        for words in (["--lint"], ["--dag"], ["--report", str(tmp_path / "report.html")]):
            ask(changed, *words)
            assert read_tree(changed.root) == before, words


def test_a_run_that_has_nothing_to_do_writes_what_was_found(workspace):
    bring_from_elsewhere(workspace.root)
    (workspace.results / "corpus/train.jsonl").unlink()
    workspace.run("--touch", "results/data/audit.json", "--nolock", "--no-hooks")
    assert not list((workspace.root / ".snakemake/metadata").iterdir()), "neither locked nor started"
    done = workspace.run("results/data/audit.json")
    assert "Nothing to be done" in done.stderr
    assert "came from elsewhere" in done.stderr
    assert list((workspace.root / ".snakemake/metadata").iterdir())
    assert "came from elsewhere" not in workspace.run("-n", "results/data/audit.json").stderr
