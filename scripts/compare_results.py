"""Compare the results of two runs: of two machines, two checkouts, or before and after an upgrade.

    python scripts/compare_results.py results ../theirs/results

With equal lock, CPU capability, number of threads and dtype all models have the same bytes, and that is what is said.
Elsewhere sums are rounded in another order: then the scores are compared, stage by stage, on the same rows, within a
tolerance. Exit code 1 when a score is outside of it, or when rows, prompts or splits differ: these do not depend on
the machine.
"""

import argparse
from pathlib import Path

from lib.cli import fail, or_exit
from lib.comparison import align
from lib.files import read_json, read_jsonl
from lib.lineage import read_lineage
from lib.metrics import MAIN_METRIC

TOLERANCE = {"accuracy": 0.03, "chrf": 3.0}
_NOT_OF_THE_MACHINE = ("data/", "corpus/", "base.manifest.json")
_WITH_SPEEDS = {"model.manifest.json", "selected.manifest.json"}  # they name selection.json, in which speeds stand


def main(args: argparse.Namespace) -> str:
    """Raises `UserError` when the two do not agree as they should."""
    mine, theirs = (artefacts(folder) for folder in (args.mine, args.theirs))
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
    manifests = [name for name in mine if name.endswith(".manifest.json") and name not in _WITH_SPEEDS]
    counted = [name for name in manifests if name in different]
    if not counted:
        return f"all {len(manifests)} models have the same bytes, intermediate ones included"
    print(f"{len(counted)} of {len(manifests)} models differ, the first of them {counted[0]}; the scores:")
    if outside := compare_scores(args.mine, args.theirs):
        fail(
            f"{outside} scores are further apart than rounding explains",
            "look for another difference",
            at=args.theirs,
        )
    return "every score is within the tolerance"


def artefacts(results: Path) -> dict[str, str]:
    """sha256 by path in the results folder, as the data goes: what was made first stands first."""
    made = {path: sha256 for job in read_lineage(results).jobs() for path, sha256 in job["outputs"].items()}
    named = {inside(path, results): sha256 for path, sha256 in made.items()}
    return {name: sha256 for name, sha256 in named.items() if name}


def inside(path: str, results: Path) -> str:
    """`results/model` in its folder, whatever that is called; empty for what lies outside."""
    _, found, name = path.partition("/")
    return name if found and (results / name).exists() else ""


def compare_scores(mine: Path, theirs: Path) -> int:
    """Print a line for each score that both have; returns how many lie outside of the tolerance."""
    outside = 0
    for file in sorted((mine / "scores").rglob("*.json")):
        other = theirs / "scores" / file.relative_to(mine / "scores")
        ours, others = read_json(file).get("quality"), read_json(other).get("quality")
        if not ours or not others:
            continue  # the baselines, which depend on no machine
        metric = MAIN_METRIC["classification" if "accuracy" in ours else "generation"]
        if ours[metric] is None or others[metric] is None:
            continue  # no row had a free answer
        apart = others[metric] - ours[metric]
        within = abs(apart) <= TOLERANCE[metric]
        outside += not within
        name = file.relative_to(mine / "scores").with_suffix("").as_posix()
        print(
            f"{name:<44} {metric} {ours[metric]:.3f} {others[metric]:.3f} ({apart:+.3f}), {flips(file, other)}"
            + ("" if within else "   OUTSIDE")
        )
    return outside


def flips(mine: Path, theirs: Path) -> str:
    """How many rows got another answer."""
    first, second = (list(read_jsonl(one.with_suffix(".predictions.jsonl"))) for one in (mine, theirs))
    second = align(second, first, str(theirs))
    key = "predicted" if "predicted" in first[0] else "answer"
    changed = sum(one.get(key) != other.get(key) for one, other in zip(first, second, strict=True))
    return f"{changed} of {len(first)} rows answered otherwise"


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("mine", type=Path, help="a results folder")
    arguments.add_argument("theirs", type=Path, help="another one")
    print(or_exit(main, arguments.parse_args()))
