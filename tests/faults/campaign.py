"""Break every rule in every way at random moments, and see what the next run makes of it.

    make test-faults                     all cases; writes tests/faults/table.md
    python tests/faults/campaign.py --sample 10

A finished tiny workspace is restored for each case, the outputs of one rule are removed, and the workflow makes them
again while a fault strikes. Then the fault is over and the workflow is started once more. A case is well when the
disturbed run ended as it must (with one clear line, where it can say one), the next one ends with the bytes of an
undisturbed run, no other artefact has changed, nothing half-written is left, and no traceback was shown.
"""

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "scripts")]

from tiny_models import make_tiny_llama  # noqa: E402
from workspaces import Workspace, copy_project, parameters_of, tiny_config, write_rows  # noqa: E402

from faults.disturbances import AT_MOST, FAULTS, Case, Disturbed, error_line  # noqa: E402
from lib.files import sha256_file  # noqa: E402
from lib.lineage import Job, read_lineage  # noqa: E402

SEED = 20261127
# What two undisturbed runs do not have in common: times, speed and memory, and what quotes them.
VARYING = ("training.json", "run_card.json", "report.html", "/speed/", "lineage.json")
# What has such numbers in it: when an input has to be made again, so is everything after it, and speed is measured anew.
QUOTING = (
    "selection.json",
    "summary.json",
    "assembled.manifest.json",
    "model.manifest.json",
    "selected.manifest.json",
    "model/README.md",
)
QUOTING += ("scores/model.test.json", "plots/variants.csv", "metrics.json")


class Outcome(NamedTuple):
    """during: how the disturbed run ended. after: how the next one did. well: as promised."""

    during: str
    after: str
    well: bool


# Workspaces


def make_workspaces(root: Path) -> dict[str, Workspace]:
    """Finished ones that have every rule between them: a 4-bit base, fetched rows, a given adapter, a given merged model."""
    base = make_tiny_llama(root / "base")
    calibrated = {"algo_config": "auto_round", "calibration": {"rows": 8, "length": 32, "iterations": 1}}
    finetune = tiny_config(base)["finetune"] | {"method": "qlora", "dtype": "float32"}
    trained = _make(root / "trained", base, finetune=finetune, variants={"int4": {}, "int4-calibrated": calibrated})
    runs = trained.results / "runs"
    given = {name: str(next(runs.glob(f"*/{name}"))) for name in ("adapter", "merged")}
    return {"trained": trained, "tweets": _make_tweets(root / "tweets")} | {
        name: _make(root / name, base, finetune={name: path}, variants={"int4": {}}) for name, path in given.items()
    }


def _make_tweets(root: Path) -> Workspace:
    """The demo up to its rows, which come from a package."""
    root.mkdir()
    copy_project(root)
    workspace = Workspace(root)
    workspace.run("--", "results/data/rows.jsonl")
    return workspace


def _make(root: Path, base: Path, **sections: Any) -> Workspace:
    root.mkdir()
    copy_project(root)
    rows = json.loads((TESTS.parent / "data/tones.json").read_text())[:120]
    write_rows(root / "rows.json", rows)
    values = tiny_config(base) | sections
    values["base_model"]["parameters"] = parameters_of(base)
    (root / "config.yaml").write_text(json.dumps(values, indent=1))  # JSON is YAML
    workspace = Workspace(root)
    workspace.run()
    return workspace


def cases(workspaces: dict[str, Workspace], seed: int = SEED) -> list[Case]:
    """Every rule once with each fault, at a moment that the seed draws."""
    draw = random.Random(seed)
    rules: dict[str, tuple[str, str]] = {}
    for name, workspace in workspaces.items():
        lineage = read_lineage_of(workspace)
        for path, job in sorted(lineage.items()):
            rules.setdefault(job["rule"], (name, path))
    found = []
    for rule, (name, path) in sorted(rules.items()):
        found += [Case(name, rule, path, fault, round(draw.uniform(0.05, 0.95), 2)) for fault in FAULTS]
    return found


def read_lineage_of(workspace: Workspace) -> dict[str, Job]:
    with working_directory(workspace.root):
        return read_lineage(Path("results")).by_output


@contextmanager
def working_directory(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


# One case


def run_case(case: Case, workspaces: dict[str, Workspace], place: Path) -> Outcome:
    """Restore, break, mend, run again, compare."""
    original = workspaces[case.workspace]
    shutil.copytree(original.root, place, symlinks=True)
    workspace = Workspace(place)
    job = read_lineage_of(workspace)[case.output]
    before = artefacts(workspace)
    size = sum(remove(place / path) for path in job["outputs"])
    if case.rule == "train_adapter":
        shutil.rmtree(place / "work")
    disturbed = Disturbed(workspace, job, case, seconds_of(workspace, case.rule), size)
    during = FAULTS[case.fault](disturbed)
    again = disturbed.start()
    said, _ = again.communicate(timeout=AT_MOST)
    problems = problems_after(workspace, before, again.returncode, said)
    if "Traceback" in during.said + said:
        problems.append("a traceback was shown")
    return Outcome(during.how, "; ".join(problems) or "same bytes", during.well and not problems)


def problems_after(workspace: Workspace, before: dict[str, str], code: int, said: str) -> list[str]:
    """What is not as it was before the fault."""
    if code:
        return [f"exit code {code}: {error_line(said)}"]
    after = artefacts(workspace)
    measured_again = any("/speed/" in path and after.get(path) != sha256 for path, sha256 in before.items())
    varying = VARYING + QUOTING if measured_again else VARYING
    found = [f"{path} is missing" for path in before.keys() - after.keys()]
    found += [f"{path} is left" for path in after.keys() - before.keys()]
    found += [
        f"{path} differs"
        for path in before.keys() & after.keys()
        if before[path] != after[path] and not any(part in path for part in varying)
    ]
    return sorted(found)


def artefacts(workspace: Workspace) -> dict[str, str]:
    """sha256 of every file of the results, by path; logs and timings tell of the run and are left out."""
    files = (path for path in sorted(workspace.results.rglob("*")) if path.is_file())
    names = {path.relative_to(workspace.root).as_posix(): path for path in files}
    beside = ("results/logs/", "results/timings/")
    return {
        name: sha256_file(path)
        for name, path in names.items()
        if not name.startswith(beside) and path.name != ".snakemake_timestamp"
    }


def remove(path: Path) -> int:
    """Remove a file or folder; returns how many bytes it had."""
    if not path.is_dir():
        size = path.stat().st_size
        path.unlink()
        return size
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shutil.rmtree(path)
    return size


def seconds_of(workspace: Workspace, rule: str) -> float:
    """How long the rule's longest job took in the undisturbed run."""
    logs = (workspace.results / "logs" / rule).rglob("*.txt")
    times = [line.split() for log in logs for line in log.read_text().splitlines() if line.startswith("time: ")]
    return max((float(words[4]) + float(words[6]) for words in times), default=0.3)


# The table


def table(outcomes: list[tuple[Case, Outcome]], total: int, seconds: float) -> str:
    well = sum(outcome.well for _, outcome in outcomes)
    lines = [
        "# Faults: what happens when a rule is disturbed",
        "",
        f"Made by `make test-faults` in {seconds / 60:.0f} minutes: {len(outcomes)} of {total} cases, {well} as promised."
        " The moment is a share of the rule's own time, or of the bytes that it writes (disk full) or reads (input cut).",
        "",
        "| rule | fault | moment | the disturbed run | the next run | as promised |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case, outcome in outcomes:
        cells = (case.rule, case.fault, f"{case.moment:.2f}", outcome.during, outcome.after)
        lines.append(
            f"| {' | '.join(cell.replace('|', '/') for cell in cells)} | {'yes' if outcome.well else '**no**'} |"
        )
    return "\n".join([*lines, ""])


def kept_rows(path: Path, every: list[Case]) -> tuple[list[tuple[Case, Outcome]], float]:
    """Of a table that was written: the cases that ended as promised, and the seconds that it took."""
    text = path.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.endswith("| yes |")]
    known = {tuple(row[:3]): Outcome(row[3], row[4], True) for row in rows}
    kept = {case: known.get((case.rule, case.fault, f"{case.moment:.2f}")) for case in every}
    return [(case, outcome) for case, outcome in kept.items() if outcome], 60 * float(
        re.findall(r" in (\d+) minutes", text)[0]
    )


def in_order(outcomes: list[tuple[Case, Outcome]], every: list[Case]) -> list[tuple[Case, Outcome]]:
    return sorted(outcomes, key=lambda found: every.index(found[0]))


def main(args: argparse.Namespace) -> int:
    began, outcomes = time.time(), []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root = Path(folder)
        workspaces = make_workspaces(root)
        every = cases(workspaces, args.seed)
        chosen = [case for case in every if args.only in f"{case.rule} {case.fault}"]
        if args.sample:
            chosen = sorted(random.Random(args.seed).sample(chosen, min(args.sample, len(chosen))))
        if args.go_on:
            outcomes, before = kept_rows(args.output, every)
            began -= before
            chosen = [case for case in chosen if case not in dict(outcomes)]
        for number, case in enumerate(chosen, start=1):
            outcome = run_case(case, workspaces, root / "case")
            outcome = outcome._replace(during=outcome.during.replace(f"{root}/case/", "").replace(f"{root}/", ""))
            shutil.rmtree(root / "case")
            outcomes.append((case, outcome))
            told = f"{case.rule}, {case.fault}, {case.moment}: {outcome.during}; {outcome.after}"
            print(f"{number}/{len(chosen)} {told}: {'ok' if outcome.well else 'NOT AS PROMISED'}", flush=True)
            if args.output:  # after each, so that a campaign that is stopped leaves what it found
                args.output.write_text(
                    table(in_order(outcomes, every), len(every), time.time() - began), encoding="utf-8"
                )
    return 0 if all(outcome.well for _, outcome in outcomes) else 1


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sample", type=int, default=0, help="only so many cases, drawn by the seed")
    arguments.add_argument("--seed", type=int, default=SEED)
    arguments.add_argument("--only", default="", help="only cases whose rule and fault have this text")
    arguments.add_argument("--output", type=Path, help="table to write")
    arguments.add_argument(
        "--go-on", action="store_true", help="keep what ended as promised in the table of a campaign that was stopped"
    )
    sys.exit(main(arguments.parse_args()))
