"""Split the kept rows into train, validation and test, by near-duplicate cluster and label.

A cluster never crosses splits. The result depends on the seed and on the rows, not on their order.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import hash_text, read_json, read_jsonl, write_json
from lib.core.layout import SCORED_SPLITS, SPLITS


def main(args: argparse.Namespace) -> None:
    audit = read_json(args.audit)
    if not audit["verdict"]["ok"]:
        hint = "mend the data or the configuration; the rejected rows are beside this file"
        first, more = audit["verdict"]["reasons"][:3], audit["verdict"]["reasons"][3:]
        told = "; ".join(first + [f"{len(more)} more reasons"] * bool(more))
        fail(f"the audit stops here: {told}", hint, at=args.audit)
    # Texts stay in the file: of a row three values are in memory, some 300 bytes with its place.
    rows = [{name: row[name] for name in ("id", "target", "cluster")} for row in read_jsonl(args.kept)]
    classified = args.settings["task"] == "classification"
    places = _split(rows, args.settings["seed"], args.settings["split"], classified=classified)
    counts = Counter(places.values())
    by_label = _by_label(rows, places, audit["labels"]) if classified else None
    _refuse_gaps(counts, by_label, rows, args)
    result = {
        "counts": {split: counts[split] for split in SPLITS},
        "by_label": by_label,
        "rows": dict(sorted(places.items())),
    }
    write_json(args.output, result)
    report_progress("split_data: " + ", ".join(f"{counts[split]} {split}" for split in SPLITS))


def _split(rows: Iterable[dict[str, Any]], seed: int, shares: dict[str, float], *, classified: bool) -> dict[str, str]:
    """Split of each row by id."""
    clusters = defaultdict(list)
    for row in rows:
        clusters[row["cluster"]].append(row)
    strata = defaultdict(list)
    for cluster in clusters.values():
        strata[_majority(cluster) if classified else ""].append(sorted(row["id"] for row in cluster))
    places: dict[str, str] = {}
    for _, stratum in sorted(strata.items()):
        for ids, split in _assign_clusters(stratum, seed, shares):
            places.update(dict.fromkeys(ids, split))
    return places


def _majority(cluster: Iterable[dict[str, Any]]) -> str:
    counts = Counter(row["target"] for row in cluster)
    return min(counts, key=lambda label: (-counts[label], label))


def _assign_clusters(
    clusters: Sequence[list[str]], seed: int, shares: dict[str, float]
) -> Iterable[tuple[list[str], str]]:
    """Give each cluster of a stratum (sorted ids) to a split.

    Large clusters first, in an order drawn from the seed; each goes where the most is missing in
    proportion, among the splits that have room for it whole. Small strata get one row for each split.
    """
    total = sum(map(len, clusters))
    room = {split: max(1.0, shares[split] * total) for split in SCORED_SPLITS}
    wanted = {"train": max(0.0, total - sum(room.values())), **room}
    missing = dict(wanted)
    for cluster in sorted(clusters, key=lambda ids: (-len(ids), hash_text(f"{seed}:{ids[0]}"))):
        fitting = [split for split in SPLITS if missing[split] >= len(cluster)]
        if fitting:
            split = max(fitting, key=lambda split: missing[split] / wanted[split])
        else:
            split = max(SPLITS, key=lambda split: missing[split])
        missing[split] -= len(cluster)
        yield cluster, split


def _by_label(
    rows: Iterable[dict[str, Any]], places: dict[str, str], labels: Iterable[str]
) -> dict[str, dict[str, int]]:
    counts = Counter((row["target"], places[row["id"]]) for row in rows)
    return {label: {split: counts[label, split] for split in SPLITS} for label in labels}


def _refuse_gaps(
    counts: Counter[str],
    by_label: dict[str, dict[str, int]] | None,
    rows: Sequence[dict[str, Any]],
    args: argparse.Namespace,
) -> None:
    """Raise `UserError` when a split has no rows, or none of a class."""
    clusters = len({row["cluster"] for row in rows})
    for split in SPLITS:
        if not counts[split]:
            what = f"no rows for {split}: {len(rows)} rows in {clusters} groups of near-duplicates"
            fail(what, "bring more rows, or raise data.near_duplicates", at=args.kept)
        for label, places in (by_label or {}).items():
            if not places[split]:
                groups = len({row["cluster"] for row in rows if row["target"] == label})
                what = f"no rows of class {label!r} for {split}: {places} of {groups} groups of near-duplicates"
                fail(what, "bring more rows of it, raise data.near_duplicates, or drop the class", at=args.kept)


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="JSON: seed, task, split")
    arguments.add_argument("--audit", type=Path, required=True)
    arguments.add_argument("--kept", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    run(arguments, main)
