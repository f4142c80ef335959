"""Every family of base models has the outcome that docs/models.md tells: it works to the last script, or is refused."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock
from models.families import FAMILIES
from models.family_run import Outcome, run_family
from models.models_page import LIBRARIES, OUTCOMES, PAGE, write_page

from lib.workflow.helpers import read_locked_versions
from support.paths import ROOT

# For every change: one with sliding windows, and one that is refused.
SAMPLE = ("gemma3", "olmo2")


def names(*, sampled: bool) -> list[str]:
    return [family.name for family in FAMILIES if (family.name in SAMPLE) == sampled]


def read_versions() -> dict[str, str]:
    locked = read_locked_versions(ROOT / "requirements.lock")
    return {name: locked[name] for name in LIBRARIES}


def test_every_family_has_an_outcome_that_the_page_tells():
    """With the locked libraries: after an upgrade `make models` runs them all again."""
    known = json.loads(OUTCOMES.read_text())
    assert set(known["families"]) == {family.name for family in FAMILIES}
    assert len(FAMILIES) >= 26
    assert known["versions"] == read_versions(), "make models"
    assert PAGE.read_text() == write_page(), "make models"


def check(name: str, tmp_path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    found = run_family(family, tmp_path)
    if os.environ.get("RECORD_OUTCOMES"):
        record(name, found)
        return
    known = json.loads(OUTCOMES.read_text())["families"][name]
    assert (found.outcome, found.reason) == (known["outcome"], known["reason"]), "make models writes it down"


def record(name: str, found: Outcome) -> None:
    with FileLock(Path(tempfile.gettempdir()) / "outcomes-of-families.lock"):
        kept = json.loads(OUTCOMES.read_text()) if OUTCOMES.exists() else {"families": {}}
        before = kept["families"].get(name, {}).get("outcome")
        lost = before == "works" and found.outcome != "works" and os.environ["RECORD_OUTCOMES"] != "also-lost"
        assert not lost, f"it worked before: {found.reason}; RECORD_OUTCOMES=also-lost writes it down all the same"
        kept["versions"] = read_versions()
        kept["families"] = dict(sorted({**kept["families"], name: found._asdict()}.items()))
        OUTCOMES.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("name", names(sampled=True))
def test_a_sampled_family_goes_from_rows_to_answers_or_is_refused(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.models
@pytest.mark.parametrize("name", names(sampled=False))
def test_a_family_goes_from_rows_to_answers_or_is_refused(name, tmp_path):
    check(name, tmp_path)
