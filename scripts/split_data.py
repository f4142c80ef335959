"""Split the kept rows into train, validation and test, by near-duplicate cluster and label.

A cluster never crosses splits that are made here. Rows that were given a split keep it; what was not given is made of
those for training. The result depends on the seed and on the rows, not on their order.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import hash_text, read_json, read_jsonl, write_json
from lib.core.layout import SCORED_SPLITS, SPLITS

# What keeps rows together: being alike, a group of split.groups, the same first turn of a conversation.
_LOOSEN = "raise data.near_duplicates or name fewer split.groups"


def main(args: argparse.Namespace) -> None:
    audit, split = read_json(args.audit), args.settings["split"]
    if not audit["verdict"]["ok"]:
        hint = "mend the data or the configuration; the rejected rows are beside this file"
        first, more = audit["verdict"]["reasons"][:3], audit["verdict"]["reasons"][3:]
        told = "; ".join(first + [f"{len(more)} more reasons"] * bool(more))
        fail(f"the audit stops here: {told}", hint, at=args.audit)
    classified = args.settings["task"] == "classification"
    rows = [read_row(row, classified=classified) for row in read_jsonl(args.kept)]
    given = {row.split for row in rows if row.split}
    dropped = find_leaks(rows) if split["leakage"] == "drop" else set()
    rows = [row for row in rows if row.id not in dropped]
    made = [name for name in SCORED_SPLITS if name not in given]
    places = _split(rows, args.settings["seed"], {name: split[name] for name in made}, classified=classified)
    counts = Counter(places.values())
    by_label = _by_label(rows, places, audit["labels"]) if classified else None
    _refuse_gaps(counts, by_label, rows, made, args)
    result = {
        "counts": {name: counts[name] for name in SPLITS},
        "by_label": by_label,
        **({"given": sorted(given)} if given else {}),
        **({"dropped": sorted(dropped)} if dropped else {}),
        "rows": dict(sorted(places.items())),
    }
    write_json(args.output, result)
    less = f"; {len(dropped)} rows dropped, whose near-duplicates a later split has" if dropped else ""
    report_progress("split_data: " + ", ".join(f"{counts[name]} {name}" for name in SPLITS) + less)


class Row(NamedTuple):
    """What stays in memory of a row, some 250 bytes. split: the one that it was given."""

    id: str
    target: str
    cluster: int
    split: str | None


def read_row(row: dict[str, Any], *, classified: bool) -> Row:
    given = row.get("split")
    # Of labels and splits there are few: one text of each is enough. Answers of task generation are not asked for.
    target = sys.intern(row["target"]) if classified else ""
    return Row(row["id"], target, row["cluster"], sys.intern(given) if given else None)


def find_leaks(rows: Iterable[Row]) -> set[str]:
    """Return the ids of the rows whose cluster also has rows of a later split, in the order of `SPLITS`.

    A row that was given no split may be for training.
    """
    last: dict[int, int] = {}
    for row in rows:
        last[row.cluster] = max(last.get(row.cluster, 0), _rank(row))
    return {row.id for row in rows if _rank(row) < last[row.cluster]}


def _rank(row: Row) -> int:
    return SPLITS.index(row.split or SPLITS[0])


def _split(rows: Iterable[Row], seed: int, shares: dict[str, float], *, classified: bool) -> dict[str, str]:
    """Return the split of each row by id: the one that it was given, or one of `shares`, or training.

    Rows given to training are divided as those that were given nothing. What is near a row that was given to a scored
    split is for training: a split that is made here shares nothing with one that was given.
    """
    clusters = defaultdict(list)
    places: dict[str, str] = {}
    taken = set()
    for row in rows:
        if row.split in SCORED_SPLITS:
            places[row.id] = row.split
            taken.add(row.cluster)
        else:
            clusters[row.cluster].append(row)
    strata = defaultdict(list)
    for number, cluster in clusters.items():
        ids = sorted(row.id for row in cluster)
        if number in taken:
            places.update(dict.fromkeys(ids, "train"))
        else:
            strata[_majority(cluster) if classified else ""].append(ids)
    for _, stratum in sorted(strata.items()):
        for ids, split in _assign_clusters(stratum, seed, shares):
            places.update(dict.fromkeys(ids, split))
    return places


def _majority(cluster: Iterable[Row]) -> str:
    counts = Counter(row.target for row in cluster)
    return min(counts, key=lambda label: (-counts[label], label))


def _assign_clusters(
    clusters: Sequence[list[str]], seed: int, shares: dict[str, float]
) -> Iterable[tuple[list[str], str]]:
    """Give each cluster of a stratum (sorted ids) to a split.

    Large clusters first, in an order drawn from the seed; each goes where the most is missing in
    proportion, among the splits that have room for it whole. Small strata get one row for each split.
    """
    total = sum(map(len, clusters))
    room = {split: max(1.0, share * total) for split, share in shares.items()}
    wanted = {"train": max(0.0, total - sum(room.values())), **room}
    missing = dict(wanted)
    for cluster in sorted(clusters, key=lambda ids: (-len(ids), hash_text(f"{seed}:{ids[0]}"))):
        fitting = [split for split in wanted if missing[split] >= len(cluster)]
        if fitting:
            split = max(fitting, key=lambda split: missing[split] / wanted[split])
        else:
            split = max(wanted, key=lambda split: missing[split])
        missing[split] -= len(cluster)
        yield cluster, split


def _by_label(rows: Iterable[Row], places: dict[str, str], labels: Iterable[str]) -> dict[str, dict[str, int]]:
    counts = Counter((row.target, places[row.id]) for row in rows)
    return {label: {split: counts[label, split] for split in SPLITS} for label in labels}


def _refuse_gaps(
    counts: Counter[str],
    by_label: dict[str, dict[str, int]] | None,
    rows: Sequence[Row],
    made: Sequence[str],
    args: argparse.Namespace,
) -> None:
    """Raise `UserError` when a split has no rows, or one that is made here none of a class."""
    clusters = len({row.cluster for row in rows})
    for split in SPLITS:
        if not counts[split]:
            what = f"no rows for {split}: {len(rows)} rows in {clusters} groups that stay together"
            fail(what, f"bring more rows, or {_LOOSEN}", at=args.kept)
        for label, places in (by_label or {}).items():
            if not places[split] and split in ("train", *made):
                groups = len({row.cluster for row in rows if row.target == label})
                what = f"no rows of class {label!r} for {split}: {places} of {groups} groups that stay together"
                fail(what, f"bring more rows of it, {_LOOSEN}, or drop the class", at=args.kept)


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="JSON: seed, task, split")
    arguments.add_argument("--audit", type=Path, required=True)
    arguments.add_argument("--kept", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    run(arguments, main)
