"""Before a run: constraints of wildcards that stay short, names of files, and commands that a shell can start."""

import itertools
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake.settings.types import DeploymentMethod

from lib.config.loader import load_config
from lib.core.cli import UserError
from lib.core.files import read_json
from lib.core.layout import Layout
from lib.provenance.manifests import build_manifest_path
from lib.workflow.helpers import check_unquoted, find_path, find_project_folder, list_data_files, match_names
from lib.workflow.rule_settings import check_argument_length
from support.candidates import predictions, write_candidate
from support.workspaces import HOSTILE, Workspace, copy_project, tiny_config, write_rows

WHOLE_SWEEP = [
    "select_model",
    "fit_temperature",
    "keep_selected",
    "assemble_model",
    "summarize",
    "write_plots",
    "write_report",
]
TARGETS = ["selected.manifest.json", "metrics.json", "report.html"]
OTHERS = """
    base.manifest.json data/audit.json data/split.json corpus/leakage.json corpus/onnx_tokenizer.json
    corpus/template.json corpus/test.jsonl
    scores/baselines.json scores/baselines.predictions.jsonl scores/base.validation.json
    scores/base.validation.predictions.jsonl scores/base.test.json scores/base.test.predictions.jsonl
    scores/model.test.json scores/model.test.predictions.jsonl gate.json
"""
SMALLEST = ("lora-r-8-learning-rate-0-0003-seed-7", "calibrated-block-size-64")

GRID = [
    f"lora-r-{r}-learning-rate-{rate}-seed-{seed}/onnx-{variant}"
    for r, rate, seed, variant in itertools.product(
        (8, 16, 128), ("0-0001", "0-001", "1e-05"), range(20), ("int4", "int4-mixed", "x.y")
    )
]


@pytest.mark.parametrize(
    "names",
    [["a"], ["a", "a-b"], ["a-b", "a", "a-b-c"], ["a-1", "b-1", "a-2"], ["model", *GRID], [*GRID[:7], *GRID[90:95]]],
)
def test_a_constraint_matches_exactly_the_names(names):
    constraint = re.compile(f"(?P<one>{match_names(names)})$")  # as Snakemake puts it into the pattern of a file
    parts = {part for name in names for part in re.split("[-/]", name)}
    near = {f"{name}-{part}" for name in names for part in parts} | {name.rpartition("-")[0] for name in names}
    near |= {name.replace(".", "_") for name in names} | {f"x{name}" for name in names} | {"", "a-", "b-2", "a/b"}
    assert {name for name in {*names, *near, *GRID} if constraint.match(name)} == set(names)


def test_a_constraint_of_many_names_is_short():
    assert len(GRID) == 540
    assert len(match_names(GRID)) < 500


def test_settings_that_no_command_can_hold_are_told_and_all_others_start():
    """Linux takes 128 KB in one argument."""
    subprocess.run(["true", check_argument_length("x" * 124_999)], check=True)
    with pytest.raises(UserError, match="sweep: has too many runs for one selection"):
        check_argument_length("é" * 65_000)


def test_without_a_name_nothing_matches():
    assert not re.match(match_names([]), "")


# Names of files and folders


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rows{v2}.csv", "holds '{v2}', for Snakemake a wildcard"),
        ("rows{{ a.b , c }}.csv", "holds '{ a.b , c }', for Snakemake a wildcard"),
        ("<results>.csv", "holds '<results>', for Snakemake a path variable"),
        ("a\nb.csv", r"holds '\n', for Snakemake a control character"),
        ("\x1b[31m.csv", r"holds '\x1b', for Snakemake a control character"),
        (os.fsdecode(b"\xff.csv"), r"holds '\udcff', for Snakemake no text"),
    ],
)
def test_what_snakemake_would_read_in_a_path_is_refused_in_one_line(tmp_path, name, kind):
    (tmp_path / name).touch()
    with pytest.raises(UserError) as caught:
        find_path(str(tmp_path / name), tmp_path, "data.files")
    assert str(caught.value) == f"data.files: {str(tmp_path / name)!r} {kind}; rename the file or folder"


def test_a_path_is_never_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("-clone", HOSTILE):
        Path(folder).mkdir()
        Path(folder, "-rows.csv").touch()
    assert find_path("-clone/-rows.csv", Path(), "data.files") == "./-clone/-rows.csv"
    assert find_project_folder("-clone") == tmp_path / "-clone"
    assert find_project_folder(HOSTILE) == Path(HOSTILE)
    assert find_path("-rows.csv", Path(HOSTILE), "data.files") == f"{HOSTILE}/-rows.csv"
    monkeypatch.chdir("-clone")
    assert find_project_folder(tmp_path / "-clone") == Path()
    assert find_path("-rows.csv", Path(), "data.files") == "./-rows.csv"


def test_a_clone_in_a_folder_with_braces_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=re.escape("holds '{', for Snakemake a placeholder; rename the file or folder")):
        find_project_folder(tmp_path / "{% name %}")


def started(local: bool = True, conda: bool = False, words: str = "") -> SimpleNamespace:
    """What Snakemake knows of how a run was started."""
    return SimpleNamespace(
        local_exec=local,
        deployment_settings=SimpleNamespace(
            deployment_method={DeploymentMethod.CONDA} if conda else set(), conda_prefix=None
        ),
        main_snakefile="/clone/Snakefile",
        overwrite_configfiles=["mine.yaml"],
        config_settings=SimpleNamespace(config_args=[words]),
    )


def test_folders_and_patterns_become_the_files_that_they_hold(tmp_path, monkeypatch):
    here, home = tmp_path / "here", tmp_path / "home"
    for name in (
        "here/rows/b.csv",
        "here/rows/a.jsonl.gz",
        "here/rows/notes.txt",
        "here/rows/.hidden.csv",
        "home/far/c.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (here / "odd[1].csv").touch()
    monkeypatch.chdir(here)
    assert list_data_files(["rows"], [], home) == [("rows/a.jsonl.gz", ""), ("rows/b.csv", "")]
    assert list_data_files(["rows/*.csv", "far/*"], ["test", "train"], home) == [
        ("rows/b.csv", "test"),
        ("far/c.json", "train"),
    ]
    assert list_data_files(["odd[1].csv", "made/later.json"], [], home) == [("odd[1].csv", ""), ("made/later.json", "")]
    with pytest.raises(UserError, match=r"data.files: rows/\*.txt holds no file with rows; rows are read from .json"):
        list_data_files(["rows/*.txt"], [], home)
    with pytest.raises(UserError, match="data.files: rows/../rows/b.csv is there twice, also as ./rows/b.csv"):
        list_data_files(["./rows/b.csv", "rows/../rows/b.csv"], ["train", "test"], home)
    with pytest.raises(UserError, match="data.files: rows/b.csv is there twice"):
        list_data_files(["rows/b.csv", "rows"], [], home)


@pytest.mark.parametrize("sign", ["'", '"', "$", "`", "\\"])
def test_a_folder_that_snakemake_does_not_quote_itself_is_refused(tmp_path, monkeypatch, sign):
    """For conda, jobs that it submits, and commands that are too long for one argument."""
    (tmp_path / f"a{sign}b").mkdir()
    monkeypatch.chdir(tmp_path / f"a{sign}b")
    check_unquoted(started(), "x" * 11_999)
    for how, length in [(started(local=False), 0), (started(conda=True), 0), (started(), 12_000)]:
        with pytest.raises(UserError, match=re.escape(f"holds {sign}, which Snakemake does not quote for conda")):
            check_unquoted(how, "x" * length)


def test_harmless_folders_and_typed_settings_go_everywhere(tmp_path, monkeypatch):
    (tmp_path / "my models (new) ü").mkdir()
    monkeypatch.chdir(tmp_path / "my models (new) ü")
    check_unquoted(started(local=False, conda=True, words="""data={files: ["a.csv", 'b c.csv']}"""), "x" * 99_999)
    with pytest.raises(UserError, match=re.escape("$(touch OWNED).csv]}' holds $, which Snakemake does not quote")):
        check_unquoted(started(local=False, words="data={files: [$(touch OWNED).csv]}"), "")


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Workspace:
    """200 runs by 8 variants whose results lie there, made up: scores, speeds and manifests, and empty files else."""
    workspace = Workspace(tmp_path_factory.mktemp("big"))
    copy_project(workspace.root)
    write_rows(workspace.root / "rows.json", [{"phrase": "a", "tone": "b"}])
    (workspace.root / "base").mkdir()
    grid = {"r": [2, 4, 8, 16, 32], "learning_rate": [0.0001, 0.0003], "method": ["lora", "qlora"]}
    sizes = {"int4": {"block_size": [16, 32, 64, 128, 256]}, "calibrated": {"block_size": [32, 64, 128]}}
    config = tiny_config(Path("base")) | {
        "sweep": {"seed": list(range(10)), "finetune": grid, "variants": sizes},
        "variants": {"int4": {}, "calibrated": {"algo_config": "auto_round"}},
    }
    path = workspace.root / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    made_up(load_config(config, [path]), Layout(workspace.results))
    return workspace


def made_up(config, layout: Layout) -> None:
    """Every candidate has the same 20 rows right; one is smaller than all others. What no script reads is empty."""
    write_candidate(layout, "any", "any", predictions({1, 2}, 20), {"size_mb": 100.0})
    files = candidate(layout, "any", "any")
    for run, facts in config.runs.items():
        for folder in (layout.folder(run, stage) for stage in facts.stages):
            folder.mkdir(parents=True)
            empty(build_manifest_path(folder))
        for stage in facts.stages:
            empty(layout.score(run, stage), layout.predictions(run, stage))
        empty(layout.training(run), layout.merge(run))
        for variant in config.every_variant:
            empty(build_manifest_path(layout.calibrated(run, variant)))
            layout.folder(run, f"onnx-{variant}").mkdir(parents=True)
            for same, file in zip(files, candidate(layout, run, variant), strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                os.link(same, file)
    write_candidate(layout, *SMALLEST, predictions({1, 2}, 20), {"size_mb": 80.0})
    layout.base.mkdir()
    empty(*(layout.results / name for name in OTHERS.split()))


def empty(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def candidate(layout: Layout, run: str, variant: str) -> list[Path]:
    stage = f"onnx-{variant}"
    scores = [layout.score(run, stage), layout.predictions(run, stage)]
    return [*scores, layout.speed(run, variant), build_manifest_path(layout.folder(run, stage))]


def test_every_command_about_a_whole_sweep_fits(big):
    """Linux takes 128 KB in one argument, such as the settings; a command under that fits whoever starts it."""
    done = big.snakemake("-n", "-p", "--allowed-rules", *WHOLE_SWEEP, "--", *(f"results/{name}" for name in TARGETS))
    assert done.returncode == 0, done.stderr[-3000:]
    commands = re.findall(r"exec python .*", done.stdout + done.stderr)
    found = [Path(command.split()[2]).stem for command in commands]
    assert set(WHOLE_SWEEP) <= set(found)
    assert max(len(command) for command in commands) < 100_000


def test_the_selection_among_1600_candidates_starts_and_ends(big):
    done = big.snakemake("results/selection.json", "--allowed-rules", "select_model")
    assert done.returncode == 0, done.stderr[-3000:]
    selection = read_json(big.results / "selection.json")
    assert len(selection["candidates"]) == 1600
    assert (selection["run"], selection["variant"]) == SMALLEST


def test_a_results_folder_may_be_written_otherwise(tmp_path):
    workspace = Workspace(tmp_path)
    copy_project(workspace.root)
    (tmp_path / "base").mkdir()
    write_rows(tmp_path / "rows.json", [{"phrase": "a", "tone": "b"}])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config(Path("base")) | {"results": "./mine/"}))
    assert {"select_model", "write_report"} <= workspace.planned()
