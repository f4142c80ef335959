"""Look at every row before a model learns from it: what is usable, what is set aside and why.

Every row ends in the kept or in the rejected file. The verdict says whether training is worth its
time; this script succeeds even when it is not, so that its evidence stays: `split_data` stops.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lib.core.cli import build_parser, parse_settings, report_progress, run
from lib.core.files import dump_jsonl_line, publish_file, read_jsonl, read_lines, write_json, write_jsonl
from lib.core.processes import map_in_order
from lib.data.audit_verdict import describe_label_lines, judge_audit
from lib.data.audited_rows import (
    Places,
    Rows,
    count_classes,
    count_reasons,
    find_same_groups,
    number_row_clusters,
    set_aside_conflicts,
    set_aside_duplicates,
)
from lib.data.label_words import CountedWords, LabelWords
from lib.data.labels import (
    Labels,
    describe_spellings,
    format_counts,
    group_undecided_spellings,
    map_spellings,
    normalize_caseless,
    normalize_label,
)
from lib.data.near_duplicates import describe_uncompared, find_similar_pairs, tell_uncompared
from lib.data.row_index import IndexedRows, SeenColumns, index_rows
from lib.data.row_texts import TextReader, explain_cut_token, explain_length, get_inputs, get_target
from lib.data.row_values import REASONS, CheckedRow, Reason, RowChecker
from lib.data.rows import format_place
from lib.data.signatures import SignedTexts, Signer
from lib.data.templates import Template, compile_rows, set_up_chat
from lib.data.tokenizer import load_tokenizer
from lib.data.tokenizer_trial import TRIED_TEXTS, join_values
from lib.data.value_limits import batch_by_size

_SEED = 1  # of the MinHash; the leakage check uses another

Result = TypeVar("Result")


def main(args: argparse.Namespace) -> None:
    task, data, corpus = (args.settings[key] for key in ("task", "data", "corpus"))
    first = islice(read_jsonl(args.rows), TRIED_TEXTS)
    beginnings = [join_values(read.get("row", {})) for read in first]
    tokenizer = set_up_chat(load_tokenizer(args.tokenizer, beginnings), corpus)
    template = compile_rows(data, corpus, tokenizer, task=task, labels=None)
    split = args.settings.get("split", {})
    rows = Rows()
    work = RowWork(args.rows, RowChecker(args.rows, data, template, tokenizer, corpus, split), args.processes)

    _index_rows(work, rows, _list_needed_columns(template, data, split), task, data["target"])
    if task == "classification":
        set_aside_conflicts(rows)
    set_aside_duplicates(rows)
    measured = rows.usable()
    words = LabelWords()
    signer = Signer(data["near_duplicates"], _SEED)
    signed = _read_texts(work, rows, TextReader(tokenizer, template, corpus, signer), words)
    similar = find_similar_pairs(signed, data["near_duplicates"], folder=args.kept.parent)
    kept = rows.usable()
    clusters = number_row_clusters(rows, kept, chain(similar.pairs, find_same_groups(rows, kept)))
    words.expect(count_classes(rows, kept))
    _write_kept(args.kept, work, rows, Keeper(rows, clusters, words, template))

    rejected = count_reasons(rows)
    audit = {
        "task": task,
        "rows": len(rows.state),
        "kept": len(kept),
        "rejected": rejected,
        "exact_duplicates": rejected.get("exact_duplicate", 0),
        "label_conflicts": rejected.get("label_conflict", 0),
        **_near_duplicates(rows, kept, clusters, task),
        **describe_uncompared(similar),
        **_classes(rows, kept, words, data.get("labels"), task),
        "tokens": _measure_token_lengths(rows, measured, kept, corpus["max_length"]),
    }
    examples: dict[str, str] = {}
    set_aside = work.check(rows.is_set_aside) if rejected else ()
    write_jsonl(args.rejected, _iterate_rejected(set_aside, rows, corpus["max_length"], examples))
    audit["verdict"] = judge_audit(audit, examples, data, corpus["max_length"])
    write_json(args.audit, audit)
    _tell_case(audit["label_spellings"])
    tell_uncompared("audit_data", similar)
    report_progress(f"audit_data: {len(kept)} of {len(rows.state)} rows kept; set aside: {rejected or 'none'}")


class RowWork:
    """Reads the rows again and again, which are not in memory, in several processes."""

    def __init__(self, path: Path, checker: RowChecker, processes: int) -> None:
        self.path, self._checker, self._processes = path, checker, processes

    def check(self, is_wanted: Callable[[int], bool]) -> Iterator[CheckedRow]:
        """Yield the rows whose number is wanted, checked in this process."""
        return self._checker.check(self._read(is_wanted))

    def map(
        self, function: Callable[[Iterator[CheckedRow]], Result], is_wanted: Callable[[int], bool] = lambda number: True
    ) -> Iterator[Result]:
        """Yield what a function returns for some wanted rows at a time, in order."""
        batches = batch_by_size(self._read(is_wanted), lambda numbered: len(numbered[1]))
        return map_in_order(lambda lines: function(self._checker.check(lines)), batches, self._processes)

    def _read(self, is_wanted: Callable[[int], bool]) -> Iterator[tuple[int, str]]:
        return ((number, line) for number, line in read_lines(self.path) if is_wanted(number - 1))


def _list_needed_columns(
    template: Template, data: dict[str, Any], split: dict[str, Any]
) -> tuple[Sequence[str], Sequence[str]]:
    """Return the columns of the file that some row must have: for the corpus and for the split."""
    own = [data["conversation"]] if "conversation" in data else [*template["columns"], data["target"]]
    return own, [*([split["column"]] if "column" in split else []), *split.get("groups", ())]


def _index_rows(work: RowWork, rows: Rows, needed: tuple[Sequence[str], Sequence[str]], task: str, target: str) -> None:
    """Note all rows in `rows`, with those set aside that do not stand on their own."""

    def index(checked: Iterator[CheckedRow]) -> tuple[IndexedRows, SeenColumns]:
        seen = SeenColumns(*needed)
        return index_rows(checked, target, seen), seen

    columns = SeenColumns(*needed)
    for indexed, seen in work.map(index):
        rows.add(indexed, classified=task == "classification")
        columns.add(seen)
    columns.refuse_absent(work.path)


def _read_texts(work: RowWork, rows: Rows, reader: TextReader, words: LabelWords) -> Iterator[SignedTexts]:
    """Note the tokens of each usable row, set aside what is too long, and yield the others' texts, signed."""
    for read in work.map(reader.read, rows.is_usable):
        for number, tokens in read.tokens:
            rows.tokens[number] = tokens
        for number, reason in read.set_aside:
            rows.state[number] = 1 + REASONS.index(reason)
        if read.words is not None:
            words.glance(read.words)
        yield read.signed


def _near_duplicates(rows: Rows, kept: Places, clusters: NDArray[np.int64], task: str) -> dict[str, Any]:
    sizes = np.bincount(clusters[kept])
    targets = np.frombuffer(rows.target, dtype=np.int32)
    labeled = np.unique(np.stack([clusters[kept], targets[kept]]), axis=1)
    mixed = int(sizes[np.bincount(labeled[0]) > 1].sum())
    return {
        "near_duplicate_clusters": int((sizes > 1).sum()),
        "near_duplicate_rows": int(sizes[sizes > 1].sum()),
        "largest_cluster": int(sizes.max(initial=0)),
        "rows_in_mixed_clusters": mixed if task == "classification" else None,
    }


def _classes(rows: Rows, kept: Places, words: LabelWords, given: Labels | None, task: str) -> dict[str, Any]:
    """Return what classification needs to know of the labels; null for generation."""
    if task != "classification":
        names = ("labels", "classes", "label_spellings", "unknown_labels", "label_word_in_text", "keyword_shortcuts")
        return dict.fromkeys(names)
    counts = count_classes(rows, kept)
    labels = sorted(given or counts)
    classes = {label: counts.get(label, 0) for label in labels}
    known = map_spellings(given) if given else rows.spellings
    unknown = [(text, count) for text, count in rows.spellings.most_common() if text not in known]
    return {
        "labels": labels,
        "classes": classes,
        "label_spellings": _label_spellings(rows.spellings, given),
        "unknown_labels": dict(unknown[:20]),
        "label_word_in_text": words.label_words(classes),
        "keyword_shortcuts": words.shortcuts(classes),
    }


def _label_spellings(counts: Counter[str], given: Labels | None) -> dict[str, Any]:
    """Return spellings of one label, and labels that differ by case alone, where `data.labels` does not say what they
    are.
    """
    one = group_undecided_spellings(counts, given, normalize_label)
    told = {text for group in one for text in group}
    alike = [
        group for group in group_undecided_spellings(counts, given, normalize_caseless) if not group.keys() <= told
    ]
    return {
        "one_label": describe_spellings(one, counts, given),
        "differing_in_case": describe_spellings(alike, counts, given),
    }


def _tell_case(spellings: dict[str, Any] | None) -> None:
    """Print a line for labels that differ by case or full-width letters alone: they may be two, so the run goes on."""
    if spellings and (found := spellings["differing_in_case"]):
        groups = "; ".join(map(format_counts, found["groups"][:3]))
        report_progress(
            f"audit_data: labels that differ by case or width alone: {groups}: {describe_label_lines(found)}"
        )


def _measure_token_lengths(rows: Rows, measured: Places, kept: Places, max_length: int) -> dict[str, Any]:
    """Return tokens of prompt and answer, before truncation, with the rows that were too long for it."""
    points = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    tokens = np.frombuffer(rows.tokens, dtype=np.int32)
    lengths = tokens[measured]
    return {
        "mean": round(float(np.mean(lengths)), 2) if len(lengths) else None,
        **{
            name: int(np.percentile(lengths, point, method="higher")) if len(lengths) else None
            for name, point in points.items()
        },
        "max_length": max_length,
        "over_max_length": int((lengths > max_length).sum()),
        "truncated": int((tokens[kept] > max_length).sum()),
    }


class Keeper:
    """Writes the rows that are kept as text, and counts their words; several processes can share the work."""

    def __init__(self, rows: Rows, clusters: NDArray[np.int64], words: LabelWords, template: Template) -> None:
        self.words, self._rows, self._clusters, self._template = words, rows, clusters, template

    def keep(self, checked: Iterable[CheckedRow]) -> tuple[str, CountedWords | None]:
        lines = []
        texts = []
        for row in checked:
            inputs, target = get_inputs(row, self._template), get_target(row, self._template)
            texts.append(("\n".join(inputs.values()), target))
            lines.append(dump_jsonl_line(self._describe(row, inputs, target)))
        is_classified = self._template["task"] == "classification"
        return "".join(lines), self.words.count(texts) if is_classified else None

    def _describe(self, row: CheckedRow, inputs: dict[str, str], target: str) -> dict[str, Any]:
        return {
            "id": self._rows.ids[32 * row.number : 32 * row.number + 32].hex(),
            "file": row.read["file"],
            "line": row.read["line"],
            "number": row.read["number"],
            "values": inputs,
            "target": target,
            "cluster": int(self._clusters[row.number]),
            **({"split": row.split} if row.split else {}),
            **({"groups": list(row.groups)} if row.groups else {}),
            **({"other_answers": list(row.other_answers)} if row.other_answers else {}),
            **({"spans": list(row.spans)} if row.spans else {}),
        }


def _write_kept(path: Path, work: RowWork, rows: Rows, keeper: Keeper) -> None:
    with publish_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for lines, counted in work.map(keeper.keep, rows.is_usable):
            file.write(lines)
            if counted:
                keeper.words.add(counted)


def _iterate_rejected(
    sources: Iterable[CheckedRow], rows: Rows, max_length: int, examples: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows set aside; the first one of each reason goes to `examples`."""
    for source in sources:
        place = {key: source.read[key] for key in ("file", "line", "number")}
        reason = _reason(source, rows, max_length)
        examples.setdefault(reason.reason, f"{format_place(**place)}: {reason.detail}")
        yield {**place, **reason._asdict(), "row": source.read.get("row")}


def _reason(source: CheckedRow, rows: Rows, max_length: int) -> Reason:
    if isinstance(source.values, Reason):
        return source.values
    reason = REASONS[rows.state[source.number] - 1]
    other = rows.other[source.number]
    match reason:
        case "label_conflict":
            here, there = rows.target_text(source.number), rows.target_text(other)
            return Reason(reason, f"{here!r} here, {there!r} at {rows.place(other)}")
        case "conversation":
            return explain_cut_token()
        case "exact_duplicate":
            return Reason(reason, f"same as {rows.place(other)}")
    return explain_length(rows.tokens[source.number], max_length)


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="JSON: task, data, corpus, split")
    arguments.add_argument("--rows", type=Path, required=True, help="rows.jsonl of fetch_data")
    arguments.add_argument("--tokenizer", type=Path, required=True, help="folder of the base model's tokenizer")
    arguments.add_argument("--audit", type=Path, required=True)
    arguments.add_argument("--rejected", type=Path, required=True)
    arguments.add_argument("--kept", type=Path, required=True)
    arguments.add_argument("--processes", type=int, default=1)
    run(arguments, main)
