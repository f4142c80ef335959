"""A seeded sample of the campaign, on the workspace that other tests have made, and that it finds planted faults."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from faults.campaign import choose_cases, plan_cases
from faults.finished import Job
from faults.mutations import dump, mutate_bytes, mutate_json, mutate_safetensors
from faults.planted import PLANTS, finds
from faults.table import Done, Journal, write_table
from support.workspaces import Workspace

CAMPAIGN = Path(__file__).with_name("campaign.py")
SAMPLE = 10


@pytest.mark.workflow
def test_a_sample_of_the_campaign_ends_as_promised(finished, tmp_path):
    options = ["--finished", finished, "--place", tmp_path, "--journal", tmp_path / "journal.jsonl", "--workers", 1]
    command = [sys.executable, CAMPAIGN, "--sample", SAMPLE, *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-1000:]
    assert f"{SAMPLE}/{SAMPLE} " in done.stdout


@pytest.mark.workflow
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found(finished, tmp_path, name):
    Workspace(finished).run()  # notes the hashes: in the first run the rows may be too new for it, on a fast machine
    found, said = finds(name, ["--finished", str(finished), "--place", str(tmp_path), "--workers", "1"])
    assert found, said


def job(rule: str) -> Job:
    return Job("", rule, ["results/a"], ["results/b"], [], "python x.py", 1)


def test_the_plan_has_a_thousand_cases_of_which_no_two_are_the_same():
    rules = [
        "fetch_data",
        "fetch_model",
        "fetch_tokenizer",
        "fetch_adapter",
        "audit_data",
        "render_corpus",
        "merge_adapter",
        "package_model",
    ]
    rules += [f"rule_{number}" for number in range(22)]
    cases = plan_cases({rule: job(rule) for rule in rules}, seed=1)
    parsers = [case for case in cases if case.subject.startswith("change")]
    assert len(set(cases)) == len(cases) >= 1000
    assert len(parsers) >= 550
    assert len(cases) - len(parsers) >= 450
    assert plan_cases({rule: job(rule) for rule in rules}, seed=1) == cases
    kinds = {case.kind for case in cases}
    assert {case.kind for case in choose_cases(cases, "", len(kinds), seed=1)} == kinds


@pytest.mark.parametrize("seed", range(20))
def test_a_change_follows_from_its_seed(seed):
    value = {"a": [1, {"b": "c"}], "d": None, "e": [{}, []]}
    made = [mutate_json(value, random.Random(seed)) for _ in range(2)]
    assert made[0] == made[1] != dump(value)
    assert mutate_bytes(b"0123456789" * 9, random.Random(seed)) == mutate_bytes(b"0123456789" * 9, random.Random(seed))
    whole = b"\x02" + bytes(7) + b"{}" + b"data"
    assert mutate_safetensors(whole, random.Random(seed)) == mutate_safetensors(whole, random.Random(seed))


def done(number: int, well: bool = True) -> Done:
    return Done("rows", f"change {number}", number, "exit code 0", "same bytes" if well else "hangs", well, 1.5)


def test_a_campaign_goes_on_where_it_was_cut_and_never_with_other_code(tmp_path):
    path = tmp_path / "journal.jsonl"
    first = Journal(path, "tree", 1, go_on=False)
    for number in range(3):
        first.add(done(number, well=number > 0), 2.0)
    path.write_text(path.read_text() + '{"done": ["rows", "cut')
    again = Journal(path, "tree", 1, go_on=False)
    assert (len(again.found), again.seconds, again.older) == (3, 6.0, set())
    again.add(done(3), 2.0)
    assert len(Journal(path, "tree", 1, go_on=False).found) == 4
    other = Journal(path, "other tree", 1, go_on=True)
    assert len(other.found) == len(other.older) == 3
    write_table(tmp_path / "table.md", list(other.found.values()), 5, other)
    assert "3 of them ended before the code was changed" in (tmp_path / "table.md").read_text()
    assert not Journal(path, "third tree", 1, go_on=False).found


def test_the_table_says_what_is_not_as_promised(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", "tree", 1, go_on=False)
    write_table(tmp_path / "table.md", [done(1), done(2, well=False)], 3, journal)
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("2 seeded cases\n")
    assert "2 of 3 cases: 1 ended as promised, 1 did not" in text
    assert "| rows | 2 | 1 | 0 | 0 | 1 |" in text
    assert "| rows | change 2 | 2 | exit code 0; hangs | 1.5 | **no** |" in text
