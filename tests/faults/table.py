"""What the campaign found: a journal, so that it goes on where it was cut, and the table that people read."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

RESULTS = ("same bytes", "refused in one line", "read as another valid file")


class Done(NamedTuple):
    """A case that has ended. during: how the disturbed run ended. after: same bytes, another result, or what is wrong."""

    kind: str
    subject: str
    seed: int
    during: str
    after: str
    well: bool
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.kind} | {self.subject} | {self.seed}"

    def told(self) -> str:
        return (
            f"{self.name}: {self.during}: {self.after} ({self.seconds:.1f} s){'' if self.well else ' NOT AS PROMISED'}"
        )


class Journal:
    """The cases that have ended, each written as it ends, of one state of the code.

    Another state begins a new journal; with `go_on` it keeps what ended as promised, and says of how many cases.
    """

    def __init__(self, path: Path, tree: str, seed: int, go_on: bool) -> None:
        self.path, self.tree, self.seconds = path, tree, 0.0
        self.found: dict[str, Done] = {}
        self.older: set[str] = set()
        head, lines = self._read()
        same = head.get("tree") == tree and head.get("seed") == seed
        if same or go_on:
            for line in lines:
                done, old = Done(*line["done"]), line.get("older", False) or not same
                if done.well or same:
                    self.found[done.name] = done
                    self.seconds += line["seconds"]
                    self.older |= {done.name} if old else set()
        self._begin({"tree": tree, "seed": seed}, lines)

    def _read(self) -> tuple[dict, list[dict]]:
        """Return head and lines, without a last one that was cut."""
        if not self.path.is_file():
            return {}, []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return (found[0], found[1:]) if found else ({}, [])

    def _begin(self, head: dict, lines: list[dict]) -> None:
        """Write what counts: what comes is added behind it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in lines if Done(*line["done"]).name in self.found]
        kept = [line | {"older": Done(*line["done"]).name in self.older} for line in kept]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in [head, *kept]), encoding="utf-8")

    def add(self, done: Done, seconds: float) -> None:
        """Note a case that has ended, and how long the campaign took since the one before."""
        self.seconds += seconds
        self.found[done.name] = done
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"done": done, "seconds": round(seconds, 2)}) + "\n")


def result_of(done: Done) -> str:
    """Return the column of the summary that a case belongs to."""
    if not done.well:
        return "not as promised"
    if done.after in RESULTS:
        return done.after
    return RESULTS[0]


def write_table(path: Path, outcomes: list[Done], planned: int, journal: Journal) -> None:
    columns = (*RESULTS, "not as promised")
    counts = Counter((done.kind, result_of(done)) for done in outcomes)
    bad = sum(not done.well for done in outcomes)
    older = sum(done.name in journal.older for done in outcomes)
    state = f" {older} of them ended before the code was changed." if older else ""
    lines = [
        f"{len(outcomes)} seeded cases",
        "",
        f"Made by `make test-faults` in {journal.seconds / 60:.0f} minutes, {len(outcomes)} of {planned} cases:"
        f" {len(outcomes) - bad} ended as promised, {bad} did not. The code that was tested has the sha256 {journal.tree[:16]}….{state}",
        "",
        "A rule's case ends as promised when the run that follows the fault makes the same bytes as an undisturbed one,"
        " and the disturbed run itself either did, or said in one line why not. A parser's case ends as promised when a"
        " changed file is refused in one line or read as what it says. No traceback, no hang, no secret, nothing"
        " half-written, no file elsewhere.",
        "",
        f"| kind | cases | {' | '.join(columns)} |",
        f"| --- | {' | '.join(['---:'] * (1 + len(columns)))} |",
    ]
    for kind in dict.fromkeys(done.kind for done in outcomes):
        numbers = [counts[kind, column] for column in columns]
        lines.append(f"| {kind} | {sum(numbers)} | {' | '.join(map(str, numbers))} |")
    totals = [sum(counts[done_kind, column] for done_kind, found in counts if found == column) for column in columns]
    lines += [f"| all | {sum(totals)} | {' | '.join(map(str, totals))} |", ""]
    lines += ["| kind | case | seed | outcome | seconds | as promised |", "| --- | --- | ---: | --- | ---: | --- |"]
    for done in outcomes:
        outcome = f"{done.during}; {done.after}" if done.after != done.during else done.after
        cells = (done.kind, done.subject, str(done.seed), outcome.replace("|", "/"), f"{done.seconds:.1f}")
        lines.append(f"| {' | '.join(cells)} | {'yes' if done.well else '**no**'} |")
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
