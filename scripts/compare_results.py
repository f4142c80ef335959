"""Compare the results of two runs: of two machines, two checkouts, or before and after an upgrade.

    python scripts/compare_results.py results ../theirs/results

With equal lock, CPU capability, number of threads and dtype all models have the same bytes, and that is what is said.
Elsewhere sums are rounded in another order, which a training makes more of, as if it had another seed. Then the scores
are compared, stage by stage, on the same rows: so many rows answered differently may move an accuracy by three standard
deviations of their luck, and chrF by 3. Exit code 1 when a score lies outside, or when rows, prompts or splits differ:
these do not depend on the machine.
"""

import argparse
import math
from pathlib import Path

from lib.core.cli import call_or_exit, fail
from lib.core.escaping import escape_controls
from lib.core.files import read_jsonl
from lib.core.forms import allow_null, allow_open_object, read_form
from lib.core.paths import check_plain_files
from lib.evaluation.comparison import align_rows
from lib.evaluation.registry import MAIN_METRIC
from lib.provenance.lineage import read_lineage

# Another number of threads or another dtype let trained models answer up to 0.32 of the rows otherwise
# (docs/reproducibility.md).
MOST_CHANGED = 0.4
CHRF = 3.0  # not measured
_NOT_OF_THE_MACHINE = ("data/", "corpus/", "base.manifest.json")
_TRIED = "checks/"  # small models that nobody uses
_WITH_SPEEDS = {
    "assembled.manifest.json",
    "model.manifest.json",
    "selected.manifest.json",
}  # they name selection.json, in which speeds stand


def main(args: argparse.Namespace) -> str:
    """Raise `UserError` when the two do not agree as they should."""
    mine, theirs = (list_artifacts(folder) for folder in (args.mine, args.theirs))
    only = sorted(mine.keys() ^ theirs.keys())
    if only:
        fail(f"only one of the two has {only[0]}", "compare runs of one configuration", at=args.theirs)
    different = [name for name in mine if mine[name] != theirs[name]]
    for name in different:
        if name.startswith(_NOT_OF_THE_MACHINE):
            fail(
                "the two runs did not begin with the same bytes",
                "compare configuration, rows and base model",
                at=args.theirs / name,
            )
    made = [name for name in mine if name.endswith(".manifest.json") and not name.startswith(_TRIED)]
    manifests = [name for name in made if name not in _WITH_SPEEDS]
    counted = [name for name in manifests if name in different]
    if not counted:
        return f"all {len(manifests)} models have the same bytes, intermediate ones included"
    first = escape_controls(counted[0])
    print(f"{len(counted)} of {len(manifests)} models differ, the first of them {first}; the scores:")
    if outside := compare_scores(args.mine, args.theirs):
        fail(
            f"{outside} scores are further apart than rounding explains",
            "look for another difference",
            at=args.theirs,
        )
    return "every score is within the tolerance"


def list_artifacts(results: Path) -> dict[str, str]:
    """Return sha256 by path in the results folder, as the data goes: what was made first stands first."""
    made = {path: sha256 for job in read_lineage(results).jobs() for path, sha256 in job["outputs"].items()}
    named = {strip_results_folder(path, results): sha256 for path, sha256 in made.items()}
    return {name: sha256 for name, sha256 in named.items() if name}


def strip_results_folder(path: str, results: Path) -> str:
    """Return `results/model` in its folder, whatever that is called; empty for what lies outside."""
    _, found, name = path.partition("/")
    return name if found and (results / name).exists() else ""


def compare_scores(mine: Path, theirs: Path) -> int:
    """Print a line for each score that both have; returns how many lie outside of the tolerance."""
    outside = 0
    check_plain_files(theirs / "scores")
    for file in sorted((mine / "scores").rglob("*.json")):
        other = theirs / "scores" / file.relative_to(mine / "scores")
        form = allow_open_object(optional={"quality": allow_null(allow_open_object())})
        ours, others = (read_form(one, form).get("quality") for one in (file, other))
        if not ours or not others:
            continue  # the baselines, which depend on no machine
        metric = MAIN_METRIC["classification" if "accuracy" in ours else "generation"]
        if ours[metric] is None or others[metric] is None:
            continue  # no row had a free answer
        apart = others[metric] - ours[metric]
        changed, rows = count_changed_answers(file, other)
        within = abs(apart) <= CHRF if metric == "chrf" else is_explained_by_chance(apart, changed, rows)
        outside += not within
        name = escape_controls(file.relative_to(mine / "scores").with_suffix("").as_posix())
        print(
            f"{name:<44} {metric} {ours[metric]:.3f} {others[metric]:.3f} ({apart:+.3f}),"
            f" {changed} of {rows} rows answered differently" + ("" if within else "   OUTSIDE")
        )
    return outside


def is_explained_by_chance(apart: float, changed: int, rows: int) -> bool:
    """Return whether accuracies of the same rows may differ so much when that many answers went either way by luck.

    Each changed answer moves the accuracy by one row at most: a standard deviation of sqrt(changed) / rows.
    """
    return changed <= MOST_CHANGED * rows and abs(apart) <= 3 * math.sqrt(changed) / rows


def count_changed_answers(mine: Path, theirs: Path) -> tuple[int, int]:
    """Count how many rows got another answer, and how many there are."""
    first, second = (list(read_jsonl(one.with_suffix(".predictions.jsonl"))) for one in (mine, theirs))
    second = align_rows(second, first, str(theirs))
    key = "predicted" if "predicted" in first[0] else "answer"
    return sum(one.get(key) != other.get(key) for one, other in zip(first, second, strict=True)), len(first)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("mine", type=Path, help="a results folder")
    arguments.add_argument("theirs", type=Path, help="another one")
    print(call_or_exit(main, arguments.parse_args()))
