"""Big sweeps: constraints of wildcards that stay short, and commands that a shell can start."""

import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from test_selection import predictions, write_candidate
from workspaces import Workspace, copy_project, tiny_config, write_rows

from lib.cli import UserError
from lib.config_file import load_config
from lib.files import read_json
from lib.layout import Layout
from lib.manifests import manifest_path
from lib.workflow import fitting, one_of

WHOLE_SWEEP = ["select_model", "keep_selected", "package_model", "summarise", "write_plots", "write_report"]
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
    constraint = re.compile(f"(?P<one>{one_of(names)})$")  # as Snakemake puts it into the pattern of a file
    parts = {part for name in names for part in re.split("[-/]", name)}
    near = {f"{name}-{part}" for name in names for part in parts} | {name.rpartition("-")[0] for name in names}
    near |= {name.replace(".", "_") for name in names} | {f"x{name}" for name in names} | {"", "a-", "b-2", "a/b"}
    assert {name for name in {*names, *near, *GRID} if constraint.match(name)} == set(names)


def test_a_constraint_of_many_names_is_short():
    assert len(GRID) == 540
    assert len(one_of(GRID)) < 500


def test_settings_that_no_command_can_hold_are_told_and_all_others_start():
    """Linux takes 128 KB in one argument."""
    subprocess.run(["true", fitting("x" * 124_999)], check=True)
    with pytest.raises(UserError, match="sweep: has more runs than the command that compares them can name"):
        fitting("é" * 65_000)


def test_without_a_name_nothing_matches():
    assert not re.match(one_of([]), "")


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
            empty(manifest_path(folder))
        for stage in facts.stages:
            empty(layout.score(run, stage), layout.predictions(run, stage))
        empty(layout.training(run), layout.merge(run))
        for variant in config.every_variant:
            empty(manifest_path(layout.calibrated(run, variant)))
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
    return [*scores, layout.speed(run, variant), manifest_path(layout.folder(run, stage))]


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
