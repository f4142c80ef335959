"""The verdict of the audit: whether what is left of the rows is worth a training, and if not, why."""

from collections.abc import Mapping
from typing import Any

from lib.data.labels import format_counts

_MOST_REJECTED = 0.5  # where data.max_rejected is left out
_FEW_ROWS = 3  # rows per class on average up to which the targets look like free answers
_LONGEST = 250  # characters of lines for the configuration: longer ones are told by where they stand


def judge_audit(
    audit: Mapping[str, Any], examples: Mapping[str, str], data: Mapping[str, Any], max_length: int
) -> dict[str, Any]:
    """Return `ok` and the reasons why not. examples: place and detail of the first row set aside for each reason."""
    reasons = [*_judge_losses(audit, examples, data), *_judge_truncation(audit, max_length)]
    spellings = _judge_spellings(audit)
    # What the classes are is only known once the spellings are decided.
    reasons += spellings or (_judge_classes(audit, data["min_rows_per_class"]) if audit["kept"] else [])
    return {"ok": not reasons, "reasons": reasons}


def describe_label_lines(spellings: Mapping[str, Any]) -> str:
    """Say which lines of the configuration join spellings of a label, and which keep them apart."""
    if len(spellings["join"] + spellings["keep"]) > _LONGEST:
        return "the lines for data.labels that join them or keep them apart stand in audit.json under label_spellings"
    return f"under data, {spellings['join']} joins them, {spellings['keep']} keeps them apart"


def _judge_losses(audit: Mapping[str, Any], examples: Mapping[str, str], data: Mapping[str, Any]) -> list[str]:
    """Judge the rows that are set aside: those that say nothing new are no loss, all others are."""
    rows, lost = audit["rows"], audit["rows"] - audit["kept"] - audit["exact_duplicates"]
    if not audit["kept"]:
        return [f"no usable row is left of {rows}: {_why_rejected(audit, examples, data)}"]
    share = data.get("max_rejected")
    if lost <= (_MOST_REJECTED if share is None else share) * rows:
        return []
    allowed = "more than half" if share is None else f"more than data.max_rejected {share:g} allows"
    passes = -(-100 * lost // rows) / 100
    why = _why_rejected(audit, examples, data)
    return [f"{lost:,} of {rows:,} rows are set aside, {allowed}: {why}; data.max_rejected: {passes:g} lets them go"]


def _why_rejected(audit: Mapping[str, Any], examples: Mapping[str, str], data: Mapping[str, Any]) -> str:
    counts = sorted(audit["rejected"].items(), key=lambda item: -item[1])
    told = [f"{count:,} {reason} ({_example(reason, audit, examples, data)})" for reason, count in counts[:3]]
    return ", ".join(told)


def _example(reason: str, audit: Mapping[str, Any], examples: Mapping[str, str], data: Mapping[str, Any]) -> str:
    if reason == "unknown_label" and len(audit["unknown_labels"]) > 1:
        return f"found are {format_counts(dict(list(audit['unknown_labels'].items())[:5]))}"
    example = examples[reason]
    if reason in ("empty_value", "missing_column") and repr(data["target"]) not in example:
        return f"{example}; name it in data.optional_columns if it may be"
    return example


def _judge_truncation(audit: Mapping[str, Any], max_length: int) -> list[str]:
    if not audit["kept"] or audit["tokens"]["truncated"] < audit["kept"]:
        return []
    return [f"every row is cut: all are longer than corpus.max_length {max_length}"]


def _judge_spellings(audit: Mapping[str, Any]) -> list[str]:
    found = audit["label_spellings"] and audit["label_spellings"]["one_label"]
    if not found:
        return []
    groups = [format_counts(group) for group in found["groups"]]
    more = f", and {len(groups) - 3} more such groups" if len(groups) > 3 else ""
    return [f"{'; '.join(f'{group} are one label' for group in groups[:3])}{more}: {describe_label_lines(found)}"]


def _judge_classes(audit: Mapping[str, Any], min_rows: int) -> list[str]:
    classes = audit["classes"]
    if classes is None:
        return []
    reasons = []
    if len([label for label, count in classes.items() if count]) == 1:
        reasons.append(f"only one class: all {audit['kept']} usable rows are {max(classes, key=classes.get)!r}")
    small = {label: count for label, count in classes.items() if count < min_rows}
    if len(small) > 3:
        return [*reasons, _tell_many_classes(classes, small, min_rows)]
    told = (f"class {label!r} has {count} usable rows" for label, count in small.items())
    return [*reasons, *(f"{one}, data.min_rows_per_class is {min_rows}" for one in told)]


def _tell_many_classes(classes: Mapping[str, int], small: Mapping[str, int], min_rows: int) -> str:
    if sum(classes.values()) <= _FEW_ROWS * len(classes):
        least, most = min(classes.values()), max(classes.values())
        rows = f"{least} row{'s' * (least != 1)}" if least == most else f"{least} to {most} rows"
        return f"{len(classes):,} classes of {rows}: did you mean task: generation?"
    label = min(small, key=lambda label: (small[label], label))
    return (
        f"{len(small):,} of {len(classes):,} classes have fewer usable rows than data.min_rows_per_class {min_rows}:"
        f" {label[:40]!r} has {small[label]}"
    )
