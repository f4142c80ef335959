"""Look at every row before a model learns from it: what is usable, what is set aside and why.

Every row ends in the kept or in the rejected file. The verdict says whether training is worth its
time; this script succeeds even when it is not, so that its evidence stays: `split_data` stops.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.cli import fail, parser, progress, run, settings_argument
from lib.files import read_jsonl, write_json, write_jsonl
from lib.inputs import input_text, word_places
from lib.near_duplicates import cluster_numbers, similar_pairs
from lib.records import MISSING, as_text, column, normalise, record_id
from lib.templates import Template, compile_template, render_completion, render_prompt
from lib.tokens import Tokenizer, load_tokenizer
from lib.truncation import shortened

REASONS = (
    "unreadable",
    "missing_column",
    "not_text",
    "control_token",
    "empty_value",
    "unknown_label",
    "label_conflict",
    "exact_duplicate",
    "too_long",
)
_SEED = 1  # of the MinHash; the leakage check uses another
_BATCH = 1000


class Reason(NamedTuple):
    """Why a row is set aside: one of `REASONS`, and what a person needs to find it."""

    reason: str
    detail: str


@dataclass
class Record:
    """A usable row. `index` counts the rows from 0; `seen` are the values after truncation."""

    index: int
    file: str
    line: int
    values: dict[str, str]
    target: str
    id: str
    tokens: int = 0
    seen: dict[str, str] | None = None
    cluster: int = 0


def main(args: argparse.Namespace) -> None:
    task, data, corpus = (args.settings[key] for key in ("task", "data", "corpus"))
    tokenizer = load_tokenizer(args.base)
    template = compile_template(corpus, tokenizer, task=task, target=data["target"], labels=None)
    records, aside, rows = _usable_records(args.rows, data, template, tokenizer)
    if task == "classification":
        records = _without(records, _label_conflicts(records), aside)
    records = _without(records, _exact_duplicates(records), aside)
    _measure(records, tokenizer, template, corpus)
    lengths = [record.tokens for record in records]
    records = _without(records, _too_long(records, corpus), aside)
    _cluster(records, template, data["near_duplicates"])

    audit = {
        "task": task,
        "rows": rows,
        "kept": len(records),
        "rejected": _counts(aside.values()),
        "exact_duplicates": sum(reason.reason == "exact_duplicate" for reason in aside.values()),
        "label_conflicts": sum(reason.reason == "label_conflict" for reason in aside.values()),
        **_near_duplicates(records, task),
        **_classes(records, data["labels"], task),
        "tokens": _token_lengths(lengths, records, corpus["max_length"]),
    }
    audit["verdict"] = _verdict(audit, data["min_rows_per_class"], corpus["max_length"])
    write_jsonl(args.kept, map(_kept, records))
    write_jsonl(args.rejected, _rejected(args.rows, aside))
    write_json(args.audit, audit)
    progress(f"audit_data: {len(records)} of {rows} rows kept; set aside: {audit['rejected'] or 'none'}")


def _usable_records(
    path: Path, data: dict[str, Any], template: Template, tokenizer: Tokenizer
) -> tuple[list[Record], dict[int, Reason], int]:
    """Records that stand on their own, the rows set aside by index, and the number of rows."""
    names = [*template["columns"], data["target"]]
    control = re.compile("|".join(map(re.escape, tokenizer.control)) or r"(?!)")
    records, aside, rows = [], {}, 0
    absent = Counter[str]()
    known: set[str] = set()
    for index, source in enumerate(read_jsonl(path)):
        rows += 1
        if "error" in source:
            aside[index] = Reason("unreadable", source["error"])
            continue
        known.update(source["row"])
        absent.update(name for name in names if column(source["row"], name) is MISSING)
        values = _values(source["row"], names, control, data["special_tokens"])
        if isinstance(values, Reason):
            aside[index] = values
            continue
        target = values[data["target"]]
        if data["labels"] and target not in data["labels"]:
            aside[index] = Reason("unknown_label", f"{target!r} is not in data.labels")
            continue
        inputs = {name: values[name] for name in template["columns"]}
        records.append(Record(index, source["file"], source["line"], inputs, target, record_id(values)))
    for name in names:
        if known and absent[name] == rows - sum(reason.reason == "unreadable" for reason in aside.values()):
            hint = f"the columns are {', '.join(sorted(known)[:20])}: mend corpus or data.target"
            fail(f"no row has the column {name!r}", hint, at=path)
    return records, aside, rows


def _values(
    row: dict[str, Any], names: Sequence[str], control: re.Pattern[str], special_tokens: str
) -> dict[str, str] | Reason:
    """The named columns as text, or why the row has not all of them."""
    values: dict[str, str] = {}
    for name in names:
        value = column(row, name)
        if value is MISSING:
            return Reason("missing_column", f"no {name!r}")
        text = as_text(value)
        if text is None:
            return Reason("not_text", f"{name!r} is a {'list' if isinstance(value, list) else 'nested object'}")
        while found := control.search(text):
            if special_tokens == "reject":
                return Reason("control_token", f"{name!r} contains {found[0]!r}")
            text = control.sub("", text).strip()  # again, for what is left may join to another
        if not text:
            return Reason("empty_value", f"{name!r} is empty")
        values[name] = text
    return values


def _without(records: list[Record], found: dict[int, Reason], aside: dict[int, Reason]) -> list[Record]:
    aside.update(found)
    return [record for record in records if record.index not in found]


def _label_conflicts(records: Iterable[Record]) -> dict[int, Reason]:
    """Rows whose input occurs with another label too: which one is right is not ours to say."""
    by_input = defaultdict(list)
    for record in records:
        by_input[record_id(record.values)].append(record)
    found = {}
    for group in by_input.values():
        for record in group:
            other = next((one for one in group if normalise(one.target) != normalise(record.target)), None)
            if other:
                detail = f"{record.target!r} here, {other.target!r} at {other.file}:{other.line}"
                found[record.index] = Reason("label_conflict", detail)
    return found


def _exact_duplicates(records: Iterable[Record]) -> dict[int, Reason]:
    first: dict[str, Record] = {}
    found = {}
    for record in records:
        original = first.setdefault(record.id, record)
        if original is not record:
            found[record.index] = Reason("exact_duplicate", f"same as {original.file}:{original.line}")
    return found


def _measure(records: Sequence[Record], tokenizer: Tokenizer, template: Template, corpus: dict[str, Any]) -> None:
    """Set `tokens` and `seen` of each record; `seen` stays None where the row does not fit at all."""
    for start in range(0, len(records), _BATCH):
        batch = records[start : start + _BATCH]
        texts = [
            render_prompt(template, record.values) + render_completion(template, record.target) for record in batch
        ]
        for record, ids in zip(batch, tokenizer.encode_batch(texts), strict=True):
            record.tokens = len(ids)
            if record.tokens <= corpus["max_length"]:
                record.seen = record.values
            elif corpus["truncation"] != "reject":
                limits = {"max_length": corpus["max_length"], "side": corpus["truncation"]}
                record.seen = shortened(tokenizer, template, record.values, record.target, **limits)


def _too_long(records: Iterable[Record], corpus: dict[str, Any]) -> dict[int, Reason]:
    return {
        record.index: Reason("too_long", f"{record.tokens} tokens, corpus.max_length is {corpus['max_length']}")
        for record in records
        if record.seen is None
    }


def _cluster(records: Sequence[Record], template: Template, threshold: float) -> None:
    """Number the near-duplicate clusters by their smallest id, so that the order of rows does not matter.

    Compared is what the model will see, as the leakage check reads it from the corpus: rows that
    truncation makes alike are alike.
    """
    ordered = sorted(records, key=lambda record: record.id)
    texts = [input_text(template, render_prompt(template, record.seen or record.values)) for record in ordered]
    numbers = cluster_numbers(len(texts), similar_pairs(texts, threshold, seed=_SEED))
    for record, number in zip(ordered, numbers, strict=True):
        record.cluster = number


def _counts(reasons: Iterable[Reason]) -> dict[str, int]:
    counts = Counter(reason.reason for reason in reasons)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _near_duplicates(records: Iterable[Record], task: str) -> dict[str, Any]:
    clusters = defaultdict(list)
    for record in records:
        clusters[record.cluster].append(record.target)
    several = [targets for targets in clusters.values() if len(targets) > 1]
    mixed = sum(len(targets) for targets in several if len(set(targets)) > 1)
    return {
        "near_duplicate_clusters": len(several),
        "near_duplicate_rows": sum(map(len, several)),
        "largest_cluster": max(map(len, clusters.values()), default=0),
        "rows_in_mixed_clusters": mixed if task == "classification" else None,
    }


def _classes(records: Sequence[Record], given: list[str] | None, task: str) -> dict[str, Any]:
    """What classification needs to know of the labels; null for generation."""
    if task != "classification":
        return dict.fromkeys(("labels", "classes", "label_word_in_text", "keyword_shortcuts"))
    counts = Counter(record.target for record in records)
    labels = sorted(given or counts)
    classes = {label: counts[label] for label in labels}
    texts = ["\n".join(record.values.values()) for record in records]
    return {
        "labels": labels,
        "classes": classes,
        "label_word_in_text": _label_words(records, texts, classes),
        "keyword_shortcuts": _shortcuts(records, texts, classes),
    }


def _label_words(records: Sequence[Record], texts: Sequence[str], classes: dict[str, int]) -> dict[str, Any]:
    """Share of rows whose text holds the word of their own label: there a word is enough."""
    hits = Counter(
        record.target for record, text in zip(records, texts, strict=True) if word_places(record.target, text)
    )
    return {
        "share": round(hits.total() / max(1, len(records)), 4),
        "by_label": {label: round(hits[label] / max(1, count), 4) for label, count in classes.items()},
    }


def _shortcuts(records: Sequence[Record], texts: Sequence[str], classes: dict[str, int]) -> list[dict[str, Any]]:
    """Single words that nearly give a label away: at least 90 % of their rows, and 5 % of the label's rows.

    Where one label has most rows, a word must also halve the error of always saying that label.
    """
    by_word: dict[str, Counter[str]] = defaultdict(Counter)
    for record, text in zip(records, texts, strict=True):
        for word in set(re.findall(r"\w+", text.casefold())):
            by_word[word][record.target] += 1
    found: list[dict[str, Any]] = []
    for word, counts in by_word.items():
        label, hits = counts.most_common(1)[0]
        needed = max(0.9, 1 - (1 - classes[label] / len(records)) / 2)
        if hits >= max(5, 0.05 * classes[label]) and hits >= needed * counts.total():
            found.append({"word": word, "label": label, "rows": counts.total(), "rows_of_label": hits})
    return sorted(found, key=lambda item: (-item["rows_of_label"], item["word"]))[:10]


def _token_lengths(lengths: Sequence[int], kept: Iterable[Record], max_length: int) -> dict[str, Any]:
    """Tokens of prompt and answer, before truncation, with the rows that were too long for it."""
    points = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    return {
        "mean": round(float(np.mean(lengths)), 2) if lengths else None,
        **{
            name: int(np.percentile(lengths, point, method="higher")) if lengths else None
            for name, point in points.items()
        },
        "max_length": max_length,
        "over_max_length": sum(length > max_length for length in lengths),
        "truncated": sum(record.tokens > max_length for record in kept),
    }


def _verdict(audit: dict[str, Any], min_rows_per_class: int, max_length: int) -> dict[str, Any]:
    reasons = []
    if audit["kept"] == 0:
        reasons.append(f"no usable row is left of {audit['rows']}")
    elif audit["tokens"]["truncated"] == audit["kept"]:
        reasons.append(f"every row is cut: all are longer than corpus.max_length {max_length}")
    if audit["kept"] and audit["classes"] is not None:
        classes = {label: count for label, count in audit["classes"].items() if count}
        if len(classes) == 1:
            reasons.append(f"only one class: all {audit['kept']} usable rows are {next(iter(classes))!r}")
        reasons += [
            f"class {label!r} has {count} usable rows, data.min_rows_per_class is {min_rows_per_class}"
            for label, count in audit["classes"].items()
            if count < min_rows_per_class
        ]
    return {"ok": not reasons, "reasons": reasons}


def _kept(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "file": record.file,
        "line": record.line,
        "values": record.values,
        "target": record.target,
        "cluster": record.cluster,
    }


def _rejected(path: Path, aside: dict[int, Reason]) -> Iterator[dict[str, Any]]:
    for index, source in enumerate(read_jsonl(path)):
        if index in aside:
            place = {"file": source["file"], "line": source["line"]}
            yield {**place, **aside[index]._asdict(), "row": source.get("row")}


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--settings", type=settings_argument, required=True, help="JSON: task, data, corpus")
    arguments.add_argument("--rows", type=Path, required=True, help="rows.jsonl of fetch_data")
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    arguments.add_argument("--audit", type=Path, required=True)
    arguments.add_argument("--rejected", type=Path, required=True)
    arguments.add_argument("--kept", type=Path, required=True)
    run(arguments, main)
