"""Cleaning says what it removes, and never takes what a running job holds."""

import fcntl
import os
import re
import time
from argparse import Namespace
from pathlib import Path

import clean
import pytest

from lib.core import progress_lock
from lib.core.cli import UserError
from lib.provenance import made_files
from support.paths import ROOT

OLD, NEW = "work/train/00000000deadbeef", "work/train/0123456789abcdef"
MANIFEST = '{"files": {"config.json": "", "sub/x.bin": ""}, "inputs": {}, "settings": {}, "size_bytes": 2}'
# What a run has left that was killed early, and what a finished one has.
INTERRUPTED = {"results/logs/fetch_data/log.txt": "", "results/data/rows.jsonl.partial.77": "{}"}
FINISHED = {
    "results-tones/lineage.json": '{"jobs": [\n]}\n',
    "results-tones/base.manifest.json": MANIFEST,
    "results-tones/base/config.json": "{}",
    "results-tones/base/sub/x.bin": "x" * 1000,
    "results-tones/base/.snakemake_timestamp": "",
    "results-tones/base/run_card.json": "{}",
    "results-tones/runs/lora/onnx/int4.partial.12/model.onnx": "x",
    "results-tones/runs/lora/merged/model.safetensors": "without a manifest: its job was killed",
    "results-tones/scores/lora/onnx-int4.validation.predictions.jsonl": "{}",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path, {**INTERRUPTED, **FINISHED, ".snakemake/metadata/x": "{}", "config.yaml": ""})
    for key in (OLD, NEW):
        write(tmp_path, {f"{key}/lock": "", f"{key}/checkpoint-5/model.bin": "x" * 1000})
    ago = time.time() - 40 * 86400
    for name in ("lock", "checkpoint-5/model.bin"):
        os.utime(tmp_path / OLD / name, (ago, ago))
    return tmp_path


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob("*")} | {
        path.relative_to(folder).as_posix() for path in folder.glob("work/train/*")
    }


def test_progress_goes_by_age(folder, run_script):
    done = run_script("clean", "work", "--days", 30, cwd=folder)
    assert f"removed  {OLD}: 0.0 MB" in done.stdout
    assert NEW in left(folder)
    assert OLD not in left(folder)


BASE = "work/base/0123456789abcdef"


def import_base(folder: Path) -> None:
    """A base model of 3 MB in the cache, linked into a results folder, and the package that it came from."""
    files = ("lock", "model/config.json", "tokenizer/config.json", "package/download", "package.partial.7/download")
    write(folder, {f"{BASE}/{name}": "{}" for name in files})
    (folder / BASE / "model/model.safetensors").write_bytes(bytes(3_000_000))
    (folder / BASE / "model.manifest.json").write_text('{"files": {}}')
    os.link(folder / BASE / "model/model.safetensors", folder / "results-tones/base/config.json.new")
    (folder / "results-tones/base/config.json.new").replace(folder / "results-tones/base/config.json")


def test_imported_base_models_go_unless_they_are_in_use(folder, run_script):
    import_base(folder)
    assert "work/base" not in run_script("clean", "work", "--days", 30, cwd=folder).stdout
    assert f"removed  {BASE}: 0.0 MB" in run_script("clean", "work", cwd=folder).stdout, "results have it, too"
    assert not (folder / "work").exists()
    assert (folder / "results-tones/base/config.json").stat().st_size == 3_000_000


@pytest.mark.parametrize("dry", [True, False])
def test_a_file_with_two_names_is_counted_once(folder, run_script, dry):
    import_base(folder)
    done = run_script("clean", "all", *(["--dry-run"] if dry else []), cwd=folder)
    assert re.search(rf"removed?  {BASE}: 3.0 MB", done.stdout)
    assert "remove" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[-1] == "3.0 MB"


def test_progress_that_a_job_holds_stays(folder, run_script):
    with open(folder / f"{OLD}/lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_script("clean", "work", cwd=folder)
    assert f"kept     {OLD}: a job holds it" in done.stdout
    assert OLD in left(folder)
    assert NEW not in left(folder)


def test_results_go_and_progress_stays(folder, run_script):
    run_script("clean", "results", cwd=folder)
    assert left(folder) >= {"work", ".snakemake", "config.yaml", NEW}
    assert not left(folder) & {"results", "results-tones"}


def test_all_leaves_what_is_not_made(folder, run_script):
    done = run_script("clean", "all", "--dry-run", cwd=folder)
    assert "would remove  results-tones" in done.stdout
    assert (folder / "results").is_dir()
    run_script("clean", "all", cwd=folder)
    assert left(folder) == {"config.yaml"}
    assert "nothing to remove" in run_script("clean", "all", cwd=folder).stdout


@pytest.mark.parametrize("what", ["results", "all"])
def test_a_running_workflow_is_left_alone(folder, run_script, what):
    with open(folder / ".snakemake/slmflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_script("clean", what, cwd=folder, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: .snakemake: a run is in progress in this folder; wait")
    (folder / ".snakemake/locks").mkdir()
    (folder / ".snakemake/locks/0.input.lock").touch()
    done = run_script("clean", what, cwd=folder, check=False)
    assert "snakemake --unlock" in done.stderr
    assert (folder / "results").is_dir()


def test_what_a_training_on_another_machine_holds_is_left_alone(folder, monkeypatch, capsys):
    """Both say that they are held; the clock of either machine may be wrong, and only one gives signs of life."""
    for key, touched in ((OLD, 5e9), (NEW, 1e9)):
        (folder / key / "holder.json").write_text('{"host": "n7", "process": 1, "job": null}')
        os.utime(folder / key / "holder.json", (touched, touched))
    monkeypatch.chdir(folder)
    for name, seconds in {"_BEAT": 0.2, "_DEAD": 0.6, "_POLL": 0.05}.items():
        monkeypatch.setattr(progress_lock, name, seconds)
    beats = iter(range(10**9, 2 * 10**9))
    with progress_lock.repeat_meanwhile(lambda: os.utime(Path(NEW) / "holder.json", (0, next(beats))), 0.1):
        clean.main(Namespace(what="work", days=0, dry_run=False))
    assert f"kept     {NEW}: a job holds it" in capsys.readouterr().out
    assert (folder / NEW / "holder.json").is_file()
    assert not (folder / OLD).exists()


OWN = [
    "results/thesis.md",
    "results/data/notes.jsonl",
    "results-tones/base/mine.txt",
    "results-tones/runs/lora/a/b.json",
]


def test_files_of_a_person_stay_and_are_named(folder, run_script):
    write(folder, dict.fromkeys(OWN, "mine"))
    write(folder, {"results-paper/data/rows.jsonl": "mine", "results-paper/report.html": "mine"})
    write(folder, {"work/thesis/chapter/text.md": "mine", f"{NEW}/notes.md": "mine"})
    (folder / "results/report.html").symlink_to("/etc/hostname")
    os.mkfifo(folder / "results/summary.json")
    done = run_script("clean", "all", cwd=folder)
    kept = [line.split()[1].rstrip(":") for line in done.stdout.splitlines() if line.startswith("kept")]
    stay = [*OWN, "work/thesis/chapter/text.md", f"{NEW}/notes.md", "results/report.html", "results/summary.json"]
    assert sorted(kept) == sorted([*stay, "results-paper"])
    assert "kept     results-paper: no run made it" in done.stdout
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    assert files == {*stay, "config.yaml", "results-paper/data/rows.jsonl", "results-paper/report.html"}


def test_many_files_of_a_person_are_counted(folder, run_script):
    write(folder, {f"results/mine/{number}": "" for number in range(100)})
    done = run_script("clean", "results", cwd=folder)
    assert done.stdout.count("kept ") == 6
    assert "kept     results: 95 more files that no run made" in done.stdout


@pytest.mark.parametrize("name", ["results-x", "work", NEW, ".snakemake", "results-tones/base"])
@pytest.mark.parametrize("what", ["work", "results", "all"])
def test_a_link_is_neither_followed_nor_stops_the_cleaning(folder, tmp_path_factory, run_script, what, name):
    away = tmp_path_factory.mktemp("away")
    if (folder / name).exists():
        (folder / name).rename(away / "moved")
    else:
        write(away, {name.replace("results-tones", "moved"): text for name, text in FINISHED.items()})
    (folder / name).symlink_to(away / "moved")
    before = sorted(away.rglob("*"))
    done = run_script("clean", what, cwd=folder)
    before_state = [path for path in before if path.name != "slmflow.lock"]
    assert [path for path in sorted(away.rglob("*")) if path.name != "slmflow.lock"] == before_state
    assert (folder / name).is_symlink()
    kind = {"w": "work", "r": "results", ".": "all"}[name[0]]
    assert (f"kept     {name}: " in done.stdout) == (what in (kind, "all"))
    assert (folder / "results").exists() == (what == "work")


def test_results_of_several_runs_in_one_folder_go_as_those_of_one(folder, run_script):
    (folder / "results-tones").rename(folder / "tones")
    (folder / "results-tones-control").mkdir()
    (folder / "tones").rename(folder / "results-tones-control/shuffled")
    done = run_script("clean", "results", cwd=folder)
    assert "removed  results-tones-control/shuffled: 0.0 MB" in done.stdout
    assert not (folder / "results-tones-control").exists()


def test_results_of_a_wrong_clock_go_too(folder, run_script):
    os.utime(folder / "results/logs/fetch_data/log.txt", (9e9, 9e9))
    run_script("clean", "results", cwd=folder)
    assert not (folder / "results").exists()


@pytest.mark.parametrize(
    "manifest",
    ["[]", "{}", '{"files": 3, "settings": {}}', '{"files": [["x"]], "settings": {}}', "[" * 99999, "\0", '{"files":'],
)
def test_a_manifest_of_another_form_removes_nothing(folder, run_script, manifest):
    (folder / "results-tones/base.manifest.json").write_text(manifest)
    run_script("clean", "results", cwd=folder)
    assert (folder / "results-tones/base/config.json").is_file()


def test_all_that_rules_write_counts_as_made():
    """Names in the rules' texts, with a made-up value for each wildcard."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    values = {"{run}": "lora-r-8", "{variant}": "int4", "{stage}": "lora-r-8/onnx-int4", "{split}": "test"}
    values |= {"{merge}": "qlora/merged-original"}
    names = set()
    for block in re.findall(r"^    (?:output|log|benchmark):\n((?:        .*\n|\n)+)", text, flags=re.MULTILINE):
        for name in re.findall(r'f"\{R\}/([^"]+)"', block):
            name = name.replace("{{", "{").replace("}}", "}")
            for wildcard, value in values.items():
                name = name.replace(wildcard, value)
            names |= {name.replace("{split}", split) for split in ("train", "validation", "test")}
    assert len(names) > 80
    folders = {name.removesuffix(".manifest.json") for name in names if name.endswith(".manifest.json")}
    unknown = [
        name
        for name in sorted(names)
        for path in ([f"{name}/file", f"{name}.partial.3/file"] if name in folders else [name, f"{name}.partial.3"])
        if not made_files._RESULT.fullmatch(path)
    ]
    assert not unknown


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove everything")
def test_what_cannot_be_removed_is_one_line(folder, run_script):
    (folder / "results").chmod(0o555)
    done = run_script("clean", "results", cwd=folder, check=False)
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("; mend the permissions, then clean again\n")


def test_what_is_gone_meanwhile_is_one_line(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="results/gone: No such file or directory; mend the permissions"):
        clean.remove(Path("results"), ["gone"])
