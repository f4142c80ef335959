"""`results:` names a folder of its own, or the plan is refused in one line before anything is walked or written."""

from pathlib import Path

import pytest

from lib.config.loader import check_results_folder
from lib.core.cli import UserError
from lib.provenance.results_folder import _TAKEN, find_fault
from support.paths import ROOT


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A project with another working folder, in a home folder."""
    home = tmp_path / "home"
    for name in ("clone/scripts", "mine/rows", "mine/base", "mine/results-old/logs/fetch_data", "mine/elsewhere"):
        (home / name).mkdir(parents=True)
    (home / "mine/results-old/logs/fetch_data/log.txt").touch()
    (home / "mine/rows/rows.json").touch()
    (home / "mine/link-to-code").symlink_to(home / "clone/scripts")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "mine")
    return home


USER_PATHS = ["rows/rows.json", "base"]
REFUSED = {
    **dict.fromkeys([".", "..", "../..", "/", "rows/.."], "is or holds this folder"),
    "../clone": "is or holds the project",
    "rows": "is or holds rows/rows.json, which it is made from",
    "base": "is or holds base, which it is made from",
    "rows/rows.json": "is a file",
    "link-to-code": "lies in scripts, which the project uses itself",
    "../clone/scripts/lib/x": "lies in scripts, which the project uses itself",
    "results-old/base": "results-old, which holds the results of a run",
    "results-old/runs/x/y": "results-old, which holds the results of a run",
    **dict.fromkeys(["/etc", "/usr/local/x", "/opt", "/var", "/sys/x"], "is a folder of the system"),
    **{name: f"lies in {name}, which the project uses itself" for name in _TAKEN},
}


@pytest.mark.parametrize(("results", "said"), REFUSED.items())
def test_a_folder_that_is_somebody_elses_is_refused(here, results, said):
    Path("config.yaml").write_text(f"seed: 0\nresults: {results}\n")
    with pytest.raises(UserError) as told:
        check_results_folder(results, [Path("config.yaml")], here / "clone", USER_PATHS)
    assert str(told.value).startswith(f"config.yaml:2: results: {results} ")
    assert said in str(told.value)


ACCEPTED = [
    "results",
    "results-old",
    "results-tones",
    "results/tones",
    "out/a/b",
    "elsewhere",
    "../out",
    "/slmflow-out",
]


@pytest.mark.parametrize("results", [*ACCEPTED, "absolute", "datasets", "scripts-2", "rows-out", "base2"])
def test_a_folder_of_its_own_is_taken(here, results):
    assert find_fault(str(here / "x") if results == "absolute" else results, here / "clone", USER_PATHS) is None


def test_all_that_the_project_holds_is_taken():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "results"))}
    assert folders - {"dvc_plots"} <= set(_TAKEN)
