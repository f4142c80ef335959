"""Look at every row before a model learns from it: what is usable, what is set aside and why.

Every row ends in the kept or in the rejected file. The verdict says whether training is worth its
time; this script succeeds even when it is not, so that its evidence stays: `split_data` stops.
"""

import argparse
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import read_jsonl, write_json, write_jsonl
from lib.core.processes import pair_ahead
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
from lib.data.conversations import find_conversation
from lib.data.label_words import LabelWords
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
from lib.data.row_values import REASONS, CheckedRow, Reason, check_rows
from lib.data.rows import MISSING, compute_row_id, format_place, get_column, list_reachable_names
from lib.data.template_inversion import extract_input
from lib.data.templates import Template, compile_rows, render_completion, render_prompt, set_up_chat
from lib.data.tokenizer import Tokenizer, is_cut_between_tokens, load_tokenizer
from lib.data.tokenizer_trial import TRIED_TEXTS, join_values
from lib.data.truncation import shorten_values
from lib.data.value_limits import batch_by_size

_SEED = 1  # of the MinHash; the leakage check uses another


def main(args: argparse.Namespace) -> None:
    task, data, corpus = (args.settings[key] for key in ("task", "data", "corpus"))
    first = islice(read_jsonl(args.rows), TRIED_TEXTS)
    beginnings = [join_values(read.get("row", {})) for read in first]
    tokenizer = set_up_chat(load_tokenizer(args.tokenizer, beginnings), corpus)
    template = compile_rows(data, corpus, tokenizer, task=task, labels=None)

    def sources(is_wanted: Callable[[int], bool] = lambda number: True) -> Iterator[CheckedRow]:
        split = args.settings.get("split", {})
        return check_rows(args.rows, data, template, tokenizer, corpus, split, is_wanted=is_wanted)

    names, split = [*template["columns"], data["target"]], args.settings.get("split", {})
    own = [data["conversation"]] if "conversation" in data else names
    others = [*([split["column"]] if "column" in split else []), *split.get("groups", ())]
    rows = _index_rows(args.rows, sources(), names, (own, others), classified=task == "classification")
    if task == "classification":
        set_aside_conflicts(rows)
    set_aside_duplicates(rows)
    measured = rows.usable()
    words = LabelWords()
    texts = _read_texts(sources(rows.is_usable), rows, tokenizer, template, corpus, words)
    similar = find_similar_pairs(texts, data["near_duplicates"], seed=_SEED, folder=args.kept.parent)
    kept = rows.usable()
    clusters = number_row_clusters(rows, kept, chain(similar.pairs, find_same_groups(rows, kept)))
    words.expect(count_classes(rows, kept))
    write_jsonl(args.kept, _iterate_kept(sources(rows.is_usable), rows, clusters, words, template))

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
    write_jsonl(
        args.rejected,
        _iterate_rejected(sources(rows.is_set_aside), rows, corpus["max_length"], examples) if rejected else (),
    )
    audit["verdict"] = judge_audit(audit, examples, data, corpus["max_length"])
    write_json(args.audit, audit)
    _tell_case(audit["label_spellings"])
    tell_uncompared("audit_data", similar)
    report_progress(f"audit_data: {len(kept)} of {len(rows.state)} rows kept; set aside: {rejected or 'none'}")


def _index_rows(
    path: Path,
    sources: Iterable[CheckedRow],
    names: Sequence[str],
    needed: tuple[Sequence[str], Sequence[str]],
    *,
    classified: bool,
) -> Rows:
    """Return all rows, with those set aside that do not stand on their own.

    names: the columns of the template, the target last. needed: columns of the file that some row must have, those for
    the corpus and those for the split.
    """
    rows = Rows()
    absent = Counter[str]()
    known: set[str] = set()
    first_row: dict[str, Any] = {}
    readable = 0
    for _, read, values, spelling, split, groups, *_ in sources:
        if "row" in read:
            readable += 1
            first_row = first_row or read["row"]
            known.update(read["row"])
            absent.update(name for name in chain(*needed) if get_column(read["row"], name) is MISSING)
        rows.file.append(rows.files.setdefault(read["file"], len(rows.files)))
        rows.line.append(read["line"])
        rows.number.append(read["number"])
        rows.other.append(-1)
        rows.tokens.append(0)
        if classified and spelling is not None:
            rows.spellings[spelling] += 1
        if isinstance(values, Reason):
            rows.state.append(1 + REASONS.index(values.reason))
            rows.target.append(-1)
            rows.ids += bytes(32)
            rows.inputs += bytes(16)
            for hashes in rows.groups:
                hashes.append(0)
            continue
        target = values[names[-1]]
        inputs = {name: values[name] for name in names[:-1]}
        rows.state.append(0)
        rows.target.append(rows.targets.setdefault(target, len(rows.targets)) if classified else -1)
        given = {"split": split} if split else {}
        rows.ids += bytes.fromhex(compute_row_id(values, **given))
        rows.inputs += bytes.fromhex(compute_row_id(inputs, **given))[:16]
        if not rows.groups:
            rows.groups = [array("Q", bytes(8 * (len(rows.state) - 1))) for _ in groups]
        for hashes, group in zip(rows.groups, groups, strict=True):
            hashes.append(xxhash.xxh3_64_intdigest(group.encode()))
    for name in chain(*needed):
        if known and absent[name] == readable:
            where = "corpus or data.target" if name in needed[0] else "split"
            fail(f"no row has the column {name!r}", _tell_columns(name, known, first_row, where), at=path)
    return rows


def _tell_columns(name: str, known: set[str], row: dict[str, Any], where: str) -> str:
    """Return the columns that there are, in nested rows with the names that reach into them."""
    if column := find_conversation(row):
        return f"these rows are conversations: add data: {{conversation: {column}}}, and leave out data.target"
    for key, value in row.items():
        if isinstance(value, list) and value and get_column(value[0], name) is not MISSING:
            return f"the rows are a list under the key {key!r} of a row: save that list as the file"
    names = sorted(known.difference(row)) + list(list_reachable_names(row))
    return f"the columns are {', '.join(names[:20])}: mend {where}"


def _read_texts(
    sources: Iterable[CheckedRow],
    rows: Rows,
    tokenizer: Tokenizer,
    template: Template,
    corpus: dict[str, Any],
    words: LabelWords,
) -> Iterator[str]:
    """Count the tokens of each usable row, set aside what is too long, give what the model will see of the others.

    As the leakage check reads it from the corpus: rows that truncation makes alike are alike.
    """
    limits = {"max_length": corpus["max_length"], "side": corpus["truncation"]}

    def encode(batch: list[CheckedRow]) -> list[list[int]]:
        return tokenizer.encode_batch(
            [
                render_prompt(template, _inputs(source, template))
                + render_completion(template, _target(source, template))
                for source in batch
            ]
        )

    batches = batch_by_size(sources, lambda source: sum(map(len, _inputs(source, template).values())))
    for batch, encoded in pair_ahead(encode, batches):
        for source, ids in zip(batch, encoded, strict=True):
            values, target = _inputs(source, template), _target(source, template)
            rows.tokens[source.number] = len(ids)
            if source.spans and not is_cut_between_tokens(tokenizer, render_prompt(template, values), source.spans):
                rows.state[source.number] = 1 + REASONS.index("conversation")
                continue
            seen: dict[str, str] | None = values
            if len(ids) > corpus["max_length"]:
                reject = corpus["truncation"] == "reject"
                seen = None if reject else shorten_values(tokenizer, template, values, target, **limits)
            if seen is None:
                rows.state[source.number] = 1 + REASONS.index("too_long")
                continue
            if rows.targets:
                words.glance("\n".join(values.values()))
            yield extract_input(template, render_prompt(template, seen))


def _inputs(source: CheckedRow, template: Template) -> dict[str, str]:
    assert not isinstance(source.values, Reason)
    return {name: source.values[name] for name in template["columns"]}


def _target(source: CheckedRow, template: Template) -> str:
    assert not isinstance(source.values, Reason)
    return source.values[template["target"]]


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


def _iterate_kept(
    sources: Iterable[CheckedRow], rows: Rows, clusters: NDArray[np.int64], words: LabelWords, template: Template
) -> Iterator[dict[str, Any]]:
    for source in sources:
        inputs, target = _inputs(source, template), _target(source, template)
        if rows.targets:
            words.count("\n".join(inputs.values()), target)
        yield {
            "id": rows.ids[32 * source.number : 32 * source.number + 32].hex(),
            "file": source.read["file"],
            "line": source.read["line"],
            "number": source.read["number"],
            "values": inputs,
            "target": target,
            "cluster": int(clusters[source.number]),
            **({"split": source.split} if source.split else {}),
            **({"groups": list(source.groups)} if source.groups else {}),
            **({"other_answers": list(source.other_answers)} if source.other_answers else {}),
            **({"spans": list(source.spans)} if source.spans else {}),
        }


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
            return Reason(reason, "a supervised turn begins or ends inside a token")
        case "exact_duplicate":
            return Reason(reason, f"same as {rows.place(other)}")
    return Reason(reason, f"{rows.tokens[source.number]} tokens, corpus.max_length is {max_length}")


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="JSON: task, data, corpus, split")
    arguments.add_argument("--rows", type=Path, required=True, help="rows.jsonl of fetch_data")
    arguments.add_argument("--tokenizer", type=Path, required=True, help="folder of the base model's tokenizer")
    arguments.add_argument("--audit", type=Path, required=True)
    arguments.add_argument("--rejected", type=Path, required=True)
    arguments.add_argument("--kept", type=Path, required=True)
    run(arguments, main)
